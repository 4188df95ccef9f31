"""From what a user writes to a source.

DIR                      a folder of pictures with captions.{csv,tsv,jsonl,parquet} or
                         metadata.{csv,tsv,jsonl,parquet}; with a .txt file beside each picture;
                         with a folder for each class; or of WebDataset tars
FILE or 'GLOB'           tables (.csv, .tsv, .jsonl, .parquet) or tars; {a,b}, {00..09}, *, ? and
                         ** are understood without a shell
scenes:shapes[:SPLIT]    generated scenes; SPLIT is train (default), val or test
scenes:changes[:SPLIT]   generated pairs of scenes with what has changed between them;
                         scenes:changes-few is an easier set

Several of these are one source, one after the other; with weights, A@3 and B@1, they are mixed
without end, in the shares of the weights.
"""

import glob
import re
from contextlib import suppress
from pathlib import Path

from diptych.data.change_scenes import SETS
from diptych.data.class_folders import are_classes, class_folders, splits_of
from diptych.data.folder import (
    CAPTION_FILES,
    PICTURE_ENDINGS,
    PictureFolder,
    caption_file,
    pictures_below,
)
from diptych.data.scenes import Split
from diptych.data.scenes_source import ChangeSource, SceneSource
from diptych.data.several import Concatenation, Mixture, weights_of
from diptych.data.side_texts import has_side_texts, side_texts
from diptych.data.source import Source, SourceOptions, take_parts
from diptych.data.table import TableSource
from diptych.data.tars import TarSource
from diptych.errors import DataError, RequestError, nearest

SCENES = ("shapes", *SETS)
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MOST_FILES = 1_000_000
"""Paths that the braces of one pattern may stand for."""
TABLES = (".parquet", ".csv", ".tsv", ".jsonl")


def open_source(
    spec: str | list[str] | tuple[str, ...],
    options: SourceOptions | None = None,
    *,
    captions_needed: bool = True,
    weights_allowed: bool = True,
) -> Source:
    """Open a source, or several as one.

    Args:
        spec: See the head of this file. Each of several is opened with the same options.
        options: Columns and condition, for tables and tars.
        captions_needed: False lets pictures without captions in (embedding needs none).
        weights_allowed: False refuses weights, where every sample is to be taken once.

    Raises:
        RequestError: Nothing is there, or it is of no known kind.
        DataError: What is there cannot be used.
    """
    options = options or SourceOptions()
    specs, weights = weights_of([spec] if isinstance(spec, str) else spec)
    if weights and not weights_allowed:
        raise RequestError(
            f"{specs[0]} has the weight {weights[0]:g}, and weights are for training: here every "
            f"sample is taken once. Write {specs[0]}."
        )
    places = [_place(one) for one in specs]
    twice = [one for one, place in zip(specs, places, strict=True) if places.count(place) > 1]
    if twice or not specs:
        same = f" ({' and '.join(dict.fromkeys(twice))} are one)" if len(set(twice)) > 1 else ""
        raise RequestError(
            f"{twice[0]} is given {len(twice)} times{same}. Give it once, with a weight if it is "
            "to come more often, such as @2."
            if twice
            else "no source is given. Give one, such as scenes:shapes."
        )
    sources = [_open_whole(one, options, captions_needed) for one in specs]
    if options.part != (0.0, 1.0):
        sources = take_parts(sources, options.part)
    if weights:
        return Mixture(sources, weights)
    return sources[0] if len(sources) == 1 else Concatenation(sources)


def _place(spec: str) -> str:
    """The path of what exists, whichever way it is written; another spec as it is."""
    return str(Path(spec).resolve()) if _exists(Path(spec)) else spec


