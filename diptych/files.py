"""Writing so that nothing is ever half there: a file or a folder appears whole or not at all.

And what reading shares: fingerprints, and JSON files of anyone's.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from diptych.errors import StorageError

LEFT = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>part|aside)", re.DOTALL)
"""What a killed writer leaves: the name it was to have, the number of the process, which half."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; it takes the place of `path` when the block ends well.

    Raises:
        StorageError: The disk refused; nothing is left behind and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; a folder that stands at `path` is replaced.

    A process killed between the two renames leaves the old folder aside, whole; `sweep` puts it
    back.

    Raises:
        StorageError: The disk refused; nothing is left behind and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if path.exists():
            path.replace(aside)
        temporary.replace(path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _settle(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The table that a JSON file of anyone's holds.

    Raises:
        ValueError: Why there is none, in one line: the file cannot be read, is not UTF-8, is no
            JSON, is nested too deeply, or holds something else than a table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 from byte {error.start} on") from error
    except RecursionError as error:
        raise ValueError("its tables are nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a table")
    return content


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to its neighbour `target`, replacing what it was, at once."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.part")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
    except OSError as error:
        raise refused(link, error) from error


def sweep(folder: Path, *names: str) -> None:
    """Remove what a killed process left half-written; put back what it had set aside.

    Args:
        folder: Where to look; folders inside it are left alone.
        names: What the caller writes there, as patterns such as "step-*". Nothing else is touched:
            the folder may hold temporary files of other programs.
    """
    found = [(path, LEFT.fullmatch(path.name)) for path in folder.glob(".*")]
    ours = [
        (path, match)
        for path, match in found
        if match and any(fnmatch(match["name"], name) for name in names)
    ]
    for path, match in ours:
        if match["kind"] == "aside":
            _settle(path, folder / match["name"])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def refused(path: Path, error: Exception) -> StorageError:
    """What the disk said about `path`, in our words."""
    said = getattr(error, "strerror", None) or error
    return StorageError(
        f"{path} cannot be written: {said}. "
        "Free some space or choose another folder; what was there before is untouched."
    )


def fingerprint(*parts: bytes | str) -> str:
    """Sixteen hexadecimal digits of SHA-256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """Sixteen hexadecimal digits of SHA-256 over a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _settle(aside: Path, path: Path) -> None:
    """A folder set aside for a new one is removed if the new one is there, else put back."""
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.replace(path)


def _to_disk(path: Path) -> None:
    """Wait until the file's bytes are on the disk, so that a power cut cannot undo a rename."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
