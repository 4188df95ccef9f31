"""Counts over what was said of changes, scored and pointed at: plain texts and arrays, no model.

A text of a change has a sentence for each change, in any order. A source has several texts of the
same changes, all of them right, so a sentence of a text is right if any of them says it.
`change.py` is the task that uses this.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from diptych.evaluate.metrics import Drawn, Interval, all_or_none, resampled
from diptych.evaluate.pairs import Pairs, area_under_curve, interval

SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*")
NOT_A_WORD = re.compile(r"[\W_]+")


def sentences_of(text: str) -> list[str]:
    """The sentences of a text as plain lower-case words, in their order."""
    plain = [NOT_A_WORD.sub(" ", piece).strip().lower() for piece in SENTENCE_END.split(text)]
    return [sentence for sentence in plain if sentence]


def ways_to_say(captions: Sequence[str]) -> list[set[str]]:
    """For each change, every sentence that tells it.

        the changes are the sentences of the first caption
        for each other caption with as many sentences:
            until all are taken: the sentence and the change that share the largest part of their
                words, of those left, go together

    Captions with another number of sentences say the same in another way and are left out here.

    Args:
        captions: Texts of one pair of pictures; all are true, and the first is canonical.
    """
    first, *others = (sentences_of(caption) for caption in captions)
    ways = [{sentence} for sentence in first]
    for sentences in others:
        if len(sentences) != len(first):
            continue
        alike = sorted(
            (-_shared(change, sentence), row, column)
            for row, change in enumerate(first)
            for column, sentence in enumerate(sentences)
        )
        rows, columns = set[int](), set[int]()
        for _, row, column in alike:
            if row not in rows and column not in columns:
                rows.add(row)
                columns.add(column)
                ways[row].add(sentences[column])
    return ways


def told(text: str, captions: Sequence[str]) -> tuple[int, int, int]:
    """How many of a text's sentences are right, one for one, in any order.

    The largest number of pairs (sentence, change) in which the sentence is a way to say the change
    and none comes twice: Kuhn's augmenting paths.

    Returns:
        Sentences that are right, sentences of the text, and changes there are.

    Paper: arXiv:2606.04433, appendix (bipartite matching of multi-object differences).
    """
    said, ways = sentences_of(text), ways_to_say(captions)
    owner: dict[int, int] = {}

    def place(sentence: int, tried: set[int]) -> bool:
        """Give a sentence a change of its own, moving others if need be."""
        for change, known in enumerate(ways):
            if change in tried or said[sentence] not in known:
                continue
            tried.add(change)
            if change not in owner or place(owner[change], tried):
                owner[change] = sentence
                return True
        return False

    right = sum(place(sentence, set()) for sentence in range(len(said)))
    return right, len(said), len(ways)


def all_told(text: str, captions: Sequence[str]) -> bool:
    """Whether a text tells every change and nothing else; or is one of the captions, reordered."""
    right, said, changes = told(text, captions)
    bag = Counter(sentences_of(text))
    whole = any(bag == Counter(sentences_of(caption)) for caption in captions)
    return right == said == changes or whole


def _shared(one: str, other: str) -> float:
    """Words that two sentences share, as a share of all their words."""
    mine, theirs = set(one.split()), set(other.split())
    return len(mine & theirs) / max(len(mine | theirs), 1)


def detection(
    score: Float64[np.ndarray, " pairs"],
    changed: Bool[np.ndarray, " pairs"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Area under the curve: share of (changed, unchanged) in which the changed one scores higher.

    Ties count against the model. The interval draws pairs of pictures; at 0 and 1 it is the exact
    one for as many trials as the rarer of the two kinds has pairs.

    Args:
        score: Higher means changed.
        changed: Whether it is; at least one of each.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    pairs = Pairs(score, changed, np.arange(len(score)))
    trials = int(min(changed.sum(), (~changed).sum()))
    curve = area_under_curve(pairs)
    return interval(pairs, curve, trials=trials, resamples=resamples, seed=seed)


def points_inside(
    heatmap: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "height width"]
) -> tuple[bool, float]:
    """The pointing game: whether the hottest place overlaps the mask, and how often any would.

    Of several that are equally hot all must overlap it.

    Paper: Zhang et al., Top-down neural attention by excitation backprop, arXiv:1608.00507.
    """
    inside = _pixels_of_places(heatmap, mask)[0] > 0
    return bool(inside[heatmap >= heatmap.max()].all()), float(inside.mean())


def pixel_curve(
    heatmap: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "height width"]
) -> float:
    """Share of (pixel inside, pixel outside the mask) in which the one inside is hotter.

    A pixel has the heat of its place; equal ones count half, as many pixels share a place.

    Args:
        heatmap: One number for each place.
        mask: True inside; neither empty nor full.
    """
    inside, outside = (part.ravel() for part in _pixels_of_places(heatmap, mask))
    _, level = np.unique(heatmap.ravel(), return_inverse=True)
    hot = np.bincount(level, weights=inside)
    cold = np.bincount(level, weights=outside)
    below = np.cumsum(cold) - cold
    return float((hot * (below + cold / 2)).sum() / (hot.sum() * cold.sum()))


def _pixels_of_places(
    heatmap: Float[np.ndarray, "rows columns"], mask: Bool[np.ndarray, "height width"]
) -> tuple[Int64[np.ndarray, "rows columns"], Int64[np.ndarray, "rows columns"]]:
    """How many pixels of each place lie inside the mask, and how many outside."""
    rows, columns = heatmap.shape
    down = np.arange(mask.shape[0]) * rows // mask.shape[0]
    right = np.arange(mask.shape[1]) * columns // mask.shape[1]
    place = down[:, None] * columns + right
    inside = np.bincount(place[mask], minlength=rows * columns)
    all_of_them = np.bincount(place.ravel(), minlength=rows * columns)
    return inside.reshape(rows, columns), (all_of_them - inside).reshape(rows, columns)


def share(
    values: Float64[np.ndarray, " pairs"], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Mean of numbers in 0 to 1, one for each pair; at 0 and 1 the exact interval."""
    value = float(values.mean())
    if value in (0, 1):
        return all_or_none(value, len(values))
    return _drawn_pairs(
        value, lambda counts: counts @ values / counts.sum(axis=1), len(values), resamples, seed
    )


def perplexity(
    nats: Float64[np.ndarray, " texts"],
    tokens: Int64[np.ndarray, " texts"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """exp(sum of nats / sum of tokens), over all texts together; the interval draws texts."""

    def of_drawn(counts: Int64[np.ndarray, "draws texts"]) -> Float64[np.ndarray, " draws"]:
        return np.exp((counts @ nats) / (counts @ tokens))

    value = float(np.exp(nats.sum() / tokens.sum()))
    return _drawn_pairs(value, of_drawn, len(nats), resamples, seed)


def _drawn_pairs(value: float, of_drawn: Drawn, count: int, resamples: int, seed: int) -> Interval:
    """The interval of a statistic whose draws are of single pairs."""
    return resampled(value, of_drawn, count, count, resamples=resamples, seed=seed)
