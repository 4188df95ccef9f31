"""What cannot be used as a source is refused by text; a condition can only read."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from diptych.data.columns import rows_where
from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import SourceOptions
from diptych.errors import DataError, RequestError

TABLE = pa.table(
    {
        "split": ["train", "val", "train", None, "test"],
        "width": [10, 200, 30, 4, 5],
        "score": [0.5, 1.5, None, 2.5, float("nan")],
        "safe": [True, False, True, True, None],
        "name with 'quotes\"": ["a", "b", "c", "d", "e"],
        "blob": [b"1", b"2", b"3", b"4", b"5"],
        "list": [["x"], [], None, ["y"], ["z"]],
    }
)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("split = 'train'", [0, 2]),
        ("split IS NULL", [3]),
        ("split IN ('val', 'test') AND width > 5", [1]),
        ("width BETWEEN 4 AND 30 OR score > 1", [0, 1, 2, 3, 4]),
        ("score > 1", [1, 3]),
        ("safe", [0, 2, 3]),
        ("NOT safe", [1]),
        ("split LIKE 't%'", [0, 2, 4]),
        ("length(split) = 3 OR upper(split) = 'TEST'", [1, 4]),
        ('"name with \'quotes""" = \'c\'', [2]),
        ("width = (SELECT max(width) FROM rows)", [1]),
        ("1", [0, 1, 2, 3, 4]),
        ("0", []),
    ],
)
def test_a_condition_keeps_the_rows_that_sql_says(condition, kept):
    assert rows_where(TABLE, condition).tolist() == kept


def test_a_column_called_rowid_is_an_ordinary_column():
    table = pa.table({"rowid": [7, 8, 9], "_rowid_": [1, 1, 1], "oid": [5, 5, 6]})
    assert rows_where(table, "rowid > 7").tolist() == [1, 2]


def test_numbers_of_64_bits_can_be_there_and_be_asked_for():
    table = pa.table({"hash": pa.array([2**64 - 1, 5, 2**63], pa.uint64()), "a": ["x", "y", "x"]})
    assert rows_where(table, "a = 'x'").tolist() == [0, 2]
    assert rows_where(table, "hash < 10").tolist() == [1]


def test_no_column_is_changed_by_being_read():
    before = TABLE.to_pylist()
    rows_where(TABLE, "width > 1")
    assert str(TABLE.to_pylist()) == str(before)


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "split =",
        "colour = 'red'",
        "blob = 'x'",
        "ATTACH DATABASE '{path}' AS other",
        "1); ATTACH DATABASE '{path}' AS other; --",
        "1); CREATE TABLE x (y); --",
        "1); DROP TABLE rows; --",
        "(DELETE FROM rows)",
        "1; DELETE FROM rows",
        "1) UNION SELECT 99 --",
        "1) UNION SELECT 'x' --",
        "1) UNION SELECT -1 --",
        "PRAGMA database_list",
        "1 IN (SELECT seq FROM pragma_database_list)",
        "load_extension('{path}')",
        "1 IN (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n)",
        "VACUUM INTO '{path}'",
        "zeroblob(10000000000)",
        "width = \0",
        "split = '\ud800'",
    ],
)
def test_a_hostile_or_wrong_condition_is_refused_and_does_nothing(tmp_path, condition):
    condition = condition.format(path=tmp_path / "made")
    with pytest.raises(RequestError) as caught:
        rows_where(TABLE, condition)
    said = str(caught.value)
    assert said.startswith(f"the condition {condition!r} cannot be used: ")
    assert said.endswith("; write it as SQL, such as split = 'x'.")
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert rows_where(TABLE, "width > 9").tolist() == [0, 1, 2]


def test_columns_that_sql_takes_for_one_are_one():
    table = pa.table({"A": ["x", None, None], "a": ["y", "y", None]})
    assert rows_where(table, "a = 'y'").tolist() == [1]
    assert rows_where(table, "A IS NULL").tolist() == [2]


def test_a_column_that_a_file_lacks_is_null_there(tmp_path):
    parquet(tmp_path / "a.parquet", image=[png()], text=["x"])
    parquet(tmp_path / "b.parquet", image=[png()], text=["y"], width=[7])
    spec = str(tmp_path / "*.parquet")
    assert open_source(spec, SourceOptions(where="width = 7")).captions(0) == ("y",)
    assert open_source(spec, SourceOptions(where="width IS NULL")).captions(0) == ("x",)
    assert open_source(spec, SourceOptions(where='"width" > 1')).captions(0) == ("y",)
    assert open_source(spec, SourceOptions(where='"width" > 1')).size == 1
    assert "no such column: widht" in refusal(RequestError, spec, where='"widht" > 1')
    said = refusal(RequestError, spec, where="height = 7")
    assert "no such column: height. Columns are text, width;" in said


