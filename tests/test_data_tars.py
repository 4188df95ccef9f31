"""WebDataset shards: what belongs together, what is counted, and tars that are cut or hostile."""

import gzip
import io
import json
import os
import tarfile
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import SourceOptions
from diptych.data.tar_index import read_index
from diptych.errors import DataError, RequestError


def png(shade=0):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, *members, form=tarfile.PAX_FORMAT):
    """A tar of names and contents; the content may be a dictionary, written as json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def three(path, **options):
    members = [(f"{n}.{e}", png(n) if e == "png" else b"text %d" % n) for n in (1, 2, 3) for e in E]
    return tar_of(path, *members, **options)


E = ("png", "txt")


def captions(source):
    return {source.sample(i).key: source.captions(i) for i in range(source.size)}


def refusal(kind, spec, **options):
    with pytest.raises(kind) as caught:
        open_source(str(spec), SourceOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_belong_together_up_to_the_first_dot_of_the_name(tmp_path):
    spec = tar_of(
        tmp_path / "t.tar",
        ("./a.b/1.PNG", png(1)),
        ("2.png", png(2)),
        ("a.b/1.txt", b"in a folder with a dot"),
        ("2.seg.png", png(9)),
        ("2.txt", b"a second one\n\nin two lines"),
    )
    source = open_source(spec)
    assert captions(source) == {
        "t:a.b/1": ("in a folder with a dot",),
        "t:2": ("a second one", "in two lines"),
    }
    assert [to_rgb(source.sample(i).picture).getpixel((0, 0))[0] for i in (0, 1)] == [1, 2]
    other = open_source(spec, SourceOptions(image_column="seg.png"))
    assert to_rgb(other.sample(0).picture).getpixel((0, 0))[0] == 9
    assert other.notes[1] == "1 samples without a picture were left out"


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (tarfile.USTAR_FORMAT, "x"),
        (tarfile.GNU_FORMAT, "long" * 60),
        (tarfile.PAX_FORMAT, "long" * 60),
        (tarfile.PAX_FORMAT, "früh"),
    ],
)
def test_every_form_of_tar_is_read(tmp_path, form, name):
    spec = tar_of(tmp_path / "t.tar", (f"{name}.png", png(5)), (f"{name}.txt", b"a"), form=form)
    source = open_source(spec)
    assert captions(source) == {f"t:{name}": ("a",)}
    assert to_rgb(source.sample(0).picture).getpixel((0, 0))[0] == 5


def test_what_is_missing_doubled_or_no_file_is_counted(tmp_path):
    folder, link = tarfile.TarInfo("deep"), tarfile.TarInfo("5.png")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/hostname"
    spec = tar_of(
        tmp_path / "t.tar",
        ("deep", folder),
        ("1.png", png(1)),
        ("1.txt", b"first"),
        ("1.txt", b"again"),
        ("2.png", png(2)),
        ("3.txt", b"no picture"),
        ("4.png", png(4)),
        ("4.txt", b" \n"),
        ("5.png", link),
        ("._1.png", b"left by a Mac"),
    )
    source = open_source(spec)
    assert captions(source) == {"t:1": ("first",)}
    assert source.notes == (
        f"{spec}: 1 pictures in 1 tars, 1 captions in 'txt'",
        "1 samples without a picture were left out",
        "2 samples without a caption were left out",
        "t.tar: 1 members have the name of an earlier one, which is kept",
        "t.tar: 1 members are links or no plain files, left out",
        "t.tar: 1 members have a name that begins with a dot, left out",
    )
    assert captions(open_source(spec, captions_needed=False)) == {
        "t:1": ("first",),
        "t:2": (),
        "t:4": (),
    }


def test_captions_are_found_as_in_tables(tmp_path):
    """The text first, then a field of the json by its usual name, then the class."""
    said = {"caption": "from json", "alt": ["one", "two"], "width": 3}
    whole = [
        ("1.png", png()),
        ("1.txt", b"text"),
        ("1.json", said),
        ("1.cls", b"7"),
        ("1.de", b"d"),
    ]
    for left_out, asked, expected in (
        ((), None, ("text",)),
        (("1.txt",), None, ("from json",)),
        (("1.txt", "1.json"), None, ("7",)),
        ((), "alt", ("one", "two")),
        ((), "caption,txt", ("from json", "text")),
        ((), "de", ("d",)),
        ((), "cls", ("7",)),
    ):
        members = [member for member in whole if member[0] not in left_out]
        source = open_source(tar_of(tmp_path / "t.tar", *members), SourceOptions(text_column=asked))
        assert source.sample(0).captions == source.captions(0) == expected
    assert "there is no column 'captoin' (text). Did you mean 'caption'?" in refusal(
        RequestError, tmp_path / "t.tar", text_column="captoin"
    )


def test_classes_are_numbers_of_lines_in_the_class_names(tmp_path):
    """The layout of CLIP_benchmark: the names lie one folder above the shards of a split."""
    members = [(f"{n}.{e}", png(n) if e == "png" else b"%d" % n) for n in range(4) for e in CLS]
    spec = tar_of(tmp_path / "test" / "0.tar", *members)
    source = open_source(str(tmp_path / "test"))
    assert [source.captions(index) for index in range(4)] == [("0",), ("1",), ("2",), ("3",)]
    (tmp_path / "classnames.txt").write_text("tabby cat\nzebra\n sea lion \n")
    source = open_source(str(tmp_path / "test"))
    assert captions(source) == {"0:0": ("tabby cat",), "0:1": ("zebra",), "0:2": ("sea lion",)}
    assert source.notes[1] == "1 samples without a caption were left out"
    (tmp_path / "test" / "classnames.txt").write_text("a\nb\nc\nd\n")
    assert open_source(spec).captions(3) == ("d",)


CLS = ("png", "cls")


def test_damaged_json_is_a_sample_without_a_caption(tmp_path):
    spec = tar_of(
        tmp_path / "t.tar",
        ("1.png", png()),
        ("1.json", {"caption": "x"}),
        ("2.png", png()),
        ("2.json", b"{"),
        ("3.png", png()),
        ("3.json", b"[" * 100_000),
        ("4.png", png()),
        ("4.json", b"[1]"),
    )
    assert open_source(spec).notes[1] == "3 samples without a caption were left out"


def test_numbers_beyond_all_measure_are_no_trouble(tmp_path):
    spec = tar_of(
        tmp_path / "t.tar",
        *((f"{n}.png", png(n)) for n in range(3)),
        *((f"{n}.txt", b"x") for n in range(3)),
        ("0.json", b'{"width": %s}' % (b"9" * 5000)),
        ("1.json", b'{"width": -%s}' % (b"9" * 500)),
        ("2.cls", b"9" * 5000),
    )
    source = open_source(spec)
    assert source.size == 3
    assert "width" not in source.sample(1).metadata
    assert "has no usable sample" in refusal(DataError, spec, where="width > 1")


def test_values_that_sql_cannot_hold_do_not_keep_a_condition_from_the_others(tmp_path):
    odd = [b"-1" + b"0" * 30, b"9" * 400, b'"\\ud800"', b"NaN", b"-Infinity", b"7"]
    spec = tar_of(
        tmp_path / "t.tar",
        *((f"{n}.png", png(n)) for n in range(6)),
        *((f"{n}.json", b'{"caption": "a", "w": %s, "\\udfff": 1}' % w) for n, w in enumerate(odd)),
    )
    assert list(captions(open_source(spec, SourceOptions(where="w = 7")))) == ["t:5"]
    source = open_source(spec)
    assert [dict(source.sample(n).metadata) for n in range(6)] == [{}] * 5 + [{"w": 7}]
    spec = tar_of(tmp_path / "c.tar", ("1.png", png()), ("1.json", b'{"caption": "a \\ud800"}'))
    assert open_source(spec).captions(0) == ("a ?",)


def test_a_field_that_a_shard_lacks_is_null_there_and_one_that_all_lack_is_refused(tmp_path):
    for name, said in (("a", {}), ("b", {"Width": 3}), ("c", {"width": 5})):
        tar_of(
            tmp_path / f"{name}.tar",
            ("1.png", png()),
            ("1.txt", b"x"),
            *((("1.json", said),) if said else ()),
        )
    spec = str(tmp_path / "*.tar")
    kept = {
        where: list(captions(open_source(spec, SourceOptions(where=where))))
        for where in ("width > 2", "width IS NULL", "width > 4 OR txt = 'y'")
    }
    assert list(kept.values()) == [["b:1", "c:1"], ["a:1"], ["c:1"]]
    said = refusal(RequestError, spec, where="height > 2")
    assert "cannot be used: no such column: height. Columns are txt, Width, width;" in said


def test_a_refused_condition_lists_ten_columns(tmp_path):
    said = {f"f{n}": n for n in range(40)}
    spec = tar_of(tmp_path / "t.tar", ("1.png", png()), ("1.txt", b"x"), ("1.json", said))
    assert "f8, f9 and 31 more; write it as SQL" in refusal(RequestError, spec, where="height > 2")


def test_a_condition_and_the_metadata_see_the_same_class(tmp_path):
    members = [("1.png", png(1)), ("2.png", png(2)), ("1.txt", b"x"), ("2.txt", b"y")]
    spec = tar_of(tmp_path / "t.tar", *members, ("1.cls", b"dog\n"), ("2.cls", b"1"))
    source = open_source(spec, SourceOptions(where="cls = 'dog'"))
    assert list(captions(source)) == ["t:1"]
    assert source.sample(0).metadata == {"cls": "dog"}
    (tmp_path / "classnames.txt").write_text("owl\ncat\n")
    source = open_source(spec, SourceOptions(where="cls = 'cat'"))
    assert list(captions(source)) == ["t:2"]
    assert source.sample(0).metadata == {"cls": "cat"}


def test_a_text_of_more_than_1_mb_is_left_out_and_noted(tmp_path):
    members = [("1.png", png(1)), ("1.txt", b"x"), ("2.png", png(2)), ("2.txt", b"x" * 1_000_001)]
    source = open_source(tar_of(tmp_path / "t.tar", *members))
    assert list(captions(source)) == ["t:1"]
    assert source.notes[-1] == "t.tar: 1 texts of more than 1 MB, left out"


def test_a_sparse_member_is_left_out_and_the_tar_is_whole(tmp_path):
    spec = tar_of(tmp_path / "t.tar", ("1.png", png(1)), ("1.txt", b"x"))
    sparse = tarfile.TarInfo("2.png")
    sparse.pax_headers = {"GNU.sparse.size": "1000000", "GNU.sparse.map": "0,0"}
    with tarfile.open(spec, "a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse)
    source = open_source(spec)
    assert list(captions(source)) == ["t:1"]
    assert source.notes[-1] == "t.tar: 1 members are links or no plain files, left out"


def test_a_condition_sees_the_fields_of_json_and_the_other_members(tmp_path):
    spec = tar_of(
        tmp_path / "t.tar",
        *((f"{n}.png", png(n)) for n in range(4)),
        *((f"{n}.txt", b"text %d" % n) for n in range(4)),
        *((f"{n}.json", {"width": n if n else "unknown", "list": [n]}) for n in range(4)),
    )
    source = open_source(spec, SourceOptions(where="width >= 2 AND txt <> 'text 3'"))
    assert captions(source) == {"t:0": ("text 0",), "t:2": ("text 2",)}  # text is above numbers
    assert "cannot be used: no such column: list" in refusal(RequestError, spec, where="list = 1")
    said = refusal(DataError, spec, where="width = 77")
    assert "has no usable sample. Endings seen: 'png', 'txt', 'json'. Name others with" in said


def test_tars_without_usable_samples_say_what_was_seen(tmp_path):
    spec = tar_of(tmp_path / "t.tar", ("1.npy", b"x"), ("1.txt", b"y"))
    said = refusal(DataError, spec)
    assert "has no usable sample; 1 samples without a picture were left out. Endings seen: " in said
    assert said.endswith(
        "'npy', 'txt'. Name others with --image-column and --text-column, or widen the condition."
    )
    spec = tar_of(tmp_path / "t.tar", ("1.jpg", png()), ("1.json", {"words": "x"}))
    said = refusal(RequestError, spec)
    assert said == (
        "no column looks like the text; the columns are words, jpg. Name it with --text-column."
    )
    assert open_source(spec, SourceOptions(text_column="words")).captions(0) == ("x",)
    assert "Endings seen: none." in refusal(DataError, tar_of(tmp_path / "e.tar"))


def data_ends(path):
    """Name, beginning of the header, and beginning and end of the data of each member."""
    with tarfile.open(path) as tar:
        return [(m.name, m.offset, m.offset_data, m.offset_data + m.size) for m in tar]


def test_a_tar_that_is_cut_anywhere_is_an_error_or_goes_on_with_what_is_whole(tmp_path):
    """At every block and at the odd byte; whatever is said to be whole is as it was."""
    path = tmp_path / "t.tar"
    three(path, form=tarfile.USTAR_FORMAT)
    whole, expected = path.read_bytes(), captions(open_source(str(path)))
    ends = data_ends(path)
    for cut in sorted({*range(0, ends[-1][3] + 600, 256), *(end[3] - 1 for end in ends)}):
        path.write_bytes(whole[:cut])
        texts = [end[0] for end in ends if end[3] <= cut and end[0].endswith("txt")]
        complete = -(-ends[-1][3] // 512) * 512 + 512 <= cut
        if complete:
            assert captions(open_source(str(path))) == expected
            continue
        said = refusal(DataError, path)
        assert said.startswith("shard t.tar ")
        assert "Fetch the shard again, or add --skip-damaged" in said
        if not texts:
            with pytest.raises((DataError, RequestError), match=r"no usable|no column looks"):
                open_source(str(path), SourceOptions(skip_damaged=True))
            continue
        source = open_source(str(path), SourceOptions(skip_damaged=True))
        assert captions(source) == dict(list(expected.items())[: len(texts)])
        assert any("; what follows is left out" in note for note in source.notes)


def test_a_cut_inside_a_picture_names_the_sample_and_the_bytes(tmp_path):
    path = tmp_path / "t.tar"
    three(path)
    name, _, start, end = data_ends(path)[2]
    path.write_bytes(path.read_bytes()[: start + 7])
    assert refusal(DataError, path) == (
        f"shard t.tar ends inside sample '2' after 7 of {end - start} bytes of its {name!r}. "
        "Fetch the shard again, or add --skip-damaged to continue with what is "
        "before."
    )
    source = open_source(str(path), SourceOptions(skip_damaged=True))
    assert captions(source) == {"t:1": ("text 1",)}
    assert source.notes[1].endswith("bytes of its '2.png'; what follows is left out")


def test_damage_in_the_middle_is_found_and_named(tmp_path):
    path = tmp_path / "t.tar"
    three(path)
    whole, start = path.read_bytes(), data_ends(path)[2][1]
    for damage in (b"\xff" * 512, b"\0" * 100 + b"z" * 412):
        path.write_bytes(whole[:start] + damage + whole[start + 512 :])
        said = refusal(DataError, path)
        assert said.startswith("shard t.tar is damaged or cut after 2 members, at byte ")
        assert f"at byte {start:,} of {len(whole):,}. Fetch" in said


@pytest.mark.parametrize("content", [b"x" * 2000, gzip.compress(b"x" * 5000), b"\xff" * 512, b""])
def test_what_is_no_tar_is_named(tmp_path, content):
    (tmp_path / "t.tar").write_bytes(content)
    said = refusal(DataError, tmp_path / "t.tar")
    assert said.startswith("shard t.tar is no tar: " if content else "shard t.tar is damaged or")


@pytest.mark.parametrize("seed", range(40))
def test_a_tar_with_damaged_headers_gives_samples_or_a_data_error_and_nothing_else(tmp_path, seed):
    random = np.random.default_rng(seed)
    path = tmp_path / "t.tar"
    three(path, form=tarfile.PAX_FORMAT if seed % 2 else tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    for _, header, _, _ in data_ends(path):
        for place in random.integers(header, header + 512, 3):
            data[place] = random.integers(256)
        fields = bytearray(data[header : header + 512])
        fields[148:156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(fields)  # a checksum that holds
    path.write_bytes(data)
    with suppress(DataError, RequestError):
        source = open_source(str(path), SourceOptions(skip_damaged=bool(seed % 3)))
        [source.sample(index) for index in range(source.size)]


def test_a_header_that_leads_back_does_not_go_round_for_ever(tmp_path):
    path = tmp_path / "t.tar"
    three(path, form=tarfile.USTAR_FORMAT)
    data, start = bytearray(path.read_bytes()), data_ends(path)[2][1]
    header = bytearray(data[start : start + 512])
    header[124:136] = b"\xff" * 10 + (-1024).to_bytes(2, "big", signed=True)  # base 256: negative
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(data[:start] + header + data[start + 512 :])
    assert "shard t.tar is damaged or cut after 2 members" in refusal(DataError, path)


def test_hostile_names_write_nothing_and_are_only_names(tmp_path):
    folder = tmp_path / "deep"
    names = ("../../outside", "/etc/outside", "a\nb", "\udcff", "x" * 300)
    spec = tar_of(
        folder / "t.tar", *((f"{n}.{e}", png() if e == "png" else b"t") for n in names for e in E)
    )
    before = sorted(tmp_path.rglob("*"))
    source = open_source(spec)
    assert source.size == len(names)
    assert len({source.sample(index).key for index in range(len(names))}) == len(names)
    for index in range(len(names)):
        source.sample(index).key.encode()  # can be written
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tar_that_changes_while_it_is_used_is_named(tmp_path):
    path = tmp_path / "t.tar"
    source = open_source(three(path))
    os.truncate(path, data_ends(path)[4][2] + 5)
    assert source.sample(0).captions == ("text 1",)
    with pytest.raises(DataError, match=r"it has changed since it was opened\. Leave shards alone"):
        source.sample(2)
    path.unlink()
    with pytest.raises(DataError, match=r"t\.tar cannot be read: No such file"):
        source.sample(0)


def test_the_index_says_where_the_bytes_are(tmp_path):
    path = tmp_path / "t.tar"
    three(path)
    data = path.read_bytes()
    for key, members in read_index(path, skip_damaged=False).samples.items():
        start, size = members["png"]
        assert data[start : start + size] == png(int(key))
