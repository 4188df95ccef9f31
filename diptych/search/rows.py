"""The rows of a library: one SQLite file, and the truth about everything else in the folder.

    about       format, model, dimensions, which index file is valid
    vectors     one row for each content: its hash and unit vector. A row never changes, and no
                number is given twice, so an index stays right for every row it knows
    pictures    one row for each picture; pictures of equal content share a vector
    unreadable  pictures that could not be read, with the reason
    fields      names of the extra metadata
    roots       folders that were added, for `update`

Each batch is a transaction, synced to the disk: a killed process loses no committed row.
`nearest.py` finds vectors, `conditions.py` answers --where, `intake.py` fills the rows.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from diptych.errors import DataError, DiptychError, RequestError, StorageError
from diptych.files import refused

FILE = "library.sqlite"
FORMAT = 1
"""Version of the tables; a reader refuses any other."""

APPLICATION = int.from_bytes(b"Dptc", "big")
"""Marks the file as ours (SQLite's application_id)."""

PAGE = 8192
"""Bytes of a page: three vectors of 512 numbers. With SQLite's 4,096 each would fill one alone, and
larger pages are read whole for one vector."""

BLOCK = 4096
"""Rows read at a time."""

SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT UNIQUE, vector BLOB NOT NULL
);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, path TEXT, folder TEXT, name TEXT,
    size_bytes INTEGER, modified_ns INTEGER, width INTEGER, height INTEGER,
    date TEXT, latitude REAL, longitude REAL, camera TEXT,
    caption TEXT NOT NULL, captions TEXT NOT NULL, metadata TEXT NOT NULL,
    vector INTEGER NOT NULL REFERENCES vectors (id)
);
CREATE INDEX pictures_of_vector ON pictures (vector);
CREATE TABLE unreadable (
    key TEXT PRIMARY KEY, size_bytes INTEGER, modified_ns INTEGER, content TEXT,
    reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE fields (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY) WITHOUT ROWID;
"""

PICTURE_COLUMNS = (
    *("key", "path", "folder", "name", "size_bytes", "modified_ns", "width", "height"),
    *("date", "latitude", "longitude", "camera", "caption", "captions", "metadata", "vector"),
)
UPSERT = (
    f"INSERT INTO pictures ({', '.join(PICTURE_COLUMNS)}) "
    f"VALUES ({', '.join(f':{name}' for name in PICTURE_COLUMNS)}) ON CONFLICT (key) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in PICTURE_COLUMNS[1:])
)


class Rows:
    """An open library file. Every error of SQLite becomes one of ours."""

    def __init__(self, folder: Path, wait_s: float) -> None:
        """Open the file of a folder; it appears when `create` is called.

        Args:
            folder: The library.
            wait_s: Seconds to wait for another process that is writing.
        """
        self.folder, self.path, self._wait_s = folder, folder / FILE, wait_s
        with self.speaking():
            self.database = sqlite3.connect(
                self.path, timeout=wait_s, isolation_level=None, check_same_thread=False
            )
            self.database.execute("PRAGMA trusted_schema = OFF")

    def close(self) -> None:
        """Let the file go."""
        self.database.close()

    def create(self, about: Mapping[str, Any]) -> None:
        """Make the tables, all of them or none, unless they are there."""
        with self.speaking():
            self.database.execute(f"PRAGMA page_size = {PAGE}")
            self.database.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if self.is_empty():
                    for statement in SCHEMA.split(";"):
                        self.database.execute(statement)
                    self.database.executemany("INSERT INTO about VALUES (?, ?)", about.items())
                    self.database.execute(f"PRAGMA application_id = {APPLICATION}")
                    self.database.execute(f"PRAGMA user_version = {FORMAT}")

    def is_empty(self) -> bool:
        """Whether there is no table yet, as after a crash in the first instant."""
        with self.speaking():
            return self.value("SELECT count(*) FROM sqlite_master") == 0

    def check(self) -> None:
        """Refuse what is no library of this format.

        Raises:
            RequestError: The database belongs to another program.
            DataError: It is damaged, or of another format.
        """
        with self.speaking():
            if self.value("PRAGMA application_id") != APPLICATION:
                raise RequestError(
                    f"{self.path} is a database of another program. "
                    "Give another --library, such as photos.library."
                )
            version = self.value("PRAGMA user_version")
            if version != FORMAT:
                remedy = "Update diptych" if version > FORMAT else "Build it again"
                raise DataError(
                    f"{self.folder} has format {version}, and this Diptych reads {FORMAT}. "
                    f"{remedy}, or give another --library."
                )
            self.database.execute("PRAGMA synchronous = FULL")

    def value(self, statement: str, *values: Any) -> Any:
        """The first value a statement gives; None if it gives nothing."""
        row = self.database.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def about(self) -> dict[str, Any]:
        """Model, dimensions, index."""
        with self.speaking():
            return dict(self.database.execute("SELECT name, value FROM about"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block, or none."""
        with self.speaking():
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
                raise

    @contextmanager
    def writing(self, wait_s: float | None = None) -> Iterator[None]:
        """Be the only process that writes, until the block ends or the process dies.

        A lock of SQLite on an empty file: it works on every system and leaves with the process.

        Raises:
            StorageError: Another process is writing for longer than the wait.
        """
        with self.speaking():
            wait = self._wait_s if wait_s is None else wait_s
            lock = sqlite3.connect(self.folder / "writer.lock", timeout=wait, isolation_level=None)
            try:
                lock.execute("BEGIN EXCLUSIVE")
                yield
            finally:
                lock.close()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Turn what SQLite says into our words."""
        try:
            yield
        except DiptychError:
            raise
        except UnicodeDecodeError as error:  # SQLite quotes what it read
            raise self.damaged(str(error)) from error
        except sqlite3.Error as error:
            raise self._in_our_words(error) from error

    def _in_our_words(self, error: sqlite3.Error) -> DiptychError:
        """The error that a caller can do something about."""
        kind = getattr(error, "sqlite_errorname", "")
        if kind.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StorageError(
                f"{self.folder} is being written by another process (waited {self._wait_s:g} s). "
                "Let it end, then ask again."
            )
        if kind.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return StorageError(
                f"{self.path} cannot be opened: {error}. Give this user the right to write in "
                f"{self.folder}: SQLite needs it even to read."
            )
        if kind.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return refused(self.path, error)
        return self.damaged(str(error))

    def damaged(self, what: str) -> DataError:
        """What to say of a file that cannot be used."""
        return DataError(
            f"{self.path} is damaged: {what}. Remove {self.folder} and index again; "
            "the pictures themselves are untouched."
        )

    def last(self) -> int:
        """The highest number of a vector; 0 without any."""
        with self.speaking():
            return int(self.value("SELECT max(id) FROM vectors") or 0)

    def vectors_after(
        self, number: int, dimensions: int
    ) -> Iterator[tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows dimensions"]]]:
        """Numbers and vectors above a number, in order, in blocks."""
        while True:
            with self.speaking():
                found = self.database.execute(
                    "SELECT id, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?",
                    (number, BLOCK),
                ).fetchall()
            if not found:
                return
            yield self._matrix(found, dimensions)
            number = found[-1][0]

    def vectors_of(
        self, numbers: Sequence[int], dimensions: int
    ) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows dimensions"]]:
        """Those of these vectors that belong to a picture, in the order of their numbers."""
        with self.speaking():
            found = self.database.execute(
                "SELECT id, vector FROM vectors WHERE id IN (SELECT value FROM json_each(?)) "
                "AND EXISTS (SELECT 1 FROM pictures WHERE pictures.vector = vectors.id) "
                "ORDER BY id",
                (json.dumps(numbers),),
            ).fetchall()
        return self._matrix(found, dimensions)

    def _matrix(
        self, found: list[tuple[int, Any]], dimensions: int
    ) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows dimensions"]]:
        """Rows of numbers and bytes as arrays."""
        try:
            joined = b"".join([vector for _, vector in found])
            vectors = np.frombuffer(joined, np.float32).reshape(len(found), dimensions)
            return np.array([number for number, _ in found], np.int64), vectors
        except (ValueError, TypeError) as error:
            raise self.damaged(f"a vector has not {dimensions} numbers ({error})") from None

    def vector_of(self, key: str, dimensions: int) -> Float[np.ndarray, " dimensions"] | None:
        """The vector of a stored picture, if it is one."""
        with self.speaking():
            number = self.value("SELECT vector FROM pictures WHERE key = ?", key)
        if number is None:
            return None
        return self.vectors_of([number], dimensions)[1][0]

    def is_fresh(self, key: str) -> bool:
        """Whether the file of a stored picture is as it was stored, or not there to be read."""
        with self.speaking():
            stored = self.database.execute(
                "SELECT path, size_bytes, modified_ns FROM pictures WHERE key = ?", (key,)
            ).fetchone()
        if stored is None or stored[0] is None:
            return stored is not None
        try:
            stat = Path(stored[0]).stat()
        except OSError:
            return True
        return (stat.st_size, stat.st_mtime_ns) == stored[1:]

    def insert_vectors(
        self, contents: Sequence[str | None], vectors: Float[np.ndarray, "rows dimensions"]
    ) -> range:
        """Add vectors inside a transaction; their numbers."""
        used = self.value("SELECT seq FROM sqlite_sequence WHERE name = 'vectors'") or 0
        numbers = range(used + 1, used + 1 + len(vectors))
        rows = vectors.astype(np.float32, copy=False)
        self.database.executemany(
            "INSERT INTO vectors (id, content, vector) VALUES (?, ?, ?)",
            zip(numbers, contents, (row.tobytes() for row in rows), strict=True),
        )
        return numbers

    def put_pictures(self, pictures: Iterable[Mapping[str, Any]]) -> None:
        """Add pictures, or replace those of the same key, inside a transaction."""
        self.database.executemany(UPSERT, pictures)

    def put_fields(self, names: Iterable[str]) -> None:
        """Note names of extra metadata, inside a transaction."""
        self.database.executemany(
            "INSERT OR IGNORE INTO fields VALUES (?)", ((name,) for name in names)
        )

    def drop_unused_vectors(self) -> None:
        """Remove the vectors that no picture has any more."""
        with self.transaction():
            self.database.execute(
                "DELETE FROM vectors WHERE id IN (SELECT id FROM vectors "
                "EXCEPT SELECT vector FROM pictures)"
            )


def bare_row(
    key: str,
    captions: Sequence[str],
    metadata: Mapping[str, str | int | float],
    vector: int,
) -> dict[str, Any]:
    """The row of a picture of which nothing more is known."""
    return dict.fromkeys(PICTURE_COLUMNS) | {
        "key": key,
        "caption": "\n".join(captions),
        "captions": as_json(captions),
        "metadata": as_json(metadata),
        "vector": vector,
    }


def as_json(value: Any) -> str:
    """JSON that is the same for the same content."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
