"""The loop in this process: losses, looks at held-out pairs, checkpoints, stops and refusals."""

import io
import json
import math
import os
import resource
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import picture_folder, small_run
from torch.nn import functional as F

from diptych.checkpoint import load_bundle
from diptych.data.opening import open_source
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.data.transforms import normalise
from diptych.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    RequestError,
    StorageError,
    TrainingError,
)
from diptych.train import session as session_module
from diptych.train.log import TIMES, Live, read_log
from diptych.train.loop import train
from diptych.train.optimizer import make_optimizer
from diptych.train.step import has_fast_bf16

GOLDEN = [
    *(3.178208, 2.602756, 2.702469, 2.476030, 2.377928, 2.205643, 2.409524, 2.163551, 2.118781),
    *(2.106457, 1.945339, 2.189999, 2.011616, 2.083664, 2.057476, 2.296714, 2.132022, 2.141673),
    *(2.325764, 2.086850),
]
"""Losses of 20 steps in fp32 by torch 2.13 on CPU; kernels of other processors differ by 1e-6."""


@pytest.fixture
def quiet():
    """A live line that goes nowhere but to `said`."""
    return Live(io.StringIO())


def said(live):
    """What the live line was given so far."""
    live.stream.seek(0)
    return live.stream.read()


def steps_of(folder, kind="step"):
    return [row for row in read_log(folder / "log.jsonl") if row["kind"] == kind]


def losses_of(folder):
    return [row["loss"] for row in steps_of(folder)]


def without_times(folder):
    """The log without what the clock decides."""
    rows = read_log(folder / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def checkpoints_of(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def assert_same_end(one, other):
    """Same weights, optimizer, vocabulary and log, bit for bit."""
    assert without_times(one) == without_times(other)
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    last, other_last = one / "checkpoints/last", other / "checkpoints/last"
    assert last.resolve().name == other_last.resolve().name
    weights = [folder / "model.safetensors" for folder in (last, other_last)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    state, other_state = (load_file(f / "trainer.safetensors") for f in (last, other_last))
    assert state.keys() == other_state.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other_state[name]), name


def stop_after(step):
    """An evaluator that asks the run to stop, as Ctrl-C would, at its validation after `step`."""
    calls = []

    def evaluator(model, tokenizer):
        calls.append(step)
        if len(calls) * 3 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return {"stop": evaluator}


def test_twenty_steps_have_the_losses_they_always_had(tmp_path, quiet):
    run = small_run("steps=20", "validate_every=100")
    train(run, tmp_path / "run", live=quiet)
    losses = losses_of(tmp_path / "run")
    assert losses == pytest.approx(GOLDEN, abs=1e-4), losses


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_loss_of_a_few_pairs_falls_far_below_chance(tmp_path, quiet, family):
    source = picture_folder(tmp_path / "pictures", 16)
    settings = ("steps=80", "batch=16", "data.val=null", "optimizer.lr=5e-3", "seed=1")
    run = small_run(f"data.source={source}", *settings, family=family)
    result = train(run, tmp_path / "run", live=quiet)
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < 0.5 * losses[0], losses[::10]
    assert result.finished
    assert (result.steps, result.pairs, result.bad) == (80, 80 * 16, 0)


def objective_by_hand(model, batch, transform):
    """The training loss of a batch, from the definition."""
    image = normalise(batch.image, transform.mean, transform.std)
    with torch.no_grad():
        output = model(image, batch.text)
    logits = output.scale * output.image @ output.text.T
    count = len(logits)
    alike = batch.groups[:, None] == batch.groups[None, :]
    others = alike & ~torch.eye(count, dtype=torch.bool)
    if output.bias is None:
        logits = logits.masked_fill(others, -math.inf)
        right = torch.arange(count)
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    sign = 2 * torch.eye(count) - 1
    each = F.softplus(-sign * (logits + output.bias)).masked_fill(others, 0)
    return each.sum() / count


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_validation_loss_is_the_training_objective(tmp_path, quiet, family):
    run = small_run(family=family)
    result = train(run, tmp_path / "run", live=quiet)
    bundle = load_bundle(result.checkpoint)
    pipeline = Pipeline(
        open_source("scenes:shapes:test"),
        bundle.tokenizer,
        bundle.transform,
        OrderConfig(batch=8, seed=0),
        augment=None,
        trims_text=family == "clip",
    )
    by_hand = [
        objective_by_hand(bundle.model.eval(), pipeline[number], bundle.transform).item()
        for number in range(3)
    ]
    expected = sum(by_hand) / 3
    assert result.validation_loss == pytest.approx(expected, abs=1e-5)
    assert steps_of(tmp_path / "run", "validation")[-1]["loss"] == result.validation_loss


def test_looking_at_held_out_pairs_changes_nothing_in_training(tmp_path, quiet):
    train(small_run("validate_every=1"), tmp_path / "often", live=quiet)
    train(small_run("data.val=null"), tmp_path / "never", live=quiet)
    assert losses_of(tmp_path / "often") == losses_of(tmp_path / "never")


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, quiet):
    settings = ("steps=40", "save.every_steps=1", "data.val=null", "optimizer.warmup=0.5")
    folder = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        train(small_run(*settings, "optimizer.lr=1e38"), folder, live=quiet)
    assert "Start again in another --out with a lower rate" in str(caught.value)
    assert "--set optimizer.lr=1.0e-03)" in str(caught.value)
    bundle = load_bundle(folder / "checkpoints" / "last")
    assert all(weight.isfinite().all() for weight in bundle.model.parameters())


def test_a_run_shorter_than_a_line_of_the_log_says_its_loss_at_the_end(tmp_path, quiet):
    each, few = tmp_path / "each", tmp_path / "few"
    for folder, setting in ((each, "log_every=1"), (few, "log_every=4")):
        train(small_run(setting, "data.val=null"), folder, live=quiet)
    losses = [row["loss"] for row in steps_of(each)]
    rows = steps_of(few)
    assert [row["step"] for row in rows] == [4, 6]
    assert rows[1]["loss"] == pytest.approx(sum(losses[4:]) / 2)
    assert "step 6 (100%)" in quiet.stream.getvalue()


def test_poisoned_weights_are_neither_judged_nor_kept(tmp_path, quiet, monkeypatch):
    run, folder = small_run("log_every=100", "save.every_steps=1"), tmp_path / "run"
    train(small_run("steps=2", "save.every_steps=1"), folder, live=quiet)
    before = (folder / "checkpoints/last/model.safetensors").read_bytes()

    def poisoned(model, config):
        optimizer = make_optimizer(model, config)
        hook = optimizer.register_step_post_hook(
            lambda *_: model.image.positions.data.fill_(math.nan)
        )
        assert hook is not None
        return optimizer

    monkeypatch.setattr(session_module, "make_optimizer", poisoned)
    with pytest.raises(TrainingError, match=r"weights image\.positions became infinite or no num"):
        train(run, folder, resume=True, live=quiet)
    assert checkpoints_of(folder)[-1] == "step-00000002"
    assert (folder / "checkpoints/last/model.safetensors").read_bytes() == before
    assert len(steps_of(folder, "validation")) == 1


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path, quiet):
    train(small_run("steps=2"), tmp_path / "run", live=quiet)
    with pytest.raises(RequestError, match=r"already holds a run\. Add --resume to go on"):
        train(small_run("steps=2"), tmp_path / "run", live=quiet)


def test_a_run_is_not_resumed_with_other_settings(tmp_path, quiet):
    train(small_run("steps=2"), tmp_path / "run", live=quiet)
    with pytest.raises(ConfigError, match=r"has optimizer\.lr=0\.001, not 0\.1"):
        train(small_run("optimizer.lr=0.1"), tmp_path / "run", resume=True, live=quiet)


