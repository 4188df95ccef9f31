"""Tables with a column of the picture before: found by its name or named, and never guessed."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import SourceOptions
from diptych.errors import DataError, RequestError
from tests.small import picture_of


def png(number):
    """The bytes of a picture that no other number has."""
    buffer = io.BytesIO()
    picture_of(number).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path, **columns):
    pyarrow.parquet.write_table(pa.table(columns), path)
    return str(path)


def csv(path, *rows):
    """A table of texts, and a picture beside it for every cell that names one."""
    path.write_text("\n".join(rows) + "\n")
    for number in range(6):
        (path.parent / f"{number}.png").write_bytes(png(number))
    return str(path)


def shown(sample):
    """The pictures of a sample, by their numbers."""
    known = {np.asarray(picture_of(number)).tobytes(): number for number in range(6)}
    pictures = (*sample.before, sample.picture)
    return [known[np.asarray(to_rgb(picture)).tobytes()] for picture in pictures]


def test_before_and_after_are_a_pair_and_changed_and_the_text_go_with_it(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        before=[png(0), png(1)],
        after=[png(2), png(3)],
        changed=[True, False],
        name=["left", "right"],
        change_text=["a hole is new", "no change"],
    )
    source = open_source(spec)
    assert source.notes[0].endswith(
        "picture in 'after', what came before in 'before', 2 captions in 'change_text'"
    )
    first, second = source.sample(0), source.sample(1)
    assert (shown(first), shown(second)) == ([0, 2], [1, 3])
    assert (first.changed, second.changed) == (True, False)
    assert first.captions == source.captions(0) == ("a hole is new",)
    assert first.mask is None
    assert first.metadata == {"changed": 1, "name": "left"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("before", "after"),
        ("image_before", "image_after"),
        ("before_image", "after_image"),
        ("image1", "image2"),
        ("left", "right"),
        ("image_before", "image"),
        ("before_image", "image"),
        ("Before", "After"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_every_usual_pair_of_names_is_found_whatever_the_cells_are(tmp_path, before, after, kind):
    def cell(number):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        path = f"{number}.png"
        return {"bytes": png(number), "struct": {"bytes": png(number), "path": path}}.get(
            kind, path
        )

    columns = {after: [cell(2)], before: [cell(0)], "caption": ["x"]}
    source = open_source(parquet(tmp_path / "t.parquet", **columns))
    assert shown(source.sample(0)) == [0, 2]
    assert source.sample(0).changed is None


def test_a_list_of_pictures_before_keeps_its_order(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [
        {"before": ["3.png", "1.png", "0.png"], "after": "2.png", "change": "x"},
        {"before": [], "after": "2.png", "change": "y"},
        {"before": None, "after": "4.png", "change": "z"},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(path))
    assert [shown(source.sample(row)) for row in range(3)] == [[3, 1, 0, 2], [2], [4]]
    encoded = [[png(3), png(1)], [png(0)]]
    spec = parquet(
        tmp_path / "t.parquet", before=encoded, after=[png(2), png(4)], change=["x", "y"]
    )
    source = open_source(spec)
    assert [shown(source.sample(row)) for row in range(2)] == [[3, 1, 2], [0, 4]]


def test_columns_of_other_names_can_be_named(tmp_path):
    spec = csv(tmp_path / "t.csv", "old,new,said", "0.png,1.png,x")
    options = SourceOptions(image_column="new", before_column="old", text_column="said")
    assert shown(open_source(spec, options).sample(0)) == [0, 1]
    named = csv(tmp_path / "u.csv", "earlier,image,caption", "0.png,1.png,x")
    assert shown(open_source(named, SourceOptions(before_column="earlier")).sample(0)) == [0, 1]
    assert shown(open_source(named).sample(0)) == [1]


def test_rows_that_name_the_same_pictures_are_one_sample(tmp_path):
    spec = csv(
        tmp_path / "t.csv",
        "before,after,caption",
        "0.png,1.png,one",
        "2.png,1.png,two",
        "0.png,1.png,three",
    )
    source = open_source(spec)
    assert [source.captions(index) for index in range(source.size)] == [("one", "three"), ("two",)]
    assert [source.sample(index).key for index in range(2)] == ["0.png > 1.png", "2.png > 1.png"]
    assert [shown(source.sample(index)) for index in range(2)] == [[0, 1], [2, 1]]


def test_the_fingerprint_changes_with_the_picture_before(tmp_path):
    spec = csv(tmp_path / "t.csv", "before,after,caption", "0.png,1.png,one")
    first = open_source(spec).fingerprint
    assert open_source(spec).fingerprint == first
    (tmp_path / "0.png").write_bytes(png(0) + b"more")
    assert open_source(spec).fingerprint != first


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0], [True, False]),
        (["yes", "no"], [None, None]),
        ([2, None], [None, None]),
        ([True, None], [True, None]),
        ([1.0, 0.0], [True, False]),
        ([0.0, None], [False, None]),  # as pandas writes a column of 0 and 1 with a gap
        ([0.5, float("nan")], [None, None]),
    ],
)
@pytest.mark.parametrize("name", ["changed", "Changed"])
def test_changed_is_a_truth_value_or_unknown(tmp_path, values, expected, name):
    columns = {"before": [png(0), png(1)], "after": [png(2), png(3)], "change": ["x", "y"]}
    source = open_source(parquet(tmp_path / "t.parquet", **columns, **{name: values}))
    assert [source.sample(row).changed for row in range(2)] == expected
    told = any("column 'changed' holds neither true or false nor 1" in one for one in source.notes)
    assert told is (expected == [None, None])


def test_boxes_are_the_mask_of_a_pair(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        before=[png(0), png(1), png(2)],
        after=[png(1), png(2), png(3)],
        boxes=[[[3, 4, 10, 6], [40, 30, 60, 60]], [], None],
        change=["x", "y", "z"],
    )
    source = open_source(spec, SourceOptions(where="change <> 'w'"))
    mask = source.sample(0).mask
    expected = np.zeros((40, 48), np.uint8)  # the second box ends outside
    for x in range(48):
        for y in range(40):
            if (3 <= x < 10 and 4 <= y < 6) or (x >= 40 and y >= 30):
                expected[y, x] = 255
    np.testing.assert_array_equal(np.asarray(mask), expected)
    assert source.sample(1).mask.getextrema() == (0, 0)
    assert source.sample(2).mask is None


def test_columns_whose_lists_all_have_one_length_are_lists(tmp_path):
    """As numpy's arrays are written: two pictures before, and boxes of four numbers."""
    before = pa.array([[png(3), png(1)]], pa.list_(pa.binary(), 2))
    box = pa.list_(pa.int64(), 4)
    for kind in (pa.list_(box), pa.list_(box, 1)):
        boxes = pa.array([[[3, 4, 10, 6]]], kind)
        columns = {"before": before, "after": [png(2)], "change": ["x"], "boxes": boxes}
        sample = open_source(parquet(tmp_path / "t.parquet", **columns)).sample(0)
        assert shown(sample) == [3, 1, 2]
        assert np.asarray(sample.mask).nonzero()[0].tolist() == [4] * 7 + [5] * 7


