"""Taking pictures into a library: what is new is embedded, what is known is not.

For each picture: a file whose size and time are as stored is left alone. Otherwise its content is
hashed; a content that is stored already keeps its vector, and where its old file is gone, the
picture has moved. Only what is left is decoded, in threads, and encoded. Every chunk is one
transaction.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.folder import caption_file
from diptych.data.photo_facts import PhotoFacts, photo_facts
from diptych.data.prepared import prepared
from diptych.errors import DataError
from diptych.search.embedder import Embedder
from diptych.search.items import Item, content_of, is_gone
from diptych.search.rows import Rows, as_json, bare_row

CHUNK = 64
"""Pictures encoded, and committed, at a time."""


@dataclass
class Changes:
    """What was done to a library."""

    added: int = 0
    updated: int = 0
    """Pictures whose content, captions or metadata changed."""

    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    """Pictures dropped because their files are gone."""

    gone: int = 0
    """Pictures kept although their files are gone."""

    embedded: int = 0
    """Pictures the model encoded; the others were known by their content."""

    unreadable: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read, now or before, with the reason."""

    seconds: float = 0.0

    def __add__(self, other: "Changes") -> "Changes":
        """Both together."""
        both = {
            item.name: getattr(self, item.name) | getattr(other, item.name)
            if item.name == "unreadable"
            else getattr(self, item.name) + getattr(other, item.name)
            for item in fields(self)
        }
        return Changes(**both)


@dataclass(frozen=True)
class _Ready:
    """An item after the threads have looked at it."""

    content: str | None = None
    pixels: np.ndarray | None = None
    """None where the content is known."""

    facts: PhotoFacts | None = None
    size_bytes: int | None = None
    modified_ns: int | None = None
    reason: str = ""
    """Why the picture cannot be read."""

    passing: bool = False
    """Whether the disk refused, which says nothing of the picture: it is tried again next time."""


