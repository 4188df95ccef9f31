"""A change in words: the probability leads, and shapes that hide a change are told."""

import numpy as np
import pytest
from PIL import Image

from diptych.data.transforms import ImageTransformConfig
from diptych.predict.change import Change
from diptych.predict.change_words import headline, notes_on_shapes, scored, tells_change
from diptych.predict.compare import NOTHING

CROPPED = ImageTransformConfig(image_size=32)


def change_of(text, score, score_is="probability", heat=((0, 0.6), (0.4, 0))):
    return Change(text, score, score_is, np.array(heat, np.float32))


@pytest.mark.parametrize(
    ("text", "score", "line"),
    [
        ("a broken trace", 0.974, "changed (97 %): a broken trace"),
        ("no change", 0.97, "changed (97 %), it cannot say what"),
        ("Nothing has changed.", 0.5, "changed (50 %), it cannot say what"),
        ("", 0.97, "changed (97 %)"),
        ("a broken trace", 0.12, "no change (12 %); if any: a broken trace"),
        ("no change", 0.12, "no change (12 %)"),
        ("", 0.12, "no change (12 %)"),
    ],
)
def test_the_probability_leads_and_the_text_does_not_contradict_it(text, score, line):
    assert headline(change_of(text, score)) == line


def test_a_distance_is_beside_the_share_of_the_picture_above_one_half():
    far = change_of("more: a cat", 0.6, "distance")
    assert headline(far) == "distance 0.600, 25 % of the picture above 0.5; more: a cat"
    equal = change_of("", 0.0, "distance", [[0.0]])
    assert headline(equal) == "no difference found (distance 0.000)"


def test_the_second_line_says_what_the_number_and_the_map_are():
    line = "in the map red is 1, and a line is around the hottest place"
    assert scored(change_of("x", 0.973)) == f"probability of a change 97.3 %; {line}"
    assert scored(change_of("x", 0.073)) == "probability of a change 7.3 %; the map is faded"
    assert scored(change_of("x", 0.25, "distance")) == f"a distance is in 0 to 1; {line}"


def test_texts_that_tell_of_no_change_are_known_in_any_spelling():
    for text in (*NOTHING, "NO CHANGE!", "there is no difference", "nothing  has changed"):
        assert not tells_change(text), text
    for text in ("no change in the trees, and a house has appeared", "Nothing has changed. A cat."):
        assert tells_change(text), text
    assert not tells_change("")


@pytest.mark.parametrize("size", [(288, 144), (144, 288)])
def test_what_is_cut_off_is_told_once_for_each_shape(size):
    pictures = [Image.new("RGB", size)] * 2
    assert notes_on_shapes(pictures, ["a.png", "b.png"], CROPPED) == [
        "a.png, b.png: only the middle 144 of 288 px are compared. Give square pictures, or cut "
        "them into squares."
    ]
    for resize in ("squash", "pad"):
        whole = CROPPED.model_copy(update={"resize": resize})
        assert notes_on_shapes(pictures, ["a.png", "b.png"], whole) == []


def test_pictures_of_different_shapes_are_told_and_other_sizes_are_not():
    sizes = [(40, 40), (80, 80), (200, 201), (80, 60)]
    pictures = [Image.new("RGB", size) for size in sizes]
    squashed = CROPPED.model_copy(update={"resize": "squash"})
    (note,) = notes_on_shapes(pictures, list("abcd"), squashed)
    assert note.startswith("c has 200 x 201 px and d 80 x 60: the shapes differ, so places")
    cut, differ = notes_on_shapes(pictures, list("abcd"), CROPPED)
    assert cut.startswith("d: only the middle 60 of 80 px")
    assert differ == note