def test_where_nothing_changed_no_boxes_are_an_empty_mask(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        before=[png(0)] * 4,
        after=[png(1)] * 4,
        boxes=[[[0, 0, 9, 9]], None, None, None],
        changed=[True, False, True, None],
        change=["a", "b", "c", "d"],
    )
    source = open_source(spec)
    masks = [source.sample(row).mask for row in range(4)]
    assert [None if mask is None else mask.getextrema() for mask in masks] == [
        (0, 255),
        (0, 0),
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0.1, 0.1, 0.3, 0.4], r"covers no pixel of its picture of 48 x 40\. Write pixels, not sh"),
        ([0.1, 0.2, 0.9, 1.0], r"not shares, such as \[0, 0, 48, 40\]\."),
        ([48.0, 2, 60, 20], "covers no pixel"),
        ([2.0, 40, 20, float("inf")], "covers no pixel"),
        ([5.2, 5.2, 5.4, 5.4], "covers no pixel"),
        ([None, 1.0, 2, 3], r"a box of t:0 is \[None, 1\.0, 2\.0, 3\.0\]\. Write \[left, top"),
        (None, "a box of t:0 is None"),
        ([1.0, float("nan"), 2, 3], "is .1.0, nan, 2.0, 3.0"),
    ],
)
def test_a_box_around_no_pixel_is_refused(tmp_path, box, message):
    columns = {"before": [png(0)], "after": [png(1)], "change": ["x"]}
    boxes = pa.array([[[0.0, 0.0, 1.0, 1.0], box]], pa.list_(pa.list_(pa.float64())))
    spec = parquet(tmp_path / "t.parquet", boxes=boxes, **columns)
    with pytest.raises(DataError, match=message):
        open_source(spec).sample(0)


