"""`diptych evaluate` with each task: its options, its result file, the other format."""

import json

import pytest
from small import picture_of, random_model

from diptych.cli import run
from diptych.data.calibration import read_calibration


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty pictures with a class and a part, and a model for the command to load."""
    (tmp_path / "model").mkdir()
    model = random_model(tmp_path / "model", family="siglip")
    monkeypatch.setattr("diptych.predict.compare.load_any", lambda path, device, offline: model)
    rows = ["image,caption,kind,part"]
    for number in range(20):
        picture_of(number).save(tmp_path / f"{number}.png")
        part = "test" if number >= 12 else "train"
        rows.append(f"{number}.png,thing {number},{'dark' if number % 2 else 'light'},{part}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def evaluated(capsys, folder, *options):
    """The JSON answer of the command."""
    asked = ("evaluate", folder / "model", "--data", folder, "--resamples", 100, "--json", *options)
    assert run([str(word) for word in asked]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_zero_shot_takes_the_class_column_and_templates(capsys, folder):
    (folder / "texts.txt").write_text("a {c} one\n{}\n")
    classes = ("--task", "zeroshot", "--text-column", "kind")
    plain = evaluated(capsys, folder, *classes)
    asked = evaluated(capsys, folder, *classes, "--templates", folder / "texts.txt")
    assert [one["class"] for one in plain["metrics"]["per_class"]] == ["dark", "light"]
    assert asked["metrics"]["templates"] == asked["settings"]["templates"] == ["a {c} one", "{}"]
    files = sorted((folder / "model/results").glob("zeroshot-*.json"))
    assert len(files) == 2
    assert json.loads(files[0].read_text()) in (plain, asked)


def test_a_probe_is_judged_on_the_rows_of_the_test_source(capsys, folder):
    parts = ("--where", "part = 'train'", "--test", folder, "--test-where", "part = 'test'")
    answer = evaluated(capsys, folder, "--task", "probe", "--text-column", "kind", *parts)
    assert (answer["metrics"]["trained_on"], answer["metrics"]["pictures"]) == (12, 8)
    assert answer["settings"]["test"]["where"] == "part = 'test'"
    assert answer["settings"]["test"]["fingerprint"] != answer["data"]["fingerprint"]
    fewer = evaluated(capsys, folder, "--task", "probe", "--text-column", "kind", "--limit", 10)
    assert fewer["metrics"]["trained_on"] + fewer["metrics"]["pictures"] == 10


def test_the_result_file_of_a_calibration_can_be_read_as_one(capsys, folder):
    out = folder / "calibration.json"
    options = ("--task", "calibration", "--false-per-true", 3, "--precision", 0.5, "--out", out)
    answer = evaluated(capsys, folder, *options)
    found = read_calibration(out)
    assert found.model_dump() == answer["metrics"]["calibration"]
    assert found.false_per_true == 3
    assert found.model_fingerprint == answer["model"]["fingerprint"]
    assert found.data_fingerprint == answer["data"]["fingerprint"]
    assert answer["metrics"]["as_trained"]["brier_score"]["value"] > 0


def test_the_format_of_clip_benchmark_is_written_and_printed(capsys, folder):
    out = folder / "theirs.json"
    classes = ("--task", "zeroshot", "--text-column", "kind")
    answer = evaluated(capsys, folder, *classes, "--format", "clip_benchmark", "--out", out)
    assert answer == json.loads(out.read_text())
    assert (answer["task"], answer["language"]) == ("zeroshot_classification", "en")
    assert set(answer["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "zero-shot"), "Did you mean 'zeroshot'?"),
        (("--task", "probe", "--precision", "0.5"), "precision belongs to the task calibration"),
        (("--test-where", "1"), "--test-where is given and --test is not. Give --test SOURCE too"),
        (("--format", "clip-benchmark"), "Did you mean 'clip_benchmark'?"),
        (("--task", "calibration", "--format", "clip_benchmark"), "Use --format diptych, or one"),
        (("--task", "zeroshot", "--templates", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_a_wrong_request_is_refused_before_the_model_is_loaded(capsys, options, words):
    assert run(["evaluate", "no-model", "--data", "no-data", *options]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