def test_a_request_refused_before_the_first_step_leaves_the_folder_free(tmp_path, quiet):
    source = picture_folder(tmp_path / "pictures", 6)
    run = small_run(f"data.source={source}", "data.val=null")
    with pytest.raises(RequestError, match="Use --batch 6 or less"):
        train(run, tmp_path / "run", live=quiet)
    result = train(run.override(["batch=6"]), tmp_path / "run", live=quiet)
    assert result.finished


def test_a_folder_that_is_no_run_is_refused(tmp_path, quiet):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match=r"holds tokenizer\.json but no run\.json"):
        train(small_run(), tmp_path, live=quiet)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_the_newest_checkpoints_and_the_best_stay(tmp_path, quiet):
    folder = tmp_path / "run"
    # a rate this high makes the validation loss worse and worse
    settings = ("steps=9", "validate_every=2", "save.every_steps=1", "optimizer.lr=0.1")
    train(small_run(*settings, "save.keep_last=2", "optimizer.warmup=0.4"), folder, live=quiet)
    looks = {row["step"]: row["loss"] for row in steps_of(folder, "validation")}
    best = min(looks, key=lambda step: (looks[step], step))
    assert best < 8, looks
    assert checkpoints_of(folder) == [f"step-{n:08}" for n in (best, 8, 9)]
    assert (folder / "checkpoints/last").readlink().name == "step-00000009"
    assert (folder / "checkpoints/best").readlink().name == f"step-{best:08}"


def test_checkpoints_come_by_steps(tmp_path, quiet):
    settings = ("steps=7", "data.val=null", "save.every_steps=3", "save.keep_last=9")
    train(small_run(*settings), tmp_path / "run", live=quiet)
    assert checkpoints_of(tmp_path / "run") == [f"step-{n:08}" for n in (3, 6, 7)]
    assert not (tmp_path / "run/checkpoints/best").exists()


def test_checkpoints_come_by_the_clock(tmp_path, quiet):
    settings = ("steps=4", "data.val=null", "save.every_minutes=1e-9", "save.keep_last=9")
    train(small_run(*settings), tmp_path / "run", live=quiet)
    assert len(checkpoints_of(tmp_path / "run")) == 4


def test_links_left_behind_by_a_kill_are_mended_when_the_run_is_resumed(tmp_path, quiet):
    folder = tmp_path / "run"
    train(small_run("save.every_steps=3"), folder, live=quiet)
    for name in ("last", "best"):
        (folder / "checkpoints" / name).unlink()
        (folder / "checkpoints" / name).symlink_to("step-00000003")
    train(small_run("save.every_steps=3"), folder, resume=True, live=quiet)
    assert (folder / "checkpoints/last").readlink().name == "step-00000006"
    best = json.loads((folder / "checkpoints/last/trainer.json").read_text())["best_step"]
    assert (folder / "checkpoints/best").readlink().name == f"step-{best:08}"


def test_sigterm_saves_after_the_step_at_hand_and_the_run_goes_on_from_there(tmp_path, quiet):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    before = signal.getsignal(signal.SIGTERM)
    result = train(small_run("steps=9"), folder, live=quiet, evaluators=stop_after(3))
    assert not result.finished
    assert signal.getsignal(signal.SIGTERM) is before
    assert result.steps == 3
    assert "SIGTERM: saving after this step; go on with --resume" in said(quiet)
    end = train(small_run("steps=9"), folder, resume=True, live=quiet)
    assert (end.finished, end.steps) == (True, 9)
    train(small_run("steps=9"), whole, live=quiet)
    assert_same_end(folder, whole)


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path, quiet):
    results = []
    run = small_run("steps=1", "data.val=null")
    thread = threading.Thread(
        target=lambda: results.append(train(run, tmp_path / "run", live=quiet))
    )
    thread.start()
    thread.join()
    assert results[0].finished


