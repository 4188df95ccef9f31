"""The same pairs asked of many models: pictures are decoded and prepared once.

`before_after.py` judges the models between the start and the end of fine-tuning with it; the
protocol is that of `diptych evaluate` (`evaluate/retrieval.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from diptych.checkpoint import Bundle
from diptych.data.pictures import to_rgb
from diptych.data.prepared import parts, prepared
from diptych.data.source import Source
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import DataError, RequestError
from diptych.evaluate.judge import CHUNK, samples_to_take
from diptych.evaluate.retrieval import RetrievalResult, captions_of, retrieval
from diptych.predict.model import Model


@dataclass(frozen=True)
class Exam:
    """Pictures as a model sees them, with all their captions."""

    name: str
    """Of the source."""

    fingerprint: str
    """Of the source."""

    pixels: UInt8[np.ndarray, "pictures size size 3"]
    ids: list[str]
    """Content hash of each picture."""

    texts: list[str]
    picture_of_text: Int64[np.ndarray, " texts"]
    bad: dict[str, str]
    """Pictures that could not be read, with the reason; they take no part."""

    def ask(self, bundle: Bundle, device: str, *, seed: int, resamples: int) -> RetrievalResult:
        """Recall of a model both ways.

        Args:
            bundle: The model, which prepares pictures as those of this exam were.
            device: Where it computes.
            seed: Of the bootstrap.
            resamples: Of the bootstrap.
        """
        model = Model(bundle, Path(), device)
        blocks = [model.encode_prepared(np.stack(part)) for part in parts(self.pixels, CHUNK)]
        return retrieval(
            np.concatenate(blocks),
            model.encode_text(self.texts),
            self.picture_of_text,
            picture_ids=self.ids,
            text_ids=self.texts,
            seed=seed,
            resamples=resamples,
        )


def set_exam(source: Source, transform: ImageTransformConfig, limit: int) -> Exam:
    """Read and prepare the pictures of a source.

    Args:
        source: Pictures with captions.
        transform: Of the models that will be asked.
        limit: Most pictures, from the first on.

    Raises:
        RequestError: Fewer than two pictures can be read.
    """

    def ready(index: int) -> tuple[str, np.ndarray]:
        picture = to_rgb(source.sample(index).picture)
        mark = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes())
        return mark.hexdigest(), evaluation_transform(picture, transform)

    pixels: list[np.ndarray] = []
    ids: list[str] = []
    indices: list[int] = []
    bad: dict[str, str] = {}
    for part in prepared(samples_to_take(source, limit), ready, CHUNK):
        for index, outcome in part:
            if isinstance(outcome, DataError):
                bad[f"{source.name}#{index}"] = str(outcome)
            else:
                ids.append(outcome[0])
                pixels.append(outcome[1])
                indices.append(index)
    if len(indices) < 2:
        raise RequestError(
            f"{source.name} has {len(indices)} picture that can be read, and recall needs at least "
            "2 to tell apart. Give another source."
        )
    texts, picture_of_text = captions_of(source, indices)
    return Exam(source.name, source.fingerprint, np.stack(pixels), ids, texts, picture_of_text, bad)
