"""What every judgement shares: the model as a plain object, its pictures encoded, the result file.

The model comes as an object with three methods, so anything that makes unit vectors can be judged.
Each task is a file beside this one; `tasks.py` lists them and holds `evaluate`.
"""

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diptych.data.pictures import to_rgb
from diptych.data.prepared import prepared
from diptych.data.source import Source
from diptych.errors import DataError, RequestError

ENDLESS_LIMIT = 1000
"""Samples taken from a source without end if no limit is given."""

CHUNK = 64
"""Pictures encoded at a time."""

Progress = Callable[[int, int], None]
"""Called with pictures done and in all."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@runtime_checkable  # beartype checks it in tests
class Judgeable(Protocol):
    """What every model is that can be judged, whatever it can do."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a result."""
        ...


@runtime_checkable
class Encoder(Judgeable, Protocol):
    """A model with vectors of pictures and texts; `diptych.load` gives one."""

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


@dataclass(frozen=True)
class Settings:
    """What is asked for beside the task, the model and the source.

    The first three belong to every task; `tasks.py` says which of the others a task takes.
    """

    limit: int | None = None
    """Most samples to take; None takes all. See `samples_to_take`."""

    seed: int = 0
    """Of the bootstrap and of divisions."""

    resamples: int = 1000
    """Of the bootstrap."""

    templates: Sequence[str] | None = None
    """Zero-shot: texts with {} where the label goes; None takes `data.prompts.TEMPLATES`."""

    test: Source | None = None
    """Probe: what is judged on; None keeps a fifth of the training data for it."""

    precision: float | None = None
    """Calibration: share of true pairs wanted among those called true; None takes 0.9."""

    false_per_true: int | None = None
    """Calibration: false pairs for each true one; None takes 9."""


@runtime_checkable
class Result(Protocol):
    """The numbers of one task; each task has a frozen dataclass for them."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1."""
        ...

    def summary(self) -> str:
        """A few aligned lines for a terminal."""
        ...


@runtime_checkable
class Judgement(Protocol):
    """A result and what took no part in it."""

    @property
    def result(self) -> Result:
        """The numbers."""
        ...

    @property
    def bad(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        ...


@dataclass(frozen=True)
class Judged:
    """The judgement of most tasks."""

    result: Result
    bad: dict[str, str]


@dataclass(frozen=True)
class EncodedPictures:
    """Those pictures of a source that can be read, encoded."""

    image: Float[np.ndarray, "pictures embed"]

    ids: list[str]
    """Content hash of each picture: equal for equal pixels in the same shape."""

    indices: list[int]
    """Number of each picture in its source."""

    bad: dict[str, str]
    """Pictures that could not be read, with the reason."""


def samples_to_take(source: Source, limit: int | None, *, at_random: bool = False) -> list[int]:
    """Numbers of the samples to judge on.

    Args:
        source: Where they come from; of one without end, `ENDLESS_LIMIT` if there is no limit.
        limit: Most samples to take; None takes all.
        at_random: False takes the first ones. True draws them, always the same ones, so that a few
            samples of class folders, which come class by class, are of many classes.

    Raises:
        RequestError: `limit` is below 2.
    """
    if limit is not None and limit < 2:
        raise RequestError(f"{limit} sample cannot be told apart from others. Use 2 or more.")
    size = source.size or limit or ENDLESS_LIMIT
    count = min(size, limit or size)
    if at_random and source.size:
        drawn = np.random.default_rng(0).choice(source.size, count, replace=False)
        return [int(index) for index in np.sort(drawn)]
    return list(range(count))


def encode_pictures(
    encoder: Encoder,
    source: Source,
    indices: Sequence[int],
    *,
    chunk: int = CHUNK,
    progress: Progress = no_progress,
) -> EncodedPictures:
    """Encode some pictures of a source.

    Raises:
        RequestError: `chunk` is below 1.
        DataError: Fewer than two can be read.
    """

    def ready(index: int) -> tuple[str, np.ndarray]:
        """Content hash of a picture, and what the model sees of it."""
        picture = to_rgb(source.sample(index).picture)
        mark = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes())
        return mark.hexdigest(), encoder.prepare(picture)

    blocks: list[np.ndarray] = []
    found = EncodedPictures(np.zeros((0, 0), np.float32), [], [], {})
    done = 0
    for part in prepared(indices, ready, chunk):
        pixels: list[np.ndarray] = []
        for index, outcome in part:
            if isinstance(outcome, DataError):
                found.bad[f"{source.name}#{index}"] = str(outcome)
            else:
                found.ids.append(outcome[0])
                found.indices.append(index)
                pixels.append(outcome[1])
            done += 1
            progress(done, len(indices))
        if pixels:
            blocks.append(encoder.encode_prepared(np.stack(pixels)))
    if len(found.indices) < 2:
        raise DataError(
            f"{source.name} has {len(found.indices)} picture that can be read, of {len(indices)}. "
            "A judgement needs at least 2."
        )
    return EncodedPictures(np.concatenate(blocks), found.ids, found.indices, found.bad)


def result_file(
    judged: Judgement,
    encoder: Judgeable,
    source: Source,
    *,
    model: str,
    options: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result with all that is needed to know what it is a result of.

    Args:
        judged: What a task gave.
        encoder: The model that was judged.
        source: What it was judged on.
        model: Where the model is.
        options: How the source was read.
        settings: What was asked for beside, such as the test source of a probe.
    """
    metrics = judged.result.to_dict()
    return {
        "task": judged.result.task,
        "model": {"path": model, "fingerprint": encoder.fingerprint},
        "data": {"source": source.name, "fingerprint": source.fingerprint, **options},
        "settings": settings or {},
        "seed": metrics["seed"],
        "metrics": metrics,
        "bad": judged.bad,
        "made_by": {
            "diptych": version("diptych"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }
