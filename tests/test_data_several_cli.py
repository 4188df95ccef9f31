"""`--data` given several times: one after the other, or mixed for training."""

import json
import sys
import tarfile

import pyarrow.parquet
import pytest
from small import SHRINK, picture_folder

from diptych.cli import run
from diptych.data.opening import open_source
from diptych.data.several import training_order
from diptych.recipes import find_recipe
from diptych.train.log import read_log
from diptych.train.session import _to_learn_from


@pytest.fixture
def folders(tmp_path):
    return [picture_folder(tmp_path / name, count) for name, count in (("a", 9), ("b", 5))]


def training(out, *specs, length=("--steps", 3)):
    arguments = ["train", "clip-tiny", "--out", out, "--batch", 8, *length]
    for spec in specs:
        arguments += ["--data", spec]
    for setting in (*SHRINK, "log_every=1", "precision=fp32"):
        arguments += ["--set", setting]
    return list(map(str, arguments))


def losses(folder):
    return [row["loss"] for row in read_log(folder / "log.jsonl") if "loss" in row]


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert run(list(map(str, arguments))) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")


def test_a_mixture_is_trained_on_and_taken_up_where_it_was(tmp_path, folders, capsys):
    specs = (f"{folders[0]}@3", f"{folders[1]}@1")
    assert run(training(tmp_path / "whole", *specs, length=("--steps", 4))) == 0
    said = capsys.readouterr().err
    assert f"mixture: of every 1,000 pictures 750 from {folders[0]}" in said
    assert run(training(tmp_path / "parts", *specs, length=("--steps", 2))) == 0
    again = training(tmp_path / "parts", *specs, length=("--steps", 4))
    assert run([*again, "--resume"]) == 0
    assert len(losses(tmp_path / "whole")) == 4
    settings = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert settings["data"]["source"] == list(specs)
    other = training(tmp_path / "parts", f"{folders[0]}@2", f"{folders[1]}@1")
    assert "the run in this folder has data.source=" in refusal(capsys, *other, "--resume")


def test_one_after_the_other_is_trained_on_and_embedded(tmp_path, folders, capsys):
    assert run(training(tmp_path / "run", *folders, length=("--epochs", 4))) == 0
    assert len(losses(tmp_path / "run")) == round(4 * 14 / 8)
    twice = ["--data", str(folders[0]), "--data", str(folders[1])]
    model = str(tmp_path / "run")
    assert run(["embed", model, *twice, "--out", str(tmp_path / "vectors")]) == 0
    keys = pyarrow.parquet.read_table(tmp_path / "vectors" / "part-00000.parquet")["key"]
    assert len(keys) == len(set(keys.to_pylist())) == 14
    capsys.readouterr()
    assert run(["evaluate", model, *twice, "--resamples", "100", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["data"]["source"] == f"{folders[0]} + {folders[1]}"
    weighed = ["--data", f"{folders[0]}@3", "--data", f"{folders[1]}@1"]
    for command in (["evaluate", model], ["embed", model, "--out", str(tmp_path / "other")]):
        assert "weights are for training" in refusal(capsys, *command, *weighed)


def test_epochs_of_a_mixture_are_refused(tmp_path, folders, capsys):
    specs = (f"{folders[0]}@3", f"{folders[1]}@1")
    said = refusal(capsys, *training(tmp_path / "run", *specs, length=("--epochs", 2)))
    assert said == (
        f"{specs[0]} + {specs[1]} has no end, so 2 epochs of it have no length. "
        "Use --steps or --minutes."
    )


def test_a_damaged_tar_can_be_trained_on_if_that_is_asked_for(tmp_path, capsys):
    """The remedy that the error names."""
    folder = picture_folder(tmp_path / "a", 12)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for path in sorted(folder.glob("*.png")):
            path.with_suffix(".txt").write_text(f"picture {path.stem}")
            tar.add(path, path.name)
            tar.add(path.with_suffix(".txt"), f"{path.stem}.txt")
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(data[: len(data) * 5 // 6])
    arguments = training(tmp_path / "run", tmp_path / "t.tar")
    assert run(arguments) == 1
    assert "add --skip-damaged" in capsys.readouterr().err
    assert run([*arguments, "--skip-damaged", "--val", str(tmp_path / "t.tar")]) == 0
    assert "what follows is left out" in capsys.readouterr().err
    data, model = ["--data", str(tmp_path / "t.tar")], str(tmp_path / "run")
    assert run(["embed", model, *data, "--out", str(tmp_path / "v"), "--skip-damaged"]) == 0
    assert run(["evaluate", model, *data, "--resamples", "100", "--skip-damaged"]) == 0
    library = ["--library", str(tmp_path / "l")]
    assert run(["index", model, str(tmp_path / "t.tar"), *library, "--skip-damaged"]) == 0
    assert run(["index", model, str(folder), *library, "--skip-damaged"]) == 0


def test_the_vocabulary_of_a_mixture_is_learned_in_its_shares(tmp_path, folders, monkeypatch):
    """Of the first samples that training takes, all of one source have been seen."""
    sources = [open_source(str(folder)) for folder in folders]
    mixture = open_source([f"{folders[0]}@3", f"{folders[1]}@1"])
    settings = find_recipe("clip-tiny")
    assert list(_to_learn_from(sources[0], settings)) == list(range(9))
    order = training_order(mixture, settings.seed)
    expected = [order.at(number) for number in range(14)]
    assert list(_to_learn_from(mixture, settings)) == expected
    monkeypatch.setattr(sys.modules["diptych.train.session"], "LEARN_FROM", 8)
    assert list(_to_learn_from(mixture, settings)) == expected[:8]
    joined = list(_to_learn_from(open_source([str(folder) for folder in folders]), settings))
    assert len(set(joined)) == 8
    assert max(joined) > 8  # the second source, too
