"""Which weights decay, and how the learning rate moves."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from diptych.train.run import OptimizerConfig


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    levels: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over groups: matrices decay; gains, biases, positions and scalars do not.

    Each group has its `share` of the run's rate, layer_decay ** level: lower layers, which know
    what all pictures and texts have in common, move less.

    Args:
        model: What learns of it is what requires gradients.
        config: Rate, decay and the rest.
        levels: For each weight its layer, counted from the top (`depth.py`); None puts all at 0.
        layer_decay: In (0, 1].

    Papers: Loshchilov and Hutter, arXiv:1711.05101; which weights decay: CLIP, arXiv:2103.00020;
    rates by layer: Clark et al., ELECTRA, arXiv:2003.10555; Bao et al., BEiT, arXiv:2106.08254;
    for CLIP: Dong et al., arXiv:2212.06138.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            share = layer_decay ** (levels or {}).get(name, 0)
            decay = config.weight_decay if decays(name, weight) else 0.0
            members.setdefault((share, decay), []).append(weight)
    highest_first = sorted(members.items(), key=lambda item: item[0], reverse=True)
    return torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": decay, "share": share}
            for (share, decay), weights in highest_first
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def decays(name: str, weight: torch.Tensor) -> bool:
    """True for matrices of linear layers and token tables; false for all that only shifts or
    scales."""
    return weight.ndim >= 2 and not name.endswith(("positions", "probe", "place", "ages"))


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