def test_resuming_a_finished_run_changes_nothing(tmp_path, quiet):
    folder = tmp_path / "run"
    train(small_run(), folder, live=quiet)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = train(small_run(), folder, resume=True, live=quiet)
    assert (result.finished, result.steps, result.new_steps) == (True, 6, 0)
    assert "already done: 6 steps" in said(quiet)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_is_longer_than_asked_for_is_done_already(tmp_path, quiet):
    folder = tmp_path / "run"
    assert train(small_run(), folder, live=quiet).new_steps == 6
    assert "already done" not in said(quiet)
    result = train(small_run("steps=3"), folder, resume=True, live=quiet)
    assert (result.finished, result.steps, result.new_steps) == (True, 6, 0)
    assert "already done: 6 steps" in said(quiet)


def test_a_run_is_not_resumed_on_data_that_changed(tmp_path, quiet):
    source, folder = picture_folder(tmp_path / "pictures", 20), tmp_path / "run"
    run = small_run(f"data.source={source}", "data.val=null", "steps=2")
    train(run, folder, live=quiet)
    before = open_source(str(source)).fingerprint
    contract = json.loads((folder / "checkpoints/last/contract.json").read_text())
    assert contract["trained_on"] == before
    picture_folder(source, 21)
    after = open_source(str(source)).fingerprint
    longer = run.override(["steps=4"])
    with pytest.raises(RequestError, match=f"fingerprint is {after}, not {before}. Restore the d"):
        train(longer, folder, resume=True, live=quiet)
    (source / "020.png").unlink()
    picture_folder(source, 20)
    assert train(longer, folder, resume=True, live=quiet).steps == 4


def test_what_began_anew_learns_its_vocabulary_anew(tmp_path, quiet):
    source, folder = picture_folder(tmp_path / "pictures", 20), tmp_path / "run"
    run = small_run(f"data.source={source}", "data.val=null", "steps=1")
    train(run, folder, live=quiet)
    shutil.rmtree(folder / "checkpoints")  # as if killed before the first one
    captions = source / "captions.csv"
    captions.write_text(captions.read_text().replace("thing", "otter"))
    train(run, folder, resume=True, live=quiet)
    assert "otter" in (folder / "tokenizer.json").read_text()


def test_the_precision_that_auto_chose_is_kept_with_the_run(tmp_path, quiet, monkeypatch):
    run, folder = small_run("precision=auto", "steps=1", "data.val=null"), tmp_path / "run"
    monkeypatch.setattr(session_module, "has_fast_bf16", lambda device: False)
    train(run, folder, live=quiet)
    assert json.loads((folder / "run.json").read_text())["precision"] == "fp32"
    monkeypatch.setattr(session_module, "has_fast_bf16", lambda device: True)
    with pytest.raises(ConfigError, match="has precision='fp32', not 'bf16'"):
        train(run, folder, resume=True, live=quiet)


def test_the_first_step_learns_and_the_last_one_too(tmp_path, quiet):
    train(small_run("steps=4", "data.val=null", "optimizer.warmup=0.5"), tmp_path, live=quiet)
    rates = [row["lr"] for row in steps_of(tmp_path)]
    peak = small_run().optimizer.lr
    down = [peak * (1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.75)]
    assert rates == pytest.approx([0.25 * peak, 0.75 * peak, *down])


def test_pictures_that_cannot_be_judged_are_said_once_and_counted(tmp_path, quiet):
    val = picture_folder(tmp_path / "pictures", 24, bad=(3, 17))
    train(small_run(f"data.val={val}"), tmp_path / "run", live=quiet)
    assert [row["bad"] for row in steps_of(tmp_path / "run", "validation")] == [2, 2]
    assert said(quiet).count(f"left out of validation {val}#3: ") == 1
    assert said(quiet).count("left out of validation ") == 2


def test_one_pair_to_judge_on_is_refused_before_anything_is_written(tmp_path, quiet):
    val = picture_folder(tmp_path / "pictures", 1)
    with pytest.raises(RequestError, match=r"has 1 samples to judge on, fewer than 2\. Give a la"):
        train(small_run(f"data.val={val}"), tmp_path / "run", live=quiet)
    assert not (tmp_path / "run").exists()


