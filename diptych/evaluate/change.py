"""Change: what a picture changed, found by its text, told from no change, said, and pointed at.

What is judged depends on the model, and each part is left out where the source does not say what
it needs:

* retrieval (models with vectors): among the pairs that changed, the pair of a text and the text of
  a pair. The first text of a pair is its change: pairs with the same first text show the same one.
* detection: whether anything changed, against pairs where nothing did.
* texts (models that write): whether a text tells each change and nothing else, and perplexity.
* location: whether the map of the change points into the mask.

The counting is in `change_metrics.py`, the result in `change_result.py`; `retrieval.py` does the
same for single pictures.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from PIL import Image

from diptych.data.boxes import marked
from diptych.data.change_texts import SENTENCES
from diptych.data.pictures import to_rgb
from diptych.data.prepared import prepared
from diptych.data.source import Source
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import DataError
from diptych.evaluate.change_metrics import (
    all_told,
    detection,
    perplexity,
    pixel_curve,
    points_inside,
    share,
    told,
)
from diptych.evaluate.change_result import ChangeResult, Detection, Location, Score, Texts
from diptych.evaluate.judge import (
    Judged,
    Progress,
    Settings,
    no_progress,
    samples_to_take,
)
from diptych.evaluate.retrieval import RetrievalResult, retrieval

CHUNK = 32
"""Pairs encoded at a time."""


@runtime_checkable  # beartype checks it in tests
class Told(Protocol):
    """What a model that writes says of a sequence; `diptych.Change` is one."""

    @property
    def text(self) -> str:
        """What changed, in words."""
        ...

    @property
    def score(self) -> float:
        """How probable it is that anything did."""
        ...

    @property
    def heatmap(self) -> Float[np.ndarray, "rows columns"]:
        """Where, in 0 to 1."""
        ...


@runtime_checkable  # tells the two kinds apart
class SequenceEncoder(Protocol):
    """A model with vectors of sequences; `diptych.load` gives one."""

    @property
    def pair(self) -> str:
        """How it reads sequences; "none" for a model of single pictures."""
        ...

    @property
    def has_places(self) -> bool:
        """Whether it has `differences`."""
        ...

    @property
    def transform(self) -> ImageTransformConfig:
        """How pictures are prepared."""
        ...

    @property
    def seen_side(self) -> int:
        """Side of what maps lie over, from the upper left corner of a prepared picture."""
        ...

    def prepare(self, picture: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """What the model sees of a picture."""
        ...

    def encode_prepared_sequences(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, "sequences embed"]:
        """Unit vectors of what the last pictures changed."""
        ...

    def changed_prepared(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, " sequences"]:
        """How probable it is that they changed anything; of a model with pair "located"."""
        ...

    def differences(
        self, pixels: UInt8[np.ndarray, "sequences images size size 3"]
    ) -> Float[np.ndarray, "sequences rows columns"]:
        """Where they changed it, in 0 to 1."""
        ...

    def encode_text(self, texts: list[str]) -> Float[np.ndarray, "texts embed"]:
        """Unit vectors of texts."""
        ...


@runtime_checkable
class SequenceReader(Protocol):
    """A model that writes what changed; `diptych.load_change` gives one."""

    @property
    def transform(self) -> ImageTransformConfig:
        """How pictures are prepared."""
        ...

    @property
    def seen_side(self) -> int:
        """Side of what maps lie over, from the upper left corner of a prepared picture."""
        ...

    def read(self, sequences: list[list[Image.Image]]) -> Sequence[Told]:
        """Text, probability and map of each sequence."""
        ...

    def foretold(
        self, sequences: list[list[Image.Image]], texts: list[str]
    ) -> tuple[Float[np.ndarray, " texts"], Int64[np.ndarray, " texts"]]:
        """Nats and tokens of the text of each sequence."""
        ...


@dataclass(frozen=True)
class Pair:
    """One sample of a source, its pictures decoded."""

    pictures: list[Image.Image]
    """Oldest first, RGB."""

    captions: tuple[str, ...]
    changed: bool | None
    mask: Image.Image | None
    mark: str
    """Content hash of the pictures."""


@dataclass
class Notes:
    """What has been found of the pairs so far."""

    pairs: list[tuple[str, tuple[str, ...], bool | None]] = field(default_factory=list)
    """Mark, captions, changed."""

    bad: dict[str, str] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    curves: list[float] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Take note of a pair itself."""
        self.pairs.append((pair.mark, pair.captions, pair.changed))

    def locate(
        self,
        pair: Pair,
        heatmap: Float[np.ndarray, "rows columns"],
        model: "SequenceEncoder | SequenceReader",
    ) -> None:
        """Take note of how well a map points at what changed, where the source knows it and the
        model saw it."""
        if pair.mask is None:
            return
        mask = mask_as_seen(pair.mask, model.transform)[: model.seen_side, : model.seen_side]
        if mask.any() and not mask.all():
            hit, chance = points_inside(heatmap, mask)
            self.hits.append(float(hit))
            self.chances.append(chance)
            self.curves.append(pixel_curve(heatmap, mask))

    @property
    def no_change_texts(self) -> list[str]:
        """What the source says of pairs in which nothing changed; each text once."""
        said = [captions for _, captions, changed in self.pairs if changed is False]
        return sorted({text for captions in said for text in captions})

    @property
    def known(self) -> Bool[np.ndarray, " pairs"]:
        """Which pairs are known to have changed or not."""
        return np.array([changed is not None for _, _, changed in self.pairs], bool)

    @property
    def changed(self) -> Bool[np.ndarray, " pairs"]:
        """Which pairs are known to have changed."""
        return np.array([changed is True for _, _, changed in self.pairs], bool)


