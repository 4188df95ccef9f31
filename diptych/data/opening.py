"""From what a user writes to a source.

DIR                      a folder of pictures, with captions.{csv,jsonl,parquet} or
                         metadata.{csv,jsonl,parquet} for training
FILE or 'GLOB'           parquet files; {a,b}, *, ? and ** are understood without a shell
scenes:shapes[:SPLIT]    generated scenes; SPLIT is train (default), val or test
"""

import glob
import re
from pathlib import Path

from diptych.data.folder import CAPTION_FILES, PictureFolder, caption_file, has_pictures
from diptych.data.scenes_source import SceneSource
from diptych.data.source import Source, SourceOptions, take_part
from diptych.data.table import TableSource
from diptych.errors import RequestError, nearest

SCENES = ("shapes",)
SPLITS = ("train", "val", "test")


def open_source(
    spec: str, options: SourceOptions | None = None, *, captions_needed: bool = True
) -> Source:
    """Open a source.

    Args:
        spec: See the head of this file.
        options: Columns and condition, for tables.
        captions_needed: False lets pictures without captions in (embedding needs none).

    Raises:
        RequestError: Nothing is there, or it is of no known kind.
        DataError: What is there cannot be used.
    """
    options = options or SourceOptions()
    source = _open_whole(spec, options, captions_needed)
    return source if options.part == (0.0, 1.0) else take_part(source, options.part)


def _open_whole(spec: str, options: SourceOptions, captions_needed: bool) -> Source:
    """The source with all its samples."""
    if spec.startswith("scenes:"):
        return _open_scenes(spec, options)
    if "://" in spec:
        raise RequestError(f"{spec} is an address, and nothing is fetched. Download it first.")
    patterns = [spec] if Path(spec).exists() else expand_braces(spec)
    found = [Path(path) for pattern in patterns for path in _expand_glob(pattern)]
    paths = list(dict.fromkeys(found))  # each once, even if two patterns match it
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise RequestError(
            f"there is nothing at {(missing or [spec])[0]}. "
            "Check the path; a pattern needs quotes around it."
        )
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], options, captions_needed)
    wrong = [path for path in paths if path.suffix.lower() != ".parquet"]
    if wrong and wrong[0].name in CAPTION_FILES:
        raise RequestError(
            f"{wrong[0]} is the caption file of a folder. Give the folder: {wrong[0].parent}."
        )
    if wrong:
        raise RequestError(
            f"{wrong[0]} is not a source that can be opened. Use a folder of pictures, "
            ".parquet files, or scenes:shapes."
        )
    return TableSource(paths, options, name=spec, captions_needed=captions_needed)


def _open_folder(folder: Path, options: SourceOptions, captions_needed: bool) -> Source:
    """A folder with a caption file, or, where none is needed, only pictures."""
    table = caption_file(folder)
    if table is not None:
        return TableSource([table], options, name=str(folder), captions_needed=captions_needed)
    parquet = _only_parquet(folder)
    if parquet is not None:
        raise RequestError(
            f"{folder} holds parquet files and no pictures. Give the files: '{parquet}', in quotes."
        )
    if captions_needed:
        raise RequestError(
            f"{folder} has no captions: none of {', '.join(CAPTION_FILES)} is there. "
            "Write captions.csv with the columns image,caption."
        )
    return PictureFolder(folder)


def _only_parquet(folder: Path) -> str | None:
    """The pattern for the parquet files of a folder without pictures; None if it is no such."""
    first = next(folder.rglob("*.parquet"), None)
    if first is None or has_pictures(folder):
        return None
    return str(folder / ("*.parquet" if any(folder.glob("*.parquet")) else "**/*.parquet"))


def _open_scenes(spec: str, options: SourceOptions) -> Source:
    """Generated scenes by name and split."""
    _, name, split = (spec.split(":") + ["train"])[:3]
    if name not in SCENES:
        raise RequestError(f"there are no scenes {name!r}. {nearest(name, SCENES)}")
    if split not in SPLITS or spec.count(":") > 2:
        raise RequestError(f"scenes have no split {split!r}. Use one of {', '.join(SPLITS)}.")
    if options.where or options.image_column or options.text_column:
        raise RequestError(
            f"{spec} is generated and has no columns. "
            "Leave --where, --image-column and --text-column out."
        )
    return SceneSource(split)  # type: ignore[arg-type]


def expand_braces(pattern: str) -> list[str]:
    """Shell braces: "{a,b}.tar" is a.tar and b.tar; "{00..02}" is 00, 01, 02."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if counted:
        first, last = int(counted[1]), int(counted[2])
        choices = [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [whole for choice in choices for whole in expand_braces(head + choice + tail)]


def _expand_glob(pattern: str) -> list[str]:
    """The paths a pattern matches, in order; the pattern itself if it has no wild card."""
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))