def test_resume_without_a_run_begins_one(tmp_path, quiet):
    folder = tmp_path / "run"
    assert train(small_run("steps=1"), folder, resume=True, live=quiet).steps == 1
    assert f"nothing to resume in {folder}: starting anew" in said(quiet)


def test_epochs_of_a_source_without_end_are_refused(tmp_path, quiet):
    run = small_run("steps=null", "epochs=2", "data.source=scenes:shapes")
    with pytest.raises(RequestError, match="has no end, so 2 epochs of it have no length"):
        train(run, tmp_path / "run", live=quiet)


def test_epochs_are_passes_over_the_source(tmp_path, quiet):
    source = picture_folder(tmp_path / "pictures", 24)
    run = small_run(f"data.source={source}", "data.val=null", "steps=null", "epochs=1.5")
    assert train(run, tmp_path / "run", live=quiet).steps == round(1.5 * 24 / 8)


def test_minutes_end_the_run_about_on_time(tmp_path, quiet):
    run = small_run("steps=null", "minutes=0.03", "data.val=null")
    result = train(run, tmp_path / "run", live=quiet)
    assert result.finished
    assert 1.8 <= result.elapsed_s < 60


def test_too_many_bad_pictures_stop_the_run_and_are_listed(tmp_path, quiet):
    source = picture_folder(tmp_path / "pictures", 40, bad=range(0, 40, 2))
    run = small_run(f"data.source={source}", "data.val=null", "steps=50")
    with pytest.raises(DataError, match=r"pairs seen could not be read \(more than 20%\); the fir"):
        train(run, tmp_path / "run", live=quiet)
    left_out = [line for line in said(quiet).splitlines() if line.startswith("left out ")]
    assert len(left_out) > 10
    assert len(left_out) == len(set(left_out))


def test_a_few_bad_pictures_are_counted_in_the_log_and_said_once_each(tmp_path, quiet):
    source = picture_folder(tmp_path / "pictures", 40, bad=(3, 17))
    run = small_run(f"data.source={source}", "data.val=null", "steps=15")
    result = train(run, tmp_path / "run", live=quiet)
    assert result.bad == 2
    assert steps_of(tmp_path / "run")[-1]["bad"] == 2
    assert said(quiet).count("left out ") == 2
    progress = json.loads((result.checkpoint / "trainer.json").read_text())
    assert sorted(progress["bad"]) == [f"{source}#17", f"{source}#3"]


def test_captions_that_lost_their_end_are_told_with_advice_and_counted(tmp_path, quiet):
    run = small_run("model.text.context=6", "steps=15", "data.val=null")
    result = train(run, tmp_path / "run", live=quiet)
    assert 1 < result.cut <= result.pairs == 120
    share = f"{result.cut / result.pairs:.1%}"
    told = [line for line in said(quiet).splitlines() if "lost their end" in line]
    assert len(told) == 2
    assert told[0].startswith("warning: ")
    assert told[0].endswith("start again in another --out with --set model.text.context=12.")
    assert told[1] == (
        f"{result.cut} of 120 captions ({share}) were longer than the 6 tokens the model reads "
        "and lost their end."
    )
    train(run, tmp_path / "run", resume=True, live=quiet)  # done already: nothing new to tell
    assert said(quiet).count("lost their end") == 2


def test_a_run_of_no_time_has_one_step(tmp_path, quiet):
    run = small_run("steps=null", "minutes=1e-6", "data.val=null")
    result = train(run, tmp_path / "run", live=quiet)
    assert (result.steps, result.finished) == (1, True)
    load_bundle(result.checkpoint)


def test_captions_that_fit_are_not_talked_of(tmp_path, quiet):
    source = picture_folder(tmp_path / "pictures", 12)
    result = train(
        small_run(f"data.source={source}", "data.val=null"), tmp_path / "run", live=quiet
    )
    assert result.cut == 0
    assert "lost their end" not in said(quiet)


