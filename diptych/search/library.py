"""A library: pictures on disk that can be found by words, by a picture, and by metadata.

    library = Library.open("photos.library", model=model)
    library.add(["photos/"])
    library.search("a red bicycle", count=10, where="date >= '2020'")

    library.sqlite    the rows: the truth (rows.py)
    index-….usearch   derived from them; made anew whenever it is missing or damaged (nearest.py)
    writer.lock       empty; held by the one process that writes

One process writes at a time, and any number read meanwhile. Threads that share a Library take
turns; a server opens one for each reader.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import RLock
from types import TracebackType

import numpy as np
from jaxtyping import Float
from PIL import Image

from diptych.data.source import Source
from diptych.errors import RequestError, StorageError
from diptych.files import refused
from diptych.search.conditions import pictures_where
from diptych.search.embedder import Embedder
from diptych.search.hit import Hit
from diptych.search.intake import Changes, Intake
from diptych.search.items import Items, absolute, items_of_paths, items_of_source
from diptych.search.nearest import Nearest
from diptych.search.queries import as_query, hits_of, nearest_of
from diptych.search.rows import BLOCK, FILE, Rows, bare_row
from diptych.search.upkeep import below, drop_gone, items_to_update, remember

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """Show no progress."""


class Library:
    """An open library. Use `Library.open`."""

    def __init__(self, rows: Rows, model: Embedder | None) -> None:
        self.path = rows.folder
        self.model: Embedder | None = None
        self._rows, self._lock = rows, RLock()
        about = rows.about()
        try:
            self.model_path = Path(about["model"])
            """Where the model was that made the vectors."""
            self.model_fingerprint = str(about["model_fingerprint"])
            self.dimensions = int(about["dimensions"])
        except (KeyError, ValueError, TypeError) as error:
            raise rows.damaged(f"its table about has no sound {error}") from None
        if model is not None:
            self.use_model(model)
        self._near = Nearest(rows, self.dimensions)

    @classmethod
    def open(
        cls, path: str | Path, *, model: Embedder | None = None, wait_s: float = 10.0
    ) -> "Library":
        """Open a library, or make an empty one.

        Args:
            path: Its folder.
            model: What made its vectors, and makes them now. None opens an existing library for
                everything but encoding.
            wait_s: Seconds to wait for another process that is writing.

        Raises:
            RequestError: The path is something else than a library, the library was made by
                another model, or there is none and no model to make it.
            DataError: The library is damaged or of another format.
            StorageError: The disk refused.
        """
        folder = Path(path)
        _check_folder(folder, model)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refused(folder, error) from error
        rows = Rows(folder, wait_s)
        try:
            if rows.is_empty():
                if model is None:
                    raise _no_library(folder)
                rows.create(
                    {
                        "model": str(model.path.resolve()),
                        "model_fingerprint": model.fingerprint,
                        "dimensions": model.embed,
                    }
                )
            rows.check()
            return cls(rows, model)
        except BaseException:
            rows.close()
            raise

    def use_model(self, model: Embedder) -> None:
        """Encode with this model from now on.

        Raises:
            RequestError: The library was made by another model.
        """
        if model.fingerprint != self.model_fingerprint:
            remedy = "Give that model with --model, or build"
            if not self.model_path.exists():
                remedy = "That model is no longer there: build"
            raise RequestError(
                f"{self.path} was made by the model {self.model_fingerprint} ({self.model_path}), "
                f"and {model.path} is {model.fingerprint}. {remedy} a new library: "
                "diptych index MODEL DIR --library NEW."
            )
        self.model = model

    def close(self) -> None:
        """Let the files go; what was committed is on the disk already."""
        self._rows.close()

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Pictures in the library."""
        with self._lock, self._rows.speaking():
            return int(self._rows.value("SELECT count(*) FROM pictures"))

    @property
    def unreadable(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason; not tried again until they change."""
        with self._lock, self._rows.speaking():
            return dict(self._rows.database.execute("SELECT key, reason FROM unreadable"))

    @property
    def roots(self) -> list[Path]:
        """Folders that `update` looks through."""
        with self._lock, self._rows.speaking():
            found = self._rows.database.execute("SELECT path FROM roots ORDER BY path").fetchall()
        return [Path(path) for (path,) in found]

    @property
    def waiting(self) -> int:
        """Pictures that the next search takes into the index first, at about 3,000 a second."""
        with self._lock:
            return self._near.size - self._near.indexed if self._near.refresh() else 0

    def add(
        self,
        paths: Sequence[str | Path],
        *,
        prune: bool = False,
        retry: bool = False,
        progress: Progress = _silent,
    ) -> Changes:
        """Take in files and every picture below folders, with the captions the folders have.

        Args:
            paths: Files and folders; `update` looks through the folders again.
            prune: Drop the pictures of these folders whose files are gone. Otherwise they stay
                and are counted.
            retry: Try pictures again that could not be read and have not changed since.
            progress: Called with pictures done and in all.

        Raises:
            RequestError: The library was opened without a model, or a path leads nowhere.
            DataError: A folder holds no picture.
            StorageError: The disk refused, or another process is writing.
        """
        items = items_of_paths(paths)
        folders = [path for path in map(absolute, paths) if path.is_dir()]
        return self._take(
            items, folders, new_roots=folders, prune=prune, retry=retry, progress=progress
        )

    def add_source(
        self, source: Source, *, retry: bool = False, progress: Progress = _silent
    ) -> Changes:
        """Take in every sample of a source, with captions and metadata.

        Pictures inside tables have no path, and `update` does not look for them.

        Raises:
            RequestError: The source has no end, or the library was opened without a model.
            StorageError: The disk refused, or another process is writing.
        """
        items = Items(source.size or 0, items_of_source(source))
        return self._take(items, [], retry=retry, progress=progress)

    def add_vectors(
        self,
        keys: Sequence[str],
        vectors: Float[np.ndarray, "rows dimensions"],
        captions: Sequence[Sequence[str]] | None = None,
        metadata: Sequence[Mapping[str, str | int | float]] | None = None,
        *,
        threads: int = 0,
    ) -> Changes:
        """Take in vectors that were made elsewhere, by the same model.

        Args:
            keys: Names of the pictures; what is stored under the same name is replaced.
            vectors: Unit vectors.
            captions: Captions of each picture.
            metadata: What else is known of each picture.
            threads: Cores that bring the index up to date; 0 for all.

        Raises:
            RequestError: The lists differ in length, a key is given twice, the metadata are more
                than text and numbers, or the vectors are of another size or not of unit norm.
            StorageError: The disk refused, or another process is writing.
        """
        _check_vectors(keys, vectors, self.dimensions, captions, metadata)
        captions = captions if captions is not None else [()] * len(keys)
        extra = metadata if metadata is not None else [{}] * len(keys)
        with self._lock, self._rows.writing():
            before = len(self)
            for start in range(0, len(keys), BLOCK):
                part = slice(start, start + BLOCK)
                with self._rows.transaction():
                    none = [None] * len(keys[part])
                    numbers = self._rows.insert_vectors(none, vectors[part])
                    rows = zip(keys[part], captions[part], extra[part], numbers, strict=True)
                    self._rows.put_pictures(bare_row(*row) for row in rows)
                    self._rows.put_fields({name for one in extra[part] for name in one})
            added = len(self) - before
            changes = Changes(added=added, updated=len(keys) - added)
            self._finish(changes, threads=threads)
        return changes

    def update(
        self, *, prune: bool = True, retry: bool = False, progress: Progress = _silent
    ) -> Changes:
        """Look again at every folder and file that was added: take in what is new or changed,
        and drop what is gone.

        A folder that is missing or empty, such as a drive that is not there, loses nothing: its
        pictures are counted as gone.

        Raises:
            RequestError: The library was opened without a model.
            StorageError: The disk refused, or another process is writing.
        """
        with self._lock:
            items, folders = items_to_update(self._rows, self.roots)
            return self._take(items, folders, prune=prune, retry=retry, progress=progress)

    def remove(self, paths: Iterable[str | Path]) -> int:
        """Drop pictures by path or key, and all below folders; the files stay where they are.

        Returns:
            Pictures dropped.

        Raises:
            RequestError: A path is not in the library; then nothing is dropped.
            StorageError: The disk refused, or another process is writing.
        """
        if isinstance(paths, str | Path):
            raise RequestError(f"remove takes a list of paths, not {paths}. Put it in a list.")
        changes = Changes()
        with self._lock, self._rows.writing():
            with self._rows.transaction():
                for path in paths:
                    changes.removed += self._remove_one(path)
            self._finish(changes)
        return changes.removed

    def search(
        self,
        text: str | None = None,
        count: int = 10,
        *,
        where: str | None = None,
        image: str | Path | bytes | Image.Image | np.ndarray | None = None,
        text_weight: float = 0.5,
    ) -> list[Hit]:
        """The pictures nearest to words, to a picture, or to both, best first.

        With both, the query is the mean of their unit vectors, weighted and brought to unit norm.
        With `where`, every picture that the condition keeps is compared; without, a library of
        more than a few thousand pictures is searched through its index.

        Args:
            text: Words.
            count: How many to give; fewer if there are fewer.
            where: SQL condition over path, folder, name, date, latitude, longitude, width, height,
                size_bytes, camera, caption and the extra metadata.
            image: A picture, or the path or key of a stored one, which is not encoded again.
            text_weight: Share of the words in a query of both, in [0, 1].

        Raises:
            RequestError: Nothing is asked for, the condition cannot be used, or the library was
                opened without a model and the query has to be encoded.
            DataError: The picture cannot be read, or the library is damaged.
        """
        if count < 1:
            raise RequestError(
                f"{count} pictures cannot be given. Ask for 1 or more, such as -k 10."
            )
        with self._lock:
            query = as_query(self._rows, self.model, self.dimensions, text, image, text_weight)
            if where is not None:
                kept = pictures_where(self._rows, where)
                numbers = sorted(set(kept.values()))
                ranked = nearest_of(self._rows, query, numbers, count)
                return hits_of(self._rows, ranked, count, kept)
            if self._near.refresh():
                self._catch_up()
            wanted = max(32, 2 * count)
            while True:
                numbers = self._near.candidates(query, wanted).tolist()
                ranked = nearest_of(self._rows, query, numbers, count)
                if len(ranked) >= count or wanted >= self._near.size:
                    return hits_of(self._rows, ranked, count)
                wanted *= 4

    def rebuild_index(self, *, threads: int = 0) -> None:
        """Make the index anew from the rows. It is never needed: a search does it where it is."""
        with self._lock, self._rows.writing():
            self._near = Nearest(self._rows, self.dimensions)
            with self._rows.transaction():
                self._rows.database.execute("DELETE FROM about WHERE name = 'index'")
            self._near.catch_up(threads=threads)

    def _take(
        self,
        items: Items,
        folders: list[Path],
        *,
        new_roots: Sequence[Path] = (),
        prune: bool = False,
        retry: bool = False,
        progress: Progress = _silent,
    ) -> Changes:
        """Take items in, and look for what is gone below folders."""
        if self.model is None:
            raise RequestError(
                f"{self.path} was opened without a model, and pictures have to be encoded. "
                f"Open it with model=diptych.load({str(self.model_path)!r})."
            )
        with self._lock, self._rows.writing():
            with self._rows.transaction():
                remember(self._rows, self.model, new_roots)
                if retry:
                    self._rows.database.execute("DELETE FROM unreadable")
            intake = Intake(self._rows, self.model)
            intake.take(items.each, lambda done: progress(done, max(done, items.total)))
            drop_gone(self._rows, folders, intake.changes, prune=prune)
            self._finish(intake.changes)
        return intake.changes

    def _finish(self, changes: Changes, *, threads: int = 0) -> None:
        """After the rows: no vectors without a picture, and an index that is nearly complete."""
        if changes.updated or changes.removed or changes.unreadable:
            self._rows.drop_unused_vectors()
        if self._near.refresh():
            self._near.catch_up(threads=threads)

    def _catch_up(self) -> None:
        """Bring the index up to date before a search, on the disk if nobody is writing."""
        try:
            with self._rows.writing(wait_s=0.0):
                self._near.catch_up()
        except StorageError:  # a full or read-only disk, or a writer: memory will do
            self._near.extend()

    def _remove_one(self, path: str | Path) -> int:
        """Drop one picture, or all below a folder, inside a transaction."""
        dropped = 0
        for key in {str(path), str(absolute(path))}:
            for table, column in (("pictures", "key"), ("unreadable", "key"), ("roots", "path")):
                statement = f"DELETE FROM {table} WHERE {below(column)}"
                found = self._rows.database.execute(statement, {"path": key})
                dropped += found.rowcount if table != "roots" else 0
        if not dropped:
            raise RequestError(
                f"{path} is not in {self.path}. Check the path; nothing was removed."
            )
        return dropped


def _check_folder(folder: Path, model: Embedder | None) -> None:
    """Refuse what cannot be a library, before anything is made there."""
    if (folder / FILE).is_file():
        return
    if folder.is_file():
        raise RequestError(
            f"{folder} is a file, and a library is a folder. "
            "Give another --library, such as photos.library."
        )
    if (folder / "embedding.json").is_file():
        raise RequestError(
            f"{folder} holds vectors of diptych embed, no library. Search them with "
            "diptych search, or give another --library, such as photos.library."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise RequestError(
            f"{folder} holds other files and no library. "
            "Give a new folder for the library, such as photos.library."
        )
    if model is None:
        raise _no_library(folder)


def _no_library(folder: Path) -> RequestError:
    """What to say where nothing is."""
    return RequestError(
        f"there is no library at {folder}. "
        f"Make it with: diptych index MODEL DIR --library {folder}."
    )


def _check_vectors(
    keys: Sequence[str],
    vectors: Float[np.ndarray, "rows dimensions"],
    dimensions: int,
    captions: Sequence[Sequence[str]] | None,
    metadata: Sequence[Mapping[str, str | int | float]] | None,
) -> None:
    """Refuse vectors that are not what the library holds."""
    for name, given in (("vectors", vectors), ("captions", captions), ("metadata", metadata)):
        if given is not None and len(given) != len(keys):
            raise RequestError(
                f"{len(keys):,} keys and {len(given):,} {name} were given. Give one for each key."
            )
    if len(set(keys)) != len(keys):
        twice = next(key for key, times in Counter(keys).items() if times > 1)
        raise RequestError(f"the key {twice!r} is given twice. Give each picture a key of its own.")
    for key, said in zip(keys, metadata or (), strict=False):
        for name, value in said.items():
            finite = isinstance(value, str | int) or (
                isinstance(value, float) and math.isfinite(value)
            )
            if not (isinstance(name, str) and finite):
                raise RequestError(
                    f"the metadata of {key!r} say {name!r}: {value!r}, of type "
                    f"{type(value).__name__}. Give text and finite numbers, such as int(value)."
                )
    if vectors.shape[1] != dimensions:
        raise RequestError(
            f"the vectors have {vectors.shape[1]} numbers, and the library's have {dimensions}. "
            "Use the model that made the library."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))  # NaN is wrong too
    if len(wrong):
        raise RequestError(
            f"the vector of {keys[wrong[0]]!r} has the length {lengths[wrong[0]]:g}, not 1. "
            "Divide each vector by its length."
        )
