"""Every kind of source keeps one contract: samples by number, keys, a fingerprint of content."""

import csv
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from diptych.data.augment import AugmentConfig
from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.data.source import SourceOptions
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import DataError

PICTURES = {
    "red.png": ((200, 0, 0), ("a red wall", "all is red")),
    "deep/green.png": ((0, 200, 0), ("a green wall, wide",)),
    "blue.png": ((0, 0, 200), ('a "blue" wall', "blau", "bleu")),
    "grey.png": ((90, 90, 90), ("grau 🩶",)),
    "white.png": ((250, 250, 250), ("a white wall",)),
    "2024-05-01.png": ((10, 20, 30), ("2024-05-01",)),
    "deep/007.png": ((0, 0, 7), ("007", "7.0")),
}
"""File, its one colour, and its captions. Some look like numbers or dates, and are text."""


def png(colour, side=3):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder, pictures=PICTURES):
    for name, (colour, _) in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(colour))


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), path)
    return str(path)


def csv_folder(folder, pictures):
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows(pictures)])
    return str(folder)


def jsonl_folder(folder, pictures):
    lines = [json.dumps({"path": name, "text": text}) for name, text in rows(pictures)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return str(folder)


def metadata_folder(folder, pictures):
    """Hugging Face's imagefolder, several captions in a list."""
    lines = [json.dumps({"file_name": n, "captions": list(t)}) for n, (_, t) in pictures.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def parquet_folder(folder, pictures):
    names, texts = zip(*rows(pictures), strict=True)
    parquet(folder / "captions.parquet", filepath=names, sentence=texts)
    return str(folder)


def rows(pictures):
    return [(name, text) for name, (_, texts) in pictures.items() for text in texts]


def bytes_parquet(folder, pictures):
    return parquet(
        folder / "b.parquet",
        jpg=[png(colour) for colour, _ in pictures.values()],
        captions=[list(texts) for _, texts in pictures.values()],
    )


def struct_parquet(folder, pictures):
    """Hugging Face's picture cells, some as bytes and some as a path."""
    cells = [
        {"bytes": png(colour) if place % 2 else None, "path": name}
        for place, (name, (colour, _)) in enumerate(pictures.items())
    ]
    return parquet(folder / "s.parquet", image=cells, text=[list(t) for _, t in pictures.values()])


def path_parquet(folder, pictures):
    names, texts = zip(*rows(pictures), strict=True)
    return parquet(folder / "p.parquet", image=names, text=texts)


def category_parquet(folder, pictures):
    """Strings as pandas writes categories."""
    names, texts = (pa.array(column).dictionary_encode() for column in zip(*rows(pictures)))  # noqa: B905
    return parquet(folder / "c.parquet", image=names, text=texts)


def columns_parquet(folder, pictures):
    """One caption column per language, empty cells among them."""
    texts = [(*texts, None, "  ")[:3] for _, texts in pictures.values()]
    return parquet(
        folder / "m.parquet",
        image=[png(colour) for colour, _ in pictures.values()],
        en=[row[0] for row in texts],
        de=[row[1] for row in texts],
        fr=[row[2] for row in texts],
    )


def two_parquets(folder, pictures):
    half = len(pictures) // 2
    items = list(pictures.items())
    bytes_parquet(folder / "0", dict(items[:half]))
    bytes_parquet(folder / "1", dict(items[half:]))
    return str(folder / "*" / "b.parquet")


def table(name, delimiter=","):
    """A table that stands in the folder of its pictures under a name of its own."""

    def build(folder, pictures):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("file", "title"), *rows(pictures)])
        return str(folder / name)

    return build


def jsonl_file(folder, pictures):
    lines = [json.dumps({"img": name, "caption": list(t)}) for name, (_, t) in pictures.items()]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return str(folder / "rows.jsonl")


def mixed_tables(folder, pictures):
    """Half of the rows in a csv file and half in parquet."""
    items, half = list(pictures.items()), len(pictures) // 2
    write_pictures(folder / "one", dict(items[:half]))
    write_pictures(folder / "two", dict(items[half:]))
    with (folder / "one" / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *rows(dict(items[:half]))])
    path_parquet(folder / "two", dict(items[half:]))
    return str(folder / "{one/a.csv,two/p.parquet}")


def two_folders(folder, pictures):
    """One source after the other: a folder and a tar."""
    items, half = list(pictures.items()), len(pictures) // 2
    write_pictures(folder / "one", dict(items[:half]))
    return [
        csv_folder(folder / "one", dict(items[:half])),
        write_tar(folder / "rest.tar", dict(items[half:])),
    ]