class Intake:
    """One go of taking items in; the caller holds the writer's lock."""

    def __init__(self, rows: Rows, model: Embedder) -> None:
        self.changes = Changes()
        self._rows, self._model = rows, model
        with rows.speaking():
            select = rows.database.execute
            found = select("SELECT content, id FROM vectors WHERE content IS NOT NULL")
            self._vector_of: dict[str, int] = dict(found)
            found = select("SELECT content, reason FROM unreadable WHERE content IS NOT NULL")
            self._bad: dict[str, str] = dict(found)

    def take(self, items: Iterable[Item], progress: Callable[[int], None]) -> None:
        """Take every item in.

        Args:
            items: Pictures.
            progress: Called with the number of items taken up.

        Raises:
            StorageError: The disk refused; what was committed before stays.
        """
        started, seen = time.perf_counter(), 0

        def changed() -> Iterator[Item]:
            nonlocal seen
            for item in items:
                seen += 1
                if not self._is_as_stored(item):
                    yield item

        for part in prepared(changed(), self._look, CHUNK):
            self._commit([(item, ready) for item, ready in part if isinstance(ready, _Ready)])
            progress(seen)
        progress(seen)
        self.changes.seconds = time.perf_counter() - started

    def _is_as_stored(self, item: Item) -> bool:
        """Whether a file has the size and time it had when it was stored or found unreadable."""
        if item.path is None:
            return False
        try:
            stat = item.path.stat()
            stored = self._stored(item.key)
            mark = (stat.st_size, stat.st_mtime_ns)
            if stored and (stored["size_bytes"], stored["modified_ns"]) == mark:
                same = self._says_the_same(item, stored)
                self.changes.unchanged += same
                return same
            with self._rows.speaking():
                bad = self._rows.database.execute(
                    "SELECT reason, size_bytes, modified_ns FROM unreadable WHERE key = ?",
                    (item.key,),
                ).fetchone()
        except FileNotFoundError:  # if it is stored, it moved or is gone: upkeep.py sees to that
            return self._stored(item.key) is not None
        except (OSError, UnicodeEncodeError):  # said when it is looked at
            return False
        if bad and bad[1:] == mark:
            self.changes.unreadable[item.key] = bad[0]
            return True
        return False

    def _stored(self, key: str) -> dict[str, Any] | None:
        """The row of a picture, with its content."""
        with self._rows.speaking():
            found = self._rows.database.execute(
                "SELECT pictures.*, vectors.content FROM pictures "
                "JOIN vectors ON vectors.id = pictures.vector WHERE key = ?",
                (key,),
            )
            row = found.fetchone()
        if row is None:
            return None
        return dict(zip((column[0] for column in found.description), row, strict=True))

    def _says_the_same(self, item: Item, stored: dict[str, Any]) -> bool:
        """Whether the item brings no captions or metadata but those that are stored."""
        return (item.captions is None or as_json(item.captions) == stored["captions"]) and (
            item.metadata is None or as_json(item.metadata) == stored["metadata"]
        )

    def _look(self, item: Item) -> _Ready:
        """Hash a picture and decode it if its content is new; runs in threads."""
        content, size, modified = None, None, None
        try:
            item.key.encode()
            if isinstance(item.picture, DataError):
                raise item.picture
            picture = item.picture
            if isinstance(picture, Path):
                stat = picture.stat()
                size, modified = stat.st_size, stat.st_mtime_ns
                picture = picture.read_bytes()  # once: the file may be replaced meanwhile
            elif isinstance(picture, bytes):
                size = len(picture)
            content = content_of(picture)
            if content in self._bad:
                return _Ready(content, None, None, size, modified, self._bad[content])
            known = content in self._vector_of
            pixels = None if known else self._model.prepare(picture)
            facts = photo_facts(picture)
        except (DataError, OSError, UnicodeEncodeError) as error:
            passing = isinstance(error, OSError) and content is None
            reason = _refusal(item, error) if passing else _reason(error)
            return _Ready(content, None, None, size, modified, reason, passing)
        return _Ready(content, pixels, facts, size, modified)

    def _commit(self, looked: list[tuple[Item, _Ready]]) -> None:
        """Encode what is new and write all of it, or nothing."""
        new: dict[str, np.ndarray] = {}
        for _, ready in looked:
            if ready.content and ready.pixels is not None and ready.content not in self._vector_of:
                new.setdefault(ready.content, ready.pixels)
        vectors = self._model.encode_prepared(np.stack(list(new.values()))) if new else None
        with self._rows.transaction():
            if vectors is not None:
                numbers = self._rows.insert_vectors(list(new), vectors)
                self._vector_of |= dict(zip(new, numbers, strict=True))
            for item, ready in looked:
                if ready.passing:
                    self.changes.unreadable[item.key] = ready.reason
                elif ready.reason:
                    self._write_unreadable(item, ready)
                else:
                    self._write(item, ready)
        self.changes.embedded += len(new)

    def _write_unreadable(self, item: Item, ready: _Ready) -> None:
        """Remember that a picture cannot be read, instead of what it was before."""
        key = item.key.encode("utf-8", "backslashreplace").decode()
        execute = self._rows.database.execute
        execute("DELETE FROM pictures WHERE key = ?", (key,))
        execute(
            "INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?, ?, ?)",
            (key, ready.size_bytes, ready.modified_ns, ready.content, ready.reason),
        )
        self.changes.unreadable[key] = ready.reason
        if ready.content:
            self._bad[ready.content] = ready.reason

    def _write(self, item: Item, ready: _Ready) -> None:
        """One picture: added, moved, updated, or found unchanged."""
        vector = self._vector_of[ready.content or ""]
        stored = self._stored(item.key)
        kept = stored
        if stored is None:
            kept = self._moved_from(item, vector)
            if kept is None:
                self.changes.added += 1
            else:
                self._rows.database.execute("DELETE FROM pictures WHERE id = ?", (kept["id"],))
                self.changes.moved += 1
        elif stored["vector"] != vector:
            kept = None  # the captions belonged to what was there before
            self.changes.updated += 1
        elif self._says_the_same(item, stored):
            self.changes.unchanged += 1
        else:
            self.changes.updated += 1
        row = _row(item, ready, vector)
        if kept is not None and item.captions is None:
            row |= {"caption": kept["caption"], "captions": kept["captions"]}
        if kept is not None and item.metadata is None:
            row["metadata"] = kept["metadata"]
        self._rows.put_pictures([row])
        self._rows.put_fields(item.metadata or ())
        self._rows.database.execute("DELETE FROM unreadable WHERE key = ?", (item.key,))

    def _moved_from(self, item: Item, vector: int) -> dict[str, Any] | None:
        """A stored picture of the same content whose file is gone, if this item is a file."""
        if item.path is None:
            return None
        twins = self._rows.database.execute(
            "SELECT key FROM pictures WHERE vector = ? AND path IS NOT NULL ORDER BY id", (vector,)
        ).fetchall()
        gone = next((key for (key,) in twins if is_gone(key)), None)
        return None if gone is None else self._stored(gone)


def _reason(error: Exception) -> str:
    """Why a picture cannot be used."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8. Rename it."
    return str(error)


def _refusal(item: Item, error: Exception) -> str:
    """Why the disk did not give a file."""
    if item.path and isinstance(error, FileNotFoundError):
        named = next(filter(None, map(caption_file, item.path.parents)), None)
        if named is None:
            return "the file is not there. Check the path."
        return f"the file is not there, and {named} names it. Correct that line, or put it back."
    said = getattr(error, "strerror", None) or error
    return f"it cannot be read now: {said}. What is stored of it stays; index again to try again."


def _row(item: Item, ready: _Ready, vector: int) -> dict[str, Any]:
    """The row of a picture."""
    row = bare_row(item.key, item.captions or (), item.metadata or {}, vector)
    if item.path:
        row |= {"path": item.key, "folder": str(item.path.parent), "name": item.path.name}
    facts = asdict(ready.facts) if ready.facts else {}
    return row | facts | {"size_bytes": ready.size_bytes, "modified_ns": ready.modified_ns}
