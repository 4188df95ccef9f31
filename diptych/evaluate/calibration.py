"""Calibration: is this text true of this picture, and how sure can one be?

Pictures with their own captions are true pairs, with captions of others false ones. A logistic
function of the cosine is fitted on one half of the pictures and judged on the other, beside the
model's own probability if it has one. `Model.is_true` uses what was fitted.

The statistics are in `pairs.py`; `zeroshot.py` and `probe.py` ask which class a picture is of.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64

from diptych.data.calibration import Calibration, sigmoid
from diptych.data.source import Source
from diptych.errors import DataError, RequestError
from diptych.evaluate.judge import (
    EncodedPictures,
    Encoder,
    Judged,
    Progress,
    Settings,
    encode_pictures,
    no_progress,
    samples_to_take,
)
from diptych.evaluate.metrics import TIE, Interval, check_finite
from diptych.evaluate.pairs import (
    CalibrationError,
    Pairs,
    ReliabilityBin,
    area_under_curve,
    average_precision,
    balanced_accuracy_at,
    best_balanced_threshold,
    brier_score,
    calibration_error,
    draw_pairs,
    interval,
    precision_at,
    precision_threshold,
    recall_at,
    reliability,
)
from diptych.evaluate.retrieval import captions_of, group, merge
from diptych.evaluate.text import cell, line, plain

PRECISION = 0.9
"""Wanted share of true pairs among those called true, if none is given."""

FALSE_PER_TRUE = 9
"""False pairs for each true one, if no number is given: one in ten is true."""

STEPS = 100
"""Of Newton's method, at most; it needs about ten."""


@runtime_checkable
class PairScorer(Protocol):
    """A model that may say of each pair how probable it is: sigmoid(scale * cosine + bias)."""

    @property
    def scale(self) -> float:
        """Multiplier of the cosine."""
        ...

    @property
    def bias(self) -> float | None:
        """None: a softmax model, which only compares texts with each other."""
        ...


@dataclass(frozen=True)
class Quality:
    """How good probabilities are."""

    calibration_error: CalibrationError
    brier_score: Interval
    reliability: list[ReliabilityBin]


@dataclass(frozen=True)
class Threshold:
    """A cosine from which on a text is called true, judged on the other half of the pictures."""

    cosine: float
    probability: float
    """The calibrated probability at this cosine."""

    precision: Interval
    """Share of true pairs among those called true."""

    recall: Interval
    """Share of the true pairs that are called true."""

    balanced_accuracy: Interval
    """Mean of the shares of true and of false pairs that are called what they are."""


