"""Where everything lies in a tar: read once from its headers, then its bytes are read by place.

Nothing is ever unpacked to disk, so the names of members are only names. Files whose names are
equal up to the first dot belong to one sample, as WebDataset has it: `a/1.jpg` and `a/1.txt` are
the members `jpg` and `txt` of the sample `a/1`. What follows the damage of a cut tar is an error,
or a note if that is asked for.

`tars.py` makes samples of it.
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path

from diptych.errors import DataError

BLOCK = 512
"""Bytes of a header; a tar ends in blocks of zeros."""

Place = tuple[int, int]
"""Where the bytes of a member begin in the tar, and how many they are."""


@dataclass
class TarIndex:
    """The samples of one tar."""

    samples: dict[str, dict[str, Place]] = field(default_factory=dict)
    """Key, then ending in lower case; in the order of the tar."""

    notes: tuple[str, ...] = ()
    """What was left out."""


def read_index(path: Path, *, skip_damaged: bool) -> TarIndex:
    """Read the headers of a tar.

    Args:
        path: An uncompressed tar.
        skip_damaged: Keep what lies before the damage of a damaged tar.

    Raises:
        DataError: The tar is cut or damaged; says where.
    """
    index, left_out = TarIndex(), Counter[str]()
    damage = _walk(path, index, left_out)
    notes = [f"{path.name}: {count:,} {what}" for what, count in left_out.items()]
    if damage is not None:
        if not skip_damaged:
            raise DataError(
                f"{damage}. Fetch the shard again, or add --skip-damaged to continue with what is "
                "before."
            )
        notes.append(f"{damage}; what follows is left out")
    index.notes = tuple(notes)
    return index


@contextmanager
def reading(path: Path) -> Iterator[Callable[[Place], bytes]]:
    """A tar held open, as a function that gives the bytes of a member.

    Raises:
        DataError: The tar is no longer what it was when its headers were read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield partial(_read, file)
    except OSError as error:
        raise DataError(f"shard {path} cannot be read: {error.strerror}. Check it.") from None


def _read(file: FileIO, place: Place) -> bytes:
    """The bytes of a member."""
    start, size = place
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise DataError(
            f"shard {Path(str(file.name)).name} has {len(data):,} of {size:,} bytes at {start:,}: "
            "it has changed since it was opened. Leave shards alone while they are read."
        )
    return data


def _walk(path: Path, index: TarIndex, left_out: Counter[str]) -> str | None:
    """Take up the members of a tar; what is wrong with it, if anything."""
    whole, start, count = path.stat().st_size, -1, 0
    with path.open("rb") as file:
        try:
            tar = tarfile.TarFile(fileobj=file, encoding="utf-8", errors="replace")
            while (member := tar.next()) is not None:
                if member.offset_data <= start or member.size < 0:
                    raise tarfile.ReadError("a header leads back")  # and so round and round
                start, count = member.offset_data, count + 1
                there = whole - start
                if member.isreg() and not member.issparse() and there < member.size:
                    return (
                        f"shard {path.name} ends inside sample {_key(member.name)[0]!r} "
                        f"after {max(0, there):,} of {member.size:,} bytes of its {member.name!r}"
                    )
                _add(member, index, left_out)
        except Exception as error:  # a damaged header makes tarfile raise anything
            if count == 0 and whole:
                return f"shard {path.name} is no tar: {error}"
            return f"shard {path.name} is damaged or cut after {count:,} members: {error}"
        file.seek(tar.offset)
        rest = file.read(BLOCK)
    if len(rest) < BLOCK or any(rest):
        return (
            f"shard {path.name} is damaged or cut after {count:,} members, "
            f"at byte {tar.offset:,} of {whole:,}"
        )
    return None


def _add(member: tarfile.TarInfo, index: TarIndex, left_out: Counter[str]) -> None:
    """Take up one member, or count why not."""
    if member.isdir():
        return
    key, ending = _key(member.name)
    if not member.isreg() or member.issparse():
        left_out["members are links or no plain files, left out"] += 1
    elif not key.rpartition("/")[2]:
        left_out["members have a name that begins with a dot, left out"] += 1
    elif ending in index.samples.setdefault(key, {}):
        left_out["members have the name of an earlier one, which is kept"] += 1
    else:
        index.samples[key][ending] = (member.offset_data, member.size)


def _key(name: str) -> tuple[str, str]:
    """Key of the sample that a member belongs to, and its ending in lower case."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()
