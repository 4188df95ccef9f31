"""Linear probe: how well classes are told apart by a linear classifier on the frozen vectors.

The vectors are the unit vectors that the model gives to everyone, after its projection; CLIP's
published probes use the features before it, so numbers are not the same. Classes are first
captions (`labels.py`); the classifier is in `logistic.py`, the numbers in `classification.py`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from diptych.data.source import Source
from diptych.errors import DataError
from diptych.evaluate.classification import Classification, classification
from diptych.evaluate.judge import Encoder, Judged, Progress, Settings, no_progress
from diptych.evaluate.labels import LabelledPictures, labelled_pictures
from diptych.evaluate.logistic import (
    StrengthSearch,
    choose_strength,
    fit_logistic,
    with_one,
)

HELD_OUT = 0.2
"""Share of each class kept to choose the strength, and to judge if there is no test source."""


@dataclass(frozen=True)
class ProbeResult:
    """How well classes are told apart by a linear classifier."""

    task: ClassVar[str] = "probe"

    measured: Classification
    search: StrengthSearch
    converged: bool
    """Whether the last fit, with the chosen strength on all training pictures, converged."""

    trained_on: int
    """Distinct pictures the classifier was fitted on."""

    in_both: int
    """Pictures left out of training as they are judged on too."""

    split: bool
    """True if the pictures judged on are a part of the training source."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1."""
        return {
            **self.measured.to_dict(),
            "trained_on": self.trained_on,
            "left_out_of_training": self.in_both,
            "test": "a fifth of each class, by seed" if self.split else "the test source",
            "strength": self.search.chosen,
            "strengths_tried": {f"{key:.4g}": share for key, share in self.search.tried.items()},
            "converged": self.converged,
        }

    def summary(self) -> str:
        """A few aligned lines for a terminal."""
        measured = self.measured
        lines = [
            f"{measured.pictures:,} distinct test pictures, {len(measured.classes):,} classes, "
            f"trained on {self.trained_on:,}; 95 % intervals in brackets",
            *measured.lines(),
            f"L2 strength {self.search.chosen:.3g}, chosen on a fifth of the training pictures",
        ]
        if self.split:
            lines.append("judged on a fifth of each class, kept out of training")
        if self.in_both:
            lines.append(f"{self.in_both:,} training pictures are test pictures too and left out")
        if not self.converged:
            lines.append("the last fit did not converge: the strength is weak for these pictures")
        return "\n".join(lines)


def judge_probe(
    encoder: Encoder, source: Source, settings: Settings, progress: Progress = no_progress
) -> Judged:
    """Learn the classes of a source, and judge on another or on a part kept out.

    The strength is chosen on a fifth of the training pictures of each class; then the classifier
    is fitted again on all of them. Training pictures that are judged on too are left out.

    Args:
        encoder: The model.
        source: Training pictures whose first caption is their class.
        settings: Limit (of each source), seed, resamples, test.
        progress: Called with pictures done and in all, of each source.

    Raises:
        RequestError: The limit is below 2.
        DataError: Pictures or classes are too few, or the test has a class that training has not.
    """
    train = labelled_pictures(encoder, source, settings, progress)
    bad, before = dict(train.bad), len(train.ids)
    if settings.test is None:
        kept, held = divide(train.labels, settings.seed)
        train, test = _rows(train, kept), _rows(train, held)
    else:
        test = labelled_pictures(encoder, settings.test, settings, progress)
        bad |= test.bad
        train = train.without(set(test.ids))
        before -= len(train.ids)
    names, rows, label = _training_labels(train)
    _check_known(names, test, source, settings.test)
    image = train.image[rows]
    # pictures are divided, not rows: one of several classes has all its rows in the same part
    kept, held = divide(train.labels, settings.seed)
    fit, choose = np.isin(rows, kept), np.isin(rows, held)
    search = choose_strength(image[fit], label[fit], image[choose], label[choose], len(names))
    classifier = fit_logistic(image, label, len(names), search.chosen)
    measured = classification(
        with_one(test.image),
        classifier.class_vectors(),
        names,
        test.labels,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    in_both = 0 if settings.test is None else before
    result = ProbeResult(
        measured, search, classifier.converged, len(train.ids), in_both, settings.test is None
    )
    return Judged(result, bad)


def divide(
    labels: list[tuple[str, ...]], seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
    """Pictures in two parts, a fifth of each class in the second, the same for the same seed.

    Pictures of the same several classes count as a class of their own. A class with two or more
    pictures has at least one in each part; a single picture stays in the first.

    Raises:
        DataError: No class has two pictures.
    """
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, some in enumerate(labels):
        rows_of.setdefault(some, []).append(row)
    random = np.random.default_rng(seed)
    held: list[int] = []
    for some in sorted(rows_of):
        rows = random.permutation(rows_of[some])
        count = max(1, round(HELD_OUT * len(rows))) if len(rows) > 1 else 0
        held += rows[:count].tolist()
    if not held:
        raise DataError(
            f"none of the {len(rows_of):,} classes has two pictures, so none can be kept to choose "
            "or judge on. Use class names as captions: name their column with --text-column."
        )
    kept = sorted(set(range(len(labels))) - set(held))
    return np.array(kept, dtype=np.int64), np.array(sorted(held), dtype=np.int64)


def _rows(pictures: LabelledPictures, rows: Int64[np.ndarray, " rows"]) -> LabelledPictures:
    """Some of the pictures."""
    kept = set(rows.tolist())
    return pictures.without({one for row, one in enumerate(pictures.ids) if row not in kept})


def _training_labels(
    train: LabelledPictures,
) -> tuple[list[str], Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Classes with a training picture, and for each (picture, class) the row and the number."""
    names = sorted({label for some in train.labels for label in some})
    if len(names) < 2:
        raise DataError(
            f"the training pictures are of {len(names)} class. Use a source with two or more, or "
            "a higher --limit."
        )
    place = {name: number for number, name in enumerate(names)}
    pairs = [(row, place[label]) for row, some in enumerate(train.labels) for label in some]
    rows, label = np.array(pairs, dtype=np.int64).T
    return names, rows, label


def _check_known(
    names: list[str], test: LabelledPictures, source: Source, other: Source | None
) -> None:
    """Refuse test pictures of a class that was never seen: they could not be right."""
    unknown = sorted({label for some in test.labels for label in some} - set(names))
    if unknown:
        where = source.name if other is None else other.name
        raise DataError(
            f"{len(unknown):,} classes of {where} have no training picture, such as "
            f"{unknown[0]!r}. Leave their pictures out with --test-where, or train on some."
        )
