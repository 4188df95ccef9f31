"""The promise: killed at any moment and resumed, a run ends as if nothing had happened.

A real process, killed with SIGKILL together with its workers at ten moments: while it sets up,
between two steps, inside a step, while a checkpoint is being written.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import SHRINK

from diptych.train.log import TIMES, read_log

STEPS = 72
KILLS = 10
SETTINGS = (
    *SHRINK,
    *("data.workers=1", "data.val_pairs=32", "validate_every=7", "log_every=2"),
    *("save.every_steps=3", "model.image.keep_patches=0.5", "save.keep_last=2", "ema=0.9"),
)


def start(out, *options):
    """Begin or take up the run, in a process group of its own."""
    command = [sys.executable, "-m", "diptych", "train", "clip-tiny"]
    command += ["--data", "scenes:shapes:val", "--val", "scenes:shapes:test"]
    command += ["--batch", "16", "--steps", str(STEPS), "--out", str(out), *options]
    for setting in SETTINGS:
        command += ["--set", setting]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def finish(process):
    """Wait for the end, which must be a good one."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def last_step(out):
    """The step of the newest line of the log; 0 if there is none."""
    log = out / "log.jsonl"
    rows = read_log(log) if log.exists() else []
    return rows[-1]["step"] if rows else 0


def wait_for(process, condition):
    """Until the condition holds, or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.002)


def kill(process):
    """End the process and its workers at once, as a power cut would; True if it still ran."""
    running = process.poll() is None
    with suppress(ProcessLookupError):  # it may just have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def moments(out):
    """When to kill: each gives a condition on what is on disk, some after a random wait."""
    choose = random.Random(20240)
    checkpoints = out / "checkpoints"

    def new_step():
        """A few steps after where the log stands when this process is first looked at."""
        target = last_step(out) + choose.randint(1, 4)
        return lambda: last_step(out) >= target

    def checkpoint_half_written():
        """A few steps on, while a checkpoint's temporary folder is there with some files in it;
        where it never is long enough to be seen, some steps later."""
        size, target = choose.randint(0, 4), last_step(out) + choose.randint(1, 5)

        def half_written():
            found = checkpoints.glob(".step-*.part")
            return any(len(list(path.glob("*"))) >= size for path in found)

        return lambda: (last_step(out) >= target and half_written()) or last_step(out) >= target + 6

    def random_time():
        """At any time after the start of the process, or eight steps on."""
        end, target = time.monotonic() + choose.uniform(0.3, 5.0), last_step(out) + 8
        return lambda: time.monotonic() >= end or last_step(out) >= target

    def vocabulary_learned():
        """In set-up, when nothing but the settings and the vocabulary is there."""
        return lambda: (out / "tokenizer.json").exists()

    return [
        *(vocabulary_learned, new_step, checkpoint_half_written, random_time, new_step),
        *(checkpoint_half_written, random_time, new_step, checkpoint_half_written, random_time),
    ]


def kill_ten_times(out):
    """Kill the run at ten moments, taking it up after each; what each kill met."""
    met = []
    process = start(out)
    for number, moment in enumerate(moments(out)):
        if number:
            process = start(out, "--resume")
        wait_for(process, moment())
        running = kill(process)
        met.append((moment.__name__, running, last_step(out)))
    return met


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An uninterrupted run, one that was killed ten times, and what the kills met."""
    folder = tmp_path_factory.mktemp("runs")
    met = kill_ten_times(folder / "killed")
    finish(start(folder / "whole"))
    finish(start(folder / "killed", "--resume"))
    return folder / "whole", folder / "killed", met


def log_without_times(out: Path):
    """Every field of the log that the clock does not decide, as text."""
    rows = read_log(out / "log.jsonl")
    return [
        json.dumps({key: value for key, value in row.items() if key not in TIMES}) for row in rows
    ]


def test_the_kills_landed_in_the_middle(runs):
    _, _, met = runs
    assert len(met) == KILLS
    assert all(running for _, running, _ in met), met
    steps = [step for _, _, step in met]
    assert steps[0] == 0, met  # in set-up
    assert len({step for step in steps if 0 < step < STEPS}) >= 3, met


def test_weights_are_the_same_bytes(runs):
    whole, killed, _ = runs
    name = f"checkpoints/step-{STEPS:08}/model.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_the_optimizer_holds_the_same_numbers(runs):
    whole, killed, _ = runs
    name = f"checkpoints/step-{STEPS:08}/trainer.safetensors"
    expected, found = load_file(whole / name), load_file(killed / name)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


def test_every_field_of_the_log_but_times_is_the_same(runs):
    whole, killed, _ = runs
    assert log_without_times(whole) == log_without_times(killed)
    assert [row["step"] for row in read_log(killed / "log.jsonl") if row["kind"] == "step"] == list(
        range(2, STEPS + 1, 2)
    )


def test_vocabulary_settings_and_links_are_the_same(runs):
    whole, killed, _ = runs
    for name in ("tokenizer.json", "run.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    names = [
        sorted((path.name, path.resolve().name) for path in (out / "checkpoints").iterdir())
        for out in (whole, killed)
    ]
    assert names[0] == names[1]


def test_nothing_half_written_is_left(runs):
    _, killed, _ = runs
    assert not list(killed.rglob(".*"))


def test_sigterm_to_the_whole_group_saves_and_the_run_ends_as_if_never_stopped(runs, tmp_path):
    """`timeout` and schedulers tell the workers too."""
    whole, out = runs[0], tmp_path / "told"
    for number, target in enumerate((4, 24, 44)):
        process = start(out, *(["--resume"] if number else []))
        wait_for(process, lambda target=target: last_step(out) >= target)
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)  # a second one at once, as `timeout` sends it
        _, told = process.communicate(timeout=300)
        assert process.returncode == 1, told  # stopped, and not done
        assert "error" not in told
        assert "SIGTERM: saving after this step; go on with --resume" in told
        saved = (out / "checkpoints" / "last").resolve().name
        assert target <= int(saved.removeprefix("step-")) < STEPS
    finish(start(out, "--resume"))
    name = f"checkpoints/step-{STEPS:08}/model.safetensors"
    assert (whole / name).read_bytes() == (out / name).read_bytes()
    assert log_without_times(whole) == log_without_times(out)