def test_boxes_that_are_none_are_refused_or_left(tmp_path):
    columns = {"before": [png(0)], "after": [png(1)], "change": ["x"]}
    spec = parquet(tmp_path / "t.parquet", boxes=[[[9, 4, 3, 6]]], **columns)
    with pytest.raises(DataError, match=r"a box of t:0 is \[9, 4, 3, 6\]\. Write \[left, top, ri"):
        open_source(spec).sample(0)
    for other in (["two"], [3], [[1, 2, 3, 4]], [["a"]]):
        spec = parquet(tmp_path / "u.parquet", boxes=other, **columns)
        assert open_source(spec).sample(0).mask is None


def test_words_and_numbers_beside_a_picture_are_no_pictures_before(tmp_path):
    words = {"left": ["a"], "right": ["b"], "before": ["c"], "after": ["d"]}
    spec = parquet(tmp_path / "t.parquet", image=[png(1)], caption=["x"], changed=[True], **words)
    sample = open_source(spec).sample(0)
    assert shown(sample) == [1]
    assert sample.changed is None
    assert sample.metadata == {"left": "a", "right": "b", "before": "c", "after": "d", "changed": 1}
    numbers = {"image_before": [0.5], "before_image": [[1, 2]]}
    spec = parquet(tmp_path / "u.parquet", image=[png(1)], caption=["x"], **numbers)
    assert shown(open_source(spec).sample(0)) == [1]


def test_bytes_before_and_after_win_over_the_file_they_come_from(tmp_path):
    columns = {"file": ["board.png"], "before": [png(0)], "after": [png(1)], "change": ["x"]}
    assert shown(open_source(parquet(tmp_path / "t.parquet", **columns)).sample(0)) == [0, 1]


def test_texts_are_not_needed_where_none_are_asked_for(tmp_path):
    spec = parquet(tmp_path / "t.parquet", before=[png(0)], after=[png(1)], changed=[True])
    sample = open_source(spec, captions_needed=False).sample(0)
    assert (shown(sample), sample.captions, sample.changed) == ([0, 1], (), True)
    with pytest.raises(RequestError, match="no column looks like the text; the columns are chan"):
        open_source(spec)


def test_a_column_that_is_a_word_of_sql_can_be_asked_without_quotes(tmp_path):
    columns = {"image": [png(0), png(1)], "caption": ["x", "y"], "group": ["a", "group"]}
    spec = parquet(tmp_path / "t.parquet", **columns)
    for where in (
        "group <> 'a'",
        "Group = 'group' /* group */",
        "not (\"group\" = 'a' or group = '')",
    ):
        source = open_source(spec, SourceOptions(where=where))
        assert [source.captions(index) for index in range(source.size)] == [("y",)]
    with pytest.raises(RequestError, match=r"syntax error\. Columns are caption, group"):
        open_source(spec, SourceOptions(where="group by caption"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before_column": "befor"}, "there is no column 'befor' .before.. Did you mean 'before'?"),
        ({"before_column": "number"}, "column 'number' of t.parquet holds int64, no pictures or"),
        ({"before_column": "numbers"}, "holds int64, no .* pictures with --before-column"),
    ],
)
def test_a_column_before_that_holds_no_pictures_is_refused(tmp_path, options, message):
    spec = parquet(
        tmp_path / "t.parquet",
        before=[png(0)],
        after=[png(1)],
        number=[1],
        numbers=[[1, 2]],
        change=["x"],
    )
    with pytest.raises(RequestError, match=message):
        open_source(spec, SourceOptions(**options))


def test_an_empty_picture_in_a_list_is_an_error_of_its_sample(tmp_path):
    spec = parquet(tmp_path / "t.parquet", before=[[png(0), None]], after=[png(1)], change=["x"])
    with pytest.raises(DataError, match=r"t:0 of .* has no picture\. Fill the cell or drop"):
        open_source(spec).sample(0)


def test_where_there_are_no_columns_a_column_before_is_refused(tmp_path):
    with pytest.raises(RequestError, match="Leave --where, --image-column, --before-column and"):
        open_source("scenes:changes", SourceOptions(before_column="x"))
    (tmp_path / "t.tar").write_bytes(b"")
    with pytest.raises(RequestError, match="pictures before are read from tables only"):
        open_source(str(tmp_path / "t.tar"), SourceOptions(before_column="x"))
