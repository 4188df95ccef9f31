"""Retrieval in both directions: find the picture of a caption, and a caption of a picture.

`judge_retrieval` runs a model over a source; `retrieval` is the protocol, over embeddings that
someone else computed:

* Identical pictures are one picture and identical captions one caption; a hit on any copy counts.
* Candidates are the distinct pictures and the distinct captions. Every caption of the data set
  is a query; every distinct picture that has a caption is a query.
* A (picture, caption) pair is right if any row of the data set says so, after merging.
* Ties count against the model, and intervals draw whole pictures (`metrics.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int64

from diptych.data.source import Source
from diptych.errors import DataError
from diptych.evaluate.judge import (
    CHUNK,
    Encoder,
    Progress,
    encode_pictures,
    no_progress,
    samples_to_take,
)
from diptych.evaluate.metrics import Interval, bootstrap, recall_interval, retrieval_ranks
from diptych.evaluate.text import cell, line, plain

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

    task: ClassVar[str] = "retrieval"

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
            line("", [*head, "median rank"]),
        ]
        for name, direction in (
            ("caption -> picture", self.text_to_image),
            ("picture -> caption", self.image_to_text),
        ):
            cells = [cell(interval) for interval in direction.recall.values()]
            lines.append(line(name, [*cells, cell(direction.median_rank, 1)]))
            lines.append(line("  by chance", [plain(100 * c) for c in direction.chance.values()]))
        return "\n".join(lines)


@dataclass(frozen=True)
class RetrievalJudged:
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
    chunk: int = CHUNK,
    progress: Progress = no_progress,
) -> RetrievalJudged:
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
    taken = samples_to_take(source, limit)
    pictures = encode_pictures(encoder, source, taken, chunk=chunk, progress=progress)
    texts, picture_of_text = captions_of(source, pictures.indices)
    text = encoder.encode_text(texts)
    result = retrieval(
        pictures.image,
        text,
        picture_of_text,
        picture_ids=pictures.ids,
        text_ids=texts,
        seed=seed,
        resamples=resamples,
    )
    return RetrievalJudged(
        result, pictures.image, text, picture_of_text, texts, pictures.indices, pictures.bad
    )


def captions_of(
    source: Source, indices: Sequence[int]
) -> tuple[list[str], Int64[np.ndarray, " texts"]]:
    """Every caption of these samples, and the row of its picture."""
    texts: list[str] = []
    rows: list[int] = []
    for row, index in enumerate(indices):
        for caption in source.captions(index):
            texts.append(caption)
            rows.append(row)
    return texts, np.array(rows, dtype=np.int64)


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
    picture_rows, picture_of_row = merge("picture", picture_ids, len(image))
    text_rows, text_of_row = merge("text", text_ids, len(text))
    image, text = image[picture_rows], text[text_rows]
    picture_of_caption = picture_of_row[picture_of_text]
    pairs = np.unique(np.stack([picture_of_caption, text_of_row]), axis=1)  # (2, distinct pairs)

    pictures_of = group(pairs[1], pairs[0], len(text))
    ranks = retrieval_ranks(text, image, pictures_of)
    sizes = np.array([len(some) for some in pictures_of])
    # copies of a caption share a rank, and each of them is a query
    text_to_image = _direction(
        ranks[text_of_row], sizes[text_of_row], len(image), picture_of_caption, resamples, seed
    )

    asked = np.unique(picture_of_caption)
    all_texts = group(pairs[0], pairs[1], len(image))
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


def merge(
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


def group(
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