def _exists(path: Path) -> bool:
    """Whether something is there; nothing is at what is too long for a path, or none at all."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def _open_whole(spec: str, options: SourceOptions, captions_needed: bool) -> Source:
    """One source with all its samples."""
    if spec.startswith("scenes:"):
        return _open_scenes(spec, options)
    if "://" in spec:
        raise RequestError(f"{spec} is an address, and nothing is fetched. Download it first.")
    patterns = [spec] if _exists(Path(spec)) else expand_braces(spec)
    found = [Path(path) for pattern in patterns for path in _expand_glob(pattern)]
    paths = list(dict.fromkeys(found))  # each once, even if two patterns match it
    missing = [str(path) for path in paths if not _exists(path)]
    if missing and "::" in spec:
        raise RequestError(f"{spec} is several. Give each a --data of its own, without '::'.")
    if missing or not paths:
        raise RequestError(
            f"there is nothing at {(missing or [spec])[0]}. "
            "Check the path; a pattern needs quotes around it."
        )
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], options, captions_needed)
    endings = {path.suffix.lower() for path in paths}
    if endings <= set(TABLES):
        return TableSource(paths, options, name=spec, captions_needed=captions_needed)
    if endings == {".tar"}:
        return TarSource(paths, options, name=spec, captions_needed=captions_needed)
    raise RequestError(_no_source(paths))


def _no_source(paths: list[Path]) -> str:
    """What to say of files that cannot be opened together, or not at all."""
    wrong = [path for path in paths if path.suffix.lower() not in (*TABLES, ".tar")]
    if not wrong:
        return (
            f"{paths[0]} and {paths[-1]} are a table and a tar. "
            "Give tables and tars with a --data of their own."
        )
    path = wrong[0]
    if path.is_dir():
        return f"{path} is a folder, one of several. Give each folder with a --data of its own."
    if path.suffix.lower() in PICTURE_ENDINGS:
        return f"{path} is a picture. Give its folder: {path.parent}."
    if re.search(r"\.(tar\.\w+|tgz)$", path.name.lower()):
        return f"{path} is a compressed tar, which cannot be read by place. Unpack it to a .tar."
    return (
        f"{path} is not a source that can be opened. Use a folder of pictures, "
        f"{', '.join(TABLES)} or .tar files, or scenes:shapes."
    )


def _open_folder(folder: Path, options: SourceOptions, captions_needed: bool) -> Source:
    """A folder of pictures with captions of some kind, if they are needed, or of tars."""
    table = caption_file(folder)
    if table is not None:
        return TableSource([table], options, name=str(folder), captions_needed=captions_needed)
    pictures = pictures_below(folder)
    if not pictures:
        tars = sorted(folder.glob("*.tar"))
        if not tars:
            raise _no_pictures(folder)
        return TarSource(tars, options, name=str(folder), captions_needed=captions_needed)
    beside = ""
    if any(folder.glob("*.tar")):
        beside = f"the tars beside the pictures are not read: give '{folder / '*.tar'}' for them"
    source = _open_pictures(folder, pictures, options, captions_needed, beside)
    if beside:
        source.notes = (*source.notes, beside)
    return source


def _open_pictures(
    folder: Path, pictures: list[Path], options: SourceOptions, captions_needed: bool, beside: str
) -> PictureFolder:
    """A folder of pictures without a caption file; `beside` tells what else is there."""
    _refuse_columns(str(folder), "has no caption file", options)
    if has_side_texts(pictures):
        return side_texts(folder, pictures, captions_needed=captions_needed)
    if not captions_needed:
        note = f"{folder}: {len(pictures):,} pictures, no captions"
        return PictureFolder(folder, [(picture, ()) for picture in pictures], (note,))
    splits = splits_of(folder, pictures)
    if splits:
        train = next((name for name in splits if name.lower() == "train"), splits[0])
        val = next((name for name in splits if name != train), train)
        raise RequestError(
            f"the class folders of {folder} lie in {', '.join(splits)}, which are no classes. "
            f"Give one of these, such as {folder / train} to train, with --val {folder / val}."
        )
    if are_classes(folder, pictures):
        return class_folders(folder, pictures)
    raise RequestError(
        f"{folder} has no captions: none of {', '.join(CAPTION_FILES)} is there, no picture has "
        f"a .txt file beside it, and {pictures[0].relative_to(folder)} is not in one of several "
        "class folders. Write captions.csv with the columns image,caption."
        + (f" Or mind that {beside}." if beside else "")
    )


def _no_pictures(folder: Path) -> DataError | RequestError:
    """What to say of a folder without pictures: it may hold tables, or tars further down."""
    for ending in (".tar", *TABLES):
        if any(folder.rglob(f"*{ending}")):
            pattern = folder / (f"*{ending}" if any(folder.glob(f"*{ending}")) else f"**/*{ending}")
            return RequestError(
                f"{folder} holds {ending[1:]} files and no pictures. "
                f"Give the files: '{pattern}', in quotes."
            )
    endings = ", ".join(sorted(PICTURE_ENDINGS))
    return DataError(f"{folder} holds no picture ({endings}). Check the path.")


def _refuse_columns(name: str, why: str, options: SourceOptions) -> None:
    """Refuse columns and conditions where there are no columns."""
    if options.where or options.image_column or options.before_column or options.text_column:
        raise RequestError(
            f"{name} {why} and has no columns. Leave --where, --image-column"
            f"{', --before-column' if options.before_column else ''} and --text-column out."
        )


def _open_scenes(spec: str, options: SourceOptions) -> Source:
    """Generated scenes by name and split."""
    _, name, split = (spec.split(":") + ["train"])[:3]
    if name not in SCENES:
        raise RequestError(f"there are no scenes {name!r}. {nearest(name, SCENES)}")
    known = [one for one in SPLITS if one == split]
    if not known or spec.count(":") > 2:
        raise RequestError(f"scenes have no split {split!r}. Use one of {', '.join(SPLITS)}.")
    _refuse_columns(spec, "is generated", options)
    if name in SETS:
        return ChangeSource(known[0], name)
    return SceneSource(known[0])


def expand_braces(pattern: str) -> list[str]:
    """Shell braces: "{a,b}.tar" is a.tar and b.tar; "{00..02}" is 00, 01, 02.

    Raises:
        RequestError: A range runs backwards, or they stand for more than `MOST_FILES` paths.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if counted:
        if len(found[1]) > 40:
            raise _too_many(f"a pattern of {len(pattern):,} letters")
        first, last = int(counted[1]), int(counted[2])
        if last < first:
            raise RequestError(
                f"{{{found[1]}}} in {pattern} runs backwards. Write {{{counted[2]}..{counted[1]}}}."
            )
        if last - first >= MOST_FILES:
            raise _too_many(pattern)
        choices = [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    wholes: list[str] = []
    for choice in choices:
        wholes += expand_braces(head + choice + tail)
        if len(wholes) > MOST_FILES:
            raise _too_many(pattern)
    return wholes


def _too_many(pattern: str) -> RequestError:
    """What to say of braces without measure."""
    return RequestError(
        f"the braces of {pattern} stand for more than {MOST_FILES:,} files. "
        "Write a smaller range, such as {000..099}."
    )


def _expand_glob(pattern: str) -> list[str]:
    """The paths a pattern matches, in order; the pattern itself if it has no wild card."""
    if not glob.has_magic(pattern) or _exists(Path(pattern)):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))