def side_files(folder, pictures):
    for name, (_, texts) in pictures.items():
        (folder / name).with_suffix(".txt").write_text("\n\n".join(texts), encoding="utf-8")
    return str(folder)


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path, pictures, *, as_json=False):
    """A WebDataset shard: a picture and its captions, in lines or as a list in json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, (colour, texts) in pictures.items():
            add(tar, name, png(colour))
            words = json.dumps({"caption": texts}) if as_json else "\n".join(texts)
            add(tar, name.replace(".png", ".json" if as_json else ".txt"), words.encode())
    return str(path)


def one_tar(folder, pictures):
    return write_tar(folder / "t.tar", pictures)


def json_tar(folder, pictures):
    return write_tar(folder / "j.tar", pictures, as_json=True)


def tar_folder(folder, pictures):
    """Two shards in a folder that holds nothing else to look at."""
    items, half = list(pictures.items()), len(pictures) // 2
    for place, part in enumerate((items[:half], items[half:])):
        write_tar(folder / "shards" / f"{place:05}.tar", dict(part))
    (folder / "shards" / "00000_stats.json").write_text("{}")
    return str(folder / "shards")


def brace_tars(folder, pictures):
    return tar_folder(folder, pictures) + "/{00000..00001}.tar"


def glob_tars(folder, pictures):
    return tar_folder(folder, pictures) + "/0*.tar"


KINDS = {
    "captions.csv": csv_folder,
    "captions.jsonl": jsonl_folder,
    "metadata.jsonl": metadata_folder,
    "captions.parquet": parquet_folder,
    "bytes": bytes_parquet,
    "struct": struct_parquet,
    "paths": path_parquet,
    "categories": category_parquet,
    "several columns": columns_parquet,
    "two": two_parquets,
    "csv": table("rows.csv"),
    "tsv": table("rows.tsv", "\t"),
    "jsonl": jsonl_file,
    "csv and parquet": mixed_tables,
    "text files": side_files,
    "tar": one_tar,
    "tar with json": json_tar,
    "tars in a folder": tar_folder,
    "tars by braces": brace_tars,
    "tars by wild card": glob_tars,
    "one after the other": two_folders,
}
OPTIONS = {"several columns": SourceOptions(text_column="en, de,fr")}
SCENES = ["scenes:shapes", "scenes:shapes:val", "scenes:shapes:test"]
CHANGES = ["scenes:changes", "scenes:changes-few:val"]


def build(kind, folder, pictures=PICTURES):
    folder.mkdir(exist_ok=True)
    write_pictures(folder, pictures)
    return open_source(KINDS[kind](folder, pictures), OPTIONS.get(kind))


@pytest.fixture(params=[*KINDS, "pictures only", *SCENES, *CHANGES])
def opened(request, tmp_path):
    """The same source, opened twice."""
    kind = request.param
    if kind in KINDS:
        return build(kind, tmp_path), build(kind, tmp_path)
    if kind in (*SCENES, *CHANGES):
        return open_source(kind), open_source(kind)
    write_pictures(tmp_path)
    return tuple(open_source(str(tmp_path), captions_needed=False) for _ in range(2))


def test_a_source_gives_the_same_samples_each_time(opened):
    source, again = opened
    assert source.name == again.name
    assert source.size == again.size
    for index in range(min(source.size or 5, 5)):
        one, other = source.sample(index), again.sample(index)
        assert one.key == other.key
        assert one.captions == other.captions == source.captions(index)
        assert all(text == text.strip() != "" for text in one.captions)
        np.testing.assert_array_equal(to_rgb(one.picture), to_rgb(other.picture))


def test_every_key_names_one_sample(opened):
    source, _ = opened
    count = min(source.size or 5, 5)
    assert len({source.sample(index).key for index in range(count)}) == count


def test_a_fingerprint_is_the_same_when_opened_again(opened):
    source, again = opened
    assert source.fingerprint == again.fingerprint
    assert len(source.fingerprint) == 16


def test_a_source_says_what_it_took(opened):
    source, _ = opened
    assert any(word in source.notes[0] for word in ("pictures", "scenes"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_pictures_and_captions_that_were_written(kind, tmp_path):
    source = build(kind, tmp_path)
    assert source.size == len(PICTURES)
    assert content(source) == {texts: png_pixels(colour) for colour, texts in PICTURES.values()}


def png_pixels(colour):
    return np.full((3, 3, 3), colour, np.uint8).tobytes()


def content(source):
    """Captions of each sample, and the pixels of its picture."""
    found = {}
    for index in range(source.size):
        sample = source.sample(index)
        assert sample.captions == source.captions(index)
        found[sample.captions] = to_rgb(sample.picture).tobytes()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_may_be_used_in_threads_and_sent_to_other_processes(kind, tmp_path):
    source = build(kind, tmp_path)
    expected = content(source)
    assert content(pickle.loads(pickle.dumps(source))) == expected
    with ThreadPoolExecutor(4) as pool:
        for sample in pool.map(source.sample, [*range(source.size)] * 10):
            assert expected[sample.captions] == to_rgb(sample.picture).tobytes()


def pipeline(source, batch=3):
    texts = [text for _, texts in PICTURES.values() for text in texts]
    return Pipeline(
        source,
        Tokenizer.learn(texts, vocabulary=300, context=12),
        ImageTransformConfig(image_size=4),
        OrderConfig(batch=batch),
        augment=AugmentConfig(),
        trims_text=False,
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("kind", ["struct", "text files", "tars by braces", "one after the other"])
def test_batches_of_a_source_are_the_same_for_0_1_and_3_workers(kind, tmp_path):
    prepared = pipeline(build(kind, tmp_path))
    expected = list(prepared.batches(0, 5, workers=0))
    for workers in (1, 3):
        for one, other in zip(expected, prepared.batches(0, 5, workers=workers), strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.text, other.text)


def shown(source, index):
    sample = source.sample(index)
    return to_rgb(sample.picture, key=sample.key)


def names_of(source, index):
    """What an error may call a picture: its path or its key; the row where the cell is empty."""
    try:
        sample = source.sample(index)
    except DataError:
        return [":0 of"]
    return [f"picture {sample.key} ", f"picture {sample.picture} "]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [b"", b"no picture", png((1, 2, 3))[:50]], ids=len)
def test_a_bad_picture_of_any_source_is_named_and_the_rest_is_used(
    kind, damage, tmp_path, monkeypatch
):
    """Whatever writes red.png writes the damage."""
    whole = png
    monkeypatch.setitem(globals(), "png", lambda c: damage if c == (200, 0, 0) else whole(c))
    source = build(kind, tmp_path)
    (bad,) = (i for i in range(source.size) if "a red wall" in source.captions(i))
    with pytest.raises(DataError) as caught:
        shown(source, bad)
    assert "\n" not in str(caught.value)
    assert any(name in str(caught.value) for name in names_of(source, bad))
    batch = pipeline(source, batch=7)[0]
    assert [name for name, _ in batch.bad][:1] == [f"{source.name}#{bad}"]
    assert batch.image.shape[0] == 7


def test_a_caption_of_a_table_may_have_several_lines(tmp_path):
    two_lines = PICTURES | {"blue.png": ((0, 0, 200), ("a blue wall\nof two lines",))}
    for kind in ("captions.csv", "metadata.jsonl", "bytes", "tsv", "tar with json"):
        assert ("a blue wall\nof two lines",) in content(build(kind, tmp_path / kind, two_lines))


def test_other_columns_of_text_and_numbers_are_metadata(tmp_path):
    """Of a table and of the json in a tar alike; lists, bytes and empty cells are none."""
    values = {"width": 640, "score": 0.5, "safe": True, "place": "Ghent", "day": "2024-05-01"}
    values |= {"none": None, "list": [1, 2]}
    expected = {name: value for name, value in values.items() if name not in ("none", "list")}
    write_pictures(tmp_path)
    (tmp_path / "t.csv").write_text(
        "image,caption,width,score,safe,place,day,none\nred.png,x,640,0.5,true,Ghent,2024-05-01,\n"
    )
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "red.png", "caption": "x"} | values))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, "a.png", png((200, 0, 0)))
        add(tar, "a.json", json.dumps({"caption": "x"} | values).encode())
    for name in ("t.csv", "t.jsonl", "t.tar"):
        sample = open_source(str(tmp_path / name)).sample(0)
        assert (sample.captions, dict(sample.metadata)) == (("x",), expected)
        for condition in ("width > 600", "place = 'Ghent'", "day < '2025'"):
            assert open_source(str(tmp_path / name), SourceOptions(where=condition)).size == 1


def test_metadata_stays_with_its_row_when_rows_are_left_out(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        image=[png((row, 0, 0)) for row in range(6)],
        text=["x", None, "y", "z", "v", "w"],
        row=list(range(6)),
    )
    source = open_source(spec, SourceOptions(where="row <> 3"))
    found = [source.sample(index).metadata["row"] for index in range(source.size)]
    assert found == [0, 2, 4, 5]


def test_a_folder_of_pictures_gives_each_by_its_path_and_no_hidden_one(tmp_path):
    write_pictures(tmp_path)
    for name in (".hidden.png", ".dir/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png((0, 0, 0)))
    source = open_source(str(tmp_path), captions_needed=False)
    keys = [source.sample(index).key for index in range(source.size)]
    assert keys == sorted(PICTURES)
    assert {source.captions(index) for index in range(5)} == {()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_changes_with_a_caption(kind, tmp_path):
    changed = PICTURES | {"grey.png": ((90, 90, 90), ("grau 🩵",))}
    prints = {build(kind, tmp_path, pictures).fingerprint for pictures in (PICTURES, changed)}
    assert len(prints) == 2


@pytest.mark.parametrize("kind", [*KINDS, "pictures only"])
def test_a_fingerprint_changes_with_a_picture(kind, tmp_path):
    prints = set()
    for side in (3, 40):
        write_pictures(tmp_path)
        if kind == "pictures only":
            (tmp_path / "blue.png").write_bytes(png((0, 0, 200), side))
            prints.add(open_source(str(tmp_path), captions_needed=False).fingerprint)
            continue
        spec = KINDS[kind](
            tmp_path, PICTURES | {"blue.png": ((0, 0, side), PICTURES["blue.png"][1])}
        )
        for path in (*tmp_path.rglob("blue.png"), *tmp_path.rglob("red.png")):
            path.write_bytes(png((0, 0, 200), side))
        prints.add(open_source(spec, OPTIONS.get(kind)).fingerprint)
    assert len(prints) == 2


def test_a_fingerprint_changes_with_the_condition_and_the_part(tmp_path):
    spec = KINDS["bytes"](tmp_path, PICTURES)
    options = [{}, {"text_column": "captions"}, {"part": (0.0, 0.7)}, {"part": (0.0, 0.99999)}]
    prints = [open_source(spec, SourceOptions(**option)).fingerprint for option in options]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_the_splits_of_scenes_differ_in_fingerprint_and_content():
    sources = [open_source(spec) for spec in SCENES]
    assert len({source.fingerprint for source in sources}) == 3
    assert [source.size for source in sources] == [None, 1000, 1000]
    assert open_source("scenes:shapes:train").fingerprint == sources[0].fingerprint
    shown = [{source.captions(index) for index in range(50)} for source in sources]
    assert not shown[0] & shown[1] and not shown[1] & shown[2]  # noqa: PT018


def test_rows_without_a_caption_are_left_out_and_noted(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        image=[png((place, 0, 0)) for place in range(5)],
        caption=[["x"], [], None, ["", "  "], ["y"]],
    )
    source = open_source(spec)
    assert [source.captions(index) for index in range(source.size)] == [("x",), ("y",)]
    assert to_rgb(source.sample(1).picture).getpixel((0, 0)) == (4, 0, 0)
    assert "3 rows without a caption were left out" in source.notes[1]
    assert open_source(spec, captions_needed=False).size == 5


def test_rows_of_one_picture_are_one_sample_even_apart_and_across_files(tmp_path):
    write_pictures(tmp_path)
    parquet(tmp_path / "0.parquet", image=["red.png", "blue.png", "red.png"], text=["a", "b", "c"])
    parquet(tmp_path / "1.parquet", image=["blue.png", "grey.png"], text=["d", "e"])
    source = open_source(str(tmp_path / "{0,1}.parquet"))
    found = {source.sample(i).key: source.captions(i) for i in range(source.size)}
    assert found == {"red.png": ("a", "c"), "blue.png": ("b", "d"), "grey.png": ("e",)}


def test_the_same_name_in_two_folders_is_two_pictures(tmp_path):
    for place, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png((place, 0, 0)))
        parquet(tmp_path / name / "t.parquet", image=["x.png"], text=[name])
    source = open_source(str(tmp_path / "*" / "t.parquet"))
    assert [source.sample(index).key for index in range(2)] == ["a/x.png", "b/x.png"]
    colours = [to_rgb(source.sample(index).picture).getpixel((0, 0))[0] for index in range(2)]
    assert colours == [0, 1]


@pytest.fixture
def shards(tmp_path):
    for name in ("t-00", "t-01", "t-02", "other"):
        parquet(tmp_path / f"{name}.parquet", image=[b"x"], text=[name])
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("t-00.parquet", ["t-00"]),
        ("{t-00,other}.parquet", ["t-00", "other"]),
        ("t-{00..01}.parquet", ["t-00", "t-01"]),
        ("{t-{00,02},other}.parquet", ["t-00", "other", "t-02"]),
        ("t-*.parquet", ["t-00", "t-01", "t-02"]),
        ("t-0[12].parquet", ["t-01", "t-02"]),
        ("{t-*,t-00}.parquet", ["t-00", "t-01", "t-02"]),
        ("**/oth*.parquet", ["other"]),
    ],
)
def test_braces_and_wild_cards_name_each_file_once(shards, pattern, expected):
    source = open_source(str(shards / pattern))
    assert [source.captions(index)[0] for index in range(source.size)] == expected


def test_a_file_with_braces_in_its_name_is_itself(tmp_path):
    spec = parquet(tmp_path / "a{b}.parquet", image=[b"x"], text=["y"])
    assert open_source(spec).size == 1


@pytest.mark.parametrize("low", [0.1, 0.5, 0.9])
def test_two_parts_cover_a_source_and_share_no_caption(tmp_path, low):
    texts = [
        [f"caption {n}", f"caption {n + 1}"] if n % 3 else [f"caption {n}"] for n in range(300)
    ]
    spec = parquet(tmp_path / "t.parquet", image=[str(n) for n in range(300)], text=texts)
    parts = [open_source(spec, SourceOptions(part=part)) for part in ((0.0, low), (low, 1.0))]
    samples = [[part.sample(index) for index in range(part.size)] for part in parts]
    keys = [{sample.key for sample in side} for side in samples]
    assert not keys[0] & keys[1]
    assert keys[0] | keys[1] == {str(n) for n in range(300)}
    said = [{text for sample in side for text in sample.captions} for side in samples]
    assert not said[0] & said[1]
    assert abs(parts[0].size / 300 - low) < 0.15
    assert f"{parts[0].size} of 300 samples: part 0..{low:g}" in parts[0].notes[-1]


def test_a_part_does_not_depend_on_the_order_of_the_rows(tmp_path):
    texts = [[f"caption {n}", f"caption {n // 2}"] for n in range(60)]
    found = []
    for order in (range(60), reversed(range(60))):
        order = list(order)
        spec = parquet(
            tmp_path / "t.parquet", image=[str(n) for n in order], text=[texts[n] for n in order]
        )
        part = open_source(spec, SourceOptions(part=(0.0, 0.5)))
        found.append({part.sample(index).key for index in range(part.size)})
    assert found[0] == found[1]


def test_more_than_2_gib_of_pictures_are_read_in_their_chunks(tmp_path, monkeypatch):
    """Two chunks of 1.2 GiB that share one buffer of zeros, which is never touched."""
    size, small = 1288490188, 7
    offsets = pa.py_buffer(np.array([0, small, size], np.int32))
    data = pa.py_buffer(np.zeros(size, np.uint8))
    chunk = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, data])
    table = pa.table({"image": pa.chunked_array([chunk, chunk]), "text": list("abcd")})
    (tmp_path / "t.parquet").write_bytes(b"stands for the table")
    monkeypatch.setattr("diptych.data.table.read_table", lambda path: table)
    source = open_source(str(tmp_path / "t.parquet"))
    assert [source.captions(index) for index in range(source.size)] == [*zip("abcd", strict=True)]
    for index in (0, 2):
        assert source.sample(index).picture == bytes(small)


def test_only_pictures_of_chosen_rows_are_held_and_keys_name_the_row_in_the_file(tmp_path):
    spec = parquet(
        tmp_path / "t.parquet",
        image=[bytes([row]) * 1000 for row in range(100)],
        text=[f"row {row}" for row in range(100)],
        odd=[row % 2 for row in range(100)],
    )
    options = SourceOptions(where="odd AND text LIKE 'row 4%'")
    source = open_source(spec, options)
    expected = [41, 43, 45, 47, 49]
    samples = [source.sample(index) for index in range(source.size)]
    assert [sample.key for sample in samples] == [f"t:{row}" for row in expected]
    assert [sample.picture for sample in samples] == [bytes([row]) * 1000 for row in expected]
    assert [sample.captions for sample in samples] == [(f"row {row}",) for row in expected]
    assert sum(cells.nbytes for cells in source._cells) < 6000
