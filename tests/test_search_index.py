"""Index, tail and conditions give what comparing every vector gives."""

import numpy as np
import pytest

from diptych.errors import RequestError, StorageError
from diptych.search import conditions, nearest
from diptych.search.library import Library

DIMENSIONS = 16


class NumberModel:
    """In place of a model: a text of numbers is its own vector."""

    def __init__(self, path):
        self.path, self.fingerprint, self.embed = path, "f" * 16, DIMENSIONS

    def encode_text(self, texts):
        return np.array([np.fromstring(text, sep=" ") for text in texts], np.float32)

    def encode_image(self, images):
        raise NotImplementedError

    prepare = encode_prepared = encode_image


def unit(random, rows):
    vectors = random.standard_normal((rows, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def as_text(vector):
    return " ".join(map(str, vector.tolist()))


def found(library, query, count=10, **options):
    return [hit.key for hit in library.search(as_text(query), count, **options)]


def oracle(vectors, query, count=10, rows=None):
    """Every vector compared, one by one."""
    rows = range(len(vectors)) if rows is None else rows
    return [str(row) for row in sorted(rows, key=lambda row: -float(vectors[row] @ query))][:count]


def recall(library, vectors, queries):
    right = sum(len(set(found(library, q)) & set(oracle(vectors, q))) for q in queries)
    return right / (10 * len(queries))


@pytest.fixture
def short_tail(monkeypatch):
    """Twenty vectors already make a long tail."""
    monkeypatch.setattr(nearest, "TAIL_ROWS", 20)


@pytest.fixture
def made(tmp_path):
    """Six hundred vectors, and the random numbers that go on."""
    random = np.random.default_rng(0)
    vectors = unit(random, 600)
    library = Library.open(tmp_path / "l", model=NumberModel(tmp_path))
    yield library, vectors, random
    library.close()


def fill(library, vectors, start, stop):
    numbers = range(start, stop)
    metadata = [{"year": 2000 + number % 20, "even": number % 2 == 0} for number in numbers]
    captions = [[f"caption {number}"] for number in numbers]
    return library.add_vectors(list(map(str, numbers)), vectors[start:stop], captions, metadata)


def index_files(library):
    return sorted(library.path.glob("*.usearch"))


def test_a_small_library_is_compared_whole_and_has_no_index(made):
    library, vectors, random = made
    assert fill(library, vectors, 0, 600).added == 600
    assert index_files(library) == []
    for query in unit(random, 20):
        assert found(library, query) == oracle(vectors, query)


def test_an_indexed_library_finds_nearly_all_in_the_right_order(made, short_tail):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    assert len(index_files(library)) == 1
    queries = unit(random, 30)
    assert recall(library, vectors, queries) >= 0.99
    for query in queries:
        hits = library.search(as_text(query))
        scores = [float(vectors[int(hit.key)] @ query) for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-6)
        assert (np.diff(scores) <= 1e-6).all()


def test_what_is_not_in_the_index_yet_is_found(made, short_tail):
    library, vectors, _ = made
    fill(library, vectors, 0, 580)
    (file,) = index_files(library)
    fill(library, vectors, 580, 600)
    assert index_files(library) == [file]
    for row in range(580, 600):
        assert found(library, vectors[row], 1) == [str(row)]
    assert library.waiting == 0


def test_a_stale_index_catches_up_and_the_old_file_goes(made, short_tail):
    library, vectors, random = made
    for start in range(0, 600, 100):
        fill(library, vectors, start, start + 100)
        (file,) = index_files(library)
        assert file.name.startswith(f"index-{start + 100}-")
    with Library.open(library.path, model=library.model) as again:
        assert recall(again, vectors, unit(random, 20)) >= 0.99
        assert again._near.indexed == 600


def test_a_stale_file_catches_up_in_a_search(made, monkeypatch):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    monkeypatch.setattr(nearest, "TAIL_ROWS", 20)
    with Library.open(library.path, model=library.model) as again:
        assert again.waiting == 600
        assert recall(again, vectors, unit(random, 20)) >= 0.99
        assert again.waiting == 0
    assert len(index_files(library)) == 1


@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "empty", "another", "folder"])
def test_a_damaged_index_is_made_anew(made, short_tail, how):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    (file,) = index_files(library)
    whole = file.read_bytes()
    library.close()
    file.unlink()
    if how == "folder":
        file.mkdir()
    elif how != "missing":
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        damaged = {"cut": whole[:999], "flipped": flipped, "empty": b"", "another": b"x" * 9999}
        file.write_bytes(damaged[how])
    with Library.open(library.path, model=library.model) as again:
        assert recall(again, vectors, unit(random, 20)) >= 0.99
        assert again._near.indexed == 600


