"""Folders as classes: the caption is the readable name of the topmost folder."""

import pytest
from small import picture_of

from diptych.data.class_folders import readable
from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.errors import RequestError


def write(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture_of(number, side=6).save(folder / name)
    return str(folder)


def test_each_picture_has_the_name_of_its_topmost_folder(tmp_path):
    names = ["guinea_pig/b.png", "guinea_pig/deep/er/a.png", "Zebra/1.png", "sea-lion/x.JPG"]
    source = open_source(write(tmp_path, *names))
    assert [source.sample(index).key for index in range(4)] == sorted(names)
    assert [source.captions(index) for index in range(4)] == [
        ("Zebra",),
        ("guinea pig",),
        ("guinea pig",),
        ("sea lion",),
    ]
    samples = [source.sample(index) for index in range(4)]
    assert [sample.metadata["class"] for sample in samples] == [
        "Zebra",
        "guinea_pig",
        "guinea_pig",
        "sea-lion",
    ]
    assert [sample.captions for sample in samples] == [source.captions(i) for i in range(4)]
    shown = to_rgb(samples[0].picture).tobytes()
    assert shown == picture_of(2, side=6).tobytes()
    assert source.notes == (
        f"{tmp_path}: 4 pictures in 3 classes; the caption is the name of the class folder",
    )


def test_hidden_folders_and_other_files_are_no_classes(tmp_path):
    spec = write(tmp_path, "a/1.png", "b/2.png", ".cache/3.png", "b/.thumbs/4.png")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "empty").mkdir()
    assert open_source(spec).size == 2


def test_a_fingerprint_changes_with_the_class_of_a_picture(tmp_path):
    spec = write(tmp_path, "a/1.png", "b/2.png")
    before = open_source(spec).fingerprint
    assert open_source(spec).fingerprint == before
    (tmp_path / "a").rename(tmp_path / "c")
    assert open_source(spec).fingerprint != before


@pytest.mark.parametrize(
    ("names", "outside"),
    [(("a/1.png", "b/2.png", "3.png"), "3.png"), (("a/1.png", "a/b/2.png"), "a/1.png")],
)
def test_folders_that_are_no_classes_are_refused_by_text(tmp_path, names, outside):
    """A picture outside all classes, or one class that everything is in."""
    with pytest.raises(RequestError) as caught:
        open_source(write(tmp_path, *names))
    assert f"{outside} is not in one of several class folders" in str(caught.value)


def test_where_captions_are_not_needed_folders_are_no_captions(tmp_path):
    """A library of photos is no set of classes."""
    source = open_source(write(tmp_path, "2023/1.png", "2024/2.png"), captions_needed=False)
    assert [source.captions(index) for index in range(2)] == [(), ()]
    assert source.sample(0).metadata == {}


def test_a_caption_file_or_side_texts_go_before_the_names_of_folders(tmp_path):
    spec = write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "1.txt").write_text("from the text")
    source = open_source(spec)
    assert [source.captions(index) for index in range(source.size)] == [("from the text",)]
    (tmp_path / "captions.csv").write_text("image,caption\na/1.png,from the table\n")
    assert open_source(spec).captions(0) == ("from the table",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guinea_pig", "guinea pig"),
        ("African-hunting_dog", "African hunting dog"),
        ("_odd__name_", "odd name"),
        ("plain words", "plain words"),
        ("___", "___"),
        ("n01440764", "n01440764"),
    ],
)
def test_a_class_name_becomes_readable(name, expected):
    assert readable(name) == expected


def test_splits_are_no_classes(tmp_path):
    spec = write(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/2.png")
    with pytest.raises(RequestError) as caught:
        open_source(spec)
    assert str(caught.value) == (
        f"the class folders of {spec} lie in train, val, which are no classes. "
        f"Give one of these, such as {spec}/train to train, with --val {spec}/val."
    )
    assert open_source(f"{spec}/train").size == 2
    assert open_source(spec, captions_needed=False).size == 4
    assert open_source(write(tmp_path / "x", "test/1.png", "val/2.png")).captions(0) == ("test",)


def test_links_to_folders_are_followed_and_each_folder_is_seen_once(tmp_path):
    write(tmp_path / "far", "cat/1.png", "dog/2.png")
    (tmp_path / "near" / "owl").mkdir(parents=True)
    picture_of(3, side=6).save(tmp_path / "near" / "owl" / "3.png")
    for name in ("cat", "dog"):
        (tmp_path / "near" / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "near" / "owl" / "round").symlink_to(tmp_path / "near")
    (tmp_path / "near" / "again").symlink_to(tmp_path / "near" / "owl")
    (tmp_path / "near" / "ring").symlink_to(tmp_path / "near" / "ring")
    source = open_source(str(tmp_path / "near"))
    keys = [source.sample(index).key for index in range(3)]
    assert (source.size, keys) == (3, ["cat/1.png", "dog/2.png", "owl/3.png"])