def judge_change(
    model: SequenceEncoder | SequenceReader,
    source: Source,
    settings: Settings,
    progress: Progress = no_progress,
) -> Judged:
    """Judge what a model knows of changes.

    Args:
        model: One with vectors, of pairs or of single pictures, or one that writes.
        source: Pictures with those before them.
        settings: Limit, seed, resamples.
        progress: Called with pairs done and in all.

    Raises:
        RequestError: The limit is below 2.
        DataError: A sample has no picture before, or fewer than two can be read.
    """
    if isinstance(model, SequenceReader):
        return _judge_reader(model, source, settings, progress)
    return _judge_encoder(model, source, settings, progress)


def _judge_encoder(
    model: SequenceEncoder, source: Source, settings: Settings, progress: Progress
) -> Judged:
    """Retrieval, detection and location of a model with vectors."""
    notes, blocks = Notes(), list[np.ndarray]()
    for part in pairs_of(source, settings.limit, notes, progress):
        vectors, maps, chances = _encoded(model, part)
        blocks.append(vectors)
        for pair, heatmap in zip(part, maps, strict=False):
            notes.locate(pair, heatmap, model)
        notes.scores += chances or [float(heatmap.max()) for heatmap in maps]
    vectors = np.concatenate(blocks)
    scores = np.array(notes.scores)
    score: Score = "probability" if model.pair == "located" else "distance"
    if model.pair not in ("none", "located"):
        text = model.encode_text(notes.no_change_texts or list(SENTENCES["none"]))
        scores = -(vectors.astype(np.float64) @ text.mean(axis=0).astype(np.float64))
        score = "unlike no change"
    found = None
    if len(scores) == len(vectors):
        found = _detection(notes, scores, score, settings)
    return _judged(
        notes, settings, detection=found, retrieval=_retrieval(model, vectors, notes, settings)
    )


def _encoded(
    model: SequenceEncoder, part: Sequence[Pair]
) -> tuple[Float[np.ndarray, "pairs embed"], list[Float[np.ndarray, "rows columns"]], list[float]]:
    """Vectors and maps of some pairs, and how probable a change is; no map and no probability
    where the model has none."""
    lengths = np.array([len(pair.pictures) for pair in part])
    vectors: dict[int, np.ndarray] = {}
    maps: dict[int, np.ndarray] = {}
    chances: dict[int, float] = {}
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length).tolist()
        pixels = np.stack(
            [np.stack([model.prepare(picture) for picture in part[row].pictures]) for row in rows]
        )
        vectors |= dict(zip(rows, model.encode_prepared_sequences(pixels), strict=True))
        if model.has_places:
            maps |= dict(zip(rows, model.differences(pixels), strict=True))
        if model.pair == "located":
            chances |= dict(zip(rows, model.changed_prepared(pixels).tolist(), strict=True))
    together = np.stack([vectors[row] for row in range(len(part))])
    return together, [maps[row] for row in sorted(maps)], [chances[row] for row in sorted(chances)]


def _retrieval(
    model: SequenceEncoder,
    vectors: Float[np.ndarray, "pairs embed"],
    notes: Notes,
    settings: Settings,
) -> RetrievalResult | None:
    """Both directions among the pairs that changed, or of which nobody knows; None with fewer than
    two different texts."""
    asked = [
        row
        for row, (_, captions, changed) in enumerate(notes.pairs)
        if captions and changed is not False
    ]
    texts = [notes.pairs[row][1][0] for row in asked]
    if len(set(texts)) < 2:
        return None
    return retrieval(
        vectors[asked],
        model.encode_text(texts),
        np.arange(len(asked)),
        picture_ids=[notes.pairs[row][0] for row in asked],
        text_ids=texts,
        seed=settings.seed,
        resamples=settings.resamples,
    )