def test_an_index_of_another_history_is_not_used(made, short_tail):
    """The rows are put back from a copy, and go on with other vectors under the same numbers."""
    library, vectors, random = made
    fill(library, vectors, 0, 300)
    library._rows.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = (library.path / "library.sqlite").read_bytes()
    fill(library, vectors, 300, 600)
    library.close()
    (library.path / "library.sqlite").write_bytes(copy)
    other = np.concatenate([vectors[:300], unit(random, 300)])
    with Library.open(library.path, model=library.model) as again:
        fill(again, other, 300, 600)
        assert recall(again, other, unit(random, 20)) >= 0.99


def test_a_reader_whose_index_file_was_replaced_loses_no_vector(made, monkeypatch):
    monkeypatch.setattr(nearest, "TAIL_ROWS", 12)
    library, vectors, _ = made
    fill(library, vectors, 0, 100)
    with Library.open(library.path, model=library.model) as other:
        assert found(other, vectors[3], 1) == ["3"]
        library.rebuild_index()
        fill(other, vectors, 100, 120)
    with Library.open(library.path, model=library.model) as again:
        for reader in (library, again):
            assert len(found(reader, vectors[0], 120)) == 120
            assert reader._near.indexed == 120


def test_a_writer_whose_file_is_gone_builds_the_whole_index(made, short_tail):
    library, vectors, _ = made
    fill(library, vectors, 0, 100)
    with Library.open(library.path, model=library.model) as other:
        assert found(other, vectors[3], 1) == ["3"]
        (file,) = index_files(library)
        file.unlink()
        fill(other, vectors, 100, 150)
        assert (other._near.indexed, other._near._known) == (150, 150)


def test_an_index_with_fewer_vectors_than_were_recorded_is_not_used(made, short_tail):
    library, vectors, _ = made
    fill(library, vectors, 0, 100)
    with library._rows.transaction():
        library._rows.database.execute(
            "UPDATE about SET value = json_set(value, '$.count', 101) WHERE name = 'index'"
        )
    with Library.open(library.path, model=library.model) as again:
        assert again.waiting == 100
        assert len(found(again, vectors[0], 100)) == 100


def test_a_file_that_is_replaced_while_it_is_opened_is_read_under_its_new_name(
    made, short_tail, monkeypatch
):
    library, vectors, _ = made
    fill(library, vectors, 0, 100)
    fingerprint, replaced = nearest.file_fingerprint, []

    def replacing(path):
        if not replaced:
            replaced.append(path)
            library.rebuild_index()
        return fingerprint(path)

    with Library.open(library.path, model=library.model) as again:
        monkeypatch.setattr(nearest, "file_fingerprint", replacing)
        assert again.waiting == 0
        assert again._near.indexed == 100
    assert len(replaced) == 1
    assert not replaced[0].exists()


def test_where_the_index_cannot_be_written_the_search_goes_on_in_memory(made, monkeypatch):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    monkeypatch.setattr(nearest, "TAIL_ROWS", 20)

    def full(*_):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(nearest.Index, "save", full)
    assert recall(library, vectors, unit(random, 20)) >= 0.99
    assert (library._near.indexed, index_files(library)) == (600, [])
    with pytest.raises(StorageError, match="No space left on device"):
        library.rebuild_index()
    assert len(library) == 600


def test_two_readers_and_a_writer_of_the_index_agree(made, short_tail):
    library, vectors, _ = made
    fill(library, vectors, 0, 300)
    with Library.open(library.path, model=library.model) as reader:
        assert found(reader, vectors[7], 1) == ["7"]
        fill(library, vectors, 300, 600)
        for row in (7, 299, 300, 599):
            assert found(reader, vectors[row], 1) == [str(row)]
        assert reader._near.indexed == 600


@pytest.mark.parametrize("drop", [50, 590])
def test_removed_vectors_are_never_given_and_many_of_them_rebuild_the_index(made, short_tail, drop):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    library.remove([str(row) for row in range(drop)])
    for query in unit(random, 10):
        left = range(drop, 600)
        assert len(set(found(library, query)) & set(oracle(vectors, query, rows=left))) >= 9
    assert len(found(library, vectors[0], 600)) == 600 - drop
    library.rebuild_index()
    assert library._near.indexed == 600 - drop


def test_a_replaced_vector_is_found_under_its_key_and_the_old_one_is_not(made, short_tail):
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    new = unit(random, 1)
    changes = library.add_vectors(["5"], new)
    assert (changes.added, changes.updated) == (0, 1)
    assert found(library, new[0], 1) == ["5"]
    assert found(library, vectors[5], 1) != ["5"]
    assert len(library) == 600


