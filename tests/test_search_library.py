"""A library holds what was added: new, changed, moved, copied, removed and unreadable pictures."""

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import caption_of, picture_folder, picture_of, random_model

import diptych
from diptych.data.opening import open_source
from diptych.data.source import Sample
from diptych.errors import DataError, RequestError, StorageError
from diptych.search.rows import APPLICATION


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures without captions."""
    folder = picture_folder(tmp_path / "photos", 12)
    (folder / "captions.csv").unlink()
    for second, path in enumerate(sorted(folder.iterdir()), start=1):
        os.utime(path, (second, second))  # no two alike, however coarse the disk's clock
    return folder


@pytest.fixture
def library(tmp_path, model, photos):
    """The twelve pictures in a library."""
    with diptych.Library.open(tmp_path / "photos.library", model=model) as opened:
        opened.add([photos])
        yield opened


def names(hits):
    return [Path(hit.key).name for hit in hits]


def counts(changes):
    """What was done, without what was not."""
    shown = ("added", "updated", "moved", "unchanged", "removed", "gone", "embedded")
    found = {name: getattr(changes, name) for name in shown if getattr(changes, name)}
    return found | ({"unreadable": len(changes.unreadable)} if changes.unreadable else {})


def refusal(kind, call, *arguments, **options):
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_picture_is_found_by_words_as_the_definition_says(library, model, photos):
    files = sorted(photos.glob("*.png"))
    scores = model.encode_image(files) @ model.encode_text(["red thing"])[0]
    order = np.argsort(-scores, kind="stable")
    hits = library.search("red thing", count=5)
    assert names(hits) == [files[row].name for row in order[:5]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[order[:5]], atol=1e-5)
    assert len(library.search("red thing", count=99)) == len(library) == 12


def test_a_picture_finds_itself_stored_or_not(library, photos, tmp_path):
    other = tmp_path / "other.png"
    shutil.copy(photos / "007.png", other)
    for image in (photos / "007.png", str(photos / "007.png"), other, picture_of(7)):
        (hit,) = library.search(image=image, count=1)
        assert (hit.path, hit.metadata["width"]) == (str(photos / "007.png"), 48)
        assert hit.score == pytest.approx(1, abs=1e-5)


def test_words_and_picture_are_the_weighted_mean_of_their_unit_vectors(library, model, photos):
    files = sorted(photos.glob("*.png"))
    stored, text = model.encode_image(files), model.encode_text(["red thing"])[0]
    for weight in (0.5, 0.0, 0.2, 1.0):
        query = weight * text + (1 - weight) * stored[3]
        query = query / np.linalg.norm(query)
        hits = library.search("red thing", 12, image=files[3], text_weight=weight)
        scores = {files[row].name: score for row, score in enumerate(stored @ query)}
        assert names(hits) == sorted(scores, key=scores.__getitem__, reverse=True)
        np.testing.assert_allclose(
            [hit.score for hit in hits], sorted(scores.values(), reverse=True), atol=1e-5
        )


def test_a_stored_picture_is_no_work_for_the_model(library, photos, tmp_path):
    with diptych.Library.open(tmp_path / "photos.library") as without_model:
        assert len(without_model.search(image=photos / "001.png", count=3)) == 3
        said = refusal(RequestError, without_model.search, "red")
        assert "was opened without a model, and the question has to be encoded" in said
        said = refusal(RequestError, without_model.add, [photos])
        assert "Open it with model=diptych.load(" in said


def test_a_stored_picture_that_changed_since_is_encoded_anew(library, photos):
    picture_of(50).save(photos / "001.png")
    assert names(library.search(image=photos / "001.png", count=1)) != ["001.png"] or (
        library.search(image=photos / "001.png", count=1)[0].score < 0.999
    )


def test_unchanged_files_are_not_embedded_again(library, photos):
    assert counts(library.add([photos])) == counts(library.update()) == {"unchanged": 12}
    os.utime(photos / "003.png")
    assert counts(library.update()) == {"unchanged": 12}


def test_changed_moved_copied_and_gone_files_are_told_apart(library, photos):
    before = {hit.key: hit.row for hit in library.search("x", 99)}
    picture_of(77).save(photos / "000.png")
    (photos / "sub").mkdir()
    (photos / "001.png").rename(photos / "sub" / "renamed.png")
    (photos / "002.png").unlink()
    shutil.copy(photos / "003.png", photos / "copy.png")
    picture_of(88).save(photos / "new.png")
    expected = {"added": 2, "updated": 1, "moved": 1, "unchanged": 9, "removed": 1, "embedded": 2}
    assert counts(library.update()) == expected
    hits = library.search("x", 99)
    assert {hit.key for hit in hits} == {str(path) for path in photos.rglob("*.png")}
    assert len(before) == 12
    assert names(library.search(image=picture_of(77), count=1)) == ["000.png"]
    assert names(library.search(image=picture_of(1), count=1)) == ["renamed.png"]
    twins = library.search(image=picture_of(3), count=2)
    assert set(names(twins)) == {"003.png", "copy.png"}
    assert twins[0].score == twins[1].score


def test_a_chain_of_renamed_files_is_embedded_no_more(library, photos):
    (photos / "002.png").rename(photos / "020.png")
    (photos / "001.png").rename(photos / "002.png")
    (photos / "000.png").rename(photos / "001.png")
    assert "embedded" not in counts(library.update())
    assert len(library) == 12
    for number, name in ((0, "001.png"), (1, "002.png"), (2, "020.png"), (5, "005.png")):
        assert names(library.search(image=picture_of(number), count=1)) == [name]


def test_a_moved_picture_keeps_its_captions_and_a_changed_one_does_not(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 4)
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos])
        assert library.search(image=picture_of(2), count=1)[0].caption == caption_of(2)
        (photos / "captions.csv").unlink()
        (photos / "002.png").rename(photos / "moved.png")
        picture_of(60).save(photos / "001.png")
        library.update()
        assert library.search(image=picture_of(2), count=1)[0].captions == [caption_of(2)]
        assert library.search(image=picture_of(60), count=1)[0].captions == []


def test_new_captions_of_a_known_picture_are_taken_without_embedding(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 4)
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos])
        text = (photos / "captions.csv").read_text() + "002.png,a second caption\n"
        (photos / "captions.csv").write_text(text)
        assert counts(library.add([photos])) == {"updated": 1, "unchanged": 3}
        found = library.search("x", where="caption LIKE '%second%'")
        assert [hit.captions for hit in found] == [[caption_of(2), "a second caption"]]


def test_pictures_beside_those_with_captions_are_taken_too(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 4)
    picture_of(9).save(photos / "extra.png")
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        assert counts(library.add([photos])) == {"added": 5, "embedded": 5}


def test_the_same_content_is_embedded_once(tmp_path, model):
    for name in ("a", "b"):
        picture_folder(tmp_path / name, 5)
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        changes = library.add([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "000.png"])
        assert counts(changes) == {"added": 10, "embedded": 5}
        assert counts(library.add([tmp_path / "a" / "000.png"])) == {"unchanged": 1}
        assert library.remove([tmp_path / "a"]) == 5
        assert len(library.search("x", 99)) == len(library) == 5
        assert counts(library.add([tmp_path / "a"])) == {"added": 5}


def test_removed_pictures_are_found_no_more_and_can_come_again(library, photos):
    assert library.remove([photos / "004.png", str(photos / "005.png")]) == 2
    assert not {"004.png", "005.png"} & set(names(library.search("x", 99)))
    said = refusal(RequestError, library.remove, [photos / "006.png", photos / "004.png"])
    assert f"{photos / '004.png'} is not in " in said
    assert len(library) == 10
    assert counts(library.add([photos / "004.png"])) == {"added": 1, "embedded": 1}


def test_without_prune_what_is_gone_stays_and_is_counted(library, photos):
    (photos / "004.png").unlink()
    assert counts(library.add([photos])) == {"unchanged": 11, "gone": 1}
    assert len(library) == 12
    assert counts(library.add([photos], prune=True)) == {"unchanged": 11, "removed": 1}


def test_a_folder_that_is_missing_or_empty_loses_nothing(library, photos, tmp_path):
    photos.rename(tmp_path / "away")
    assert counts(library.update()) == {"gone": 12}
    photos.mkdir()
    assert counts(library.update()) == {"gone": 12}
    photos.rmdir()
    (tmp_path / "away").rename(photos)
    assert counts(library.update()) == {"unchanged": 12}


def test_a_disk_that_refuses_costs_no_row_and_leaves_no_mark(tmp_path, model, photos):
    file = photos / "003.png"
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([file])
        file.unlink()
        file.symlink_to(file)  # a circle: the system refuses to open it
        for _ in range(2):
            changes = library.update()
            assert counts(changes) == {"unreadable": 1}
            reason = changes.unreadable[str(file)]
            assert reason.startswith("it cannot be read now: Too many levels of symbolic links")
        assert (len(library), library.unreadable) == (1, {})
        file.unlink()
        picture_of(3).save(file)
        assert counts(library.update()) == {"unchanged": 1}


def test_a_missing_picture_that_the_captions_name_is_told_with_the_remedy(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 4)
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos])
        (photos / "002.png").rename(photos / "020.png")
        library.update()
        for _ in range(2):
            assert library.update().unreadable == {
                str(photos / "002.png"): f"the file is not there, and {photos / 'captions.csv'} "
                "names it. Correct that line, or put it back."
            }
        assert (len(library), library.unreadable) == (4, {})


def test_a_file_that_is_replaced_while_it_is_read_keeps_content_and_vector_together(
    library, photos, model
):
    file, prepare = photos / "new.png", model.prepare
    picture_of(30).save(file)
    model.prepare = lambda picture: (picture_of(60).save(file), prepare(picture))[1]
    try:
        assert counts(library.update())["embedded"] == 1
    finally:
        del model.prepare
    (hit,) = library.search(image=picture_of(30), count=1)
    assert (Path(hit.key).name, hit.score) == ("new.png", pytest.approx(1, abs=1e-5))
    library.update()
    (hit,) = library.search(image=picture_of(60), count=1)
    assert (Path(hit.key).name, hit.score) == ("new.png", pytest.approx(1, abs=1e-5))


def test_an_added_folder_below_another_that_is_empty_loses_nothing(library, photos, tmp_path):
    (photos / "drive").mkdir()
    picture_of(40).save(photos / "drive" / "040.png")
    library.add([photos / "drive"])
    (photos / "drive" / "040.png").unlink()
    (photos / "000.png").unlink()
    assert counts(library.update()) == {"unchanged": 11, "removed": 1, "gone": 1}
    (photos / "drive").rmdir()
    assert counts(library.update()) == {"unchanged": 11, "gone": 1}
    assert len(library) == 12


def test_a_folder_that_was_deleted_leaves_with_its_pictures(library, photos):
    (photos / "trip").mkdir()
    for number in (40, 41):
        picture_of(number).save(photos / "trip" / f"{number:03}.png")
    assert counts(library.update())["added"] == 2
    for number in (40, 41):
        (photos / "trip" / f"{number:03}.png").unlink()
    assert counts(library.update())["gone"] == 2  # an empty folder may be a mount point
    (photos / "trip").rmdir()
    assert counts(library.update())["removed"] == 2


def test_updating_a_single_picture_does_not_take_in_its_folder(tmp_path, model, photos):
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos / "003.png"])
        for _ in range(2):
            assert counts(library.update()) == {"unchanged": 1}
        assert library.roots == []


def test_progress_never_shows_more_than_all(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 4)
    (photos / "003.png").rename(photos / "030.png")
    shown = []
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos], progress=lambda done, total: shown.append((done, total)))
    assert shown
    assert all(done <= total for done, total in shown)


def test_a_moved_folder_is_recognised(library, photos, tmp_path):
    photos.rename(tmp_path / "elsewhere")
    assert counts(library.add([tmp_path / "elsewhere"])) == {"moved": 12}
    assert {Path(hit.key).parent for hit in library.search("x", 99)} == {tmp_path / "elsewhere"}


def test_unreadable_pictures_are_listed_and_tried_again_only_when_they_change(tmp_path, model):
    photos = picture_folder(tmp_path / "photos", 6, bad=(1, 4))
    (photos / "captions.csv").unlink()
    (photos / "empty.jpg").touch()
    tried = []
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        changes = library.add([photos])
        assert counts(changes) == {"added": 4, "embedded": 4, "unreadable": 3}
        assert library.unreadable == changes.unreadable
        assert "0 bytes" in changes.unreadable[str(photos / "empty.jpg")]
        prepare = model.prepare
        model.prepare = lambda picture: (tried.append(picture), prepare(picture))[1]
        try:
            assert counts(library.update()) == {"unchanged": 4, "unreadable": 3}
            assert tried == []
            assert counts(library.add([photos], retry=True))["unreadable"] == 3
            assert len(tried) >= 2  # equal contents are tried once or twice, in threads
        finally:
            del model.prepare
        picture_of(1).save(photos / "001.png")
        (photos / "004.png").unlink()
        (photos / "000.png").write_bytes(b"")
        expected = {"added": 1, "unchanged": 3, "embedded": 1, "unreadable": 2}
        assert counts(library.update()) == expected
        assert set(library.unreadable) == {str(photos / "empty.jpg"), str(photos / "000.png")}
        assert len(library) == 4


def test_pictures_of_a_source_are_known_by_key_and_content(tmp_path, model):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        picture_of(number).save(file)
    pictures = [*(file.read_bytes() for file in files[:3]), picture_of(3), picture_of(4)]
    some = [Sample(f"row:{n}", picture, (caption_of(n),)) for n, picture in enumerate(pictures)]

    class Six:
        name, size, fingerprint, notes = "six", 6, "x", ()

        def captions(self, index):
            return ()

        def sample(self, index):
            if index == 5:
                raise DataError("the cell is empty")
            return some[index]

    with diptych.Library.open(tmp_path / "l", model=model) as library:
        first = library.add_source(Six())
        assert counts(first) == {"added": 5, "embedded": 5, "unreadable": 1}
        assert first.unreadable == {"six#5": "the cell is empty"}
        assert counts(library.add_source(Six()))["unchanged"] == 5
        (hit,) = library.search(image=some[2].picture, count=1)
        assert (hit.path, hit.key) == (None, f"six#{some[2].key}")
        assert hit.captions == list(some[2].captions)
        (same,) = library.search(image=hit.key, count=1)
        assert same.key == hit.key
        assert counts(library.update()) == {}
        assert len(library) == 5
        endless = refusal(RequestError, library.add_source, open_source("scenes:shapes"))
        assert "has no end" in endless


def test_photos_bring_date_place_and_camera(tmp_path, model):
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0110] = "Box 1"
    exif.get_ifd(0x8769)[0x9003] = "2021:05:06 07:08:09"
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 0.0)})
    picture_of(1).save(photos / "a.jpg", exif=exif)
    picture_of(2).save(photos / "b.jpg")
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        library.add([photos])
        (hit,) = library.search("x", where="date >= '2021' AND latitude < 0 AND name = 'a.jpg'")
        expected = {"date": "2021-05-06 07:08:09", "latitude": -33.5, "longitude": 151.0}
        expected |= {"camera": "Box 1", "width": 48, "height": 40}
        assert hit.metadata == expected | {"size_bytes": (photos / "a.jpg").stat().st_size}
        assert names(library.search("x", where="date IS NULL")) == ["b.jpg"]


def test_another_model_is_refused_with_the_remedy(library, tmp_path, model):
    other = random_model(tmp_path, family="siglip")
    said = refusal(RequestError, diptych.Library.open, tmp_path / "photos.library", model=other)
    assert said == (
        f"{tmp_path / 'photos.library'} was made by the model random clip ({model.path}), and "
        f"{tmp_path} is random siglip. Give that model with --model, or build a new library: "
        "diptych index MODEL DIR --library NEW."
    )
    with diptych.Library.open(tmp_path / "photos.library") as opened:
        assert (opened.model_path, opened.model_fingerprint) == (model.path, "random clip")
        opened._rows.database.execute("UPDATE about SET value = '/gone' WHERE name = 'model'")
    said = refusal(RequestError, diptych.Library.open, tmp_path / "photos.library", model=other)
    assert said.endswith(
        "That model is no longer there: build a new library: diptych index MODEL DIR --library NEW."
    )


def test_what_is_no_library_is_refused_and_left_as_it_is(tmp_path, model, photos):
    (tmp_path / "file").write_text("x")
    said = refusal(RequestError, diptych.Library.open, tmp_path / "file", model=model)
    assert "is a file, and a library is a folder. Give another --library" in said
    said = refusal(RequestError, diptych.Library.open, photos, model=model)
    assert "holds other files and no library. Give a new folder for the library" in said
    said = refusal(RequestError, diptych.Library.open, tmp_path / "none")
    assert said == (
        f"there is no library at {tmp_path / 'none'}. "
        f"Make it with: diptych index MODEL DIR --library {tmp_path / 'none'}."
    )
    assert not (tmp_path / "none").exists()
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "embedding.json").write_text("{}")
    said = refusal(RequestError, diptych.Library.open, tmp_path / "v", model=model)
    assert "holds vectors of diptych embed, no library" in said


def tampered(folder, *statements):
    """A library after someone else wrote to its database."""
    with sqlite3.connect(folder / "library.sqlite") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def test_a_database_of_another_program_is_refused(tmp_path, model):
    (tmp_path / "l").mkdir()
    tampered(tmp_path / "l", "CREATE TABLE notes (text)")
    said = refusal(RequestError, diptych.Library.open, tmp_path / "l", model=model)
    assert "is a database of another program. Give another --library" in said


@pytest.mark.parametrize(("version", "words"), [(2, "Update diptych, or"), (0, "Build it again")])
def test_another_format_is_refused(library, tmp_path, model, version, words):
    library.close()
    tampered(tmp_path / "photos.library", f"PRAGMA user_version = {version}")
    said = refusal(DataError, diptych.Library.open, tmp_path / "photos.library", model=model)
    assert f"has format {version}, and this Diptych reads 1. {words}" in said


HOSTILE = {
    "a table is gone": "DROP TABLE pictures",
    "a vector is short": "UPDATE vectors SET vector = x'00' WHERE id = 3",
    "a vector is text": "UPDATE vectors SET vector = 'red' WHERE id = 3",
    "captions are no JSON": "UPDATE pictures SET captions = '{'",
    "text is no UTF-8": "UPDATE pictures SET name = CAST(x'ff' AS TEXT), captions = x'ff'",
    "the model is not said": "DELETE FROM about WHERE name = 'model'",
    "the size is text": "UPDATE about SET value = 'many' WHERE name = 'dimensions'",
}


@pytest.mark.parametrize("statement", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_database_is_named_with_the_remedy(library, tmp_path, model, statement):
    library.close()
    tampered(tmp_path / "photos.library", statement)

    def use():
        with diptych.Library.open(tmp_path / "photos.library", model=model) as opened:
            opened.search("red")

    said = refusal(DataError, use)
    assert said.startswith(f"{tmp_path / 'photos.library' / 'library.sqlite'} is damaged: ")
    assert said.endswith("index again; the pictures themselves are untouched.")


@pytest.mark.parametrize("how", ["cut", "overwritten", "schema", "no database"])
def test_a_damaged_file_is_named_with_the_remedy(library, tmp_path, model, how):
    library.close()
    path = tmp_path / "photos.library" / "library.sqlite"
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 3],
        "overwritten": whole[:8192] + bytes(range(256)) * ((len(whole) - 8192) // 256),
        "schema": whole.replace(b"CREATE TABLE pictures", b"CRE\xe6TE TABLE pictures"),
        "no database": b"this is no database, but it is long enough to be one" * 99,
    }
    path.write_bytes(damaged[how])

    def use():
        with diptych.Library.open(tmp_path / "photos.library", model=model) as opened:
            opened.search("red")

    assert "is damaged: " in refusal(DataError, use)


def test_a_start_that_was_killed_before_the_tables_is_begun_again(tmp_path, model, photos):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "library.sqlite").touch()
    assert "there is no library at" in refusal(RequestError, diptych.Library.open, tmp_path / "l")
    with diptych.Library.open(tmp_path / "l", model=model) as library:
        assert len(library) == 0
        assert library.search("red") == []
        assert counts(library.add([photos]))["added"] == 12
        assert library._rows.value("PRAGMA application_id") == APPLICATION


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "a search takes words, a picture, or both"),
        ({"text": " "}, "a search takes words, and ' ' holds none"),
        ({"text": "x", "count": 0}, "0 pictures cannot be given. Ask for 1 or more"),
        ({"text": "x", "image": picture_of(1), "text_weight": 1.5}, "text_weight is 1.5, not in"),
    ],
)
def test_a_wrong_question_is_refused(library, arguments, words):
    assert words in refusal(RequestError, library.search, **arguments)


def test_wrong_paths_are_refused(library, tmp_path):
    assert "takes a list of paths and was given one" in refusal(RequestError, library.add, "x")
    assert "remove takes a list of paths" in refusal(RequestError, library.remove, "x")
    said = refusal(RequestError, library.add, [tmp_path / "none"])
    assert said == f"there is nothing at {tmp_path / 'none'}. Check the path."
    said = refusal(RequestError, library.search, image=tmp_path / "none.png")
    assert "there is no picture file" in said


def test_a_second_writer_waits_and_is_then_refused_while_readers_go_on(library, tmp_path, model):
    folder = tmp_path / "photos.library"
    with (
        library._rows.writing(),
        diptych.Library.open(folder, model=model, wait_s=0.1) as other,
    ):
        assert len(other.search("red", 3)) == 3
        said = refusal(StorageError, other.remove, ["x"])
        assert said == (
            f"{folder} is being written by another process (waited 0.1 s). "
            "Let it end, then ask again."
        )


def test_a_reader_sees_what_another_connection_wrote(library, tmp_path, model, photos):
    with diptych.Library.open(tmp_path / "photos.library", model=model) as reader:
        assert len(reader.search("red", 99)) == 12
        picture_of(40).save(photos / "040.png")
        library.update()
        assert names(reader.search(image=picture_of(40), count=1)) == ["040.png"]
        library.remove([photos / "040.png"])
        assert "040.png" not in names(reader.search("red", 99))
