"""Using a model: vectors that depend on the item alone, scores, whole sources, exact search."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import caption_of, picture_folder, picture_of, random_model

from diptych.data.opening import open_source
from diptych.data.prepared import DECODERS
from diptych.data.vectors import Vectors, VectorsHeader, part_path, read_vectors
from diptych.errors import CheckpointError, DataError, RequestError
from diptych.predict.embed import embed
from diptych.predict.model import _check_list, choose_device, load
from diptych.recipes import find_recipe
from diptych.search.exact import search

FAMILIES = ["clip", "siglip"]
TEXTS = ["", "a", "red", "red red thing", "a large green round thing number 17 " * 4, "Ünïcode 山"]


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path):
    return random_model(tmp_path, family=request.param)


@pytest.fixture
def clip(tmp_path):
    return random_model(tmp_path)


def encoded(picture, kind="PNG"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_a_pictures_vector_is_the_same_alone_and_in_any_batch(model, chunk):
    pictures = [picture_of(number, side=20 + 9 * number) for number in range(7)]
    together = model.encode_image(pictures, chunk=chunk)
    alone = np.concatenate([model.encode_image([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(model.encode_image(pictures[::-1])[::-1], alone, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_a_texts_vector_is_the_same_alone_and_in_any_batch(model, chunk):
    together = model.encode_text(TEXTS, chunk=chunk)
    alone = np.concatenate([model.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "end"])
@pytest.mark.parametrize("causal", ["true", "false"])
def test_texts_of_every_kind_of_tower_do_not_see_each_others_padding(tmp_path, pool, causal):
    model = random_model(tmp_path, f'model.text.pool="{pool}"', f"model.text.causal={causal}")
    together = model.encode_text(TEXTS)
    alone = np.concatenate([model.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_different_items_have_different_vectors(model):
    pictures = model.encode_image([picture_of(number) for number in range(5)])
    texts = model.encode_text([caption_of(number) for number in range(5)])
    for vectors in (pictures, texts):
        apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) + np.eye(5)
        assert apart.min() > 1e-3


def test_vectors_are_float32_and_of_unit_norm(model):
    for vectors in (model.encode_image([picture_of(1), picture_of(2)]), model.encode_text(TEXTS)):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == model.embed
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_empty_lists_give_no_vectors(model):
    assert model.encode_image([]).shape == (0, model.embed)
    assert model.encode_text([]).shape == (0, model.embed)
    assert model.score([], ["a"]).shape == (0, 1)
    assert model.score([picture_of(1)], []).shape == (1, 0)


def test_one_item_where_a_list_belongs_is_refused(clip):
    with pytest.raises(RequestError, match=r"list of texts and was given one str\. Put it"):
        clip.encode_text("a red bicycle")
    with pytest.raises(RequestError, match="takes a list of pictures and was given one str"):
        clip.encode_image("a.jpg")
    with pytest.raises(RequestError, match="takes a list of pictures and was given one ndarray"):
        clip.encode_image(np.zeros((8, 8, 3), np.uint8))
    for one in (b"\x89PNG", Path("a.jpg"), picture_of(1)):  # types that beartype stops before us
        with pytest.raises(RequestError, match=f"was given one {type(one).__name__}. Put it in a"):
            _check_list(one, "pictures", "encode_image")


@pytest.mark.parametrize("chunk", [0, -2])
def test_a_chunk_below_one_is_refused(clip, chunk):
    with pytest.raises(RequestError, match=f"chunk is {chunk}: .* Use 1 or more"):
        clip.encode_image([picture_of(1)], chunk=chunk)
    with pytest.raises(RequestError, match=f"chunk is {chunk}: .* Use 1 or more"):
        clip.encode_text(["red"], chunk=chunk)


@pytest.mark.parametrize("wrong", [3, None, 2.5, b"red"])
def test_what_is_no_text_is_refused(clip, wrong):
    with pytest.raises(RequestError, match=rf"takes strings and was given {wrong!r} \("):
        clip.encode_text(iter(["red", wrong]))  # beartype stops a list before us


def test_arrays_of_many_pictures_and_iterators_are_lists_too(clip):
    pictures = np.stack([np.asarray(picture_of(number)) for number in range(3)])
    expected = clip.encode_image(list(pictures))
    np.testing.assert_array_equal(clip.encode_image(pictures), expected)
    np.testing.assert_array_equal(clip.encode_image(iter(pictures)), expected)
    np.testing.assert_array_equal(clip.encode_text(iter(TEXTS)), clip.encode_text(tuple(TEXTS)))


def test_paths_pictures_bytes_and_arrays_agree(clip, tmp_path):
    picture = picture_of(4)
    path = tmp_path / "a.png"
    picture.save(path)
    kinds = [path, str(path), encoded(picture), picture, np.asarray(picture)]
    vectors = clip.encode_image(kinds)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(len(kinds), axis=0), atol=1e-6)


@pytest.mark.parametrize("broken", [b"this is no picture", encoded(picture_of(1))[:300]])
def test_a_corrupt_picture_is_named(clip, tmp_path, broken):
    path = tmp_path / "holiday.png"
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"holiday\.png"):
        clip.encode_image([picture_of(1), path])


def test_a_picture_file_that_does_not_exist_is_a_wrong_request(clip, tmp_path):
    for path in (tmp_path / "nowhere.png", str(tmp_path / "nowhere.png")):
        with pytest.raises(RequestError, match=r"there is no picture file .*nowhere\.png\. Check"):
            clip.encode_image([picture_of(1), path])


def test_softmax_scores_are_the_softmax_over_texts(tmp_path):
    model = random_model(tmp_path)
    pictures, texts = [picture_of(number) for number in range(3)], TEXTS[:4]
    cosine = model.encode_image(pictures) @ model.encode_text(texts).T
    power = np.exp(cosine / 0.07)  # the scale of the start
    score = model.score(pictures, texts)
    np.testing.assert_allclose(score, power / power.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(score.sum(axis=1), 1, atol=1e-6)


def test_sigmoid_scores_judge_each_pair_on_its_own(tmp_path):
    model = random_model(tmp_path, family="siglip")
    pictures, texts = [picture_of(number) for number in range(3)], TEXTS[:4]
    cosine = model.encode_image(pictures) @ model.encode_text(texts).T
    bias = find_recipe("siglip-tiny").model.start_bias
    by_hand = 1 / (1 + np.exp(-(10 * cosine + bias)))  # scale and bias of the start
    np.testing.assert_allclose(model.score(pictures, texts), by_hand, rtol=1e-4)
    np.testing.assert_allclose(model.score(pictures[:1], texts[:1])[0, 0], by_hand[0, 0], rtol=1e-4)


def test_an_unknown_device_is_refused():
    with pytest.raises(RequestError, match=r"there is no device 'gpu'\. Use auto, cpu, cuda"):
        choose_device("gpu")


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no model in"):
        load(tmp_path)
    with pytest.raises(RequestError, match="nothing is there"):
        load(tmp_path / "nowhere")


def test_embed_writes_the_vectors_of_every_picture(clip, tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 11)))
    result = embed(clip, source, tmp_path / "vectors", part_rows=4, chunk=3)
    assert (result.rows, result.kept, result.bad) == (11, 0, {})
    stored = read_vectors(tmp_path / "vectors")
    assert stored.keys == [f"{number:03}.png" for number in range(11)]
    assert stored.captions == [[caption_of(number)] for number in range(11)]
    assert stored.paths == [str((tmp_path / "pictures" / key).resolve()) for key in stored.keys]
    expected = clip.encode_image([picture_of(number) for number in range(11)])
    np.testing.assert_allclose(stored.vectors, expected, atol=1e-5)
    assert stored.header.model_fingerprint == clip.fingerprint
    assert stored.header.source_fingerprint == source.fingerprint


class Stopped(Exception):
    """Stands for a kill."""


def test_a_stopped_embedding_goes_on_and_redoes_only_what_is_missing(clip, tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 10)))
    folder = tmp_path / "vectors"

    def stop(done, total):
        if done >= 8:
            raise Stopped

    with pytest.raises(Stopped):
        embed(clip, source, folder, part_rows=4, progress=stop)
    (folder / ".part-00002.parquet.123.part").write_bytes(b"half")
    result = embed(clip, source, folder, part_rows=4)
    assert (result.rows, result.kept) == (2, 8)
    assert not list(folder.glob(".*"))
    whole = read_vectors(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    part_path(folder, 1).unlink()
    again = embed(clip, source, folder, part_rows=4)
    assert (again.rows, again.kept, again.kept_without) == (4, 6, 0)
    np.testing.assert_array_equal(read_vectors(folder).vectors, whole.vectors)
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == [part_path(folder, 1)]


def test_vectors_of_another_model_or_source_are_not_mixed(clip, tmp_path):
    one = open_source(str(picture_folder(tmp_path / "one", 4)))
    two = open_source(str(picture_folder(tmp_path / "two", 5)))
    embed(clip, one, tmp_path / "vectors")
    with pytest.raises(RequestError, match=r"holds vectors with source_fingerprint .* another --o"):
        embed(clip, two, tmp_path / "vectors")
    other = random_model(tmp_path, family="siglip")
    with pytest.raises(RequestError, match=r"model_fingerprint random clip, not random siglip"):
        embed(other, one, tmp_path / "vectors")


def test_a_source_without_end_is_not_embedded(clip, tmp_path):
    with pytest.raises(RequestError, match=r"has no end\. Embed a split of it, such as scenes"):
        embed(clip, open_source("scenes:shapes"), tmp_path / "vectors")
    assert not (tmp_path / "vectors").exists()


@pytest.mark.parametrize("bad", [(1, 5), range(4), range(8)])
def test_bad_pictures_are_listed_and_have_no_vector(clip, tmp_path, bad):
    source = open_source(str(picture_folder(tmp_path / "pictures", 9, bad=bad)))
    result = embed(clip, source, tmp_path / "vectors", part_rows=4)
    assert sorted(result.bad) == [f"{source.name}#{number}" for number in bad]
    assert all("picture" in reason for reason in result.bad.values())
    stored = read_vectors(tmp_path / "vectors")
    assert stored.keys == [f"{number:03}.png" for number in range(9) if number not in bad]
    good = [picture_of(number) for number in range(9) if number not in bad]
    np.testing.assert_allclose(stored.vectors, clip.encode_image(good), atol=1e-5)


def test_vectors_that_were_there_are_counted_and_so_are_samples_without(clip, tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 9, bad=(1, 5, 6))))
    embed(clip, source, tmp_path / "vectors", part_rows=4)
    again = embed(clip, source, tmp_path / "vectors", part_rows=4)
    assert (again.rows, again.kept, again.kept_without, again.bad) == (0, 6, 3, {})
    part_path(tmp_path / "vectors", 1).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00001.parquet cannot be read: .*Remove it and run"):
        embed(clip, source, tmp_path / "vectors", part_rows=4)


@pytest.mark.parametrize("name", ["chunk", "part_rows"])
def test_embedding_nothing_at_a_time_is_refused(clip, tmp_path, name):
    source = open_source(str(picture_folder(tmp_path / "pictures", 2)))
    with pytest.raises(RequestError, match=f"{name} is 0. Use 1 or more"):
        embed(clip, source, tmp_path / "vectors", **{name: 0})
    assert not (tmp_path / "vectors").exists()


def test_embedding_decodes_in_several_threads(clip, tmp_path, monkeypatch):
    source = open_source(str(picture_folder(tmp_path / "pictures", DECODERS)))
    together = threading.Barrier(DECODERS, timeout=60)  # broken unless all are inside at once
    prepare = clip.prepare

    def waiting(picture):
        together.wait()
        return prepare(picture)

    monkeypatch.setattr(clip, "prepare", waiting)
    assert embed(clip, source, tmp_path / "vectors").rows == DECODERS


def stored_vectors(vectors):
    count, dimensions = vectors.shape
    header = VectorsHeader("m", "f", "s", "g", dimensions, 100)
    names = [f"picture {number}" for number in range(count)]
    return Vectors(header, names, [None] * count, [[name] for name in names], vectors)


@pytest.mark.parametrize("count", [1, 7, 40, 99])
def test_search_gives_what_sorting_all_scores_gives_with_ties_in_stored_order(count):
    random = np.random.default_rng(0)
    vectors = random.integers(-1, 2, (40, 4)).astype(np.float32)  # many ties
    query = random.integers(-1, 2, 4).astype(np.float32)
    scores = [float(np.dot(vector, query)) for vector in vectors]
    order = sorted(range(40), key=lambda row: (-scores[row], row))
    hits = search(stored_vectors(vectors), query, count)
    assert [hit.row for hit in hits] == order[:count]
    assert [hit.score for hit in hits] == [scores[row] for row in order[:count]]
    assert [hit.key for hit in hits] == [f"picture {row}" for row in order[:count]]
    assert hits[0].captions == [hits[0].key]


@pytest.mark.parametrize("count", [0, -3])
def test_a_search_for_less_than_one_picture_is_refused(count):
    with pytest.raises(RequestError, match=f"{count} pictures cannot be given. Ask for 1 or more"):
        search(stored_vectors(np.eye(3, dtype=np.float32)), np.ones(3, np.float32), count)


def test_every_embedded_picture_finds_itself_first(clip, tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 12)))
    embed(clip, source, tmp_path / "vectors")
    stored = read_vectors(tmp_path / "vectors")
    for number in range(12):
        query = clip.encode_image([picture_of(number)])[0]
        best = search(stored, query, 1)[0]
        assert best.row == number
        assert best.score == pytest.approx(1, abs=1e-5)


def test_pictures_of_any_mode_are_encoded(clip):
    picture = picture_of(2)
    modes = [picture.convert(mode) for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16")]
    vectors = clip.encode_image([*modes, Image.new("RGB", (1, 1))])
    assert np.isfinite(vectors).all()


def test_the_header_of_vectors_is_plain_json(clip, tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 3)))
    embed(clip, source, tmp_path / "vectors")
    header = json.loads((tmp_path / "vectors/embedding.json").read_text())
    assert header["dimensions"] == clip.embed
    assert header["source"] == source.name
