"""Retrieval in both directions: find the picture of a caption, and a caption of a picture.

The protocol, over embeddings that someone else computed:

* Identical pictures are one picture and identical captions one caption; a hit on any copy counts.
* Candidates are the distinct pictures and the distinct captions. Every caption of the data set
  is a query; every distinct picture that has a caption is a query.
* A (picture, caption) pair is right if any row of the data set says so, after merging.
* Ties count against the model, and intervals draw whole pictures (`metrics.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from diptych.errors import DataError
from diptych.evaluate.metrics import Interval, bootstrap, recall_interval, retrieval_ranks

CUTOFFS = (1, 5, 10)
"""The k of the recalls that are reported."""


@dataclass(frozen=True)
class Direction:
    """How well one panel finds the other."""

    recall: dict[int, Interval]
    """k -> share of queries with a right candidate among the first k."""

    median_rank: Interval
    """Place of the best right candidate; 1 is the best."""

    chance: dict[int, float]
    """k -> the recall of a random order of the candidates."""

    queries: int
    candidates: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: recall@1, recall@5, recall@10, median_rank, queries, candidates."""
        recalls = {f"recall@{k}": asdict(interval) for k, interval in self.recall.items()}
        return {
            **recalls,
            "median_rank": asdict(self.median_rank),
            "queries": self.queries,
            "candidates": self.candidates,
        }


