"""The averaged weights against the plain recursion in numpy, and a run that keeps them."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import random_model, small_run
from torch import nn

from diptych.checkpoint import load_bundle
from diptych.errors import CheckpointError, ConfigError
from diptych.tensors import load_tensors
from diptych.train.average import WeightAverage
from diptych.train.log import Live, read_log
from diptych.train.loop import train
from diptych.train.state import load_weights


@pytest.fixture
def quiet(tmp_path):
    with (tmp_path / "said").open("w+") as stream:
        yield Live(stream)


@pytest.fixture
def model(tmp_path):
    """A small dual encoder with a batch norm, so that there are buffers of both kinds."""
    model = random_model(tmp_path)._bundle.model
    model.norm = nn.BatchNorm1d(3)
    return model


def wander(model, steps, seed=0):
    """Change every tensor at random, `steps` times; yields after each."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += torch.randn(tensor.shape, generator=generator) * 0.1
                else:
                    tensor += 1
            model.limit_scale()
        yield step


def recursion(start, states, decay):
    """The definition, one number array at a time, in float64."""
    average = {name: value.astype(np.float64) for name, value in start.items()}
    for step, state in enumerate(states):
        share = min(decay, (1 + step) / (10 + step))
        for name, value in state.items():
            average[name] = share * average[name] + (1 - share) * value.astype(np.float64)
    return average


def numbers(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_the_slow_recursion(model, decay):
    average = WeightAverage(model, decay)
    start, states = numbers(model), []
    for step in wander(model, 25):
        average.follow(step)
        states.append(numbers(model))
    expected, found = recursion(start, states, decay), numbers(average.model)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(expected["norm.running_mean"] - states[-1]["norm.running_mean"]).max() > 1e-4


def test_whole_numbers_are_copied(model):
    average = WeightAverage(model, 0.9)
    for step in wander(model, 3):
        average.follow(step)
    assert average.model.norm.num_batches_tracked.item() == 3


def test_frozen_weights_stay_to_the_bit(tmp_path):
    model = random_model(tmp_path)._bundle.model
    before = numbers(model)
    average = WeightAverage(model, 0.7)
    for step in range(40):
        average.follow(step)
    for name, value in numbers(average.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_scale_stays_below_its_limit(model):
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    average = WeightAverage(model, 0.9)
    average.follow(0)
    assert average.model.log_scale.item() == pytest.approx(math.log(100), abs=1e-6)


def test_following_touches_neither_the_trained_model_nor_autograd(model):
    average = WeightAverage(model.train(), 0.9)
    before = numbers(model)
    average.follow(5)
    for name, value in numbers(model).items():
        np.testing.assert_array_equal(value, before[name])
    assert model.training
    assert not average.model.training
    assert not any(weight.requires_grad for weight in average.model.parameters())


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1])
def test_a_decay_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match=rf"setting 'ema' is {value}"):
        small_run(f"ema={value}")


def losses(folder, kind):
    return [row["loss"] for row in read_log(folder / "log.jsonl") if row["kind"] == kind]


def test_a_run_judges_and_keeps_the_average_and_trains_as_without_it(tmp_path, quiet):
    every = ("save.every_steps=1", "save.keep_last=99", "validate_every=3")
    plain = train(small_run(*every), tmp_path / "plain", live=quiet)
    result = train(small_run(*every, "ema=0.6"), tmp_path / "averaged", live=quiet)
    assert losses(tmp_path / "plain", "step") == losses(tmp_path / "averaged", "step")
    assert losses(tmp_path / "plain", "validation") != losses(tmp_path / "averaged", "validation")
    raw = load_file(result.checkpoint / "trainer.safetensors")
    trained = load_file(plain.checkpoint / "model.safetensors")
    for name, value in trained.items():
        assert torch.equal(raw[name], value), name
    states = [
        {name: value.numpy() for name, value in load_file(path / "model.safetensors").items()}
        for path in sorted((tmp_path / "plain/checkpoints").glob("step-*"))
    ]
    # from the first step on: the start itself is not on disk
    first = load_file(tmp_path / "averaged/checkpoints/step-00000001/model.safetensors")
    average = {name: value.numpy().astype(np.float64) for name, value in first.items()}
    for step, state in enumerate(states[1:], start=1):
        share = min(0.6, (1 + step) / (10 + step))
        average = {n: share * average[n] + (1 - share) * state[n] for n in state}
    kept = load_bundle(result.checkpoint).model.state_dict()
    for name, value in kept.items():
        np.testing.assert_allclose(value.numpy(), average[name], rtol=1e-5, atol=1e-7)


