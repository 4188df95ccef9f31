"""Telling pictures into classes against slow definitions: ranks, recall, confusion, intervals."""

import numpy as np
import pytest

from diptych.evaluate.classification import classification
from diptych.evaluate.metrics import TIE, mean_of_classes, resampled

NAMES = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu"]


@pytest.fixture
def judged():
    """Pictures with some ties; the last has two classes, and "gnu" has none."""
    random = np.random.default_rng(2)
    image = random.integers(-1, 2, (60, 4)).astype(np.float32)
    classes = random.integers(-1, 2, (7, 4)).astype(np.float32)
    labels = [(NAMES[number],) for number in random.integers(0, 6, 59)] + [("ant", "cow")]
    return image, classes, labels


def told(picture, classes, right):
    """(rank, class given instead) by the definition."""
    scores = {name: float(np.dot(picture, row)) for name, row in zip(NAMES, classes, strict=True)}
    best = max(scores[name] for name in right)
    ahead = [name for name in NAMES if name not in right and scores[name] >= best - TIE]
    wrong = [name for name in NAMES if name not in right]
    return 1 + len(ahead), max(wrong, key=lambda name: scores[name])


def test_numbers_are_those_of_the_definition(judged):
    image, classes, labels = judged
    found = classification(image, classes, NAMES, labels, resamples=100)
    all_told = [told(picture, classes, right) for picture, right in zip(image, labels, strict=True)]
    for k in (1, 5):
        assert found.top[k].value == np.mean([rank <= k for rank, _ in all_told])
    recalls = []
    for one in found.classes:
        mine = [t for t, right in zip(all_told, labels, strict=True) if one.name in right]
        assert one.pictures == len(mine)
        assert one.right == sum(rank == 1 for rank, _ in mine)
        instead = [wrong for rank, wrong in mine if rank > 1]
        for name, count in one.taken_for.items():
            assert count == instead.count(name)
        if mine:
            recalls.append(one.right / one.pictures)
    assert found.mean_per_class.value == pytest.approx(np.mean(recalls))
    assert found.classes[6].pictures == 0
    assert found.to_dict()["per_class"][6]["recall"] is None
    assert found.chance[1] == pytest.approx((59 / 7 + 2 / 7) / 60)
    largest = max(sum(name in right for right in labels) for name in NAMES)
    assert found.majority_share == largest / 60


def test_the_worst_classes_come_first_and_classes_without_pictures_do_not():
    image = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2]]
    labels = [("ant",), ("bee",), ("bee",), ("ant",), ("ant",)]
    found = classification(
        image, np.eye(3, dtype=np.float32), ["ant", "bee", "cow"], labels, resamples=100
    )
    assert [(one.name, one.right, one.pictures) for one in found.worst(9)] == [
        ("ant", 1, 3),
        ("bee", 1, 2),
    ]
    assert found.worst(1)[0].taken_for == {"cow": 2}
    assert set(found.top) == {1, 3}
    assert found.top[3].value == 1


def test_a_model_that_says_the_same_of_everything_is_never_right():
    image, classes = np.ones((8, 4), np.float32), np.ones((3, 4), np.float32)
    labels = [(NAMES[row % 3],) for row in range(8)]
    found = classification(image, classes, NAMES[:3], labels, resamples=100)
    assert found.top[1].value == found.mean_per_class.value == 0
    assert found.top[1].high == found.mean_per_class.high == pytest.approx(1 - 0.025 ** (1 / 8))


def test_the_mean_of_classes_varies_as_drawing_within_each_class_does():
    hits = [[1, 1, 1, 0], [0, 0, 1, 0, 0, 1, 0], [1] * 9 + [0] * 3]
    random = np.random.default_rng(1)
    value, noted = np.mean([np.mean(of) for of in hits]), []
    for _ in range(4000):
        off = []
        for of in hits:
            probability = (sum(of) + 0.5) / (len(of) + 1)
            off.append(np.mean(random.random(len(of)) < probability) - probability)
        noted.append(value + np.mean(off))
    right, pictures = np.array([[sum(of), len(of)] for of in hits] + [[0, 0]]).T
    found = mean_of_classes(right, pictures, resamples=4000)
    assert found.value == pytest.approx(np.mean([np.mean(of) for of in hits]))
    low, high = np.percentile(noted, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert mean_of_classes(right, pictures, seed=3) == mean_of_classes(right, pictures, seed=3)


def test_classes_of_one_picture_have_an_interval():
    found = mean_of_classes(np.array([1, 0, 0, 0]), np.ones(4, np.int64))
    assert found.value == 0.25
    assert found.low < 0.1
    assert found.high > 0.5


@pytest.mark.parametrize(("classes", "pictures"), [(50, 1), (60, 2), (30, 4)])
@pytest.mark.parametrize("share", [0.25, 0.8, None])
def test_the_interval_of_small_classes_holds_the_truth(classes, pictures, share):
    random, inside = np.random.default_rng(classes), 0
    sizes = np.full(classes, pictures)
    for seed in range(100):
        truth = random.beta(4, 1, classes) if share is None else np.full(classes, share)
        found = mean_of_classes(random.binomial(sizes, truth), sizes, resamples=300, seed=seed)
        inside += found.low <= truth.mean() <= found.high
    assert inside >= 88


@pytest.mark.parametrize("width", [1, 10**9])
def test_any_statistic_can_be_resampled_in_blocks_of_any_size(width):
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    random = np.random.default_rng(7)
    noted = []
    for _ in range(200):
        counts = np.bincount(random.integers(5, size=5), minlength=5)
        noted.append(max(value for value, count in zip(values, counts, strict=True) if count))
    low, high = np.percentile(noted, [2.5, 97.5])

    def largest(counts):
        return np.where(counts > 0, values, -np.inf).max(axis=1)

    found = resampled(5.0, largest, 5, width, resamples=200, seed=7)
    assert (found.value, found.low, found.high) == (5.0, low, high)


def test_the_summary_is_aligned_and_says_chance_and_the_worst(judged):
    image, classes, labels = judged
    lines = classification(image, classes, NAMES, labels, resamples=100).lines()
    assert lines[0].split() == ["%", "by", "chance"]
    assert all(line.index("[") > 20 for line in lines[1:4])
    assert lines[4].startswith('always "')
    assert "classes recognised worst" in lines
