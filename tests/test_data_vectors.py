"""A folder of vectors comes back row by row; what is damaged, missing or foreign is named."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from diptych.data.vectors import (
    VectorsHeader,
    part_path,
    read_header,
    read_vectors,
    rows_in,
    write_header,
    write_part,
)
from diptych.errors import DataError, RequestError

DIMENSIONS = 5
HEADER = VectorsHeader(
    model="runs/x",
    model_fingerprint="0123456789abcdef",
    source="photos",
    source_fingerprint="fedcba9876543210",
    dimensions=DIMENSIONS,
    part_rows=3,
)


def rows(count, start=0):
    """Keys, paths, captions and vectors of some samples."""
    numbers = range(start, start + count)
    rng = np.random.default_rng(start)
    return (
        [f"photo {number} é" for number in numbers],
        [f"/photos/{number}.png" if number % 2 else None for number in numbers],
        [[f"caption {n}" for n in range(number % 3)] for number in numbers],
        rng.standard_normal((count, DIMENSIONS)).astype(np.float32),
    )


@pytest.fixture
def folder(tmp_path):
    """Three parts, the last one shorter."""
    write_header(tmp_path, HEADER)
    for number, count in enumerate((3, 3, 1)):
        write_part(part_path(tmp_path, number), *rows(count, 3 * number))
    return tmp_path


def refusal(kind, call, *arguments):
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read_back_in_order(folder):
    found = read_vectors(folder)
    parts = [rows(count, 3 * number) for number, count in enumerate((3, 3, 1))]
    assert found.header == HEADER
    assert found.keys == [key for part in parts for key in part[0]]
    assert found.paths == [path for part in parts for path in part[1]]
    assert found.captions == [texts for part in parts for texts in part[2]]
    np.testing.assert_array_equal(found.vectors, np.concatenate([part[3] for part in parts]))
    assert found.vectors.dtype == np.float32


def test_a_part_in_which_nothing_could_be_read_is_no_trouble(folder):
    write_part(part_path(folder, 1), *rows(0))
    assert len(read_vectors(folder).keys) == 4
    assert read_vectors(folder).vectors.shape == (4, DIMENSIONS)


def test_the_rows_of_a_part_are_counted(folder):
    write_part(part_path(folder, 3), *rows(0))
    assert [rows_in(part_path(folder, number)) for number in range(4)] == [3, 3, 1, 0]


def test_more_parts_than_nine_stay_in_order(tmp_path):
    write_header(tmp_path, HEADER)
    for number in reversed(range(12)):
        write_part(part_path(tmp_path, number), *rows(1, number))
    assert read_vectors(tmp_path).keys == [f"photo {number} é" for number in range(12)]


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_damaged_part_is_named(folder, keep):
    path = part_path(folder, 1)
    path.write_bytes(path.read_bytes()[:keep])
    for said in (refusal(DataError, read_vectors, folder), refusal(DataError, rows_in, path)):
        assert said.startswith(f"{path} cannot be read: ")
        assert said.endswith("Remove it and run diptych embed again; only that part is made anew.")


def test_a_part_of_another_width_is_named(folder):
    keys, paths, captions, vectors = rows(3, 3)
    write_part(part_path(folder, 1), keys, paths, captions, vectors[:, :4])
    assert f"{part_path(folder, 1)} cannot be read" in refusal(DataError, read_vectors, folder)


def test_a_part_without_a_column_is_named(folder):
    table = pa.parquet.read_table(part_path(folder, 2))
    pa.parquet.write_table(table.drop_columns(["captions"]), part_path(folder, 2))
    said = refusal(DataError, read_vectors, folder)
    assert f"{part_path(folder, 2)} cannot be read" in said
    assert "captions" in said


def test_a_missing_part_among_others_is_named(folder):
    part_path(folder, 1).unlink()
    assert refusal(DataError, read_vectors, folder) == (
        f"{part_path(folder, 1)} is missing, and part-00002.parquet is there. "
        "Run diptych embed again; only what is missing is made."
    )


def test_a_stopped_run_leaves_the_parts_it_finished(folder):
    part_path(folder, 2).unlink()
    assert len(read_vectors(folder).keys) == 6


def test_going_on_with_the_same_model_and_source_is_allowed(folder):
    write_header(folder, replace(HEADER, model="moved/x", source="./photos"))
    assert read_header(folder).model == "moved/x"
    assert len(read_vectors(folder).keys) == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_fingerprint", "0" * 16), ("source_fingerprint", "1" * 16), ("part_rows", 4)],
)
def test_going_on_with_another_model_source_or_part_size_is_refused(folder, name, value):
    said = refusal(RequestError, write_header, folder, replace(HEADER, **{name: value}))
    assert said == (
        f"{folder} holds vectors with {name} {getattr(HEADER, name)}, not {value}. "
        "Give another --out."
    )
    assert read_header(folder) == HEADER


def test_a_folder_without_vectors_is_refused(tmp_path):
    assert refusal(RequestError, read_vectors, tmp_path) == (
        f"{tmp_path} holds no vectors (no embedding.json). "
        "Make them with: diptych embed MODEL --data SOURCE --out DIR."
    )


def test_a_folder_with_no_rows_yet_is_refused(tmp_path):
    write_header(tmp_path, HEADER)
    said = f"{tmp_path} holds no vectors yet. Run diptych embed again; it goes on."
    assert refusal(DataError, read_vectors, tmp_path) == said
    write_part(part_path(tmp_path, 0), *rows(0))
    assert refusal(DataError, read_vectors, tmp_path) == said


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"model": 1}', "null", '{"colour": 1}'])
def test_a_damaged_header_is_named(folder, text):
    (folder / "embedding.json").write_text(text)
    for call in (read_header, read_vectors):
        said = refusal(DataError, call, folder)
        assert said.startswith(f"{folder / 'embedding.json'} is damaged: ")
        assert said.endswith("Embed again into a new folder.")


def test_a_header_of_another_width_is_named(folder):
    values = json.loads((folder / "embedding.json").read_text())
    (folder / "embedding.json").write_text(json.dumps(values | {"dimensions": 6}))
    assert f"{part_path(folder, 0)} cannot be read" in refusal(DataError, read_vectors, folder)