def test_times_of_which_no_text_can_be_made_are_left_out(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        image=[png()],
        text=["x"],
        zone=pa.array([0], pa.timestamp("us", tz="Bad/Zone")),
        late=pa.array([10**18], pa.time64("us")),
        width=[3],
    )
    assert open_source(spec).sample(0).metadata["width"] == 3
    assert "no such column: zone" in refusal(RequestError, spec, where="zone > 1")


def test_captions_that_look_like_dates_stay_as_they_are_written(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a.png", "captions": ["2020-01-01", "2021-02-03"]}\n'
    )
    source = open_source(str(tmp_path / "t.jsonl"))
    assert source.captions(0) == ("2020-01-01", "2021-02-03")


def test_a_csv_of_tabs_is_read_as_tabs(tmp_path):
    (tmp_path / "t.csv").write_text("image\tcaption\na.png\tone, two\n")
    assert open_source(str(tmp_path / "t.csv")).captions(0) == ("one, two",)


def test_braces_without_measure_are_refused(monkeypatch):
    monkeypatch.setattr("diptych.data.opening.MOST_FILES", 1000)
    assert "runs backwards. Write {0..1}." in refusal(RequestError, "t{1..0}.tar")
    for braces in ("{0..1000}", "{0..99}{0..9}{a,b}", "{0.." + "9" * 5000 + "}"):
        assert "more than 1,000 files" in refusal(RequestError, f"t{braces}.tar")


def test_sources_in_the_manner_of_webdataset_are_given_one_by_one(tmp_path):
    said = refusal(RequestError, "a.tar::b.tar")
    assert said == "a.tar::b.tar is several. Give each a --data of its own, without '::'."


def test_tars_beside_pictures_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "t.tar").write_bytes(b"")
    said = refusal(RequestError, tmp_path)
    assert f"the tars beside the pictures are not read: give '{tmp_path}/*.tar'" in said
    (tmp_path / "a.txt").write_text("x")
    assert f"give '{tmp_path}/*.tar'" in open_source(str(tmp_path)).notes[-1]


def test_a_table_with_nothing_to_ask_for_is_refused():
    with pytest.raises(RequestError, match=r"none holds text or numbers\. Leave --where out"):
        rows_where(TABLE.select(["blob", "list"]), "1")


def png(shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path, **columns):
    pa.parquet.write_table(pa.table(columns), path)
    return str(path)


def test_a_condition_chooses_the_samples_of_a_source(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        image=[png(shade) for shade in range(4)],
        text=["a", "b", "c", "d"],
        split=pa.array(["train", "val", "train", "val"]).dictionary_encode(),
    )
    source = open_source(spec, SourceOptions(where="split = 'val'"))
    assert [source.captions(index) for index in range(source.size)] == [("b",), ("d",)]
    assert [to_rgb(source.sample(i).picture).getpixel((0, 0))[0] for i in range(2)] == [1, 3]


def test_a_condition_may_ask_for_the_path_of_the_picture(tmp_path):
    spec = parquet(tmp_path / "t.parquet", image=["a/1.png", "b/1.png"], text=["a", "b"])
    source = open_source(spec, SourceOptions(where="image LIKE 'b/%'"))
    assert source.captions(0) == ("b",)


