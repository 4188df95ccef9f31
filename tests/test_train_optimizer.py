"""Which weights decay, how the rate moves, and what a step does to a weight."""

import math

import pytest
import torch
from small import small_run
from torch import nn

from diptych.models.dual_encoder import DualEncoder
from diptych.train.optimizer import decays, learning_rate, make_optimizer
from diptych.train.run import OptimizerConfig

NEVER = ("norm", "bias", "positions", "class_token", "log_scale", "probe")


def schedule_oracle(progress, lr, warmup):
    """The definition, straight from the words: up in a line, down in half a cosine."""
    if progress < warmup:
        return lr * progress / warmup
    angle = math.pi * (progress - warmup) / (1 - warmup)
    return lr * (1 + math.cos(angle)) / 2


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_matrices_and_token_tables_decay_and_nothing_else_does(family):
    model = DualEncoder(small_run(family=family).model)
    for name, weight in model.named_parameters():
        gain = any(word in name for word in NEVER)
        assert decays(name, weight) is not gain, name


def test_the_two_groups_hold_every_weight_once_and_no_frozen_one():
    model = DualEncoder(small_run("model.text.frozen=true").model)
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3))
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    held = [id(weight) for group in groups for weight in group["params"]]
    trained = [id(weight) for weight in model.parameters() if weight.requires_grad]
    assert sorted(held) == sorted(trained)
    assert not set(held) & {id(weight) for weight in model.text.parameters()}


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_the_rate_follows_the_formula(warmup):
    config = OptimizerConfig(lr=3e-4, warmup=warmup)
    for step in range(1000):
        expected = schedule_oracle(step / 1000, 3e-4, warmup)
        assert learning_rate(step / 1000, config) == pytest.approx(expected, abs=1e-15)


def test_the_rate_starts_at_zero_peaks_after_warm_up_and_ends_at_zero():
    config = OptimizerConfig(lr=2.0, warmup=0.1)
    assert learning_rate(0.0, config) == 0
    assert learning_rate(0.05, config) == pytest.approx(1.0)
    assert learning_rate(0.1, config) == pytest.approx(2.0)
    assert learning_rate(0.55, config) == pytest.approx(1.0)
    assert learning_rate(1.0, config) == pytest.approx(0.0, abs=1e-15)


def test_a_run_of_warm_up_only_rises_to_the_end():
    config = OptimizerConfig(lr=2.0, warmup=1.0)
    assert learning_rate(0.5, config) == 1.0
    assert learning_rate(1.0, config) == 2.0


class Toy(nn.Module):
    """One matrix that decays and one bias that does not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
        self.bias = nn.Parameter(torch.tensor([0.3, -0.7]))


def adamw_by_hand(value, gradients, config, decay):
    """Loshchilov and Hutter, algorithm 2, for one number."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = config.betas[0] * mean + (1 - config.betas[0]) * gradient
        square = config.betas[1] * square + (1 - config.betas[1]) * gradient**2
        unbiased = mean / (1 - config.betas[0] ** step)
        spread = math.sqrt(square / (1 - config.betas[1] ** step)) + config.epsilon
        value = value - config.lr * decay * value - config.lr * unbiased / spread
    return value


def test_five_steps_equal_adamw_by_hand():
    config = OptimizerConfig(lr=0.1, weight_decay=0.2, betas=(0.9, 0.95), epsilon=1e-3)
    toy = Toy()
    optimizer = make_optimizer(toy, config)
    start = {name: weight.detach().clone() for name, weight in toy.named_parameters()}
    gradients = {name: [] for name in start}
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name, weight in toy.named_parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
            gradients[name].append(weight.grad.clone())
        optimizer.step()
    for name, weight in toy.named_parameters():
        decay = 0.2 if name == "weight" else 0.0
        for place in range(weight.numel()):
            history = [gradient.flatten()[place].item() for gradient in gradients[name]]
            by_hand = adamw_by_hand(start[name].flatten()[place].item(), history, config, decay)
            assert weight.flatten()[place].item() == pytest.approx(by_hand, abs=1e-5), name