@dataclass(frozen=True)
class CalibrationResult:
    """How well true pairs are told from false ones, and how far probabilities can be believed."""

    task: ClassVar[str] = "calibration"

    calibration: Calibration
    auc: Interval
    average_precision: Interval
    fitted: Quality
    as_trained: Quality | None
    """None: the model gives no probability to a single pair."""

    balanced: Threshold
    """Best balanced accuracy on the fitted half."""

    precise: Threshold | None
    """Wanted precision on the fitted half; None: no threshold reached it."""

    wanted_precision: float
    fitted_pictures: int
    judged_pictures: int
    judged_pairs: int
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares and probabilities in 0 to 1."""
        share = 1 / (1 + self.calibration.false_per_true)
        return {
            "calibration": self.calibration.model_dump(),
            "auc": asdict(self.auc),
            "average_precision": asdict(self.average_precision),
            "calibrated": asdict(self.fitted),
            "as_trained": asdict(self.as_trained) if self.as_trained else None,
            "thresholds": {
                "best_balanced_accuracy": asdict(self.balanced),
                "wanted_precision": asdict(self.precise) if self.precise else None,
            },
            "wanted_precision": self.wanted_precision,
            "chance": {
                "auc": 0.5,
                "average_precision": share,
                "brier_score": share * (1 - share),
                "balanced_accuracy": 0.5,
            },
            "fitted_pictures": self.fitted_pictures,
            "pictures": self.judged_pictures,
            "pairs": self.judged_pairs,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def summary(self) -> str:
        """A few aligned lines for a terminal."""
        fit, chance = self.calibration, self.to_dict()["chance"]
        share = plain(chance["average_precision"])
        rows = [
            f"fitted on {self.fitted_pictures:,} pictures, judged on {self.judged_pictures:,} "
            f"others: {self.judged_pairs:,} pairs, 1 true to {fit.false_per_true} false; "
            "95 % intervals in brackets",
            _row("", ["cosine", "by chance"]),
            _row("AUC", [_number(self.auc), "0.5"]),
            _row("average precision", [_number(self.average_precision), share]),
            _row("", ["calibrated", "as trained", f"always {share}"]),
        ]
        both = [self.fitted, *([self.as_trained] if self.as_trained else [])]
        none = [] if self.as_trained else ["none (softmax)"]
        errors = [f"{one.calibration_error.value:.3f}" for one in both]
        rows.append(_row("calibration error", [*errors, *none, "0"]))
        rows.append(_row("a perfect one shows", [_perfect(one.calibration_error) for one in both]))
        scores = [_number(one.brier_score) for one in both]
        rows.append(_row("Brier score", [*scores, *none, plain(chance["brier_score"])]))
        rows.append(f"calibrated probability = sigmoid({fit.scale:.4g} * cosine {fit.bias:+.4g})")
        head = ["cosine (probability)", "precision %", "recall %", "balanced accuracy %"]
        rows.append(_row("true from", head))
        rows.append(_threshold_row("best balance", self.balanced))
        rows.append(_threshold_row(f"precision {self.wanted_precision:g}", self.precise))
        return "\n".join(rows)


def _row(name: str, cells: Sequence[str]) -> str:
    """A line of the summary."""
    return line(name, cells, 24)


def _number(interval: Interval) -> str:
    """A number in 0 to 1 with its interval."""
    return cell(interval, 1, 3)


def _perfect(error: CalibrationError) -> str:
    """The calibration error that a perfect model would show, and the most that is likely."""
    return f"{error.by_chance.mean:.3f}, up to {error.by_chance.high:.3f}"


def _threshold_row(name: str, threshold: Threshold | None) -> str:
    """What a threshold does, or that there is none."""
    if threshold is None:
        return _row(name, ["no cosine reaches it on 10 pairs or more"])
    where = f"{threshold.cosine:.3f} ({threshold.probability:.3f})"
    shares = (threshold.precision, threshold.recall, threshold.balanced_accuracy)
    return _row(name, [where, *map(cell, shares)])


def judge_calibration(
    encoder: Encoder, source: Source, settings: Settings, progress: Progress = no_progress
) -> Judged:
    """Fit a probability on half of the pictures of a source and judge it on the other half.

    Args:
        encoder: The model.
        source: Pictures with captions.
        settings: Limit, seed (also of the halves and of the false pairs), resamples, precision,
            false_per_true.
        progress: Called with pictures done and in all.

    Raises:
        RequestError: The limit is below 2, the precision is not between 0 and 1, or
            `false_per_true` is below 1.
        DataError: Pictures are too few or their captions all alike, or a vector is not finite.
    """
    wanted = PRECISION if settings.precision is None else settings.precision
    times = FALSE_PER_TRUE if settings.false_per_true is None else settings.false_per_true
    if not 0 < wanted < 1:
        raise RequestError(f"precision is {wanted:g}. Use a share between 0 and 1, such as 0.9.")
    if times < 1:
        raise RequestError(f"false_per_true is {times}. Use 1 or more, such as 9.")
    taken = samples_to_take(source, settings.limit)
    pictures = encode_pictures(encoder, source, taken, progress=progress)
    fit, judge = _halves(encoder, source, pictures, times, settings.seed)
    scale, bias = fit_logistic_of_cosine(fit.cosine, fit.true)
    calibration = Calibration(
        scale=scale,
        bias=bias,
        false_per_true=times,
        model_fingerprint=encoder.fingerprint,
        data_fingerprint=source.fingerprint,
    )
    return Judged(_result(encoder, calibration, fit, judge, wanted, settings), pictures.bad)


def fit_logistic_of_cosine(
    cosine: Float64[np.ndarray, " pairs"], true: Bool[np.ndarray, " pairs"]
) -> tuple[float, float]:
    """Scale and bias of the probability, by Platt's method, solved by Newton's.

        minimise the sum over pairs of -t log p - (1 - t) log(1 - p)
        with p = sigmoid(scale * cosine + bias), and scale >= 0
        t = (number of true + 1) / (number of true + 2) for true pairs
        t = 1 / (number of false + 2) for false ones

    Targets just inside 0 and 1 keep the scale finite where a cosine tells all pairs apart. Where a
    higher cosine is no better, the scale is 0 and every pair gets the mean.

    Reference: Platt, Probabilistic outputs for support vector machines, 1999, section 2.2.
    """
    count, middle = int(true.sum()), cosine.mean()
    target = np.where(true, (count + 1) / (count + 2), 1 / (len(true) - count + 2))
    spread = float(cosine.std())
    share = float(target.mean())
    flat = (0.0, math.log(share / (1 - share)))
    if spread <= TIE:
        return flat
    inputs = np.stack([(cosine - middle) / spread, np.ones(len(cosine))])  # (2, pairs)

    def loss(point: Float64[np.ndarray, "2"]) -> float:
        logits = point @ inputs
        return float(np.mean(np.logaddexp(0, logits) - target * logits))

    point = np.array([0.0, flat[1]])
    for _ in range(STEPS):
        probability = sigmoid(point @ inputs)
        slope = inputs @ (probability - target) / len(target)
        if np.abs(slope).max() < 1e-12:
            break
        curve = (inputs * probability * (1 - probability)) @ inputs.T / len(target)
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while loss(point - size * step) > loss(point) and size > 1e-9:
            size /= 2
        point = point - size * step
    scale = float(point[0]) / spread
    return (scale, float(point[1] - scale * middle)) if scale > 0 else flat


def _halves(
    encoder: Encoder,
    source: Source,
    pictures: EncodedPictures,
    false_per_true: int,
    seed: int,
) -> tuple[Pairs, Pairs]:
    """Pairs to fit on and pairs to judge on; no picture is in both.

    Identical pictures are one with the captions of all, identical captions one. False captions
    are those of other pictures of the same half, so a caption is in both halves only if pictures
    of both have it.
    """
    texts, picture_of_text = captions_of(source, pictures.indices)
    picture_rows, picture_of_row = merge("picture", pictures.ids, len(pictures.ids))
    text_rows, text_of_row = merge("text", texts, len(texts))
    if len(picture_rows) < 4:
        raise DataError(
            f"{source.name} has {len(picture_rows)} distinct pictures. Calibration needs 4: two to "
            "fit on and two to judge on."
        )
    text = encoder.encode_text([texts[row] for row in text_rows])
    check_finite("picture", pictures.image)
    check_finite("text", text)
    links = np.unique(np.stack([picture_of_row[picture_of_text], text_of_row]), axis=1)
    texts_of = group(links[0], links[1], len(picture_rows))
    image = pictures.image[picture_rows]
    random = np.random.default_rng(seed)
    order = random.permutation(len(picture_rows))
    middle = len(order) // 2
    first, second = (
        draw_pairs(image[rows], text, [texts_of[row] for row in rows], false_per_true, random)
        for rows in (order[:middle], order[middle:])
    )
    return first, second


def _result(
    encoder: Encoder,
    calibration: Calibration,
    fit: Pairs,
    judge: Pairs,
    wanted: float,
    settings: Settings,
) -> CalibrationResult:
    """All numbers of the judged half."""
    draws = {"resamples": settings.resamples, "seed": settings.seed}

    def quality(probability: Float64[np.ndarray, " pairs"]) -> Quality:
        return Quality(
            calibration_error(judge, probability, draws=settings.resamples, seed=settings.seed),
            interval(judge, brier_score(judge, probability), **draws),
            reliability(judge, probability),
        )

    def threshold(cosine: float) -> Threshold:
        accepted = len(np.unique(judge.picture[judge.cosine >= cosine]))
        return Threshold(
            cosine,
            float(calibration.probability(np.array([cosine]))[0]),
            interval(judge, precision_at(judge, cosine), trials=accepted, **draws),
            interval(judge, recall_at(judge, cosine), **draws),
            interval(judge, balanced_accuracy_at(judge, cosine), **draws),
        )

    precise = precision_threshold(fit, wanted)
    own = None
    if isinstance(encoder, PairScorer) and encoder.bias is not None:
        own = quality(sigmoid(encoder.scale * judge.cosine + encoder.bias))
    return CalibrationResult(
        calibration=calibration,
        auc=interval(judge, area_under_curve(judge), **draws),
        average_precision=interval(judge, average_precision(judge), **draws),
        fitted=quality(calibration.probability(judge.cosine)),
        as_trained=own,
        balanced=threshold(best_balanced_threshold(fit)),
        precise=None if precise is None else threshold(precise),
        wanted_precision=wanted,
        fitted_pictures=fit.pictures,
        judged_pictures=judge.pictures,
        judged_pairs=len(judge.cosine),
        resamples=settings.resamples,
        seed=settings.seed,
    )
