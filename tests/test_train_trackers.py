"""What trackers are told, read back by their own readers; and that none of them stops a run."""

import json
import resource
import sys

import pytest
from small import small_run
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from diptych.errors import ConfigError, RequestError
from diptych.train.log import Live, read_log
from diptych.train.loop import train
from diptych.train.run import resumed
from diptych.train.trackers import Trackers, make_trackers

STAND_IN = """
import json, os
calls = []
def init(**options): note("init", options)
def log(numbers, step): note("log", [numbers, step])
def finish(): note("finish", None)
def note(*call):
    print("chatter")
    with open(os.environ["CALLS"], "a") as file: file.write(json.dumps(call) + "\\n")
    if call[0] == os.environ.get("FAILS"): raise ConnectionError("no network\\nat all")
"""
"""A package with the three calls of W&B and trackio that notes them down, chats, and may fail."""


@pytest.fixture
def quiet(tmp_path):
    with (tmp_path / "said").open("w+") as stream:
        yield Live(stream)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Puts the stand-in packages where Python finds them; gives what was called so far."""
    for name in ("wandb", "trackio"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    yield lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def tracked_run(*trackers, **settings):
    """Six steps that these trackers follow."""
    others = [f"{name}={value}" for name, value in settings.items()]
    return small_run(f"trackers={json.dumps(trackers)}", *others)


def said(live):
    live.stream.seek(0)
    return live.stream.read()


def curves(folder):
    """Name of a curve -> [(step, value)], as TensorBoard itself reads the folder."""
    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }


def expected_curves(folder):
    """The same from log.jsonl."""
    found = {}
    for row in read_log(folder / "log.jsonl"):
        kind = {"step": "train", "validation": "validation"}[row["kind"]]
        for name in row.keys() - {"kind", "step"}:
            found.setdefault(f"{kind}/{name}", []).append((row["step"], row[name]))
    return found


def assert_same_curves(found, expected):
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name


def test_tensorboard_shows_every_number_of_the_log(tmp_path, quiet):
    train(tracked_run("tensorboard"), tmp_path / "run", live=quiet)
    found = curves(tmp_path / "run")
    assert_same_curves(found, expected_curves(tmp_path / "run"))
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["validation/loss"]] == [3, 6]


def test_tensorboard_shows_the_settings(tmp_path, quiet):
    train(tracked_run("tensorboard", seed=7, steps=1), tmp_path / "run", live=quiet)
    reader = EventAccumulator(str(tmp_path / "run/tensorboard"))
    reader.Reload()
    (name,) = reader.Tags()["tensors"]
    (event,) = reader.Tensors(name)
    text = event.tensor_proto.string_val[0].decode()
    assert name.startswith("settings/")
    assert "\n    seed = 7\n" in text
    assert "\n    model.image.width = 32\n" in text


def test_after_a_resume_tensorboard_shows_each_step_once(tmp_path, quiet):
    run, folder = tracked_run("tensorboard", **{"save.every_steps": 2}), tmp_path / "run"
    train(run, folder, live=quiet)
    for name in ("step-00000006", "last", "best"):  # as if killed before the last checkpoint
        (folder / "checkpoints" / name).rename(tmp_path / name)
    train(run, folder, resume=True, live=quiet)
    assert_same_curves(curves(folder), expected_curves(folder))
    before = sorted(folder.glob("tensorboard/*"))
    train(run, folder, resume=True, live=quiet)
    assert "already done" in said(quiet)
    assert sorted(folder.glob("tensorboard/*")) == before


def test_without_trackers_nothing_but_the_record_is_written(tmp_path, quiet):
    train(small_run("steps=1"), tmp_path / "run", live=quiet)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("checkpoints", "log.jsonl", "run.json", "tokenizer.json")
    ]


def test_trackers_may_change_when_a_run_is_resumed():
    resumed(small_run(), tracked_run("tensorboard", "wandb"))


def test_an_unknown_tracker_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ConfigError, match=r"'tensorbord': .*'tensorboard', 'trackio' or 'wandb'"):
        tracked_run("tensorbord")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path, quiet, monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError) as caught:
        train(tracked_run(name), tmp_path / "run", live=quiet)
    assert f"Install it with `pip install {name}`, or leave out --track {name}" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_boards_get_the_settings_every_number_and_the_end(tmp_path, quiet, calls, capsys, name):
    folder = tmp_path / "run"
    train(tracked_run(name), folder, live=quiet)
    (first, options), *logs, (last, _) = calls()
    assert (first, last) == ("init", "finish")
    mark = (folder / "tracker-id").read_text()
    assert (options["project"], options["name"]) == ("diptych", f"run-{mark}")
    assert options["config"] == json.loads((folder / "run.json").read_text())
    assert options.get("id") == (mark if name == "wandb" else None)
    assert options.get("dir") == (str(folder) if name == "wandb" else None)
    found = {}
    for call, (numbers, step) in logs:
        assert call == "log"
        for curve, value in numbers.items():
            found.setdefault(curve, []).append((step, value))
    assert_same_curves(found, expected_curves(folder))
    printed = capsys.readouterr()
    assert printed.out == ""  # standard output is for the answer of the command
    assert "chatter" in printed.err


def test_a_resumed_run_goes_on_under_its_name(tmp_path, quiet, calls):
    for steps in (1, 2):
        train(tracked_run("wandb", steps=steps), tmp_path / "run", resume=True, live=quiet)
    first, second = [options for call, options in calls() if call == "init"]
    assert (first["id"], first["resume"]) == (second["id"], "allow")
    assert first["name"] == second["name"]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path, quiet, calls, monkeypatch, call
):
    monkeypatch.setenv("FAILS", call)
    result = train(tracked_run("trackio", "tensorboard"), tmp_path / "run", live=quiet)
    assert result.finished
    assert said(quiet).count("trackio") == 1
    assert (
        "warning: trackio follows this run no longer (ConnectionError: no network at all). "
        "Training goes on; log.jsonl has every number.\n"
    ) in said(quiet)
    assert calls()[-1][0] == call  # and nothing after it
    assert_same_curves(curves(tmp_path / "run"), expected_curves(tmp_path / "run"))


def test_a_run_that_fails_ends_its_trackers(tmp_path, quiet, calls):
    def evaluator(model, tokenizer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tracked_run("wandb"), tmp_path / "run", live=quiet, evaluators={"stop": evaluator})
    assert calls()[-1][0] == "finish"


def test_a_full_disk_ends_tensorboard_with_one_warning(tmp_path):
    warnings = []
    trackers = Trackers(make_trackers(["tensorboard"], tmp_path), warnings.append)
    trackers.start({"seed": 0}, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        for step in range(1, 100):
            trackers.log({"kind": "step", "step": step, "loss": 1.0})
        trackers.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (warning,) = warnings
    assert warning.startswith("warning: tensorboard follows this run no longer (OSError: ")
    points = curves(tmp_path)["train/loss"]
    assert 10 < len(points) < 99
    assert [step for step, _ in points] == list(range(1, len(points) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_packages_follow_a_run_without_a_network(tmp_path, quiet, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    train(tracked_run(name), tmp_path / "run", live=quiet)
    assert "no longer" not in said(quiet)
    wrote = "run/wandb/offline-run-*/*.wandb" if name == "wandb" else "trackio/diptych.db"
    (file,) = tmp_path.glob(wrote)
    assert b"train/loss" in file.read_bytes()
