"""The tree of deliberate errors. One class per reaction of the caller.

    DiptychError             anything Diptych says on purpose
    ├── RequestError         the request was wrong: change it and ask again (exit code 2)
    │   └── ConfigError      a setting is unknown, or contradicts another
    ├── DataError            pictures, captions or files that cannot be used
    ├── StorageError         the disk refused: full, read-only, or gone
    ├── CheckpointError      a model folder that is damaged, incomplete or of another kind
    └── TrainingError        a run that cannot go on

Messages say what is so, with the value, and then what to do, with a value that works.
The command line prints the message as one line; nothing here imports anything.
"""

import difflib
from collections.abc import Iterable


class DiptychError(Exception):
    """Anything Diptych raises on purpose."""

    exit_code = 1


class RequestError(DiptychError):
    """The request was wrong: change it and ask again."""

    exit_code = 2


class ConfigError(RequestError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(DiptychError):
    """Pictures, captions or files that cannot be used."""


class StorageError(DiptychError):
    """The disk refused: full, read-only, or gone."""


class CheckpointError(DiptychError):
    """A model folder that is damaged, incomplete, or of another kind."""


class TrainingError(DiptychError):
    """A run that cannot go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them.

    Example: `nearest("clip-tinny", ["clip-tiny", "siglip-tiny"])` is "Did you mean 'clip-tiny'?".
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}."
