"""True and false picture-text pairs, and how well a cosine or a probability tells them apart.

Statistics come as functions of how often each picture is drawn, so that their intervals draw
whole pictures (`metrics.resampled`): the pairs of one picture succeed and fail together. The
calibration error alone has no such interval: it is held against what a perfect model would show.
Ties of the cosine count against the model. `calibration.py` is the task that uses this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from diptych.errors import DataError
from diptych.evaluate.metrics import CONFIDENCE, TIE, Drawn, Interval, all_or_none, resampled

BINS = 15
"""Bins of equal width of the reliability table, as Guo et al. (arXiv:1706.04599)."""

FEWEST_ACCEPTED = 10
"""Pairs above a threshold below which its precision is not believed."""


@dataclass(frozen=True)
class Pairs:
    """Some pictures, each with true and with false texts."""

    cosine: Float64[np.ndarray, " pairs"]
    true: Bool[np.ndarray, " pairs"]
    picture: Int64[np.ndarray, " pairs"]
    """Number of the picture, from 0 on, without gaps."""

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return int(self.picture.max()) + 1


def draw_pairs(
    image: Float[np.ndarray, "pictures embed"],
    text: Float[np.ndarray, "texts embed"],
    texts_of: Sequence[Int64[np.ndarray, " _"]],
    false_per_true: int,
    random: np.random.Generator,
) -> Pairs:
    """Each picture with all its texts, and with texts of other pictures that are not its own.

        for each picture:
            for each of its texts: a true pair
            `false_per_true` times as often: draw one of the captions of all pictures that is none
                of its texts, with replacement; a false pair

    A text that several pictures have is drawn the more often. A picture that has every text has
    no false one and is left out.

    Args:
        image: Unit vectors of distinct pictures.
        text: Unit vectors of distinct texts.
        texts_of: The rows of `text` that are true of each picture.
        false_per_true: False pairs for each true one.
        random: Draws.

    Raises:
        DataError: Fewer than two pictures have a false text.
    """
    captions = np.bincount(np.concatenate(texts_of), minlength=len(text))
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for row, own in enumerate(texts_of):
        others = captions.copy()
        others[own] = 0
        upto = np.cumsum(others)
        if upto[-1] == 0 or not len(own):
            continue
        picks = random.integers(upto[-1], size=false_per_true * len(own))
        false = np.searchsorted(upto, picks, side="right")
        cosine = text[np.concatenate([own, false])].astype(np.float64) @ image[row]
        true = np.arange(len(cosine)) < len(own)
        blocks.append((cosine, true, np.full(len(cosine), len(blocks), np.int64)))
    if len(blocks) < 2:
        raise DataError(
            f"{len(blocks)} of {len(texts_of):,} pictures have a text that is false of them, as "
            "the captions are all alike. Use a source with different captions."
        )
    cosines, trues, pictures = zip(*blocks, strict=True)
    return Pairs(np.concatenate(cosines), np.concatenate(trues), np.concatenate(pictures))


def interval(
    pairs: Pairs,
    statistic: Drawn,
    *,
    trials: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """A share with its interval, which draws whole pictures; at 0 and 1 the exact one.

    Args:
        pairs: What is judged.
        statistic: A number in 0 to 1 for each draw.
        trials: Pictures that the share is over; None takes all.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    value = float(statistic(np.ones((1, pairs.pictures), np.int64))[0])
    if value in (0, 1):
        return all_or_none(value, pairs.pictures if trials is None else trials)
    width = len(pairs.cosine)
    return resampled(value, statistic, pairs.pictures, width, resamples=resamples, seed=seed)


