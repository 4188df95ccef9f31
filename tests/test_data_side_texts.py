"""A text beside each picture: a line that is not empty is a caption."""

import pytest
from small import picture_of

from diptych.data.opening import open_source
from diptych.errors import DataError


def write(folder, **texts):
    """Pictures with the texts beside them; None writes no text."""
    for number, (name, text) in enumerate(texts.items()):
        picture_of(number, side=6).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_bytes(text)
    return str(folder)


def captions(source):
    return {source.sample(i).key: source.captions(i) for i in range(source.size)}


def test_every_line_that_is_not_empty_is_a_caption(tmp_path):
    spec = write(
        tmp_path,
        a=b"one caption",
        b=b"\xef\xbb\xbf  first \r\n\r\n\t\nsecond\r\n",
        c="drei Bären\n".encode(),
        d=b"caf\xe9",
    )
    source = open_source(spec)
    assert captions(source) == {
        "a.png": ("one caption",),
        "b.png": ("first", "second"),
        "c.png": ("drei Bären",),
        "d.png": ("caf\N{REPLACEMENT CHARACTER}",),
    }
    assert source.notes == (f"{tmp_path}: 4 pictures, 5 captions from the .txt files beside them",)


def test_pictures_without_text_and_texts_without_picture_are_counted(tmp_path):
    spec = write(tmp_path, a=b"a", b=b"\n \n", c=None)
    (tmp_path / "readme.txt").write_text("x")
    source = open_source(spec)
    assert captions(source) == {"a.png": ("a",)}
    assert source.notes[1:] == (
        "2 pictures without a caption were left out",
        "1 .txt files have no picture of their name beside them",
    )
    everything = open_source(spec, captions_needed=False)
    assert captions(everything) == {"a.png": ("a",), "b.png": (), "c.png": ()}


def test_a_picture_deeper_down_has_its_text_beside_it(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", a=b"deep a")
    assert captions(open_source(write(tmp_path, a=b"a"))) == {
        "a.png": ("a",),
        "deep/a.png": ("deep a",),
    }


def test_a_text_alone_makes_no_captions_of_a_folder(tmp_path):
    spec = write(tmp_path, a=None, b=None)
    (tmp_path / "readme.txt").write_text("x")
    assert captions(open_source(spec, captions_needed=False)) == {"a.png": (), "b.png": ()}


def test_texts_that_are_all_empty_are_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(write(tmp_path, a=b"", b=b"\n"))
    assert str(caught.value) == (
        f"{tmp_path} has 2 pictures and no caption: the .txt files beside them are empty. "
        "Write a caption on each line of dog.txt for dog.jpg."
    )
