"""A folder of vectors on disk: what `embed` writes and `search` reads.

    embedding.json          which model, which source, how many dimensions
    part-00000.parquet …    key, path, captions, vector (float32); written whole, in order

A stopped run leaves whole parts; the next one goes on after them.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float

from diptych.errors import DataError, RequestError
from diptych.files import whole_file, write_text


@dataclass(frozen=True)
class VectorsHeader:
    """Says what the vectors are."""

    model: str
    """Folder of the model."""

    model_fingerprint: str
    source: str
    source_fingerprint: str
    dimensions: int
    part_rows: int
    """Samples per part."""


@dataclass(frozen=True)
class Vectors:
    """All rows of a folder of vectors."""

    header: VectorsHeader
    keys: list[str]
    paths: list[str | None]
    """Picture files; None for pictures that live inside a table or are generated."""

    captions: list[list[str]]
    vectors: Float[np.ndarray, "rows dimensions"]


def part_path(folder: Path, number: int) -> Path:
    """File of a part."""
    return folder / f"part-{number:05}.parquet"


def write_header(folder: Path, header: VectorsHeader) -> None:
    """Begin a folder of vectors, or go on with one.

    Raises:
        RequestError: The folder holds vectors of another model or source.
    """
    path = folder / "embedding.json"
    if path.exists():
        there, here = asdict(read_header(folder)), asdict(header)
        for name in ("model_fingerprint", "source_fingerprint", "part_rows"):
            if there[name] != here[name]:
                raise RequestError(
                    f"{folder} holds vectors with {name} {there[name]}, not {here[name]}. "
                    "Give another --out."
                )
    write_text(path, json.dumps(asdict(header), indent=2) + "\n")


def read_header(folder: Path) -> VectorsHeader:
    """What the vectors of a folder are.

    Raises:
        RequestError: The folder holds no vectors.
        DataError: The header is damaged.
    """
    path = folder / "embedding.json"
    if not path.is_file():
        raise RequestError(
            f"{folder} holds no vectors (no embedding.json). "
            "Make them with: diptych embed MODEL --data SOURCE --out DIR."
        )
    try:
        return VectorsHeader(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}. Embed again into a new folder.") from error


def write_part(
    path: Path,
    keys: list[str],
    paths: list[str | None],
    captions: list[list[str]],
    vectors: Float[np.ndarray, "rows dimensions"],
) -> None:
    """Write one part, whole."""
    values = pa.array(vectors.astype(np.float32).ravel())
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "path": pa.array(paths, pa.string()),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
        }
    )
    with whole_file(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def rows_in(path: Path) -> int:
    """Vectors in a part, without reading them.

    Raises:
        DataError: The part is damaged.
    """
    try:
        rows: int = pyarrow.parquet.read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return rows


def read_vectors(folder: str | Path) -> Vectors:
    """Every row of a folder of vectors.

    Raises:
        RequestError: The folder holds no vectors.
        DataError: A part is damaged or of another size.
    """
    folder = Path(folder)
    header = read_header(folder)
    keys: list[str] = []
    paths: list[str | None] = []
    captions: list[list[str]] = []
    blocks = [np.zeros((0, header.dimensions), np.float32)]
    for number, part in enumerate(sorted(folder.glob("part-*.parquet"))):
        if part != part_path(folder, number):
            raise DataError(
                f"{part_path(folder, number)} is missing, and {part.name} is there. "
                "Run diptych embed again; only what is missing is made."
            )
        try:
            table = pyarrow.parquet.read_table(part)
            block = table["vector"].combine_chunks().flatten().to_numpy()
            blocks.append(block.reshape(len(table), header.dimensions))
            keys += table["key"].to_pylist()
            paths += table["path"].to_pylist()
            captions += table["captions"].to_pylist()
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise _damaged(part, error) from error
    if not keys:
        raise DataError(f"{folder} holds no vectors yet. Run diptych embed again; it goes on.")
    return Vectors(header, keys, paths, captions, np.concatenate(blocks))


def _damaged(part: Path, error: Exception) -> DataError:
    """What to say of a part that cannot be read."""
    return DataError(
        f"{part} cannot be read: {str(error).splitlines()[0]}. "
        "Remove it and run diptych embed again; only that part is made anew."
    )
