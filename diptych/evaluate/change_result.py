"""The result of judging changes: its parts, and how it is said to a terminal and to a file.

`change.py` is the task, `change_metrics.py` counts.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from diptych.evaluate.metrics import Interval
from diptych.evaluate.retrieval import Direction, RetrievalResult
from diptych.evaluate.text import cell, line, plain

Score = Literal["probability", "unlike no change", "distance"]
"""What tells pairs that changed from others: the model's own probability; how unlike a text that
says that nothing changed the pair is; or how far apart the pictures are where they differ most."""


@dataclass(frozen=True)
class Detection:
    """How well a score tells pairs that changed from pairs that did not."""

    auc: Interval
    score: Score


@dataclass(frozen=True)
class Texts:
    """How well texts tell what changed."""

    all_right: Interval
    """Share of the pairs whose text tells each change and nothing else."""

    all_right_if_changed: Interval | None
    """The same of those pairs that changed."""

    changes_told: Interval | None
    """Share of the changes that are told; mean over the pairs that changed."""

    perplexity: Interval
    """Of the first caption of each pair, per token."""

    pairs: int


@dataclass(frozen=True)
class Location:
    """How well the map points at what changed."""

    hits: Interval
    """Share of the pairs whose hottest place overlaps the mask (the pointing game)."""

    hits_by_chance: float
    pixel_auc: Interval
    """Mean over the pairs of: share of (pixel inside, pixel outside) where the one inside is
    hotter."""

    pairs: int


@dataclass(frozen=True)
class ChangeResult:
    """What a model knows of changes."""

    task: ClassVar[str] = "change"

    retrieval: RetrievalResult | None
    detection: Detection | None
    texts: Texts | None
    location: Location | None
    pairs: int
    changed: int
    unchanged: int
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1. What was not judged is None."""
        return {
            "retrieval": self._both_ways(),
            "detection": asdict(self.detection) if self.detection else None,
            "texts": asdict(self.texts) if self.texts else None,
            "location": asdict(self.location) if self.location else None,
            "pairs": self.pairs,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def _both_ways(self) -> dict[str, Any] | None:
        """The numbers of retrieval, JSON-ready."""
        if self.retrieval is None:
            return None
        ways = _directions(self.retrieval)
        return {
            **{name: direction.to_dict() for name, direction in ways.items()},
            "chance": {
                name: {f"recall@{k}": share for k, share in direction.chance.items()}
                for name, direction in ways.items()
            },
        }

    def summary(self) -> str:
        """A few aligned lines for a terminal, shares in percent."""
        unknown = self.pairs - self.changed - self.unchanged
        known = f"{self.changed:,} changed, {self.unchanged:,} did not"
        known += f", {unknown:,} unknown" if unknown else ""
        rows = [f"{self.pairs:,} pairs: {known}; 95 % intervals in brackets"]
        if self.retrieval is not None:
            rows += _retrieval_rows(self.retrieval)
        if self.detection is not None:
            rows.append(line("changed or not", ["AUC", "score"]))
            rows.append(line("", [cell(self.detection.auc, 1, 3), self.detection.score]))
        if self.texts is not None:
            rows += _text_rows(self.texts)
        if self.location is not None:
            rows.append(
                line(f"where ({self.location.pairs:,})", ["hit %", "by chance", "pixel AUC"])
            )
            chance = plain(100 * self.location.hits_by_chance)
            pixels = cell(self.location.pixel_auc, 1, 3)
            rows.append(line("", [cell(self.location.hits), chance, pixels]))
        return "\n".join(rows)


def _directions(found: RetrievalResult) -> dict[str, Direction]:
    """Both directions by name."""
    return {"text_to_pair": found.text_to_image, "pair_to_text": found.image_to_text}


def _retrieval_rows(found: RetrievalResult) -> list[str]:
    """Recalls both ways."""
    rows = [line("", [*(f"R@{k} %" for k in found.text_to_image.recall), "median rank"])]
    for name, direction in _directions(found).items():
        cells = [cell(interval) for interval in direction.recall.values()]
        name = name.replace("_to_", " -> ")
        rows.append(line(name, [*cells, cell(direction.median_rank, 1)]))
        rows.append(line("  by chance", [plain(100 * c) for c in direction.chance.values()]))
    return rows


def _text_rows(texts: Texts) -> list[str]:
    """Shares of right texts and the perplexity."""
    head = ["all right %", "if changed %", "changes told %", "perplexity"]
    shares = [texts.all_right, texts.all_right_if_changed, texts.changes_told]
    cells = ["-" if one is None else cell(one) for one in shares]
    return [
        line(f"texts ({texts.pairs:,})", head),
        line("", [*cells, cell(texts.perplexity, 1, 3)]),
    ]
