"""What goes into a library: pictures of folders and of sources, each under a key of its own.

A file's key is its absolute path. A picture inside a table has none: its key is the table's path
and its place there, and it counts as the same picture while key and content are the same.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from diptych.data.folder import pictures_below
from diptych.data.opening import open_source
from diptych.data.source import Source
from diptych.errors import DataError, RequestError


@dataclass(frozen=True)
class Item:
    """One picture to be taken in."""

    key: str
    picture: bytes | Path | Image.Image | DataError
    """Encoded bytes, a file, a drawn picture, or why there is none."""

    captions: tuple[str, ...] | None = None
    """None: nothing is said of captions, and what is stored stays."""

    metadata: Mapping[str, str | int | float] | None = None

    @property
    def path(self) -> Path | None:
        """The file, if the picture is one."""
        return self.picture if isinstance(self.picture, Path) else None


def absolute(path: str | Path) -> Path:
    """The path under which a picture or folder is known; a link to a picture is not followed."""
    path = Path(path)
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def is_gone(path: str) -> bool:
    """Whether there is no such file; a disk that refuses to say has not lost it."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def items_of_source(source: Source) -> Iterator[Item]:
    """Every sample of a source.

    Raises:
        RequestError: The source has no end.
    """
    if source.size is None:
        raise RequestError(
            f"{source.name} has no end. Take a split of it, such as scenes:shapes:test."
        )
    name = str(absolute(source.name)) if Path(source.name).exists() else source.name
    for index in range(source.size):
        try:
            sample = source.sample(index)
        except DataError as error:
            yield Item(f"{name}#{index}", error)
            continue
        picture, said = sample.picture, (sample.captions or None, sample.metadata or None)
        if isinstance(picture, Path):
            path = absolute(picture)
            yield Item(str(path), path, *said)
        else:
            yield Item(f"{name}#{sample.key}", picture, *said)


@dataclass(frozen=True)
class Items:
    """Pictures to be taken in, one after the other."""

    total: int
    """How many there are, for a progress line."""

    each: Iterable[Item]


def items_of_folder(folder: Path) -> Items:
    """Every picture below a folder; captions where the folder has them.

    Raises:
        DataError, RequestError: There is nothing in the folder that can be taken.
    """
    files = [absolute(path) for path in pictures_below(folder)]
    source = open_source(str(folder), captions_needed=False, weights_allowed=False)

    def each() -> Iterator[Item]:
        named = set()
        for item in items_of_source(source):
            if item.path:
                named.add(item.path)
            yield item
        yield from (Item(str(path), path) for path in files if path not in named)

    return Items(max(len(files), source.size or 0), each())


def items_of_paths(paths: Sequence[str | Path]) -> Items:
    """Files as they are, and every picture below folders.

    Raises:
        RequestError: There is nothing at a path, or no list was given.
        DataError: A folder holds no picture.
    """
    if isinstance(paths, str | Path):
        raise RequestError(
            f"a library takes a list of paths and was given one: {paths}. Put it in a list."
        )
    found: list[Items] = []
    for given in paths:
        path = absolute(given)
        if path.is_dir():
            found.append(items_of_folder(path))
        elif path.exists():
            found.append(Items(1, [Item(str(path), path)]))
        else:
            raise RequestError(f"there is nothing at {given}. Check the path.")
    return joined(found)


def joined(several: Iterable[Items]) -> Items:
    """One after the other, each key once."""
    several = list(several)

    def each() -> Iterator[Item]:
        keys: set[str] = set()
        for item in chain.from_iterable(items.each for items in several):
            if item.key not in keys:
                keys.add(item.key)
                yield item

    return Items(sum(items.total for items in several), each())


def content_of(picture: bytes | Image.Image) -> str:
    """Thirty-two hexadecimal digits that only the same content has."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()[:32]
    head = f"{picture.mode} {picture.size}".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()[:32]