CONDITIONS = {
    "true": lambda row: True,
    "year = 2003": lambda row: row % 20 == 3,
    "year < 2019 AND even": lambda row: row % 20 < 19 and row % 2 == 0,
    "key = '77'": lambda row: row == 77,
    "caption LIKE '%caption 1_'": lambda row: 10 <= row < 20,
    "year IS NULL": lambda row: False,
    "key IN ('1', '2') -- or": lambda row: row in (1, 2),
    "false": lambda row: False,
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("tail_rows", [20, 4096])
def test_a_condition_gives_exactly_the_nearest_of_what_it_keeps(
    made, monkeypatch, condition, tail_rows
):
    monkeypatch.setattr(nearest, "TAIL_ROWS", tail_rows)
    library, vectors, random = made
    fill(library, vectors, 0, 600)
    rows = [row for row in range(600) if CONDITIONS[condition](row)]
    for query in unit(random, 5):
        assert found(library, query, 7, where=condition) == oracle(vectors, query, 7, rows)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("yaer = 2003", "there is no column 'yaer' in the library. Did you mean 'year'?"),
        ("colour = 1", "there is no column 'colour' in the library. Known: "),
        ("year =", "cannot be used: near"),
        ("", "cannot be used: near"),
        ("true; DROP TABLE pictures", "cannot be used: near"),
        ("key IN (SELECT value FROM about)", "access to about.value is prohibited"),
        ("EXISTS (SELECT 1 FROM sqlite_master)", "cannot be used: "),
        ("1) UNION SELECT 'a', 'b' FROM (SELECT 1", "it closes a parenthesis that it never opens"),
        ("1) UNION SELECT 1, (2", "it closes a parenthesis that it never opens"),
        ("'(' = ')') LIMIT (1", "it closes a parenthesis that it never opens"),
        ("/* ( */ 1 -- (\n) ORDER BY (1", "it closes a parenthesis that it never opens"),
        ("'a", "cannot be used: unrecognized token"),
        ("(1", "cannot be used: "),
        ('"yaer" = 2003', "there is no column 'yaer' in the library. Did you mean 'year'?"),
        ("length(zeroblob(20000000)) > 1", "cannot be used: string or blob too big"),
        (
            "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT max(i) FROM n)",
            "not authorized",
        ),
        ("load_extension('x')", "cannot be used"),
    ],
)
def test_a_condition_that_cannot_be_used_is_named_and_does_nothing(made, condition, words):
    library, vectors, _ = made
    fill(library, vectors, 0, 20)
    with pytest.raises(RequestError) as caught:
        library.search(as_text(vectors[0]), where=condition)
    assert words in str(caught.value)
    assert found(library, vectors[3], 1) == ["3"]
    assert fill(library, vectors, 20, 40).added == 20


def test_a_condition_that_takes_too_long_is_stopped(made, monkeypatch):
    library, vectors, _ = made
    fill(library, vectors, 0, 40)
    monkeypatch.setattr(conditions, "LONGEST_S", -1.0)
    with pytest.raises(RequestError, match="cannot be used: it takes longer than -1 s"):
        library.search(
            as_text(vectors[0]), where="(SELECT count(*) FROM pictures, pictures b, pictures c)"
        )
    assert found(library, vectors[3], 1, where="year = 2003") == ["3"]


def test_metadata_of_a_name_that_files_have_too_are_seen_where_the_file_is_silent(made):
    library, vectors, _ = made
    said = [{"date": "2021-01-01", "name": "tower", "width": 640}, {"Date": "1999-01-01"}]
    library.add_vectors(["0", "1"], vectors[:2], metadata=said)
    query = vectors[0]
    assert found(library, query, where="date >= '2020' AND name = 'tower'") == ["0"]
    assert found(library, query, where="width = 640") == ["0"]
    assert found(library, query, where="date < '2020'") == ["1"]
    assert found(library, query, where="\"date\" < '2020' AND '\"' <> ')'") == ["1"]


@pytest.mark.parametrize("name", ['a"b', "it's", "Key", "with space", "$.x", "date"])
def test_any_name_of_metadata_is_stored_and_none_breaks_a_condition(made, name):
    library, vectors, _ = made
    library.add_vectors(["0"], vectors[:1], metadata=[{name: 5}])
    (hit,) = library.search(as_text(vectors[0]), where="key = '0'")
    assert hit.metadata == {name: 5}
    if name in ("it's", "with space", "$.x"):
        assert found(library, vectors[0], where=f'"{name}" = 5') == ["0"]


def test_a_key_given_twice_is_refused(made):
    library, vectors, _ = made
    with pytest.raises(RequestError, match=r"the key 'x' is given twice\. Give each picture a key"):
        library.add_vectors(["x", "y", "x"], vectors[:3])
    assert len(library) == 0


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_metadata_that_json_cannot_hold_are_refused(made, value):
    library, vectors, _ = made
    with pytest.raises(RequestError, match="the metadata of 'x' say 'year': "):
        library.add_vectors(["x"], vectors[:1], metadata=[{"year": value}])
    assert len(library) == 0


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.ones((1, 3), np.float32), "have 3 numbers, and the library's have 16"),
        (np.ones((1, 16), np.float32), "the vector of 'x' has the length 4, not 1"),
        (np.full((1, 16), np.nan, np.float32), "has the length nan, not 1"),
        (np.ones((2, 16), np.float32) / 4, "1 keys and 2 vectors were given"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(made, vectors, words):
    library, _, _ = made
    with pytest.raises(RequestError, match=words):
        library.add_vectors(["x"], vectors)
    assert len(library) == 0
