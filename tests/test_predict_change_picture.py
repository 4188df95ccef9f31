"""The picture of a change: what is drawn where, and that it stays readable."""

import numpy as np
import pytest
from PIL import Image
from small import picture_of

from diptych.data.transforms import ImageTransformConfig
from diptych.errors import StorageError
from diptych.predict.change import Change
from diptych.predict.change_picture import (
    LINE,
    MARGIN,
    SIDE,
    _fitting,
    _font,
    draw_changes,
    save_png,
    with_map,
)

TRANSFORM = ImageTransformConfig(image_size=32)


def change_of(heat, *, text="", score=0.5, score_is="probability"):
    return Change(text, score, score_is, np.array(heat, np.float32))


def redness(picture):
    """How much redder than grey each pixel is."""
    pixels = np.asarray(picture, np.float32)
    return pixels[:, :, 0] - pixels[:, :, 1:].mean(axis=2)


def test_a_row_for_each_change_and_in_it_both_pictures():
    pictures = [picture_of(number, side=60 + 20 * number) for number in range(3)]
    changes = [change_of([[0, 1], [0, 0]]), change_of([[0, 0], [0, 0]], text="more: a cat")]
    sheet = draw_changes(pictures, ["a.png", "b.png", "c.png"], changes, TRANSFORM)
    width, height = sheet.size
    assert width == 3 * SIDE + 4 * MARGIN
    panels = []
    for row in range(2):
        top = row * height // 2 + MARGIN + LINE
        lefts = [MARGIN + place * (SIDE + MARGIN) for place in range(3)]
        panels.append([sheet.crop((x, top, x + SIDE, top + SIDE)) for x in lefts])
    inner = np.s_[2:-2, 2:-2]
    after, before = (np.asarray(panel)[inner] for panel in (panels[0][1], panels[1][0]))
    np.testing.assert_array_equal(after, before)  # the same picture, one row down
    assert not np.array_equal(np.asarray(panels[0][0])[inner], after)


def test_the_map_is_red_where_it_is_hot_and_pale_elsewhere():
    grey = Image.new("RGB", (SIDE, SIDE), (120, 120, 120))
    shown = redness(with_map(grey, change_of([[0, 1], [0, 0]])))
    half = SIDE // 2
    assert shown[: half // 2, half + half // 2 :].min() > 80
    assert abs(shown[half + half // 2 :, : half // 2]).max() < 1


def test_where_the_model_leaves_out_an_edge_the_map_lies_over_the_rest():
    picture = Image.new("RGB", (64, 64), (120, 120, 120))
    change = change_of([[0, 0], [0, 1]])
    sheet = draw_changes([picture] * 2, ["a", "b"], [change], TRANSFORM, seen_side=24)
    left, top = 2 * (MARGIN + SIDE) + MARGIN, MARGIN + LINE
    shown = redness(sheet.crop((left + 2, top + 2, left + SIDE - 2, top + SIDE - 2)))
    edge = SIDE * 24 // 32
    assert shown[edge * 3 // 4 : edge - 4, edge * 3 // 4 : edge - 4].min() > 80
    assert abs(shown[edge:]).max() < 1
    assert abs(shown[:, edge:]).max() < 1


def test_a_map_of_nothing_shows_nothing_and_a_weak_one_is_not_blown_up():
    grey = Image.new("RGB", (SIDE, SIDE), (120, 120, 120))
    nothing = with_map(grey, change_of(np.zeros((4, 4))))
    assert abs(redness(nothing)).max() < 1
    weak, middle, strong = (
        redness(with_map(grey, change_of([[0, heat], [0, 0]]))).max() for heat in (0.01, 0.3, 1)
    )
    assert weak < 5
    assert weak + 20 < middle < strong - 20
    assert strong > 80


def test_a_place_has_its_colour_however_hot_another_is():
    grey = Image.new("RGB", (SIDE, SIDE), (120, 120, 120))
    heat = np.zeros((8, 8))
    heat[1, 1] = 0.15
    alone = with_map(grey, change_of(heat))
    heat[6, 6] = 1
    beside = with_map(grey, change_of(heat))
    corner = np.s_[: SIDE // 3, : SIDE // 3]
    np.testing.assert_array_equal(np.asarray(alone)[corner], np.asarray(beside)[corner])


def test_where_the_model_says_no_change_the_map_is_faded():
    grey = Image.new("RGB", (SIDE, SIDE), (120, 120, 120))
    shown, faded, distance = (
        redness(with_map(grey, change_of([[0, 1], [0, 0]], score=score, score_is=score_is))).max()
        for score, score_is in ((0.5, "probability"), (0.49, "probability"), (0.49, "distance"))
    )
    assert shown == distance
    assert 10 < faded < 0.4 * shown


def test_a_line_around_the_hottest_place_is_seen_on_red():
    red = Image.new("RGB", (SIDE, SIDE), (220, 24, 24))
    heat = np.zeros((6, 6))
    heat[2, 3] = 0.6
    panel = np.asarray(with_map(red, change_of(heat)))
    cell = SIDE // 6
    for line in ((panel < 50).all(axis=2), (panel > 240).all(axis=2)):
        rows, columns = np.nonzero(line)
        assert cell < rows.min() < 2.5 * cell < rows.max() < 4 * cell
        assert 2 * cell < columns.min() < 3.5 * cell < columns.max() < 5 * cell
        assert line.mean() < 0.02  # thin
    for cold in (change_of(heat / 4), change_of(heat, score=0.2)):
        assert not (np.asarray(with_map(red, cold)) < 50).all(axis=2).any()


def test_notes_stand_below():
    rows = [picture_of(1)] * 2, ["a", "b"], [change_of([[0.0]])], TRANSFORM
    without, noted = draw_changes(*rows), draw_changes(*rows, ["only the middle is compared"])
    np.testing.assert_array_equal(np.asarray(noted)[: without.height], np.asarray(without))
    assert (np.asarray(noted)[without.height :] < 200).any()


def test_titles_and_texts_are_cut_where_they_do_not_fit():
    long = "a very long name of a file with many words " * 4
    short = _fitting(long, 15, 200)
    assert short.endswith("…")
    assert _font(15).getlength(short) <= 200
    assert _fitting("two\nlines", 15, 200) == "two lines"
    change = change_of([[1]], text="The red square has been moved. " * 20)
    sheet = draw_changes([picture_of(1)] * 2, [long, "山.png"], [change], TRANSFORM)
    assert sheet.width == 3 * SIDE + 4 * MARGIN


def test_a_file_that_cannot_be_written_is_a_storage_error(tmp_path):
    picture = picture_of(1)
    save_png(tmp_path / "new/a.png", picture)
    with Image.open(tmp_path / "new/a.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(picture))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError, match=r"folder\.png cannot be written"):
        save_png(tmp_path / "folder.png", picture)