def refusal(kind, spec, **options):
    with pytest.raises(kind) as caught:
        open_source(str(spec), SourceOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_path_is_named(tmp_path):
    for spec in ("none.parquet", "none", "none-*.parquet", "{a,b}.parquet"):
        said = refusal(RequestError, tmp_path / spec)
        assert said.startswith(f"there is nothing at {tmp_path}")
        assert said.endswith("Check the path; a pattern needs quotes around it.")


@pytest.mark.parametrize("spec", ["https://example.org/x.parquet", "s3://bucket/x.parquet"])
def test_an_address_is_not_opened(spec):
    assert refusal(RequestError, spec) == (
        f"{spec} is an address, and nothing is fetched. Download it first."
    )


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "x.zip is not a source that can be opened. Use" in refusal(
        RequestError, tmp_path / "x.zip"
    )


def test_files_of_several_kinds_are_refused_each_with_its_remedy(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0.csv", "1.tar", "2.tar.gz", "2.tgz", "3.png", "a/3.png"):
        (tmp_path / name).write_bytes(b"x")
    for pattern, words in (
        ("{0.csv,1.tar}", "are a table and a tar. Give tables and tars with a --data of their own"),
        ("{0.csv,a}", f"{tmp_path}/a is a folder, one of several. Give each folder with a --data"),
        ("2.tar.gz", "2.tar.gz is a compressed tar, which cannot be read by place. Unpack it"),
        ("2.tgz", "2.tgz is a compressed tar"),
        ("3.png", f"3.png is a picture. Give its folder: {tmp_path}."),
    ):
        assert words in refusal(RequestError, tmp_path / pattern)


@pytest.mark.parametrize("option", ["where", "image_column", "text_column"])
def test_a_folder_without_a_table_has_no_columns(tmp_path, option):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a")
    said = refusal(RequestError, tmp_path, **{option: "x"})
    assert "has no caption file and has no columns. Leave --where, --image-column and" in said


def test_text_that_is_no_utf_8_in_another_column_is_no_trouble(tmp_path):
    odd = pa.array([b"caf\xe9", b"tea"]).cast(pa.binary()).view(pa.string())
    spec = parquet(
        tmp_path / "t.parquet", image=[png(), png()], text=["a", "b"], odd=odd, row=[0, 1]
    )
    source = open_source(spec, SourceOptions(where="row < 2"))
    assert [dict(source.sample(index).metadata) for index in range(2)] == [
        {"row": 0},
        {"odd": "tea", "row": 1},
    ]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,text,text\na.png,b,c\n")
    assert refusal(DataError, tmp_path / "t.csv") == (
        "t.csv has 2 columns 'text'. Give each a name of its own."
    )


def test_a_table_without_captions_says_where_they_were_looked_for(tmp_path):
    spec = parquet(tmp_path / "t.parquet", image=[b"x"], text=[""], words=["y"])
    said = refusal(DataError, spec)
    assert "(1 rows, 1 without caption). Captions were looked for in 'text' of the columns" in said
    assert said.endswith("columns image, text, words; name another with --text-column.")
    assert open_source(spec, SourceOptions(text_column="words")).size == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("scenes:shape", "there are no scenes 'shape'. Did you mean 'shapes'?"),
        ("scenes:shapes:dev", "scenes have no split 'dev'. Use one of train, val, test."),
        ("scenes:shapes:", "scenes have no split ''."),
        ("scenes:shapes:val:x", "Use one of train, val, test."),
    ],
)
def test_wrong_scenes_are_refused_by_text(spec, words):
    assert words in refusal(RequestError, spec)


def test_scenes_have_no_columns_and_no_parts_of_what_has_no_end():
    assert "is generated and has no columns" in refusal(RequestError, "scenes:shapes", where="1")
    assert "has no end and no parts" in refusal(RequestError, "scenes:shapes", part=(0.0, 0.5))
    assert open_source("scenes:shapes:val", SourceOptions(part=(0.0, 0.1))).size < 200


def test_a_wrong_column_is_refused_with_the_nearest(tmp_path):
    spec = parquet(tmp_path / "t.parquet", image=[b"x"], caption=["y"])
    said = refusal(RequestError, spec, text_column="captoin")
    assert said == "there is no column 'captoin' (text). Did you mean 'caption'?"
    said = refusal(RequestError, spec, image_column="imag")
    assert said == "there is no column 'imag' (image). Did you mean 'image'?"


def test_columns_with_unusual_names_must_be_named(tmp_path):
    spec = parquet(tmp_path / "t.parquet", foo=[b"x"], bar=["y"])
    said = refusal(RequestError, spec)
    assert "no column looks like the image; the columns are foo, bar." in said
    assert said.endswith("Name it with --image-column.")
    assert refusal(RequestError, spec, image_column="foo").endswith("Name it with --text-column.")
    assert open_source(spec, SourceOptions(image_column="foo", text_column="bar")).size == 1


def test_a_column_of_numbers_holds_no_pictures(tmp_path):
    spec = parquet(tmp_path / "t.parquet", image=[1, 2], text=["a", "b"])
    assert "column 'image' of t.parquet holds int64, no pictures" in refusal(RequestError, spec)


def test_a_source_without_samples_is_refused(tmp_path):
    spec = parquet(tmp_path / "t.parquet", image=[b"x", b"y"], text=["", ""], split=["a", "b"])
    said = refusal(DataError, spec)
    assert "has no usable sample (2 rows, 2 without caption)" in said
    assert "(2 rows, 0 without caption, where split = 'c')" in refusal(
        DataError, spec, where="split = 'c'"
    )
    said = refusal(
        DataError, parquet(tmp_path / "u.parquet", image=["1"], text=["x"]), part=(0.0, 1e-9)
    )
    assert "no sample of" in said and "Use a larger source or a wider part." in said  # noqa: PT018


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_a_part_that_is_no_range_is_refused(tmp_path, part):
    spec = parquet(tmp_path / "t.parquet", image=["1"], text=["x"])
    assert "is no range within 0..1. Use 0..0.9." in refusal(RequestError, spec, part=part)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_folder_of_tables_or_of_deep_tars_offers_the_pattern(tmp_path, ending):
    (tmp_path / f"rows.{ending}").write_text("image")
    assert f"holds {ending} files and no pictures. Give the files: '{tmp_path}/*.{ending}'" in (
        refusal(RequestError, tmp_path)
    )
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "0.tar").write_bytes(b"")
    assert f"holds tar files and no pictures. Give the files: '{tmp_path}/**/*.tar'" in (
        refusal(RequestError, tmp_path)
    )


