"""A folder of pictures: its picture files, with or without captions.

Where the captions are from is told by the siblings: `side_texts.py` reads a text file beside each
picture, `class_folders.py` takes the names of the folders, and `table.py` reads the caption file,
which is `captions.{csv,tsv,jsonl,parquet}` or `metadata.{csv,tsv,jsonl,parquet}`: a picture's path
relative to the folder in one column and the caption in another.
"""

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from diptych.data.source import Sample
from diptych.files import fingerprint

PICTURE_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif"),
        *(".ppm", ".heic", ".heif"),
    )
)
CAPTION_FILES = tuple(
    f"{stem}.{ending}"
    for stem in ("captions", "metadata")
    for ending in ("csv", "tsv", "jsonl", "parquet")
)


class PictureFolder:
    """Pictures below a folder, in the order of their paths."""

    def __init__(
        self,
        folder: Path,
        pictures: Iterable[tuple[Path, tuple[str, ...]]],
        notes: tuple[str, ...],
        *,
        class_of: dict[Path, str] | None = None,
    ) -> None:
        """Name the pictures.

        Args:
            folder: What the keys are relative to.
            pictures: Path and captions of each.
            notes: See `Source.notes`.
            class_of: The folder that is a picture's class, where folders are classes.
        """
        self.name, self.notes = str(folder), notes
        self._folder, self._class_of = folder, class_of or {}
        self._pictures = list(pictures)
        self.size: int | None = len(self._pictures)
        self.fingerprint = fingerprint(
            *(
                f"{path.relative_to(folder)}:{path.stat().st_size}"
                + (f"\n{captions}" if captions else "")
                for path, captions in self._pictures
            )
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a picture; an empty tuple where there are none."""
        return self._pictures[index][1]

    def sample(self, index: int) -> Sample:
        """A picture's path, and the class of its folder as metadata."""
        path, captions = self._pictures[index]
        metadata = {"class": self._class_of[path]} if path in self._class_of else {}
        return Sample(str(path.relative_to(self._folder)), path, captions, metadata)


def caption_file(folder: Path) -> Path | None:
    """The caption file of a folder, if it has one."""
    for name in CAPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    return None


def pictures_below(folder: Path) -> list[Path]:
    """Every picture below a folder that is not hidden, in the order of their paths.

    Links to folders are followed, after all folders that are none: each folder is seen once.
    """
    pictures: list[Path] = []
    seen: set[Path] = set()
    waiting = deque([folder])
    while waiting:
        below = waiting.popleft()
        if below.resolve() in seen:
            continue
        seen.add(below.resolve())
        for entry in _listed(below):
            path = below / entry.name
            if entry.is_symlink() and path.is_dir():
                waiting.append(path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.appendleft(path)
            elif path.suffix.lower() in PICTURE_ENDINGS and path.is_file():
                pictures.append(path)
    return sorted(pictures)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden; nothing if it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
