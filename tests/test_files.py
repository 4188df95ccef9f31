"""A file or a folder appears whole or not at all, whatever happens while it is written."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from diptych.errors import StorageError
from diptych.files import (
    file_fingerprint,
    fingerprint,
    point,
    read_json,
    sweep,
    whole_file,
    whole_folder,
    write_text,
)


class Crash(Exception):
    """Something goes wrong in the middle of writing."""


def contents(folder):
    """Every file and link below a folder, hidden ones included, with its text or target."""

    def content(path):
        return str(path.readlink()) if path.is_symlink() else path.read_text()

    return {
        str(path.relative_to(folder)): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(params=["file", "folder"])
def write(request):
    """A function that writes `text` to a path as a whole file or a whole folder, in two steps."""

    def whole(path, text, between=lambda: None):
        manager = whole_file if request.param == "file" else whole_folder
        with manager(path) as temporary:
            inside = temporary if request.param == "file" else temporary / "inner"
            with inside.open("w") as file:
                file.write(text[:1])
                file.flush()
                between()
                file.write(text[1:])

    return whole


def text_of(path):
    return (path / "inner" if path.is_dir() else path).read_text()


def crash():
    raise Crash


def test_what_was_written_is_there_and_nothing_else(tmp_path, write):
    write(tmp_path / "x", "new")
    assert text_of(tmp_path / "x") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_missing_parents_are_made(tmp_path, write):
    write(tmp_path / "a" / "b" / "x", "new")
    assert text_of(tmp_path / "a" / "b" / "x") == "new"


def test_what_was_there_is_replaced(tmp_path, write):
    write(tmp_path / "x", "old")
    write(tmp_path / "x", "new")
    assert text_of(tmp_path / "x") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    for name in ("old", "new"):
        with whole_folder(tmp_path / "x") as temporary:
            (temporary / name).write_text(name)
    assert contents(tmp_path) == {"x/new": "new"}


def test_until_the_block_ends_the_old_content_is_seen(tmp_path, write):
    write(tmp_path / "x", "old")
    seen = []
    write(tmp_path / "x", "new", between=lambda: seen.append(text_of(tmp_path / "x")))
    assert seen == ["old"]


def test_a_crash_inside_the_block_leaves_the_old_content_and_no_rubbish(tmp_path, write):
    write(tmp_path / "x", "old")
    before = contents(tmp_path)
    with pytest.raises(Crash):
        write(tmp_path / "x", "new", between=crash)
    assert contents(tmp_path) == before


def test_a_crash_before_anything_was_there_leaves_nothing(tmp_path, write):
    with pytest.raises(Crash):
        write(tmp_path / "x", "new", between=crash)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from diptych.files import whole_{kind}
with whole_{kind}(Path(sys.argv[1])) as temporary:
    inside = temporary if "{kind}" == "file" else temporary / "inner"
    file = inside.open("w")
    file.write("half of the new cont")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_9_while_writing_leaves_the_old_content_and_sweep_removes_the_rest(tmp_path, kind):
    path = tmp_path / "x"
    with (whole_file if kind == "file" else whole_folder)(path) as temporary:
        (temporary if kind == "file" else temporary / "inner").write_text("old")
    before = contents(tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(kind=kind), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait(timeout=60) == -signal.SIGKILL
    writer.stdout.close()
    assert text_of(path) == "old"
    assert len(contents(tmp_path)) == 2
    sweep(tmp_path, "x")
    assert contents(tmp_path) == before


REPLACED_FOREVER = """
import sys
from pathlib import Path
from diptych.files import whole_folder
for count in range(10**9):
    with whole_folder(Path(sys.argv[1])) as temporary:
        for name in range(5):
            (temporary / str(name)).write_text(str(count))
    if count == 0:
        print("writing", flush=True)
