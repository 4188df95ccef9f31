"""How well pictures are told into classes: over plain arrays, whoever made the class vectors.

A picture goes to the class whose vector has the greatest product with its own. `zeroshot.py` makes
class vectors from texts, `probe.py` learns them; both are judged here, so their numbers compare.
Ties count against the model, and a picture of several classes is right with any of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from diptych.evaluate.metrics import (
    Interval,
    mean_of_classes,
    recall_interval,
    retrieval_ranks,
)
from diptych.evaluate.retrieval import chance_recall
from diptych.evaluate.text import cell, line, plain

TOP = 5
"""The second number of candidates looked at; fewer if there are fewer classes."""

WORST = 5
"""Classes shown in a summary."""

TAKEN_FOR = 3
"""Wrong classes named for each class."""


@dataclass(frozen=True)
class ClassRecall:
    """One class."""

    name: str
    pictures: int
    """Distinct pictures of the class that were judged."""

    right: int
    """How many of them were told to be of it, or of another class that they are of too."""

    taken_for: dict[str, int]
    """The wrong classes most often given instead, with how often."""

    @property
    def recall(self) -> float:
        """Share of the pictures that are right; not a number without pictures."""
        return self.right / self.pictures if self.pictures else float("nan")


@dataclass(frozen=True)
class Classification:
    """Accuracy and recall of classes, with intervals, counts and chance levels."""

    top: dict[int, Interval]
    """k -> share of pictures with a right class among the first k."""

    mean_per_class: Interval
    """Mean recall of the classes that have pictures, each with the same weight."""

    chance: dict[int, float]
    """k -> the share that a random order of the classes gets."""

    majority_share: float
    """Share of the pictures that are of the largest class: what always saying it gets."""

    majority_class: str
    """The largest class."""

    classes: list[ClassRecall]
    """Every class, by name."""

    pictures: int
    """Distinct pictures judged."""

    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1."""
        worst = self.worst(WORST)
        return {
            **{f"top{k}": asdict(interval) for k, interval in self.top.items()},
            "mean_per_class_recall": asdict(self.mean_per_class),
            "chance": {f"top{k}": share for k, share in self.chance.items()},
            "majority": {"class": self.majority_class, "share": self.majority_share},
            "pictures": self.pictures,
            "classes": len(self.classes),
            "per_class": [
                {
                    "class": one.name,
                    "pictures": one.pictures,
                    "right": one.right,
                    "recall": one.recall if one.pictures else None,
                }
                for one in self.classes
            ],
            "worst": [{"class": one.name, "taken_for": one.taken_for} for one in worst],
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def worst(self, count: int) -> list[ClassRecall]:
        """The classes of lowest recall that are not all right; of equal ones the larger first."""
        wrong = [one for one in self.classes if one.right < one.pictures]
        return sorted(wrong, key=lambda one: (one.recall, -one.pictures, one.name))[:count]

    def lines(self) -> list[str]:
        """Aligned lines for a terminal, shares in percent with 95 % intervals."""
        rows = [line("", ["%", "by chance"])]
        for k, interval in self.top.items():
            rows.append(line(f"top-{k}", [cell(interval), plain(100 * self.chance[k])]))
        rows.append(
            line("mean per class", [cell(self.mean_per_class), plain(100 * self.chance[1])])
        )
        rows.append(
            f'always "{self.majority_class}", the largest class, would be right for '
            f"{100 * self.majority_share:.1f} %"
        )
        single = sum(one.pictures == 1 for one in self.classes)
        if single:
            rows.append(f"classes with one picture, which widen the interval above: {single:,}")
        worst = self.worst(WORST)
        if worst:
            width = 2 + max(len(one.name) for one in worst)
            rows.append("classes recognised worst")
            for one in worst:
                instead = ", ".join(f"{name} ({count})" for name, count in one.taken_for.items())
                rows.append(
                    f"  {one.name:<{width}}{100 * one.recall:5.1f} % of {one.pictures:>5,}  "
                    f"taken for {instead}"
                )
        return rows


def classification(
    image: Float[np.ndarray, "pictures embed"],
    classes: Float[np.ndarray, "classes embed"],
    names: Sequence[str],
    labels: Sequence[Sequence[str]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Classification:
    """Judge pictures against class vectors.

    Args:
        image: One vector for each distinct picture; copies would count twice.
        classes: One vector for each class.
        names: The classes, in the order of `classes`.
        labels: The classes that each picture is of; at least one, all among `names`.
        resamples: Of the bootstrap, which draws pictures; for the mean per class within each class.
        seed: Of the bootstrap.

    Raises:
        DataError: A vector is not finite.
    """
    place = {name: number for number, name in enumerate(names)}
    right_classes = [np.array([place[label] for label in some], np.int64) for some in labels]
    ranks = retrieval_ranks(image, classes, right_classes)
    own = np.arange(len(image))
    sizes = np.array([len(some) for some in right_classes])
    cutoffs = sorted({1, min(TOP, len(names))})
    found = _by_class(names, right_classes, ranks, _best_wrong(image, classes, right_classes))
    largest = max(found, key=lambda one: one.pictures)
    return Classification(
        top={k: recall_interval(ranks, k, own, resamples=resamples, seed=seed) for k in cutoffs},
        mean_per_class=mean_of_classes(
            np.array([one.right for one in found]),
            np.array([one.pictures for one in found]),
            resamples=resamples,
            seed=seed,
        ),
        chance={k: chance_recall(sizes, len(names), k) for k in cutoffs},
        majority_share=largest.pictures / len(image),
        majority_class=largest.name,
        classes=found,
        pictures=len(image),
        resamples=resamples,
        seed=seed,
    )


def _best_wrong(
    image: Float[np.ndarray, "pictures embed"],
    classes: Float[np.ndarray, "classes embed"],
    right_classes: Sequence[Int64[np.ndarray, " _"]],
    chunk: int = 1024,
) -> Int64[np.ndarray, " pictures"]:
    """For each picture the class of highest score that it is not of."""
    best: list[int] = []
    for top in range(0, len(image), chunk):
        scores = image[top : top + chunk].astype(np.float64) @ classes.T.astype(np.float64)
        for row, right in zip(scores, right_classes[top : top + chunk], strict=True):
            row[right] = -np.inf
            best.append(int(row.argmax()))
    return np.array(best, dtype=np.int64)


def _by_class(
    names: Sequence[str],
    right_classes: Sequence[Int64[np.ndarray, " _"]],
    ranks: Int64[np.ndarray, " pictures"],
    best_wrong: Int64[np.ndarray, " pictures"],
) -> list[ClassRecall]:
    """Counts of each class."""
    pictures, right = Counter[int](), Counter[int]()
    instead: dict[int, Counter[str]] = {number: Counter() for number in range(len(names))}
    for some, rank, wrong in zip(right_classes, ranks, best_wrong, strict=True):
        for number in some.tolist():
            pictures[number] += 1
            if rank == 1:
                right[number] += 1
            else:
                instead[number][names[wrong]] += 1
    return [
        ClassRecall(
            name, pictures[number], right[number], dict(instead[number].most_common(TAKEN_FOR))
        )
        for number, name in enumerate(names)
    ]
