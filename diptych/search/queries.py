"""From a question to a unit vector, and from vectors to hits."""

import json
from collections.abc import Container, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diptych.errors import RequestError
from diptych.search.embedder import Embedder
from diptych.search.hit import Hit
from diptych.search.items import absolute
from diptych.search.rows import BLOCK, Rows

FACTS = ("width", "height", "size_bytes", "date", "latitude", "longitude", "camera")
"""Columns of a picture that a hit gives as metadata."""


def as_query(
    rows: Rows,
    model: Embedder | None,
    dimensions: int,
    text: str | None,
    image: str | Path | bytes | Image.Image | np.ndarray | None,
    text_weight: float,
) -> Float[np.ndarray, " dimensions"]:
    """The unit vector to look for.

        query = text_weight * vector(text) + (1 - text_weight) * vector(image)
        return query / length of query

    With words or a picture alone it is their vector.

    Raises:
        RequestError: Nothing is asked for, or the model is needed and not there.
        DataError: The picture cannot be read.
    """
    if text is None and image is None:
        raise RequestError('a search takes words, a picture, or both. Give "a red bicycle".')
    if text is not None and not text.strip():
        raise RequestError(
            f"a search takes words, and {text!r} holds none. Give some, such as 'a red bicycle'."
        )
    if not 0 <= text_weight <= 1:
        raise RequestError(f"text_weight is {text_weight:g}, not in 0 to 1. Use 0.5.")
    of_text = None if text is None else _model(rows, model).encode_text([text])[0]
    of_image = None if image is None else _image_vector(rows, model, dimensions, image)
    if of_text is not None and of_image is not None:
        query = text_weight * of_text + (1 - text_weight) * of_image
        length = np.linalg.norm(query)
        if length < 1e-6:
            raise RequestError(
                "words and picture are opposites: their mean has no direction. "
                "Give another text_weight, such as 0.7."
            )
        query = query / length
    else:
        query = of_text if of_text is not None else of_image
    return np.asarray(query, np.float32)


def nearest_of(
    rows: Rows, query: Float[np.ndarray, " dimensions"], numbers: Sequence[int], count: int
) -> list[tuple[int, float]]:
    """The vectors nearest to a query among those of these numbers, with their cosines.

    Every one is compared; equal ones come in stored order, and those without a picture not at all.
    """
    best, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, len(numbers), BLOCK):
        found, vectors = rows.vectors_of(numbers[start : start + BLOCK], len(query))
        best = np.concatenate([best, found])
        scores = np.concatenate([scores, vectors @ query])
        order = np.lexsort((best, -scores))[:count]
        best, scores = best[order], scores[order]
    return list(zip(best.tolist(), scores.tolist(), strict=True))


def hits_of(
    rows: Rows,
    ranked: Sequence[tuple[int, float]],
    count: int,
    kept: Container[int] | None = None,
) -> list[Hit]:
    """The pictures of ranked vectors.

    Args:
        rows: The library.
        ranked: Numbers of vectors with their scores, best first.
        count: How many to give.
        kept: Numbers of the pictures that may be given; None for all.
    """
    with rows.speaking():
        names = ("id", "vector", "key", "path", "captions", "metadata", *FACTS)
        found = rows.database.execute(
            f"SELECT {', '.join(names)} FROM pictures "
            "WHERE vector IN (SELECT value FROM json_each(?)) ORDER BY id",
            (json.dumps([number for number, _ in ranked]),),
        ).fetchall()
    pictures: dict[int, list[dict[str, Any]]] = {}
    for row in found:
        if kept is None or row[0] in kept:
            pictures.setdefault(row[1], []).append(dict(zip(names, row, strict=True)))
    hits = (
        _hit(rows, picture, score)
        for number, score in ranked
        for picture in pictures.get(number, [])
    )
    return list(islice(hits, count))


def _hit(rows: Rows, picture: dict[str, Any], score: float) -> Hit:
    """A hit from a row."""
    try:
        captions, metadata = json.loads(picture["captions"]), json.loads(picture["metadata"])
    except (ValueError, TypeError) as error:
        raise rows.damaged(f"the row of {picture['key']!r} is no JSON ({error})") from None
    facts = {name: picture[name] for name in FACTS if picture[name] is not None}
    return Hit(
        key=picture["key"],
        path=picture["path"],
        score=score,
        captions=captions,
        row=picture["id"],
        metadata=metadata | facts,
    )


def _image_vector(
    rows: Rows,
    model: Embedder | None,
    dimensions: int,
    image: str | Path | bytes | Image.Image | np.ndarray,
) -> Float[np.ndarray, " dimensions"]:
    """The stored vector of a picture that has not changed since, or a new one."""
    if isinstance(image, str | Path):
        for key in (str(image), str(absolute(image))):
            if (vector := rows.vector_of(key, dimensions)) is not None and rows.is_fresh(key):
                return vector
    return _model(rows, model).encode_image([image])[0]


def _model(rows: Rows, model: Embedder | None) -> Embedder:
    """The model, which a new question needs."""
    if model is None:
        raise RequestError(
            f"{rows.folder} was opened without a model, and the question has to be encoded. "
            "Open it with model=diptych.load(PATH)."
        )
    return model
