"""Ranks, recall and bootstrap intervals over plain arrays: no model, no files, no torch.

Ties count against the model: a candidate that scores as well as the best positive is placed
before it, so embeddings that have collapsed to one point get the worst rank, not the best.
Memory is bounded by `chunk` (ranks) and by a constant (bootstrap), not by the number of queries.

`retrieval.py` holds the protocol: which queries, which candidates, which positives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Real

from diptych.errors import DataError, RequestError

TIE = 1e-6
"""Scores of unit vectors closer than this are ties. Equal vectors score equal up to rounding
(of the order of 1e-7 for vectors an encoder computed in fp32, in batches of different size)."""

CONFIDENCE = 0.95
"""Share of the resampled statistics that lies inside an interval."""

BOOTSTRAP_CELLS = 2**21
"""Numbers held at a time while resampling (16 MiB of int64)."""


@dataclass(frozen=True)
class Interval:
    """A measured number and where it would fall were the test pictures drawn again."""

    value: float
    """The statistic of the whole sample."""

    low: float
    """Lower end of the 95 % interval."""

    high: float
    """Upper end of the 95 % interval."""


def retrieval_ranks(
    query: Float[np.ndarray, "queries embed"],
    candidates: Float[np.ndarray, "candidates embed"],
    positives: Sequence[Int64[np.ndarray, " _"]],
    *,
    chunk: int = 1024,
) -> Int64[np.ndarray, " queries"]:
    """Place of the best positive of each query among all candidates; 1 is the best.

        for each query i:
            best = max of dot(query[i], candidates[p]) for p in positives[i]
            rank[i] = 1 + number of j not in positives[i]
                          with dot(query[i], candidates[j]) >= best - tie

    A tie is 1e-6 for unit vectors (times the length of the query and of the longest candidate
    for others), so that copies of one vector tie although rounding sets them apart.
    Products are taken in fp64: its rounding is far below a tie, so ranks do not depend on
    `chunk` or on how the BLAS library cuts the matrices.

    Args:
        query: One vector a row.
        candidates: One vector a row; equal rows are allowed and tie.
        positives: For each query the rows of `candidates` that are right; at least one.
        chunk: Side of the square of scores held at a time (8 * chunk ** 2 bytes).

    Raises:
        DataError: A vector is not finite, or a query has no positive, or one that is no candidate.
        RequestError: `chunk` is below 1.
    """
    if chunk < 1:
        raise RequestError(f"chunk is {chunk}. Use 1 or more, such as 1024.")
    check_finite("query", query)
    check_finite("candidate", candidates)
    pairs = _positive_pairs(positives, len(query), len(candidates))  # (2, pairs)
    tie = TIE * _lengths(candidates).max(initial=0.0) * _lengths(query)
    threshold = _best_positive(query, candidates, pairs, chunk) - tie

    ahead = np.zeros(len(query), dtype=np.int64)
    for top in range(0, len(query), chunk):
        rows = query[top : top + chunk].astype(np.float64)
        first, last = np.searchsorted(pairs[0], [top, top + len(rows)])
        here = pairs[:, first:last] - [[top], [0]]
        bar = threshold[top : top + chunk, None]
        for left in range(0, len(candidates), chunk):
            columns = candidates[left : left + chunk].astype(np.float64)
            scores = rows @ columns.T
            inside = (here[1] >= left) & (here[1] < left + len(columns))
            scores[here[0, inside], here[1, inside] - left] = -np.inf  # positives never compete
            ahead[top : top + chunk] += np.count_nonzero(scores >= bar, axis=1)
    return 1 + ahead


def recall_at(ranks: Int64[np.ndarray, " queries"], k: int) -> float:
    """Share of queries whose best positive is among the first `k` candidates.

    Raises:
        DataError: There are no ranks.
        RequestError: `k` is below 1.
    """
    if k < 1:
        raise RequestError(f"k is {k}: ranks begin at 1. Use 1 or more, such as 1, 5 or 10.")
    _check_some(ranks)
    return float(np.mean(ranks <= k))


def median_rank(ranks: Int64[np.ndarray, " queries"]) -> float:
    """Middle rank; with an even number of queries, midway between the two middle ones.

    Raises:
        DataError: There are no ranks.
    """
    _check_some(ranks)
    return float(np.median(ranks))


def bootstrap(
    values: Real[np.ndarray, " queries"],
    clusters: Int64[np.ndarray, " queries"],
    statistic: Literal["mean", "median"] = "mean",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """A 95 % percentile interval that draws whole clusters, not single queries.

        for each of `resamples` times:
            draw as many clusters as there are, with replacement
            note the statistic of all values of the drawn clusters, repeats included
        low, high = the 2.5th and 97.5th percentile of what was noted

    The captions of one picture succeed and fail together; drawn one by one they would make the
    interval too narrow. A single cluster cannot vary, so its interval has no width: read it as
    unknown, not as certain.

    Args:
        values: One number for each query: 1.0 or 0.0 for recall, the rank for the median rank.
        clusters: Any number that is the same for queries drawn together, such as the picture's.
        statistic: "mean" or "median".
        resamples: How many times to draw.
        seed: The same seed gives the same interval.

    Raises:
        DataError: There are no values, or one is not finite.
        RequestError: `resamples` is below 1.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if resamples < 1:
        raise RequestError(f"resamples is {resamples}. Use 1 or more, such as 1000.")
    _check_some(values)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"value {bad[0]} is {values[bad[0]]}. Leave out queries that could not be judged."
        )
    of_all, of_drawn = (_means if statistic == "mean" else _medians)(values, clusters)
    count = len(np.unique(clusters))
    return resampled(of_all, of_drawn, count, len(values), resamples=resamples, seed=seed)