@contextmanager
def disk_that_ends_at(size):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("victim", ["checkpoint", "log"])
def test_a_full_disk_stops_the_run_which_can_go_on_when_there_is_room(tmp_path, quiet, victim):
    run = small_run("save.every_steps=2", "save.keep_last=9", "data.val=null", "steps=6")
    train(run, tmp_path / "whole", live=quiet)
    folder = tmp_path / "full"
    train(run, folder, live=quiet)
    for name in ("step-00000006", "last"):  # as if killed in step 5
        (folder / "checkpoints" / name).rename(tmp_path / name)
    log = (folder / "log.jsonl").read_bytes()
    kept = len(b"".join(log.splitlines(keepends=True)[:4]))
    sizes = {"checkpoint": 100_000, "log": kept + 30}  # the second fills up within a line
    before = checkpoints_of(folder)
    with disk_that_ends_at(sizes[victim]), pytest.raises(StorageError) as caught:
        train(run, folder, resume=True, live=quiet)
    assert "cannot be written: " in str(caught.value)
    assert "Free some space or choose another folder" in str(caught.value)
    assert checkpoints_of(folder) == before
    assert not list(folder.rglob(".*"))
    train(run, folder, resume=True, live=quiet)
    assert_same_end(folder, tmp_path / "whole")


def test_a_checkpoint_of_another_version_is_not_resumed(tmp_path, quiet):
    folder = tmp_path / "run"
    train(small_run("steps=1"), folder, live=quiet)
    path = folder / "checkpoints/last/contract.json"
    contract = json.loads(path.read_text())
    path.write_text(json.dumps(contract | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"has format 99, and this Diptych .* Update diptych"):
        train(small_run("steps=2"), folder, resume=True, live=quiet)


def test_a_misshapen_state_of_the_optimizer_is_named_with_both_shapes(tmp_path, quiet):
    folder = tmp_path / "run"
    train(small_run("steps=1"), folder, live=quiet)
    path = folder / "checkpoints/last/trainer.safetensors"
    state = load_file(path)
    state["text_projection.weight@exp_avg"] = torch.zeros(3, 5)
    save_file(state, path)
    with pytest.raises(CheckpointError) as caught:
        train(small_run("steps=2"), folder, resume=True, live=quiet)
    assert "has text_projection.weight@exp_avg of shape [3, 5], and the weight has [32, 32]. " in (
        str(caught.value)
    )
    assert "to resume from the one before" in str(caught.value)


PRECISIONS = ["fp32", "bf16"] if has_fast_bf16(torch.device("cpu")) else ["fp32"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_run_with_dropped_patches_resumes_exactly(tmp_path, quiet, family, precision):
    settings = ("model.image.keep_patches=0.5", f"precision={precision}", "save.every_steps=2")
    run = small_run(*settings, "log_every=3", family=family)
    train(run, tmp_path / "whole", live=quiet)
    stopped = tmp_path / "stopped"
    train(run, stopped, live=quiet)
    checkpoints = stopped / "checkpoints"
    for name in ("step-00000006", "last", "best"):
        path = checkpoints / name
        path.rename(tmp_path / f"away-{name}")
    if not (checkpoints / "step-00000004").exists():
        pytest.fail(f"no checkpoint to resume from: {checkpoints_of(stopped)}")
    result = train(run, stopped, resume=True, live=quiet)
    assert result.steps == 6
    assert "going on after step 4" in said(quiet)
    assert_same_end(stopped, tmp_path / "whole")


def test_a_run_resumed_with_another_number_of_workers_is_the_same(tmp_path, quiet):
    run = small_run("save.every_steps=2")
    train(run, tmp_path / "whole", live=quiet)
    train(run.override(["data.workers=2"]), tmp_path / "stopped", live=quiet)
    for name in ("step-00000006", "last", "best"):
        (tmp_path / "stopped/checkpoints" / name).rename(tmp_path / f"away-{name}")
    train(run.override(["data.workers=1"]), tmp_path / "stopped", resume=True, live=quiet)
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")
