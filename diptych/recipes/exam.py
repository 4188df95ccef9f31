"""The same pairs asked of many models: pictures are decoded and prepared once.

`before_after.py` judges the models between the start and the end of fine-tuning with it; the
protocol is that of `diptych evaluate` (`evaluate/retrieval.py`).
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from diptych.checkpoint import Bundle
from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.prepared import parts, prepared
from diptych.data.source import Source, SourceOptions
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import DataError, RequestError
from diptych.evaluate.judge import CHUNK, samples_to_take
from diptych.evaluate.retrieval import RetrievalResult, captions_of, retrieval
from diptych.predict.model import Model
from diptych.train.run import Run

STAND_IN = "scenes:shapes:test"
"""What is asked where nothing is held out: it shows whether something was forgotten, not what."""

LEAST = 100
"""Pictures that each part of a divided held-out source has; a smaller source is not divided."""

MOST_TRIED = 1000
"""Pictures of each source that the models tried in choosing are asked; what is reported is measured
on all."""


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

    def first(self, most: int) -> "Exam":
        """The same with its first `most` pictures; itself if it has no more."""
        if len(self.ids) <= most:
            return self
        kept = self.picture_of_text < most
        return replace(
            self,
            pixels=self.pixels[:most],
            ids=self.ids[:most],
            texts=[text for text, taken in zip(self.texts, kept, strict=True) if taken],
            picture_of_text=self.picture_of_text[kept],
        )

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


@dataclass(frozen=True)
class Exams:
    """What the models of a fine-tuning run are asked."""

    in_domain: Exam | None
    """Pairs of --val, the new task; None if there are none."""

    choosing: Exam | None
    """What the model is chosen on; None if nothing is to be chosen."""

    reported: Exam
    """What is held out, without what was chosen on where it can be divided; or a stand-in."""

    stand_in: bool
    """Whether nothing is held out."""

    notes: tuple[str, ...]
    """What a person should know of the pictures before the training."""

    @property
    def divided(self) -> bool:
        """Whether what is chosen on and what is reported share no pictures."""
        return self.choosing is not None and self.choosing.fingerprint != self.reported.fingerprint

    @property
    def tried(self) -> dict[str, Exam]:
        """What each model that is tried in choosing is asked, by name."""
        both = {"held_out": self.choosing, "in_domain": self.in_domain}
        return {name: exam.first(MOST_TRIED) for name, exam in both.items() if exam is not None}

    @property
    def asked(self) -> dict[str, Exam]:
        """What each model in the report is asked, by name."""
        both = {"in_domain": self.in_domain, "held_out": self.reported}
        return {name: exam for name, exam in both.items() if exam is not None}


def set_exams(run: Run) -> Exams:
    """Read what the models of a run that begins with a trained model will be asked.

    Raises:
        RequestError: A source cannot be opened or has too few pictures.
    """
    finetune, data = run.finetune, run.data
    assert finetune is not None

    def exam(spec: str, options: SourceOptions) -> Exam:
        return set_exam(open_source(spec, options), data.transform, data.val_pairs)

    trained = open_source(data.source, data.options).fingerprint
    in_domain = exam(data.val, data.val_options) if data.val else None
    notes = [_memory("--val")] if in_domain and in_domain.fingerprint == trained else []
    if finetune.held_out is None:
        kept = "half way between before and after is kept"
        kept = kept if finetune.alpha is None else "what it forgets is not measured"
        notes.append(
            "warning: nothing says what the model is not to forget, so "
            f"{kept}. Give pairs of what it can do already: --held-out SOURCE."
        )
        stand_in = exam(STAND_IN, SourceOptions())
        return Exams(in_domain, None, stand_in, stand_in=True, notes=tuple(notes))
    spec, options, share = finetune.held_out, finetune.held_out_options, finetune.choose_on
    source = open_source(spec, options)
    if source.size is None:
        raise RequestError(
            f"{spec} has no end, so no part of it can be held out. Give a source with an end, "
            f"such as {STAND_IN}."
        )
    notes += [_memory("--held-out")] if source.fingerprint == trained else []
    if finetune.alpha is not None or min(share, 1 - share) * source.size < LEAST:
        reported = exam(spec, options)
        choosing = reported if finetune.alpha is None else None
    else:
        choosing, reported = (
            replace(exam(spec, options.model_copy(update={"part": part})), name=source.name)
            for part in ((0.0, share), (share, 1.0))
        )
    return Exams(in_domain, choosing, reported, stand_in=False, notes=tuple(notes))


def _memory(option: str) -> str:
    """The same pairs are learned and asked."""
    return (
        f"warning: {option} has the very pairs of --data: its numbers will show what the model "
        "remembers, not what it can do. Give pairs that are not trained on."
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
