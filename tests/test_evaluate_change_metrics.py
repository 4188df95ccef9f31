"""Counting right sentences, areas under curves and hits: by slow definitions."""

from itertools import permutations

import numpy as np
import pytest

from diptych.data.change_scenes import make_change_scene
from diptych.data.change_texts import change_texts
from diptych.data.change_texts import sentences_of as sentences_of_change
from diptych.evaluate.change_metrics import (
    all_told,
    detection,
    perplexity,
    pixel_curve,
    points_inside,
    sentences_of,
    share,
    told,
    ways_to_say,
)

SEVERAL = [index for index in range(40) if len(make_change_scene(index, "val").changes) > 1]


def told_oracle(text, ways):
    """The best of all ways to give each sentence a change of its own, or none."""
    said = sentences_of(text)
    slots = [*ways, *[set()] * len(said)]
    return max(
        sum(sentence in way for sentence, way in zip(said, order, strict=False))
        for order in permutations(slots, len(said))
    )


def test_sentences_are_their_words():
    assert sentences_of("The  Red-Square has gone. A blue one... came!") == [
        "the red square has gone",
        "a blue one",
        "came",
    ]
    assert sentences_of(" . ") == sentences_of("") == []
    assert sentences_of("它消失了。它出现了") == ["它消失了", "它出现了"]


@pytest.mark.parametrize("index", SEVERAL[:12])
def test_every_way_to_say_a_change_is_found_in_the_texts_of_its_pair(index):
    scene = make_change_scene(index, "val")
    expected = [
        {sentences_of(sentence)[0] for sentence in sentences_of_change(change, scene, "changes")}
        for change in scene.changes
    ]
    assert ways_to_say(change_texts(scene)) == expected


@pytest.mark.parametrize("index", SEVERAL[:8])
def test_all_texts_of_a_pair_tell_all_and_what_is_not_so_is_told_apart(index):
    scene, other = make_change_scene(index, "val"), make_change_scene(index + 1, "val")
    captions = change_texts(scene)
    changes = len(scene.changes)
    for text in captions:
        assert told(text, captions) == (changes, changes, changes)
        assert all_told(text, captions)
    first = captions[0].partition(". ")[0] + "."
    assert told(first, captions) == (1, 1, changes)
    assert told(f"{first} {first}", captions) == (1, 2, changes)
    for wrong in (first, f"{captions[0]} {first}", "Nothing has changed.", ""):
        assert not all_told(wrong, captions)
    assert not all_told(change_texts(other)[0], captions)


def test_the_same_change_said_in_two_ways_is_one_change():
    captions = ("A has gone. B came.", "There is no A. There is B now.")
    assert told("A has gone. There is no A.", captions) == (1, 2, 2)
    assert told("There is B now. A has gone.", captions) == (2, 2, 2)


@pytest.mark.parametrize("seed", range(20))
def test_matching_finds_the_most_sentences(seed):
    random = np.random.default_rng(seed)
    ways = [set(random.choice(list("abcde"), random.integers(1, 4))) for _ in range(3)]
    captions = [
        ". ".join(options) for options in zip(*[sorted(way) * 3 for way in ways], strict=False)
    ]
    text = ". ".join(random.choice(list("abcde"), 4))
    found = told(text, captions)
    assert found == (told_oracle(text, ways_to_say(captions)), 4, 3)


def test_a_caption_with_another_number_of_sentences_is_right_as_a_whole():
    captions = ("the lid is gone and the box is open.", "The lid is gone. The box is open.")
    assert all_told("The box is open. The lid is gone.", captions)
    assert not all_told("The box is open.", captions)


@pytest.mark.parametrize("seed", range(3))
def test_detection_is_the_share_of_pairs_in_the_right_order_with_ties_against_us(seed):
    random = np.random.default_rng(seed)
    score = random.integers(0, 5, 25).astype(np.float64)
    changed = random.random(25) < 0.4
    both = [(a > b) for a in score[changed] for b in score[~changed]]
    found = detection(score, changed, resamples=200, seed=1)
    assert found.value == pytest.approx(np.mean(both))
    assert found.low < found.value < found.high
    assert found == detection(score, changed, resamples=200, seed=1)


def test_a_perfect_and_a_tiny_detection_are_not_certain():
    score = np.array([0.0, 1, 2, 3, 4, 5])
    found = detection(score, score > 3.5, resamples=50)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 2))
    few = detection(np.array([3.0, 1, 2, 0]), np.array([True, False, False, True]), resamples=200)
    assert 0 <= few.low <= few.value == 0.5 <= few.high <= 1


def curve_oracle(heatmap, mask):
    """Every pixel inside against every pixel outside."""
    large = np.kron(heatmap, np.ones((mask.shape[0] // heatmap.shape[0],) * 2))
    pairs = [(a > b) + (a == b) / 2 for a in large[mask] for b in large[~mask]]
    return np.mean(pairs)


@pytest.mark.parametrize("seed", range(4))
def test_the_pixel_curve_is_that_of_all_pairs_of_pixels(seed):
    random = np.random.default_rng(seed)
    heatmap = random.integers(0, 4, (3, 3)).astype(np.float32)
    mask = random.random((12, 12)) < 0.2
    assert pixel_curve(heatmap, mask) == pytest.approx(curve_oracle(heatmap, mask))
    assert pixel_curve(np.ones((3, 3), np.float32), mask) == 0.5


def test_a_hit_needs_every_hottest_place_inside():
    mask = np.zeros((8, 8), bool)
    mask[1, 5] = True  # the place at the top right of a grid of two
    for heat, hit in (
        ([[0, 1], [0, 0]], True),
        ([[1, 0], [0, 0]], False),
        ([[1, 1], [0, 0]], False),
        ([[0, 0], [0, 0]], False),
    ):
        assert points_inside(np.array(heat, np.float32), mask) == (hit, 0.25)


def test_places_that_do_not_divide_the_picture_cover_it_all():
    mask = np.ones((10, 10), bool)
    mask[:, 9] = False
    assert pixel_curve(np.array([[1.0, 1.0, 0.0]], np.float32), mask) > 0.5
    assert points_inside(np.arange(9, dtype=np.float32).reshape(3, 3), mask) == (True, 1)


def test_perplexity_is_that_of_all_tokens_together():
    nats, tokens = np.array([2.0, 6.0, 1.0]), np.array([2, 3, 7])
    found = perplexity(nats, tokens, resamples=200)
    assert found.value == pytest.approx(np.exp(9 / 12))
    assert np.exp(1 / 7) <= found.low < found.value < found.high <= np.exp(2)


def test_shares_draw_pairs_and_are_exact_at_the_ends():
    some = share(np.array([0.0, 1, 1, 0.5]), resamples=100)
    assert some.low <= some.value == 0.625 <= some.high
    assert share(np.ones(3)).low == pytest.approx(0.025 ** (1 / 3))