@dataclass(frozen=True)
class RetrievalResult:
    """Recall and median rank in both directions, with intervals, counts and chance levels."""

    text_to_image: Direction
    image_to_text: Direction

    pictures: int
    """Distinct pictures."""

    texts: int
    """Distinct captions."""

    captions: int
    """All captions, copies included: the queries of `text_to_image`."""

    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1."""
        both = {"text_to_image": self.text_to_image, "image_to_text": self.image_to_text}
        return {
            **{name: direction.to_dict() for name, direction in both.items()},
            "chance": {
                name: {f"recall@{k}": share for k, share in direction.chance.items()}
                for name, direction in both.items()
            },
            "pictures": self.pictures,
            "texts": self.texts,
            "captions": self.captions,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def summary(self) -> str:
        """A few aligned lines for a terminal, recalls in percent with 95 % intervals."""
        head = [f"R@{k} %" for k in self.text_to_image.recall]
        lines = [
            f"{self.pictures:,} pictures, {self.texts:,} distinct captions, "
            f"{self.captions:,} caption queries; 95 % intervals in brackets",
            _line("", [*head, "median rank"]),
        ]
        for name, direction in (
            ("caption -> picture", self.text_to_image),
            ("picture -> caption", self.image_to_text),
        ):
            cells = [_cell(interval, 100) for interval in direction.recall.values()]
            lines.append(_line(name, [*cells, _cell(direction.median_rank, 1)]))
            lines.append(_line("  by chance", [_plain(100 * c) for c in direction.chance.values()]))
        return "\n".join(lines)


def retrieval(
    image: Float[np.ndarray, "pictures embed"],
    text: Float[np.ndarray, "texts embed"],
    picture_of_text: Int64[np.ndarray, " texts"],
    *,
    picture_ids: Sequence[str] | None = None,
    text_ids: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> RetrievalResult:
    """Judge unit-norm embeddings of pictures and their captions against each other.

    Args:
        image: One vector a picture. Pictures without a caption are candidates, not queries.
        text: One vector a caption.
        picture_of_text: For each caption the row of its picture in `image`.
        picture_ids: A content hash for each picture: equal means the same picture, and the first
            one's vector stands for all. None takes every row for a picture of its own.
        text_ids: The same for captions, such as the caption itself.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Raises:
        DataError: Vectors are not finite, or the arguments do not fit together.
    """
    _check_fit(len(image), picture_of_text, len(text))
    picture_rows, picture_of_row = _merge("picture", picture_ids, len(image))
    text_rows, text_of_row = _merge("text", text_ids, len(text))
    image, text = image[picture_rows], text[text_rows]
    picture_of_caption = picture_of_row[picture_of_text]
    pairs = np.unique(np.stack([picture_of_caption, text_of_row]), axis=1)  # (2, distinct pairs)

    pictures_of = _group(pairs[1], pairs[0], len(text))
    ranks = retrieval_ranks(text, image, pictures_of)
    sizes = np.array([len(some) for some in pictures_of])
    # copies of a caption share a rank, and each of them is a query
    text_to_image = _direction(
        ranks[text_of_row], sizes[text_of_row], len(image), picture_of_caption, resamples, seed
    )

    asked = np.unique(picture_of_caption)
    all_texts = _group(pairs[0], pairs[1], len(image))
    texts_of = [all_texts[picture] for picture in asked]
    ranks = retrieval_ranks(image[asked], text, texts_of)
    sizes = np.array([len(some) for some in texts_of])
    image_to_text = _direction(ranks, sizes, len(text), asked, resamples, seed)
    return RetrievalResult(
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        pictures=len(image),
        texts=len(text),
        captions=len(text_of_row),
        resamples=resamples,
        seed=seed,
    )


def _direction(
    ranks: Int64[np.ndarray, " queries"],
    positives: Int64[np.ndarray, " queries"],
    candidates: int,
    clusters: Int64[np.ndarray, " queries"],
    resamples: int,
    seed: int,
) -> Direction:
    """The numbers of one direction from the ranks and the number of positives of its queries."""
    recall = {
        k: recall_interval(ranks, k, clusters, resamples=resamples, seed=seed) for k in CUTOFFS
    }
    return Direction(
        recall=recall,
        median_rank=bootstrap(ranks, clusters, "median", resamples=resamples, seed=seed),
        chance={k: chance_recall(positives, candidates, k) for k in CUTOFFS},
        queries=len(ranks),
        candidates=candidates,
    )


def chance_recall(positives: Int64[np.ndarray, " queries"], candidates: int, k: int) -> float:
    """Expected recall at `k` when the candidates come in random order.

        for each query with p positives among n candidates:
            recall = 1 - (n - p) / n * (n - p - 1) / (n - 1) * ...   (k factors)

    Args:
        positives: Number of right candidates of each query.
        candidates: Number of all candidates.
        k: How many candidates are looked at.
    """
    looked = np.arange(min(k, candidates))
    wrong = np.maximum(candidates - positives[:, None] - looked, 0)  # (queries, looked)
    return float(np.mean(1 - np.prod(wrong / (candidates - looked), axis=1)))


def _merge(
    kind: str, ids: Sequence[str] | None, rows: int
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " rows"]]:
    """The first row of each distinct id, and for each row the place of its id among those."""
    if ids is None:
        return np.arange(rows), np.arange(rows)
    if len(ids) != rows:
        raise DataError(
            f"there are {rows:,} {kind} embeddings and {len(ids):,} {kind}_ids. "
            f"Give one id for each embedding, or None."
        )
    number: dict[str, int] = {}
    place = np.array([number.setdefault(name, len(number)) for name in ids], dtype=np.int64)
    return np.unique(place, return_index=True)[1], place


def _group(
    keys: Int64[np.ndarray, " pairs"], values: Int64[np.ndarray, " pairs"], count: int
) -> list[Int64[np.ndarray, " _"]]:
    """For each key from 0 to count - 1, its values."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, count)))


def _check_fit(pictures: int, picture_of_text: Int64[np.ndarray, " texts"], texts: int) -> None:
    """Refuse arguments that do not belong together."""
    if texts == 0 or pictures == 0:
        raise DataError(
            f"there are {pictures:,} pictures and {texts:,} captions. Give at least one pair."
        )
    wrong = np.flatnonzero((picture_of_text < 0) | (picture_of_text >= pictures))
    if len(wrong):
        raise DataError(
            f"text {wrong[0]} belongs to picture {picture_of_text[wrong[0]]}, but there are "
            f"{pictures:,}. Use numbers from 0 to {pictures - 1}."
        )


def _cell(interval: Interval, times: int) -> str:
    """A number and its interval, such as "41.2 [38.0, 44.3]"."""
    value, low, high = (times * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _plain(number: float) -> str:
    """Three significant digits without an exponent, such as 100, 8.33 or 0.00001."""
    return np.format_float_positional(number, precision=3, unique=False, fractional=False, trim="-")


def _line(name: str, cells: Sequence[str]) -> str:
    """One row of the terminal table."""
    return (f"{name:<20}" + "".join(f"{cell:<22}" for cell in cells)).rstrip()
