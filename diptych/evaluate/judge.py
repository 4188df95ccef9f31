"""Run a model over a source and judge its retrieval; the result says what was measured on what.

The mathematics is in `metrics.py` and `retrieval.py`. The model comes as a plain object with
three methods, so anything that makes unit vectors can be judged.
"""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.prepared import prepared
from diptych.data.source import Source
from diptych.errors import DataError, RequestError, nearest
from diptych.evaluate.retrieval import RetrievalResult, retrieval

ENDLESS_LIMIT = 1000
"""Samples taken from a source without end if no limit is given."""


@runtime_checkable  # beartype checks it in tests
class Encoder(Protocol):
    """What can be judged; `diptych.load` gives one."""

    fingerprint: str

    def prepare(self, picture: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """What the model sees of a picture; called in several threads at a time."""
        ...

    def encode_prepared(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of prepared pictures."""
        ...

    def encode_text(self, texts: list[str]) -> Float[np.ndarray, "texts embed"]:
        """Unit vectors of texts."""
        ...


TASKS = ("retrieval",)
"""What a model can be judged on."""


def evaluate(
    model: Encoder,
    data: str | Source,
    *,
    task: str = "retrieval",
    limit: int | None = None,
    seed: int = 0,
) -> RetrievalResult:
    """Judge a model; `result.summary()` is for people, `result.to_dict()` for machines.

    Args:
        model: What `diptych.load` gives, or anything else that makes unit vectors.
        data: Pictures with captions: what a user writes (see `open_source`), or an open source.
        task: "retrieval": pictures by their captions, and captions by their pictures.
        limit: Most samples to take, from the first on; None takes all.
        seed: Of the bootstrap.

    Raises:
        RequestError: There is no such task or source, or `limit` is below 2.
        DataError: Fewer than two pictures can be used.
    """
    if task not in TASKS:
        raise RequestError(f"there is no task {task!r}. {nearest(task, TASKS)}")
    source = open_source(data) if isinstance(data, str) else data
    return judge_retrieval(model, source, limit=limit, seed=seed).result


@dataclass(frozen=True)
class Judged:
    """A judgement, and the vectors it rests on."""

    result: RetrievalResult
    image: Float[np.ndarray, "pictures embed"]
    text: Float[np.ndarray, "texts embed"]
    picture_of_text: Int64[np.ndarray, " texts"]
    texts: list[str]
    indices: list[int]
    """Number of each picture in its source."""

    bad: dict[str, str]
    """Pictures that could not be read, with the reason; they take no part."""


def judge_retrieval(
    encoder: Encoder,
    source: Source,
    *,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    chunk: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Judged:
    """Find each picture by each of its captions, and each caption by its picture.

    Args:
        encoder: The model.
        source: Pictures with captions.
        limit: Most samples to take, from the first on; None takes all.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        chunk: Pictures encoded at a time.
        progress: Called with pictures done and in all.

    Raises:
        RequestError: `limit` is below 2, or `chunk` below 1.
        DataError: Fewer than two pictures can be used.
    """
    if limit is not None and limit < 2:
        raise RequestError(f"{limit} sample cannot be told apart from others. Use 2 or more.")
    size = source.size or limit or ENDLESS_LIMIT
    size = min(size, limit or size)
    pictures = _encode(encoder, source, size, chunk, progress)
    indices = pictures.indices
    if len(indices) < 2:
        raise DataError(
            f"{source.name} has {len(indices)} picture that can be read, of {size}. "
            "Retrieval needs at least 2."
        )
    texts, picture_of_text = _captions(source, indices)
    image, text = np.concatenate(pictures.blocks), encoder.encode_text(texts)
    result = retrieval(
        image,
        text,
        picture_of_text,
        picture_ids=pictures.ids,
        text_ids=texts,
        seed=seed,
        resamples=resamples,
    )
    return Judged(result, image, text, picture_of_text, texts, indices, pictures.bad)


def result_file(
    judged: Judged, encoder: Encoder, source: Source, *, model: str, options: dict[str, Any]
) -> dict[str, Any]:
    """The result with all that is needed to know what it is a result of."""
    return {
        "task": "retrieval",
        "model": {"path": model, "fingerprint": encoder.fingerprint},
        "data": {"source": source.name, "fingerprint": source.fingerprint, **options},
        "seed": judged.result.seed,
        "metrics": judged.result.to_dict(),
        "bad": judged.bad,
        "made_by": {
            "diptych": version("diptych"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


@dataclass
class _Pictures:
    """The pictures of a source, encoded."""

    blocks: list[np.ndarray] = field(default_factory=list)
    """Vectors, a block for each chunk."""

    ids: list[str] = field(default_factory=list)
    """Content hash of each picture: equal for equal pixels in the same shape."""

    indices: list[int] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


def _encode(
    encoder: Encoder,
    source: Source,
    size: int,
    chunk: int,
    progress: Callable[[int, int], None],
) -> _Pictures:
    """Encode the first `size` pictures of a source."""

    def ready(index: int) -> tuple[str, np.ndarray]:
        """Content hash of a picture, and what the model sees of it."""
        picture = to_rgb(source.sample(index).picture)
        mark = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes())
        return mark.hexdigest(), encoder.prepare(picture)

    found = _Pictures()
    for part in prepared(range(size), ready, chunk):
        pixels: list[np.ndarray] = []
        for index, outcome in part:
            if isinstance(outcome, DataError):
                found.bad[f"{source.name}#{index}"] = str(outcome)
            else:
                found.ids.append(outcome[0])
                found.indices.append(index)
                pixels.append(outcome[1])
            progress(index + 1, size)
        if pixels:
            found.blocks.append(encoder.encode_prepared(np.stack(pixels)))
    return found


def _captions(source: Source, indices: list[int]) -> tuple[list[str], Int64[np.ndarray, " texts"]]:
    """Every caption of these samples, and the row of its picture."""
    texts: list[str] = []
    rows: list[int] = []
    for row, index in enumerate(indices):
        for caption in source.captions(index):
            texts.append(caption)
            rows.append(row)
    return texts, np.array(rows, dtype=np.int64)
