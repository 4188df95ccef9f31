"""Which stored vectors may be near a query: an index over most of them, and the rest exactly.

The index (usearch: a graph over vectors of 8-bit numbers) is derived data. The rows say which
file is valid and up to which vector it knows; a file that is missing, damaged or of another
history is not used and a new one is made. Vectors after that one, the tail, are held in memory and
compared one by one, so that what was just added is found. When the tail grows long, the index
takes it in.

What comes out are candidates; `library.py` ranks them by the stored vectors.
"""

import json
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from usearch.index import Index

from diptych.errors import StorageError
from diptych.files import file_fingerprint, sweep, whole_file
from diptych.search.rows import Rows

CONNECTIVITY = 20
"""Links of a vector in the graph."""

EXPANSION_ADD = 128
"""Candidates looked at while a vector is added: quality of the graph against time to build."""

ALONE = 2048
"""Vectors that one thread takes into an empty index before others help: what several threads link
at once in a graph that is almost empty may be out of every search's reach."""

EXPANSION_SEARCH = 320
"""Candidates looked at in a search, at least: recall against time."""

TAIL_ROWS = 4096
"""Vectors compared one by one; a library of no more needs no index."""

TAIL_SHARE = 0.02
"""Of a large index, this share may wait in the tail."""

DEAD_SHARE = 0.25
"""When more of the index are vectors that were removed, it is built anew."""

FILE_NAME = re.compile(r"index-\d+-[0-9a-f]{8}\.usearch")


