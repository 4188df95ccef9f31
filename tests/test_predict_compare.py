"""Comparing with any kind of model: what the score, the text and the map are, and refusals."""

import inspect
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from small import picture_of, random_model
from small_compare import PAIRS, STATE, pair_model, reader_of, saved

from diptych.cli import run
from diptych.data.prompts import class_vectors
from diptych.data.transforms import normalise
from diptych.errors import DataError, RequestError
from diptych.predict.change_picture import LINE, MARGIN, SIDE
from diptych.predict.compare import NOTHING, compare, compare_row, load_any
from diptych.predict.model import Model

LABELS = ["red thing", "blue", "a large green one"]
ROW = [picture_of(number) for number in range(4)]


def softmax(logits):
    power = np.exp(logits - logits.max())
    return power / power.sum()


def same(one, other):
    assert (one.text, one.score_is) == (other.text, other.score_is)
    assert one.score == pytest.approx(other.score, abs=1e-5)
    np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_equal_pictures_are_at_distance_zero_and_nothing_is_more_or_less(tmp_path, family):
    model = random_model(tmp_path, family=family)
    change = compare(model, ROW[0], ROW[0], labels=LABELS)
    assert change.score == pytest.approx(0, abs=1e-5)
    assert change.heatmap.max() < 1e-5
    assert (change.text, change.score_is) == ("", "distance")
    assert {label for label, _ in change.labels} == set(LABELS)
    assert max(abs(value) for _, value in change.labels) < 1e-5


def test_labels_say_what_became_more_and_less_probable(tmp_path):
    model = random_model(tmp_path)
    change = compare(model, ROW[0], ROW[1], labels=LABELS)
    text = class_vectors(model.encode_text, LABELS)
    before, after = (softmax(model.scale * (v @ text.T)) for v in model.encode_image(ROW[:2]))
    expected = dict(zip(LABELS, after - before, strict=True))
    assert [label for label, _ in change.labels] == sorted(LABELS, key=lambda x: -expected[x])
    for label, value in change.labels:
        assert value == pytest.approx(expected[label], abs=1e-4)
    most, least = change.labels[0], change.labels[-1]
    assert change.text == f"more: {most[0]}; less: {least[0]}"
    assert min(most[1], -least[1]) > 0.01  # else the pictures of this test are too alike
    assert change.score == pytest.approx(change.heatmap.max())
    assert compare(model, ROW[0], ROW[1]).text == ""


def test_only_the_last_picture_before_counts_for_a_model_of_single_pictures(tmp_path):
    model = random_model(tmp_path)
    same(compare(model, [ROW[3], ROW[0]], ROW[1]), compare(model, ROW[0], ROW[1]))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_model_of_pairs_picks_the_label_that_fits_where_a_change_is_probable(
    tmp_path, pair, family
):
    model = pair_model(tmp_path, pair, family)
    change = compare(model, ROW[0], ROW[1], labels=LABELS)
    vector = model.encode_sequences([ROW[:2]])[0]
    nothing = model.encode_text(NOTHING).mean(axis=0)
    text = np.stack([*model.encode_text(LABELS), nothing / np.linalg.norm(nothing)])
    logits = model.scale * (text @ vector).astype(np.float64)
    shares = 1 / (1 + np.exp(-logits - model.bias)) if model.bias is not None else softmax(logits)
    order = np.argsort(-shares[:-1])
    assert [label for label, _ in change.labels] == [LABELS[place] for place in order]
    for (_, value), place in zip(change.labels, order, strict=True):
        assert value == pytest.approx(shares[place], rel=1e-3)
    expected = 1 - softmax(logits)[-1]
    if model.pair == "located":  # then the labels do not decide whether anything changed
        expected = model.changed_prepared(model.prepare_all(ROW[:2])[None])[0]
    assert change.score == pytest.approx(expected, rel=1e-3)
    assert change.score_is == "probability"
    told = change.labels[0][0] if change.score >= 0.5 else "nothing has changed"
    assert change.text == told