@pytest.mark.parametrize("captions_needed", [True, False])
def test_a_folder_of_parquet_files_offers_the_pattern(tmp_path, captions_needed):
    (tmp_path / "deep").mkdir()
    parquet(tmp_path / "deep/t.parquet", image=[png()], text=["x"])
    for pattern in ("**/*.parquet", "*.parquet"):
        with pytest.raises(RequestError) as caught:
            open_source(str(tmp_path), captions_needed=captions_needed)
        assert str(caught.value) == (
            f"{tmp_path} holds parquet files and no pictures. "
            f"Give the files: '{tmp_path}/{pattern}', in quotes."
        )
        assert open_source(f"{tmp_path}/{pattern}").size == 1
        parquet(tmp_path / "t.parquet", image=[png()], text=["x"])
        (tmp_path / "deep/t.parquet").unlink(missing_ok=True)


def test_folders_that_cannot_be_used_say_why(tmp_path):
    for captions_needed in (True, False):
        with pytest.raises(DataError, match=r"holds no picture \(\.avif"):
            open_source(str(tmp_path), captions_needed=captions_needed)
    (tmp_path / "a.png").write_bytes(png())
    said = refusal(RequestError, tmp_path)
    assert "has no captions: none of captions.csv" in said
    assert "no picture has a .txt file beside it, and a.png is not in one of several class" in said
    assert said.endswith("Write captions.csv with the columns image,caption.")
    (tmp_path / "captions.csv").write_text("")
    assert "captions.csv cannot be read: Empty CSV file" in refusal(DataError, tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\na.png,b,c\n")
    assert "captions.csv cannot be read" in refusal(DataError, tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\n")
    assert "has no usable sample (0 rows" in refusal(DataError, tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_damaged_parquet_file_is_named(tmp_path, keep):
    whole = parquet(tmp_path / "t.parquet", image=[b"x" * 500], text=["y"])
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:keep])
    said = refusal(DataError, whole)
    assert said.startswith("t.parquet cannot be read: ")
    assert said.endswith("Write the file again or leave it out.")


def test_files_of_different_shape_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet", image=[b"x"], text=["y"])
    parquet(tmp_path / "b.parquet", image=[b"x"], title=["y"])
    assert refusal(DataError, tmp_path / "*.parquet") == (
        "b.parquet has no column 'text'; its columns are image, title. "
        "Give files of the same shape."
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.png", "leads out of the folder"),
        ("a/../../outside.png", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("link.png", "leads out of the folder"),
        ("https://example.org/a.png", "is an address, and nothing is fetched while training"),
        ("file:///etc/hostname", "is an address, and nothing is fetched while training"),
        ("a\0b.png", "is no path"),
        ("ring/a.png", "is no path"),
        ("", "has no picture. Fill the cell or drop the row."),
        (None, "has no picture. Fill the cell or drop the row."),
    ],
)
def test_a_picture_outside_the_folder_is_refused_when_it_is_asked_for(tmp_path, name, words):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "ring").symlink_to("ring")
    spec = parquet(folder / "t.parquet", image=pa.array([name], pa.string()), text=["x"])
    source = open_source(spec)
    assert source.captions(0) == ("x",)
    with pytest.raises(DataError) as caught:
        source.sample(0)
    assert words in str(caught.value)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "a.png").write_bytes(png(9))
    (tmp_path / "b.png").symlink_to("a.png")
    spec = parquet(tmp_path / "t.parquet", image=["b.png"], text=["x"])
    np.testing.assert_array_equal(to_rgb(open_source(spec).sample(0).picture), to_rgb(png(9)))


@pytest.mark.parametrize("name", ["../outside.png", "link.png", "{folder}/../outside.png"])
def test_what_lies_outside_the_folder_is_not_even_looked_at(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    spec = parquet(folder / "t.parquet", image=[name.format(folder=folder)], text=["x"])
    prints = set()
    for size in (3, 40):
        (tmp_path / "outside.png").write_bytes(b"x" * size)
        prints.add(open_source(spec).fingerprint)
    assert len(prints) == 1
