"""A whole source to vectors on disk, in parts that a stopped run leaves whole."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diptych.data.prepared import prepared
from diptych.data.source import Sample, Source
from diptych.data.vectors import VectorsHeader, part_path, rows_in, write_header, write_part
from diptych.errors import DataError, RequestError
from diptych.files import sweep
from diptych.predict.model import Model


@dataclass
class EmbedResult:
    """What was done."""

    rows: int = 0
    """Vectors written now."""

    kept: int = 0
    """Vectors in parts that were there already."""

    kept_without: int = 0
    """Samples of those parts that have no vector, as their pictures could not be read."""

    bad: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read now, with the reason; they have no vector."""


def embed(
    model: Model,
    source: Source,
    folder: str | Path,
    *,
    part_rows: int = 2048,
    chunk: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmbedResult:
    """Write the vectors of every picture of a source.

    Args:
        model: What encodes.
        source: What is encoded.
        folder: Where `diptych/data/vectors.py` puts its files.
        part_rows: Samples per part.
        chunk: Pictures encoded at a time.
        progress: Called with samples done and in all.

    Raises:
        RequestError: The source has no end, the folder holds other vectors, or `part_rows` or
            `chunk` is below 1.
        DataError: A part that was there already is damaged.
    """
    for name, value in (("part_rows", part_rows), ("chunk", chunk)):
        if value < 1:
            raise RequestError(f"{name} is {value}. Use 1 or more, such as 64.")
    if source.size is None:
        raise RequestError(
            f"{source.name} has no end. Embed a split of it, such as scenes:shapes:test."
        )
    folder = Path(folder)
    header = VectorsHeader(
        model=str(model.path.resolve()),
        model_fingerprint=model.fingerprint,
        source=source.name,
        source_fingerprint=source.fingerprint,
        dimensions=model.embed,
        part_rows=part_rows,
    )
    write_header(folder, header)
    sweep(folder, "embedding.json", "part-*.parquet")
    result = EmbedResult()
    for number, start in enumerate(range(0, source.size, part_rows)):
        indices = range(start, min(start + part_rows, source.size))
        path = part_path(folder, number)
        if path.exists():
            rows = rows_in(path)
            result.kept += rows
            result.kept_without += len(indices) - rows
        else:
            _embed_part(model, source, indices, path, chunk, result)
        progress(indices.stop, source.size)
    return result


def _embed_part(
    model: Model, source: Source, indices: range, path: Path, chunk: int, result: EmbedResult
) -> None:
    """One part: read, prepare, encode, write."""
    keys: list[str] = []
    paths: list[str | None] = []
    captions: list[list[str]] = []
    vectors = [np.zeros((0, model.embed), np.float32)]

    def ready(index: int) -> tuple[Sample, np.ndarray]:
        """A sample, and what the model sees of it."""
        sample = source.sample(index)
        return sample, model.prepare(sample.picture)

    for part in prepared(indices, ready, chunk):
        pixels: list[np.ndarray] = []
        for index, found in part:
            if isinstance(found, DataError):
                result.bad[f"{source.name}#{index}"] = str(found)
                continue
            sample, picture = found
            pixels.append(picture)
            keys.append(sample.key)
            file = sample.picture
            paths.append(str(file.resolve()) if isinstance(file, Path) else None)
            captions.append(list(sample.captions))
        if pixels:
            vectors.append(model.encode_prepared(np.stack(pixels)))
    write_part(path, keys, paths, captions, np.concatenate(vectors))
    result.rows += len(keys)
