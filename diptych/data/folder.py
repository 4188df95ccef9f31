"""A folder of pictures, with or without a file of captions beside them.

The caption file is `captions.{csv,jsonl,parquet}` or `metadata.{csv,jsonl,parquet}`: one row per
caption, a picture's path relative to the folder in one column and the caption in another.
"""

from collections.abc import Iterator
from pathlib import Path

from diptych.data.source import Sample
from diptych.errors import DataError
from diptych.files import fingerprint

PICTURE_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif", ".ppm")
)
CAPTION_FILES = tuple(
    f"{stem}.{ending}"
    for stem in ("captions", "metadata")
    for ending in ("csv", "jsonl", "parquet")
)


def caption_file(folder: Path) -> Path | None:
    """The caption file of a folder, if it has one."""
    for name in CAPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    return None


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture anywhere below a folder."""
    return any(True for _ in _pictures(folder))


class PictureFolder:
    """Every picture below a folder, in the order of their paths; no captions."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._paths = sorted(_pictures(folder))
        if not self._paths:
            raise DataError(
                f"{folder} holds no picture ({', '.join(sorted(PICTURE_ENDINGS))}). Check the path."
            )
        self.size: int | None = len(self._paths)
        self.notes: tuple[str, ...] = (f"{folder}: {self.size:,} pictures, no captions",)
        self.fingerprint = fingerprint(
            *(f"{path.relative_to(folder)}:{path.stat().st_size}" for path in self._paths)
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Always empty."""
        return ()

    def sample(self, index: int) -> Sample:
        """A picture's path."""
        path = self._paths[index]
        return Sample(str(path.relative_to(self._folder)), path, ())


def _pictures(folder: Path) -> Iterator[Path]:
    """Every picture below a folder that is not hidden, in no order."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PICTURE_ENDINGS and path.is_file() and not hidden:
            yield path