def _judge_reader(
    model: SequenceReader, source: Source, settings: Settings, progress: Progress
) -> Judged:
    """Texts, detection and location of a model that writes."""
    notes, said = Notes(), list[str]()
    nats, tokens = list[np.ndarray](), list[np.ndarray]()
    for part in pairs_of(source, settings.limit, notes, progress):
        for pair, change in zip(part, model.read([pair.pictures for pair in part]), strict=True):
            said.append(change.text)
            notes.scores.append(change.score)
            notes.locate(pair, change.heatmap, model)
        captioned = [pair for pair in part if pair.captions]
        if captioned:
            sums, counts = model.foretold(
                [pair.pictures for pair in captioned], [pair.captions[0] for pair in captioned]
            )
            nats.append(sums.astype(np.float64))
            tokens.append(counts)
    texts = _texts(notes, said, nats, tokens, settings) if nats else None
    found = _detection(notes, np.array(notes.scores), "probability", settings)
    return _judged(notes, settings, detection=found, texts=texts)


def _texts(
    notes: Notes,
    said: Sequence[str],
    nats: Sequence[Float64[np.ndarray, " _"]],
    tokens: Sequence[Int64[np.ndarray, " _"]],
    settings: Settings,
) -> Texts:
    """How well the texts tell what changed, of the pairs that have captions."""
    draws = {"resamples": settings.resamples, "seed": settings.seed}
    right, right_if_changed, parts = [], [], []
    for text, (_, captions, changed) in zip(said, notes.pairs, strict=True):
        if not captions:
            continue
        right.append(float(all_told(text, captions)))
        if changed:
            right_if_changed.append(right[-1])
            found, _, changes = told(text, captions)
            parts.append(found / max(changes, 1))
    return Texts(
        all_right=share(np.array(right), **draws),
        all_right_if_changed=share(np.array(right_if_changed), **draws) if parts else None,
        changes_told=share(np.array(parts), **draws) if parts else None,
        perplexity=perplexity(np.concatenate(nats), np.concatenate(tokens), **draws),
        pairs=len(right),
    )


def _detection(
    notes: Notes,
    scores: Float64[np.ndarray, " pairs"],
    score: Score,
    settings: Settings,
) -> Detection | None:
    """Whether anything changed, where it is known; None without pairs of both kinds."""
    known, changed = notes.known, notes.changed
    if not changed.any() or changed[known].all():
        return None
    auc = detection(scores[known], changed[known], resamples=settings.resamples, seed=settings.seed)
    return Detection(auc, score)


def _judged(
    notes: Notes,
    settings: Settings,
    *,
    detection: Detection | None = None,
    retrieval: RetrievalResult | None = None,
    texts: Texts | None = None,
) -> Judged:
    """The result, with how well the maps point."""
    location = None
    draws = {"resamples": settings.resamples, "seed": settings.seed}
    if notes.hits:
        location = Location(
            hits=share(np.array(notes.hits), **draws),
            hits_by_chance=float(np.mean(notes.chances)),
            pixel_auc=share(np.array(notes.curves), **draws),
            pairs=len(notes.hits),
        )
    result = ChangeResult(
        retrieval=retrieval,
        detection=detection,
        texts=texts,
        location=location,
        pairs=len(notes.pairs),
        changed=int(notes.changed.sum()),
        unchanged=int((notes.known & ~notes.changed).sum()),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return Judged(result, notes.bad)


def pairs_of(
    source: Source, limit: int | None, notes: Notes, progress: Progress = no_progress
) -> Iterator[list[Pair]]:
    """The pairs of a source that can be read, in parts; `notes` learns of all.

    Raises:
        RequestError: The limit is below 2.
        DataError: Fewer than two can be read and have a picture before.
    """

    def ready(index: int) -> Pair:
        """A sample with its pictures decoded."""
        sample = source.sample(index)
        if not sample.before:
            raise DataError(
                f"{source.name}#{index} has no picture before, so nothing can have changed. "
                "Use a source of pairs, such as scenes:changes:test, or another task."
            )
        pictures = [to_rgb(picture) for picture in (*sample.before, sample.picture)]
        parts = [f"{picture.size}".encode() + picture.tobytes() for picture in pictures]
        mark = hashlib.sha256(b"".join(parts)).hexdigest()
        return Pair(pictures, sample.captions, sample.changed, sample.mask, mark)

    indices = samples_to_take(source, limit)
    done = 0
    for part in prepared(indices, ready, CHUNK):
        good: list[Pair] = []
        for index, outcome in part:
            done += 1
            progress(done, len(indices))
            if isinstance(outcome, DataError):
                notes.bad[f"{source.name}#{index}"] = str(outcome)
                continue
            good.append(outcome)
            notes.add(outcome)
        if good:
            yield good
    if len(notes.pairs) < 2:
        raise DataError(
            f"{source.name} has {len(notes.pairs)} pair that can be read, of {len(indices)}, and "
            f"a judgement needs 2. {next(iter(notes.bad.values()), '')}".rstrip()
        )


def mask_as_seen(
    mask: Image.Image, transform: ImageTransformConfig
) -> Bool[np.ndarray, "size size"]:
    """A mask brought to the model's size as pictures are; what is added beside them is outside."""
    seen = evaluation_transform(mask.convert("RGB"), transform.model_copy(update={"fill": 0}))
    return marked(seen[:, :, 0])
