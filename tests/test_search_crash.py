"""A library outlives what happens to it: kill -9 of a real process, other processes, full disks."""

import itertools
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.pictures import to_rgb
from diptych.errors import StorageError
from diptych.search import intake, nearest
from diptych.search.library import Library

SIDE = 4

ROOM = 20
"""Lines that a process may go on after the one at which its killer strikes."""


class ShrinkingModel:
    """In place of a model: a picture shrunk to sixteen pixels is its vector. It loads no torch."""

    path, fingerprint, embed = Path("/model"), "5" * 16, SIDE * SIDE * 3

    def prepare(self, picture):
        return np.asarray(to_rgb(picture).resize((SIDE, SIDE), Image.Resampling.BOX))

    def encode_prepared(self, pixels):
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32) - 127.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_image(self, images):
        return self.encode_prepared(np.stack([self.prepare(image) for image in images]))

    def encode_text(self, texts):
        return np.repeat(np.eye(1, self.embed, dtype=np.float32), len(list(texts)), 0)


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


def picture_files(folder, count):
    folder.mkdir()
    for number in range(count):
        picture(number).save(folder / f"{number:04}.png")
    return folder


def found_first(library, number):
    (hit,) = library.search(image=picture(number), count=1)
    return Path(hit.key).name if hit.score > 0.9999 else None


def add_and_tell(folder, photos, last=None):
    """Add pictures five at a time and say, after each commit, how many are in.

    After line number `last` it waits to be killed, so that it never ends before.
    """
    intake.CHUNK = 5
    nearest.TAIL_ROWS = 12  # the index is written too, again and again
    lines = itertools.count(1)
    with Library.open(folder, model=ShrinkingModel(), wait_s=120) as library:

        def tell(*_):
            print(committed(library), flush=True)
            if next(lines) == int(last or 0):
                signal.pause()

        for start in range(0, 400, 20):
            files = sorted(Path(photos).iterdir())[start : start + 20]
            library.add(files, progress=tell)
        print("end", flush=True)


def committed(library):
    return library._rows.value("SELECT count(*) FROM pictures")


@contextmanager
def started(*arguments):
    """This file in a process of its own, which ends with the block."""
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return picture_files(tmp_path_factory.mktemp("crash") / "photos", 400)


@pytest.mark.parametrize("lines", [1, 3, 9, 30])
def test_kill_9_while_adding_loses_no_committed_row(tmp_path, photos, lines):
    folder = tmp_path / "l"
    with started("add", folder, photos, lines + ROOM) as process:
        said = [int(process.stdout.readline()) for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL
    promised = max([*said, *map(int, rest)])
    with Library.open(folder, model=ShrinkingModel()) as library:
        assert promised <= len(library) <= 400
        check_sound(library)
        for number in range(0, promised, 7):
            assert found_first(library, number) == f"{number:04}.png"
        before = len(library)
        changes = library.add([photos])
        assert (changes.added, changes.unchanged) == (400 - before, before)
        assert found_first(library, 399) == "0399.png"


def check_sound(library):
    """Every picture has a vector, and SQLite finds no fault."""
    assert library._rows.value("PRAGMA integrity_check") == "ok"
    query = "SELECT count(*) FROM pictures WHERE vector NOT IN (SELECT id FROM vectors)"
    assert library._rows.value(query) == 0


def test_readers_in_another_process_see_whole_commits_while_a_writer_adds(tmp_path, photos):
    folder = tmp_path / "l"
    sizes = []
    with started("add", folder, photos) as process:
        assert int(process.stdout.readline()) > 0
        with Library.open(folder, model=ShrinkingModel()) as reader:
            for line in process.stdout:
                sizes.append(len(reader))
                hits = reader.search(image=picture(2), count=3)
                assert Path(hits[0].key).name == "0002.png"
                if line != "end\n":
                    newest = min(int(line), len(reader)) - 1
                    assert found_first(reader, newest) == f"{newest:04}.png"
            assert len(reader) == 400
    assert process.returncode == 0
    assert sizes == sorted(sizes)


def test_a_second_writing_process_is_told_to_wait(tmp_path, photos):
    folder = tmp_path / "l"
    with started("hold", folder) as process:
        assert process.stdout.readline() == "held\n"
        with Library.open(folder, model=ShrinkingModel(), wait_s=0.2) as library:
            with pytest.raises(StorageError, match="is being written by another process"):
                library.add([photos])
            assert library.search("x") == []
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert library.add(sorted(photos.iterdir())[:5]).added == 5


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_what_was_committed_stays_and_is_found(small_disk, tmp_path, photos):
    folder = small_disk / "l"
    with Library.open(folder, model=ShrinkingModel()) as library:
        library.add(sorted(photos.iterdir())[:20])
        before = len(library)
        random = np.random.default_rng(0)
        vectors = random.standard_normal((8000, library.dimensions)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with pytest.raises(StorageError) as caught:
            library.add_vectors([f"key {row}" for row in range(8000)], vectors)
        assert "cannot be written: " in str(caught.value)
        assert "Free some space or choose another folder" in str(caught.value)
        assert len(library) == before
        assert found_first(library, 7) == "0007.png"
    with Library.open(folder, model=ShrinkingModel()) as again:
        assert len(again) == before
        assert found_first(again, 19) == "0019.png"
    shutil.copytree(folder, tmp_path / "copy")
    with Library.open(tmp_path / "copy", model=ShrinkingModel()) as roomy:
        assert roomy.add([photos]).added == 380


def test_a_library_is_moved_by_moving_its_folder(tmp_path, photos):
    with Library.open(tmp_path / "a", model=ShrinkingModel()) as library:
        library.add(sorted(photos.iterdir())[:20])
    (tmp_path / "a").rename(tmp_path / "b")
    with Library.open(tmp_path / "b", model=ShrinkingModel()) as library:
        assert found_first(library, 3) == "0003.png"


def test_a_vector_without_a_picture_is_left_out_and_swept_by_the_next_change(tmp_path, photos):
    """As after a crash between dropping pictures and dropping their vectors."""
    with Library.open(tmp_path / "l", model=ShrinkingModel()) as library:
        library.add(sorted(photos.iterdir())[:20])
        with sqlite3.connect(library.path / "library.sqlite") as database:
            database.execute("DELETE FROM pictures WHERE name = '0003.png'")
        database.close()
        assert len(library.search("x", 99)) == 19
        assert found_first(library, 3) is None
        library.remove([photos / "0004.png"])
        assert library._rows.value("SELECT count(*) FROM vectors") == 18


if __name__ == "__main__":
    if sys.argv[1] == "add":
        add_and_tell(*sys.argv[2:])
    else:
        with Library.open(sys.argv[2], model=ShrinkingModel()) as held, held._rows.writing():
            print("held", flush=True)
            signal.pause()