class Nearest:
    """The index and the tail of an open library, as up to date as its last `refresh`."""

    def __init__(self, rows: Rows, dimensions: int) -> None:
        self._rows, self._dimensions = rows, dimensions
        self._index: Index | None = None
        self._file = ""
        """The file the index was read from; empty if it was made in memory."""
        self._known = 0
        """Vectors up to this number are in the index."""
        self._tail_numbers = np.zeros(0, np.int64)
        self._tail = np.zeros((0, dimensions), np.float32)

    @property
    def indexed(self) -> int:
        """Vectors in the index."""
        return 0 if self._index is None else len(self._index)

    @property
    def size(self) -> int:
        """Vectors that a search looks at."""
        return self.indexed + len(self._tail)

    def refresh(self) -> bool:
        """See what was committed since; True if the tail is so long that `catch_up` should run."""
        record = self._record()
        if self._is_news(record) and not self._read(record):
            again = self._record()  # a writer may have put another file in its place
            if again != record and self._is_news(again):
                self._read(again)
        last = self._rows.last()
        seen = int(self._tail_numbers[-1]) if len(self._tail) else self._known
        if last > seen:
            blocks = list(self._rows.vectors_after(seen, self._dimensions))
            self._tail_numbers = np.concatenate([self._tail_numbers, *(one for one, _ in blocks)])
            self._tail = np.concatenate([self._tail, *(block for _, block in blocks)])
        return len(self._tail) > max(TAIL_ROWS, TAIL_SHARE * self.indexed)

    def candidates(
        self, query: Float[np.ndarray, " dimensions"], wanted: int
    ) -> Int64[np.ndarray, " candidates"]:
        """Numbers of vectors near a query: up to `wanted` of the index and of the tail."""
        found = np.zeros(0, np.int64)
        if self._index is not None:
            self._index.expansion_search = max(EXPANSION_SEARCH, wanted)  # type: ignore[misc]
            matches = self._index.search(query, min(wanted, len(self._index)), threads=1)
            found = np.asarray(matches.keys).astype(np.int64)
        scores = self._tail @ query
        if len(scores) > wanted:
            best = np.argpartition(-scores, wanted)[:wanted]
        else:
            best = np.arange(len(scores))
        return np.concatenate([found, self._tail_numbers[best]])

    def catch_up(self, *, threads: int = 0) -> None:
        """Take the tail into the index and write its file; the caller holds the writer's lock.

        Args:
            threads: Cores to use; 0 for all.

        Raises:
            StorageError: The disk refused. The index is complete in memory.
        """
        self.extend(threads=threads)
        if self._index is None or self._file:
            return
        name = f"index-{self._known}-{secrets.token_hex(4)}.usearch"
        with whole_file(self._rows.folder / name) as temporary:
            try:
                self._index.save(temporary)
            except RuntimeError as error:  # usearch says so when a disk is full
                raise OSError(str(error)) from error
        mark = file_fingerprint(self._rows.folder / name)
        record = {
            "file": name,
            "last": self._known,
            "count": self.indexed,
            "fingerprint": mark,
        }
        with self._rows.transaction():
            self._rows.database.execute(
                "INSERT OR REPLACE INTO about VALUES ('index', ?)", (json.dumps(record),)
            )
        self._file = name
        sweep(self._rows.folder, "index-*")
        for path in self._rows.folder.glob("index-*.usearch"):
            if path.name != name:
                with suppress(OSError):  # Windows keeps a file that another process reads
                    path.unlink()

    def extend(self, *, threads: int = 0) -> None:
        """Take every vector into the index, in memory."""
        self.refresh()
        alive = self._alive()
        if self._index is None or self.indexed - alive > DEAD_SHARE * self.indexed:
            self._index, self._file, self._known = self._empty(), "", 0
        elif not len(self._tail):
            return
        elif self._file:  # what was read is a view of the file, which stays as it is
            self._index = self._restored(self._rows.folder / self._file, self.indexed)
            if self._index is None:  # another process has put a new file in its place
                self._index, self._known = self._empty(), 0
            self._index.expansion_add = EXPANSION_ADD  # type: ignore[misc]  # no part of the file
            self._file = ""
        for numbers, vectors in self._rows.vectors_after(self._known, self._dimensions):
            alone = max(0, ALONE - len(self._index))
            for part, cores in ((slice(alone), 1), (slice(alone, None), threads)):
                if len(numbers[part]):
                    self._index.add(numbers[part].astype(np.uint64), vectors[part], threads=cores)
            self._known = int(numbers[-1])
        self._tail_numbers, self._tail = self._tail_numbers[:0], self._tail[:0]

    def _alive(self) -> int:
        """Vectors of the index that are still stored."""
        with self._rows.speaking():
            return int(self._rows.value("SELECT count(*) FROM vectors WHERE id <= ?", self._known))

    def _empty(self) -> Index:
        """An index without vectors."""
        return Index(
            ndim=self._dimensions,
            metric="ip",  # the same order as the cosine, and quicker: unit vectors
            dtype="i8",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION_SEARCH,
        )

    def _record(self) -> dict[str, Any]:
        """What the rows say of the index file; empty if there is none."""
        with self._rows.speaking():
            text = self._rows.value("SELECT value FROM about WHERE name = 'index'")
        try:
            record = json.loads(text or "{}")
            numbers = (record["last"], record["count"])
            sound = FILE_NAME.fullmatch(record["file"]) and all(type(n) is int for n in numbers)
        except (ValueError, KeyError, TypeError):
            return {}
        return record if sound else {}

    def _is_news(self, record: dict[str, Any]) -> bool:
        """Whether the rows mean another file than the one that was read, which knows no less."""
        return bool(record) and record["file"] != self._file and record["last"] >= self._known

    def _read(self, record: dict[str, Any]) -> bool:
        """Take the index from its file, if that is whole and the one the rows mean.

        usearch follows the links in the file without checking them, so only the very bytes that
        were written may reach it.
        """
        path: Path = self._rows.folder / record["file"]
        with suppress(OSError, RuntimeError, ValueError, StorageError):
            if file_fingerprint(path) != record.get("fingerprint"):
                return False
            index = self._restored(path, record["count"], view=True)
            if index is None:
                return False
            self._index, self._file, self._known = index, path.name, record["last"]
            kept = self._tail_numbers > self._known
            self._tail_numbers, self._tail = self._tail_numbers[kept], self._tail[kept]
            return True
        return False

    def _restored(self, path: Path, count: int, *, view: bool = False) -> Index | None:
        """The index of a file; None if the file is gone or holds other vectors than it should."""
        with suppress(OSError, RuntimeError, ValueError):
            index = Index.restore(path, view=view)
            if index is not None and index.ndim == self._dimensions and len(index) == count:
                return index
        return None
