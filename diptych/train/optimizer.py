"""Which weights decay, and how the learning rate moves."""

import math

import torch
from torch import nn

from diptych.train.run import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups: matrices decay; gains, biases, positions and scalars do not.

    Papers: Loshchilov and Hutter, arXiv:1711.05101; which weights decay: CLIP, arXiv:2103.00020.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (decayed if decays(name, weight) else kept).append(weight)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def decays(name: str, weight: torch.Tensor) -> bool:
    """True for matrices of linear layers and token tables; false for all that only shifts or
    scales."""
    return weight.ndim >= 2 and not name.endswith(("positions", "probe"))


def learning_rate(progress: float, config: OptimizerConfig) -> float:
    """Rate at this share of the run: linear up to `lr`, then half a cosine down to zero.

    Args:
        progress: Share of the run, in [0, 1]. A step is given its own middle, so the first
            rate is above zero and so is the last.
        config: Highest rate and share of warm-up.
    """
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    done = (progress - config.warmup) / max(1e-12, 1 - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