def area_under_curve(pairs: Pairs) -> Drawn:
    """Share of (true pair, false pair) in which the true one has the higher cosine."""
    true, false, below = _ordered(pairs)
    true_picture, false_picture = pairs.picture[true], pairs.picture[false]

    def of_drawn(counts: Int64[np.ndarray, "draws pictures"]) -> Float64[np.ndarray, " draws"]:
        upto = _upto(counts[:, false_picture])  # (draws, false + 1)
        weight = counts[:, true_picture]  # (draws, true)
        both = weight.sum(axis=1) * upto[:, -1]
        above = (weight * upto[:, below]).sum(axis=1)
        return np.where(both > 0, above / np.maximum(both, 1), 0.5)  # drawn without a true one

    return of_drawn


def average_precision(pairs: Pairs) -> Drawn:
    """Mean over the true pairs of the precision among all pairs with at least their cosine."""
    true, false, below = _ordered(pairs)
    true_picture, false_picture = pairs.picture[true], pairs.picture[false]
    first = np.searchsorted(pairs.cosine[true], pairs.cosine[true], side="left")

    def of_drawn(counts: Int64[np.ndarray, "draws pictures"]) -> Float64[np.ndarray, " draws"]:
        weight = counts[:, true_picture]
        upto_true, upto_false = _upto(weight), _upto(counts[:, false_picture])
        true_above = upto_true[:, -1:] - upto_true[:, first]  # (draws, true)
        false_above = upto_false[:, -1:] - upto_false[:, below]
        precision = true_above / np.maximum(true_above + false_above, 1)
        return (weight * precision).sum(axis=1) / upto_true[:, -1]

    return of_drawn


def brier_score(pairs: Pairs, probability: Float64[np.ndarray, " pairs"]) -> Drawn:
    """Mean square of what the probability misses 1 (true) or 0 (false) by."""
    return _ratio(pairs, (probability - pairs.true) ** 2, np.ones(len(probability)))


@dataclass(frozen=True)
class ByChance:
    """The calibration errors that a perfectly calibrated model would get on as many pairs."""

    mean: float
    high: float
    """The 97.5th percentile."""


@dataclass(frozen=True)
class CalibrationError:
    """How far probabilities are off, and how far perfect ones would seem to be."""

    value: float
    by_chance: ByChance