def test_a_run_with_averages_resumes_to_the_same_bytes(tmp_path, quiet):
    settings = ("ema=0.9", "save.every_steps=2", "save.keep_last=99")
    train(small_run(*settings), tmp_path / "whole", live=quiet)
    train(small_run(*settings), tmp_path / "stopped", live=quiet)
    for name in ("step-00000006", "last", "best"):
        (tmp_path / "stopped/checkpoints" / name).rename(tmp_path / name)
    train(small_run(*settings), tmp_path / "stopped", resume=True, live=quiet)
    for name in ("model.safetensors", "contract.json", "trainer.safetensors"):
        files = [tmp_path / run / "checkpoints/last" / name for run in ("whole", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_run_does_not_gain_averages_when_it_is_resumed(tmp_path, quiet):
    train(small_run("steps=2"), tmp_path / "run", live=quiet)
    with pytest.raises(ConfigError, match=r"has ema=None, not 0\.9"):
        train(small_run("ema=0.9"), tmp_path / "run", resume=True, live=quiet)


def test_a_run_does_not_lose_its_averages_or_change_their_decay_when_it_is_resumed(tmp_path, quiet):
    train(small_run("steps=1", "ema=0.9"), tmp_path / "run", live=quiet)
    for setting, words in (("ema=null", r"not None"), ("ema=0.5", r"not 0\.5")):
        with pytest.raises(ConfigError, match=rf"has ema=0\.9, {words}\. Give the same settings"):
            train(small_run("steps=2", setting), tmp_path / "run", resume=True, live=quiet)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_is_kept_to_the_bit_and_the_rest_is_averaged(tmp_path, quiet, tower):
    settings = (f"model.{tower}.frozen=true", "ema=0.9", "steps=3", "data.val=null")
    result = train(small_run(*settings), tmp_path / "run", live=quiet)
    kept = load_bundle(result.checkpoint).model.state_dict()
    trained = load_file(result.checkpoint / "trainer.safetensors")
    other = {"image": "text", "text": "image"}[tower]
    for name, weight in kept.items():
        if name.startswith(f"{tower}."):
            assert torch.equal(weight, trained[name]), name
    moved = [not torch.equal(kept[n], trained[n]) for n in kept if n.startswith(f"{other}.")]
    assert sum(moved) > len(moved) / 2


def test_a_run_measured_in_minutes_keeps_its_average_and_goes_on(tmp_path, quiet):
    def stop(model, tokenizer):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    settings = ("ema=0.9", "data.val=null", "optimizer.warmup=0")
    hour = small_run(*settings, "steps=null", "minutes=60")
    first = train(hour, tmp_path / "run", live=quiet, evaluators={"stop": stop})
    assert (first.steps, first.finished) == (3, False)
    kept = load_bundle(first.checkpoint).model.state_dict()
    trained = load_file(first.checkpoint / "trainer.safetensors")
    assert not torch.equal(kept["log_scale"], trained["log_scale"])
    again = train(small_run(*settings, "steps=5"), tmp_path / "run", resume=True, live=quiet)
    assert (again.new_steps, again.finished) == (2, True)


def test_a_checkpoint_that_lost_its_weights_in_training_is_named(tmp_path, quiet):
    plain = train(small_run("steps=1"), tmp_path / "run", live=quiet)
    bundle = load_bundle(plain.checkpoint)
    average = WeightAverage(bundle.model, 0.9)
    with pytest.raises(CheckpointError, match=r"trainer\.safetensors does not .* is missing"):
        load_weights(plain.checkpoint, bundle.model, average.model)
    assert "log_scale" in load_tensors(plain.checkpoint / "model.safetensors")