"""


def test_kill_9_while_folders_are_replaced_never_loses_or_halves_one(tmp_path):
    """Killed anywhere, between the renames too: after a sweep one whole folder is there."""
    for moment in range(6):
        folder = tmp_path / str(moment)
        writer = subprocess.Popen(
            [sys.executable, "-c", REPLACED_FOREVER, str(folder / "x")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "writing\n"
        time.sleep(0.003 + 0.0137 * moment)
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=60)
        writer.stdout.close()
        sweep(folder, "x")
        found = contents(folder)
        assert sorted(found) == [f"x/{name}" for name in range(5)]
        assert len(set(found.values())) == 1


def test_a_folder_set_aside_by_a_killed_process_is_put_back(tmp_path):
    aside = tmp_path / ".step.0001.4711.aside"
    aside.mkdir()
    (aside / "inner").write_text("old")
    sweep(tmp_path, "step.*")
    assert contents(tmp_path) == {"step.0001/inner": "old"}


def test_a_folder_set_aside_is_removed_if_the_new_one_came(tmp_path):
    for name, text in ((".x.4711.aside", "old"), ("x", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inner").write_text(text)
    sweep(tmp_path, "x")
    assert contents(tmp_path) == {"x/inner": "new"}


def test_sweep_leaves_everything_else_alone(tmp_path):
    (tmp_path / "kept").mkdir()
    strangers = (".film.mkv.part", ".z.9.part", ".y.part", ".y.seven.part", "x.part", ".hidden")
    for name in (*strangers, "kept/.y.7.part", ".y.7.part", ".y.1.8.part"):
        (tmp_path / name).write_text(name)
    sweep(tmp_path, "y", "y.*")
    assert sorted(contents(tmp_path)) == sorted((*strangers, "kept/.y.7.part"))


def test_sweep_of_no_names_removes_nothing(tmp_path):
    (tmp_path / ".y.7.part").write_text("another program's")
    sweep(tmp_path)
    assert contents(tmp_path) == {".y.7.part": "another program's"}


def test_a_link_that_the_disk_refuses_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        point(tmp_path / "gone" / "last", "one")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_content_and_no_rubbish(small_disk, write):
    write(small_disk / "x", "old")
    before = contents(small_disk)
    with pytest.raises(StorageError) as caught:
        write(small_disk / "x", "new" * 100_000)
    assert str(caught.value) == (
        f"{small_disk / 'x'} cannot be written: No space left on device. "
        "Free some space or choose another folder; what was there before is untouched."
    )
    assert contents(small_disk) == before
    write(small_disk / "x", "small")
    assert text_of(small_disk / "x") == "small"


def test_a_device_that_refuses_is_a_storage_error(tmp_path, write):
    """The kernel's own "no space left", where nobody may mount a disk."""
    write(tmp_path / "x", "old")
    before = contents(tmp_path)

    def fill():
        with open("/dev/full", "w") as full:  # noqa: PTH123
            full.write("x")

    with pytest.raises(StorageError, match=r"No space left on device\. Free some space"):
        write(tmp_path / "x", "new", between=fill)
    assert contents(tmp_path) == before


def test_bytes_that_do_not_reach_the_disk_are_a_storage_error(tmp_path, write, monkeypatch):
    write(tmp_path / "x", "old")
    before = contents(tmp_path)

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        write(tmp_path / "x", "new")
    assert contents(tmp_path) == before


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path, write):
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "x", "new")
    assert contents(tmp_path) == {"file": "here"}


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    with whole_folder(tmp_path / "x") as temporary:
        (temporary / "inner").write_text("old")
    real = type(tmp_path).replace

    def refuse_parts(path, target):
        if path.name.endswith(".part"):
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", refuse_parts)
    with (
        pytest.raises(StorageError, match="what was there before is untouched"),
        whole_folder(tmp_path / "x") as temporary,
    ):
        (temporary / "inner").write_text("new")
    assert contents(tmp_path) == {"x/inner": "old"}


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "x", "é 🙂\n")
    assert (tmp_path / "x").read_bytes() == "é 🙂\n".encode()


def test_a_link_points_where_it_was_last_told(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point(tmp_path / "last", name)
        assert (tmp_path / "last").resolve() == (tmp_path / name).resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "one", "two"]


def test_a_link_survives_the_move_of_its_folder(tmp_path):
    (tmp_path / "a" / "one").mkdir(parents=True)
    point(tmp_path / "a" / "last", "one")
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b" / "last").resolve() == (tmp_path / "b" / "one").resolve()


def test_a_fingerprint_tells_parts_apart():
    assert fingerprint("ab", "c") != fingerprint("a", "bc") != fingerprint("abc")
    assert fingerprint("ab") == fingerprint(b"ab")
    assert len(fingerprint()) == 16


def test_a_file_fingerprint_is_its_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_fingerprint(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()[:16]


def test_a_table_is_read_from_json(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, "\u00e9"]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, "\u00e9"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "it is no JSON: Expecting property name"),
        (b"[1]", "it holds a list, not a table"),
        (b"3", "it holds a int, not a table"),
        (b"null", "it holds a NoneType, not a table"),
        (b'{"a": "\xff"}', "it is not UTF-8 from byte 7 on"),
        (b"\xef\xbb\xbf{}", "it is no JSON: Unexpected UTF-8 BOM"),
        (b'{"a":' * 100_000, "its tables are nested too deeply"),
        (b"[" * 100_000, "its tables are nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "it is no JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_table_of_json_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there_is_a_value_error_too(tmp_path):
    with pytest.raises(ValueError, match="No such file or directory"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="Is a directory"):
        read_json(tmp_path)