def calibration_error(
    pairs: Pairs, probability: Float64[np.ndarray, " pairs"], *, draws: int = 1000, seed: int = 0
) -> CalibrationError:
    """Expected calibration error: in bins of equal width,

        sum over bins of |sum of (probability - true) in the bin| / number of pairs

    It is above 0 even for perfect probabilities, as a bin has few pairs, and more so for pairs
    drawn again with repeats: an interval of the bootstrap would lie above the truth. Instead:

        for each of `draws` times:
            call each pair true with its probability, and note the error
        by_chance = the mean and the 97.5th percentile of what was noted

    Args:
        pairs: What is judged.
        probability: What was said of each pair.
        draws: How many times to draw.
        seed: The same seed gives the same numbers.

    Paper: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    place = _bin(probability)

    def error(true: Bool[np.ndarray, " pairs"]) -> float:
        missed = np.bincount(place, weights=probability - true, minlength=BINS)
        return float(np.abs(missed).sum() / len(true))

    random = np.random.default_rng(seed)
    noted = [error(random.random(len(probability)) < probability) for _ in range(draws)]
    high = float(np.quantile(noted, (1 + CONFIDENCE) / 2))
    return CalibrationError(error(pairs.true), ByChance(float(np.mean(noted)), high))


def precision_at(pairs: Pairs, threshold: float) -> Drawn:
    """Share of true pairs among those with at least this cosine; 0 if there are none."""
    accepted = pairs.cosine >= threshold
    return _ratio(pairs, accepted & pairs.true, accepted)


def recall_at(pairs: Pairs, threshold: float) -> Drawn:
    """Share of the true pairs that have at least this cosine."""
    return _ratio(pairs, (pairs.cosine >= threshold) & pairs.true, pairs.true)


def balanced_accuracy_at(pairs: Pairs, threshold: float) -> Drawn:
    """Mean of the shares of true pairs at or above, and of false pairs below, this cosine."""
    accepted = pairs.cosine >= threshold
    of_true = _ratio(pairs, accepted & pairs.true, pairs.true)
    of_false = _ratio(pairs, ~accepted & ~pairs.true, ~pairs.true)
    return lambda counts: (of_true(counts) + of_false(counts)) / 2


def best_balanced_threshold(pairs: Pairs) -> float:
    """The cosine of greatest balanced accuracy; of equally good ones the highest."""
    threshold, true, false = _thresholds(pairs)
    accuracy = true / pairs.true.sum() - false / (~pairs.true).sum()
    return float(threshold[accuracy.argmax()])


def precision_threshold(pairs: Pairs, wanted: float) -> float | None:
    """The lowest cosine from which on `wanted` of the pairs are true; None if there is none.

    Thresholds that fewer than 10 pairs reach are not believed.
    """
    threshold, true, false = _thresholds(pairs)
    enough = (true >= wanted * (true + false)) & (true + false >= FEWEST_ACCEPTED)
    return float(threshold[enough][-1]) if enough.any() else None


@dataclass(frozen=True)
class ReliabilityBin:
    """The pairs whose probability is in one bin."""

    low: float
    high: float
    pairs: int
    said: float
    """Mean probability."""

    true: float
    """Share of true pairs."""


def reliability(pairs: Pairs, probability: Float64[np.ndarray, " pairs"]) -> list[ReliabilityBin]:
    """What was said and what is so, for each bin that has pairs."""
    place = _bin(probability)
    return [
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            pairs=int((place == number).sum()),
            said=float(probability[place == number].mean()),
            true=float(pairs.true[place == number].mean()),
        )
        for number in np.unique(place).tolist()
    ]


def _bin(probability: Float64[np.ndarray, " pairs"]) -> Int64[np.ndarray, " pairs"]:
    """Number of the bin: bin i is above i / 15 and up to (i + 1) / 15; 0 is in the first."""
    return np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _ordered(
    pairs: Pairs,
) -> tuple[Int64[np.ndarray, " true"], Int64[np.ndarray, " false"], Int64[np.ndarray, " true"]]:
    """Rows of true and of false pairs by rising cosine, and how many false each true is above."""
    order = np.argsort(pairs.cosine, kind="stable")
    true, false = order[pairs.true[order]], order[~pairs.true[order]]
    below = np.searchsorted(pairs.cosine[false], pairs.cosine[true] - TIE, side="left")
    return true, false, below


def _upto(
    weight: Int64[np.ndarray, "draws items"],
) -> Int64[np.ndarray, "draws items+1"]:
    """Sums of the first 0, 1, 2, ... items."""
    return np.pad(np.cumsum(weight, axis=1), ((0, 0), (1, 0)))


def _ratio(pairs: Pairs, above: np.ndarray, below: np.ndarray) -> Drawn:
    """Sum of one value over sum of another; 0 where the second is 0."""
    upper = np.bincount(pairs.picture, weights=above)
    lower = np.bincount(pairs.picture, weights=below)

    def of_drawn(counts: Int64[np.ndarray, "draws pictures"]) -> Float64[np.ndarray, " draws"]:
        total = counts @ lower
        return np.where(total > 0, (counts @ upper) / np.where(total > 0, total, 1), 0.0)

    return of_drawn


def _thresholds(
    pairs: Pairs,
) -> tuple[Float64[np.ndarray, " cuts"], Int64[np.ndarray, " cuts"], Int64[np.ndarray, " cuts"]]:
    """Every threshold that makes a difference, from high to low, with the pairs that reach it.

    A threshold is midway between the lowest cosine that reaches it and the next one below.
    """
    order = np.argsort(-pairs.cosine, kind="stable")
    cosine, true = pairs.cosine[order], pairs.true[order]
    last = np.append(np.diff(cosine) < -TIE, True)  # the last of those that tie
    below = np.append(cosine[1:], cosine[-1])
    threshold = ((cosine + below) / 2)[last]
    return threshold, np.cumsum(true)[last], np.cumsum(~true)[last]