def test_without_labels_the_score_is_how_unlike_no_change_the_pair_is(tmp_path):
    clip, siglip = (pair_model(tmp_path, "difference", family) for family in ("clip", "siglip"))
    for model in (clip, siglip):
        change = compare(model, ROW[0], ROW[1])
        nothing = model.encode_text(NOTHING).mean(axis=0)
        cosine = model.encode_sequences([ROW[:2]])[0] @ nothing / np.linalg.norm(nothing)
        expected = (1 - cosine) / 2
        if model is siglip:
            expected = 1 - 1 / (1 + np.exp(-model.scale * cosine - model.bias))
        assert change.score == pytest.approx(expected, abs=1e-5)
        assert change.score_is == ("probability" if model is siglip else "distance")
        assert (change.text, change.labels) == ("", [])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_located_change_has_the_probability_and_the_map_that_the_head_gives(tmp_path, labels):
    model = pair_model(tmp_path)
    change = compare(model, ROW[0], ROW[1], labels=labels)
    pixels = model.prepare_all(ROW[:2])
    with torch.no_grad():
        image = normalise(torch.from_numpy(pixels), model.transform.mean, model.transform.std)
        found = model._net.locate(image[None])
    assert change.score == pytest.approx(found.changed.sigmoid().item(), abs=1e-6)
    assert change.score_is == "probability"
    side = model._net.image.config.side
    expected = found.place.sigmoid().view(side, side).numpy()
    np.testing.assert_allclose(change.heatmap, expected, atol=1e-6)
    assert (change.text == "") == (labels is None)


@pytest.mark.parametrize("pair", PAIRS)
def test_only_a_state_reads_more_pictures_than_the_last_two(tmp_path, pair):
    deep = pair_model(tmp_path, pair, settings=("model.image.layers=2",))
    change, other = (compare(deep, [first, ROW[1]], ROW[2]) for first in (ROW[0], ROW[3]))
    moved = abs(change.score - other.score)
    assert moved > 1e-6 if STATE in PAIRS[pair] else moved < 1e-6


def test_a_model_that_writes_says_what_it_says_by_itself(tmp_path):
    reader = reader_of(tmp_path)
    for beams in (1, 2):
        expected = reader.read([ROW[:2]], beams=beams)[0]
        same(compare(reader, ROW[0], ROW[1], beams=beams), expected)
    with pytest.raises(RequestError, match=r"writes its own texts, .* Leave labels out"):
        compare(reader, ROW[0], ROW[1], labels=LABELS)


@pytest.mark.parametrize("kind", ["plain", "pair", "reader"])
def test_a_row_is_each_picture_with_all_before_it(tmp_path, kind):
    makers = {"plain": random_model, "pair": pair_model, "reader": reader_of}
    model = makers[kind](tmp_path)
    labels = None if kind == "reader" else LABELS
    found = compare_row(model, ROW, labels=labels)
    assert len(found) == 3
    for place, change in enumerate(found, start=1):
        same(change, compare(model, ROW[:place], ROW[place], labels=labels))
    with pytest.raises(RequestError, match="1 picture is given, and a change takes two"):
        compare_row(model, ROW[:1])


def test_wrong_requests_are_refused(tmp_path):
    model = random_model(tmp_path)
    with pytest.raises(RequestError, match=r"there is no picture file .*nowhere\.png"):
        compare(model, ROW[0], tmp_path / "nowhere.png")
    with pytest.raises(RequestError, match=r"there is no picture before\. Give one"):
        compare(model, [], ROW[0])
    unchecked = inspect.unwrap(compare)  # without the types that only tests enforce
    for pictures, missing in (((None, ROW[0]), "before"), ((ROW[0], None), "after")):
        with pytest.raises(RequestError, match=rf"there is no picture {missing}\. Give one"):
            unchecked(model, *pictures)
    with pytest.raises(RequestError, match=r"'red' is the only one\. Give two or more"):
        compare(model, *ROW[:2], labels=["red"])
    with pytest.raises(
        RequestError, match=r"beams is 3, .* does not write texts, .* Leave beams out\.$"
    ):
        compare(model, *ROW[:2], beams=3)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        compare(model, tmp_path / "bad.png", ROW[0])


@pytest.mark.parametrize("maker", [random_model, pair_model, reader_of])
def test_a_path_is_the_model_that_lies_there(tmp_path, maker):
    model = maker(tmp_path)
    folder = saved(model, tmp_path / "model")
    assert type(load_any(folder, device="cpu")) is type(model)
    same(compare(folder, *ROW[:2]), compare(model, *ROW[:2]))


def test_sequences_of_any_length_have_the_vectors_that_they_have_alone(tmp_path):
    sequences = [ROW[:2], ROW[:3], ROW[1:3], ROW]
    for model in (random_model(tmp_path), *(pair_model(tmp_path, pair) for pair in PAIRS)):
        together = model.encode_sequences(sequences, chunk=2)
        alone = np.concatenate([model.encode_sequences([sequence]) for sequence in sequences])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert model.encode_sequences([]).shape == (0, model.embed)


def test_a_sequence_of_a_model_of_single_pictures_is_the_difference_of_two_vectors(tmp_path):
    model = random_model(tmp_path)
    before, after = model.encode_image(ROW[1:3])
    expected = (after - before) / np.linalg.norm(after - before)
    np.testing.assert_allclose(model.encode_sequences([ROW[:3]])[0], expected, atol=1e-5)
    assert np.abs(model.encode_sequences([[ROW[0], ROW[0]]])).max() == 0


