"""`--data` given several times: one after the other, or mixed for training."""

import json
import tarfile

import pyarrow.parquet
import pytest
from small import SHRINK, picture_folder

from diptych.cli import run
from diptych.train.log import read_log


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
    assert "data.options.skip_damaged=true" in capsys.readouterr().err
    assert run([*arguments, "--set", "data.options.skip_damaged=true"]) == 0
    assert "what follows is left out" in capsys.readouterr().err
