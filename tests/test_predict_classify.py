"""Telling pictures into labels, and whether a text is true: by the definition, and refusals."""

import json

import numpy as np
import pytest
from small import picture_of, random_model

from diptych.cli import run
from diptych.data.calibration import Calibration
from diptych.data.prompts import TEMPLATES
from diptych.errors import RequestError
from diptych.predict.classify import classify_files, picture_files

LABELS = ["red thing", "blue", "a large green one"]


@pytest.fixture(params=["clip", "siglip"])
def model(request, tmp_path):
    return random_model(tmp_path, family=request.param)


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, one in a folder below, and a file that is none."""
    (tmp_path / "pictures/below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")):
        picture_of(number).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures/broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.mark.parametrize("templates", [None, ["{}", "one {} here"]])
def test_labels_come_best_first_with_the_probability_of_the_model(model, templates):
    shown = [picture_of(number) for number in range(3)]
    class_rows = []
    for label in LABELS:
        filled = [template.replace("{}", label) for template in templates or TEMPLATES]
        mean = model.encode_text(filled).mean(axis=0)
        class_rows.append(mean / np.linalg.norm(mean))
    logits = model.scale * (model.encode_image(shown) @ np.array(class_rows).T)
    if model.objective == "sigmoid":
        expected = 1 / (1 + np.exp(-(logits + model.bias)))
    else:
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.classify(shown, LABELS, templates)
    for row, labels in zip(expected, found, strict=True):
        assert [share for _, share in labels] == sorted((s for _, s in labels), reverse=True)
        for label, share in labels:
            assert share == pytest.approx(row[LABELS.index(label)], rel=1e-4)


def test_one_label_is_enough_and_none_or_two_alike_are_refused(tmp_path):
    model = random_model(tmp_path)
    assert model.classify([picture_of(1)], ["red"]) == [[("red", 1.0)]]
    assert model.classify([], ["red"]) == []
    for labels, words in (([], "no list of labels"), (["red", " red"], "'red' is given twice")):
        with pytest.raises(RequestError, match=words):
            model.classify([picture_of(1)], labels)
    with pytest.raises(RequestError, match="has no place for the label"):
        model.classify([picture_of(1)], ["red"], ["a photo"])
    with pytest.raises(RequestError, match=r"nowhere\.png"):
        model.classify([tmp_path / "nowhere.png"], ["red"])


def test_files_are_classified_as_pictures_are_and_bad_ones_listed(model, pictures):
    files = picture_files([pictures / "b.png", pictures])
    assert [file.name for file in files] == ["b.png", "a.png", "c.png", "broken.png"]
    for chunk in (1, 64):
        result = classify_files(model, files, LABELS, chunk=chunk)
        assert list(result.bad) == [str(pictures / "broken.png")]
        good = [file for file in files if file.name != "broken.png"]
        assert list(result.labels) == [str(file) for file in good]
        expected = model.classify(good, LABELS)
        for ours, theirs in zip(result.labels.values(), expected, strict=True):
            assert [name for name, _ in ours] == [name for name, _ in theirs]
            np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], rtol=1e-4)


def test_paths_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"there is nothing at .*nowhere"):
        picture_files([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match="holds no picture"):
        picture_files([tmp_path])


def calibration(fingerprint, **values):
    given = {"scale": 5.0, "bias": -1.0, "false_per_true": 9, "data_fingerprint": "d"} | values
    return Calibration(model_fingerprint=fingerprint, **given)


def test_whether_a_text_is_true_is_the_calibrated_probability_of_each_pair(model, tmp_path):
    shown, texts = [picture_of(0), picture_of(1)], ["red", "blue thing", "large"]
    cosine = model.encode_image(shown) @ model.encode_text(texts).T
    of_this = calibration(model.fingerprint)
    found = model.is_true(shown, texts, of_this)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(5 * cosine - 1))), rtol=1e-5)
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"metrics": {"calibration": of_this.model_dump()}}))
    np.testing.assert_array_equal(model.is_true(shown, texts, path), found)
    np.testing.assert_array_equal(model.is_true(shown, texts, str(path)), found)


def test_the_calibration_of_another_model_is_refused(tmp_path):
    model = random_model(tmp_path)
    with pytest.raises(RequestError, match=r"belongs to the model other, and this is random clip"):
        model.is_true([picture_of(0)], ["red"], calibration("other"))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The commands load this model, whatever the folder."""
    model = random_model(tmp_path)
    monkeypatch.setattr("diptych.predict.model.load", lambda path, device, offline: model)
    return tmp_path


def test_the_command_says_what_it_sees_and_tells_what_it_left_out(capsys, saved, pictures):
    asked = ["classify", str(saved), str(pictures), "--labels", "red, blue,green", "--top", "2"]
    assert run(asked) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == [
        str(pictures / name) for name in ("a.png", "b.png", "below/c.png")
    ]
    assert all(len(line.split()) == 5 for line in printed.out.splitlines())
    assert f"left out {pictures / 'broken.png'}:" in printed.err
    (saved / "labels.txt").write_text("red\nblue\ngreen\n")
    file = ["--labels-file", str(saved / "labels.txt"), "--json"]
    assert run(["classify", str(saved), str(pictures), *file]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["bad"]) == [str(pictures / "broken.png")]
    shares = [one["probability"] for one in answer["pictures"][str(pictures / "a.png")]]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "neither is given. Write: --labels cat,dog."),
        (("--labels", "a", "--labels-file", "x"), 2, "both are given"),
        (("--labels", ""), 2, "--labels is '' and holds no label. Write: --labels cat,dog."),
        (("--labels", " , "), 2, "--labels is ' , ' and holds no label. Write: --labels cat,dog."),
        (("--labels", "a,b,a"), 2, "the label 'a' is given twice"),
        (("--labels-file", "nowhere.txt"), 2, "nowhere.txt cannot be read: No such file"),
        (("--labels", "a,b", "--templates", "nowhere.txt"), 2, "nowhere.txt cannot be read"),
        (("--labels", "a,b"), 1, "none of the 1 files could be read"),
    ],
)
def test_wrong_requests_end_with_a_line_that_says_what_to_do(
    capsys, saved, pictures, options, code, words
):
    assert run(["classify", str(saved), str(pictures / "broken.png"), *options]) == code
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_blank_pieces_between_commas_are_no_labels(capsys, saved, pictures):
    asked = ["classify", str(saved), str(pictures / "a.png"), "--labels", "red,,blue,", "--json"]
    assert run(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    (found,) = answer["pictures"].values()
    assert sorted(one["label"] for one in found) == ["blue", "red"]


def test_one_label_is_told_to_mean_nothing_for_a_model_that_compares(capsys, saved, pictures):
    assert run(["classify", str(saved), str(pictures / "a.png"), "--labels", "red"]) == 0
    assert "this model compares labels" in capsys.readouterr().err