def test_what_is_no_sequence_is_refused(tmp_path):
    model = pair_model(tmp_path)
    assert model.pair == "located"
    with pytest.raises(RequestError, match="sequence 1 has 1 picture, and a change takes two"):
        model.encode_sequences([ROW[:2], ROW[:1]])
    with pytest.raises(RequestError, match=r"reads pictures and those before .* encode_sequences"):
        model.encode_image(ROW[:1])
    assert isinstance(model, Model)


@pytest.fixture
def files(tmp_path):
    """Three pictures of different sizes, and a model of single pictures in a folder."""
    for number in range(3):
        picture_of(number, side=40 + 30 * number).save(tmp_path / f"{number}.png")
    saved(random_model(tmp_path), tmp_path / "model")
    return tmp_path


def asked(files, *options, count=3):
    pictures = [str(files / f"{number}.png") for number in range(count)]
    return ["compare", str(files / "model"), *pictures, "--device", "cpu", *map(str, options)]


def test_the_command_says_a_line_for_each_picture_but_the_first_and_draws_them(capsys, files):
    out = files / "new/change.png"
    assert run(asked(files, "--labels", "red thing,blue,green", "--out", out)) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split("   ")[0] for line in lines] == [
        f"{files / '0.png'} -> {files / '1.png'}",
        f"{files / '1.png'} -> {files / '2.png'}",
    ]
    assert all("   distance " in line for line in lines)
    assert f"written to {out}" in printed.err
    with Image.open(out) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")


def test_the_command_answers_with_all_that_compare_gives(capsys, files):
    (files / "labels.txt").write_text("red thing\nblue\n")
    assert run(asked(files, "--json", "--labels-file", files / "labels.txt", count=2)) == 0
    answer = json.loads(capsys.readouterr().out)
    expected = compare(
        files / "model", files / "0.png", files / "1.png", labels=["red thing", "blue"]
    )
    (change,) = answer["changes"]
    assert change["before"] == str(files / "0.png")
    assert (change["text"], change["score_is"]) == (expected.text, "distance")
    assert change["score"] == pytest.approx(expected.score, abs=1e-5)
    np.testing.assert_allclose(change["heatmap"], expected.heatmap, atol=1e-4)
    assert [one["label"] for one in change["labels"]] == [name for name, _ in expected.labels]
    assert len(answer["model"]["fingerprint"]) == 16


def test_the_command_says_what_the_model_does_not_see_of_a_picture(capsys, files):
    picture_of(1, side=60).resize((120, 60)).save(files / "1.png")
    assert run(asked(files, "--out", files / "noted.png", count=2)) == 0
    notes = capsys.readouterr().err
    assert "1.png: only the middle 60 of 120 px are compared" in notes
    assert "0.png has 48 x 40 px and 1.png 120 x 60: the shapes differ" in notes
    with Image.open(files / "noted.png") as noted:
        assert noted.height > 3 * LINE + SIDE + 2 * MARGIN  # the notes stand below the row


@pytest.mark.parametrize("score", [0.4999, 0.5])
def test_the_text_of_a_located_change_follows_the_probability_of_the_head(
    tmp_path, monkeypatch, score
):
    model = pair_model(tmp_path)
    monkeypatch.setattr(model, "changed_prepared", lambda pixels: np.array([score], np.float32))
    change = compare(model, *ROW[:2], labels=LABELS)
    assert change.score == pytest.approx(score)
    assert change.text == (change.labels[0][0] if score == 0.5 else "nothing has changed")


@pytest.mark.parametrize(
    ("options", "count", "words"),
    [
        ((), 1, "and a change takes two. Give BEFORE and AFTER."),
        (("nowhere.png",), 2, "there is no picture file nowhere.png. Check the path."),
        (("--labels", "a,b", "--labels-file", "x"), 2, "--labels-file, and both are given."),
        (("--labels", "a,b,a"), 2, "the label 'a' is given twice"),
        (("--out", "change.jpg"), 2, "and a PNG is written. Use change.png."),
        (("--beams", "2"), 2, "does not write texts"),
        (("--labels", " , "), 2, "--labels ' , ' has no label. Give some: --labels \"cat,dog\"."),
        (("--labels-file", os.devnull), 2, f"{os.devnull} has no label. Write one a line."),
    ],
)
def test_a_wrong_request_ends_with_a_line_that_says_what_to_do(
    capsys, files, options, count, words
):
    assert run(asked(files, *options, count=count)) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_that_cannot_be_read_is_named(capsys, files):
    (files / "1.png").write_bytes(b"no picture")
    assert run(asked(files)) == 1
    assert str(files / "1.png") in capsys.readouterr().err.splitlines()[-1]