Drawn = Callable[[Int64[np.ndarray, "draws clusters"]], Float64[np.ndarray, " draws"]]
"""How often each cluster was drawn -> the statistic of each draw."""


def resampled(
    of_all: float,
    of_drawn: Drawn,
    clusters: int,
    width: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The interval of `bootstrap` for any statistic of how often each cluster was drawn.

    Args:
        of_all: The statistic of the sample as it is.
        of_drawn: The statistic of each draw; the columns are the clusters.
        clusters: How many there are.
        width: Numbers that `of_drawn` holds for one draw; bounds the draws made at a time.
        resamples: How many times to draw.
        seed: The same seed gives the same interval.
    """
    drawn = [of_drawn(counts) for counts in _cluster_draws(clusters, width, resamples, seed)]
    return _between(of_all, np.concatenate(drawn))


def _between(of_all: float, drawn: Float64[np.ndarray, " draws"]) -> Interval:
    """The percentile interval of what was noted in each draw."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # the mean of equal numbers may differ from them in the last digit: keep the value inside
    return Interval(of_all, min(float(low), of_all), max(float(high), of_all))


def recall_interval(
    ranks: Int64[np.ndarray, " queries"],
    k: int,
    clusters: Int64[np.ndarray, " queries"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Recall at `k` with its interval: the bootstrap's, or the exact one at 0 and 1.

    Where every query succeeds, or none does, all resamples are alike and the bootstrap says
    "certain", even of three pictures. There the far end is that of the exact binomial interval
    for as many trials as there are clusters: 0.025 ** (1 / clusters) below 1, and as much above 0.

    Raises:
        DataError: There are no ranks.
        RequestError: `k` or `resamples` is below 1.

    Reference: Clopper and Pearson, Biometrika 26 (1934), 404-413.
    """
    value = recall_at(ranks, k)
    if 0 < value < 1:
        hits = (ranks <= k).astype(np.float64)
        return bootstrap(hits, clusters, "mean", resamples=resamples, seed=seed)
    return all_or_none(value, len(np.unique(clusters)))


def mean_of_classes(
    right: Int64[np.ndarray, " classes"],
    pictures: Int64[np.ndarray, " classes"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean recall of the classes, each class with the same weight, with a stratified interval.

        for each of `resamples` times:
            for each class with n pictures: draw n pictures, each right with probability
                (right + 1/2) / (n + 1)
            note the mean over the classes of (share that is right - that probability)
        low, high = the value plus the 2.5th and 97.5th percentile of what was noted, in 0 to 1

    Classes keep their numbers of pictures, so rare ones are in every draw. The probability is the
    mean of the Jeffreys posterior Beta(right + 1/2, wrong + 1/2), so that classes whose pictures
    are all right or all wrong, such as those with one picture, add width; less itself, so that
    many small classes do not pull the interval towards one half. In simulations of 4 to 300
    classes of 1 to 50 pictures it held the truth 93 to 99 times in 100. Where all pictures of all
    classes are right, or none, the far end is the exact one of `recall_interval`.

    Args:
        right: Pictures of each class that were recognised.
        pictures: Pictures of each class; classes without any take no part.
        resamples: How many times to draw.
        seed: The same seed gives the same interval.

    Raises:
        DataError: No class has a picture.

    Reference: Brown, Cai and DasGupta, Interval estimation for a binomial proportion, Statistical
    Science 16 (2001), 101-133.
    """
    right, pictures = right[pictures > 0], pictures[pictures > 0]
    _check_some(pictures)
    value = float((right / pictures).mean())
    if value in (0, 1):
        return all_or_none(value, int(pictures.sum()))
    random = np.random.default_rng(seed)
    probability = (right + 0.5) / (pictures + 1)
    drawn = random.binomial(pictures, probability, size=(resamples, len(pictures)))
    off = (drawn / pictures - probability).mean(axis=1)
    return _between(value, np.clip(value + off, 0, 1))


def all_or_none(value: float, trials: int) -> Interval:
    """The exact interval where every trial succeeded (1) or none did (0); without any, 0 to 1."""
    far = ((1 - CONFIDENCE) / 2) ** (1 / trials) if trials else 0.0
    return Interval(value, far, 1.0) if value == 1 else Interval(value, 0.0, 1 - far)


def _means(
    values: Real[np.ndarray, " queries"], clusters: Int64[np.ndarray, " queries"]
) -> tuple[float, Drawn]:
    """The mean of all values, and the mean of drawn clusters."""
    place = np.unique(clusters, return_inverse=True)[1]
    totals = np.bincount(place, weights=values)
    sizes = np.bincount(place)
    return float(np.mean(values)), lambda counts: (counts @ totals) / (counts @ sizes)


def _medians(
    values: Real[np.ndarray, " queries"], clusters: Int64[np.ndarray, " queries"]
) -> tuple[float, Drawn]:
    """The median of all values, and the median of drawn clusters."""
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    place = np.unique(clusters, return_inverse=True)[1][order]

    def of_drawn(counts: Int64[np.ndarray, "draws clusters"]) -> Float64[np.ndarray, " draws"]:
        upto = np.cumsum(counts[:, place], axis=1)  # (draws, queries): copies up to each value
        size = upto[:, -1:]
        below = ordered[np.argmax(upto > (size - 1) // 2, axis=1)]
        above = ordered[np.argmax(upto > size // 2, axis=1)]
        return (below + above) / 2

    return float(np.median(values)), of_drawn


def _cluster_draws(
    clusters: int, width: int, resamples: int, seed: int
) -> Iterator[Int64[np.ndarray, "draws clusters"]]:
    """How often each cluster is drawn, a bounded block of draws at a time."""
    random = np.random.default_rng(seed)
    block = max(1, BOOTSTRAP_CELLS // max(width, clusters))
    for first in range(0, resamples, block):
        draws = min(block, resamples - first)
        picks = random.integers(clusters, size=(draws, clusters))
        picks += np.arange(draws)[:, None] * clusters
        counts = np.bincount(picks.ravel(), minlength=draws * clusters)
        yield counts.reshape(draws, clusters)


def _positive_pairs(
    positives: Sequence[Int64[np.ndarray, " _"]], queries: int, candidates: int
) -> Int64[np.ndarray, "2 pairs"]:
    """Every (query, positive candidate), ordered by query."""
    if len(positives) != queries:
        raise DataError(
            f"there are {queries:,} queries and positives for {len(positives):,}. "
            "Give one list of positives for each query."
        )
    if queries == 0:
        return np.zeros((2, 0), dtype=np.int64)
    sizes = np.array([len(some) for some in positives])
    if (sizes == 0).any():
        raise DataError(
            f"query {int(np.argmin(sizes))} has no positive, so it has no rank. "
            "Leave it out, or name its right candidates."
        )
    rows = np.repeat(np.arange(queries), sizes)
    columns = np.concatenate(positives).astype(np.int64)
    wrong = np.flatnonzero((columns < 0) | (columns >= candidates))
    if len(wrong):
        raise DataError(
            f"query {rows[wrong[0]]} names candidate {columns[wrong[0]]} as positive, but there "
            f"are {candidates:,}. Use numbers from 0 to {candidates - 1}."
        )
    return np.stack([rows, columns])


def _best_positive(
    query: Float[np.ndarray, "queries embed"],
    candidates: Float[np.ndarray, "candidates embed"],
    pairs: Int64[np.ndarray, "2 pairs"],
    chunk: int,
) -> Float64[np.ndarray, " queries"]:
    """Score of the best positive of each query."""
    best = np.full(len(query), -np.inf)
    for first in range(0, pairs.shape[1], chunk):
        rows, columns = pairs[:, first : first + chunk]
        products = query[rows].astype(np.float64) * candidates[columns]
        np.maximum.at(best, rows, products.sum(axis=1))
    return best


def _lengths(vectors: Float[np.ndarray, "rows embed"]) -> Float64[np.ndarray, " rows"]:
    """Euclidean lengths in fp64, without an fp64 copy of the vectors."""
    return np.sqrt(np.einsum("re,re->r", vectors, vectors, dtype=np.float64))


def check_finite(role: str, vectors: Float[np.ndarray, "rows embed"]) -> None:
    """Refuse NaN and infinity: they compare as false and would look like perfect ranks."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(
            f"{role} embedding {bad[0]} holds NaN or infinity ({len(bad):,} of {len(vectors):,} "
            "rows do). Look at that input and at the model's weights, then embed again."
        )


def _check_some(values: Real[np.ndarray, " queries"]) -> None:
    """Refuse an empty sample: it has no mean and no median."""
    if len(values) == 0:
        raise DataError("there are no queries to judge. Give at least one pair.")
