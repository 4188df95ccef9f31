"""Averaged weights: a second model that follows the trained one slowly, and is what one keeps.

Late in training weights swing around a good place; their mean is nearer to it. `loop.py` judges
and saves the average, `state.py` keeps the trained weights beside it so that a run can go on.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from diptych.models.dual_encoder import DualEncoder
from diptych.models.kinds import AnyModel

AveragedModel = TypeVar("AveragedModel", bound=AnyModel)


class WeightAverage(Generic[AveragedModel]):
    """Exponential moving average of a model's weights.

        model <- start
        after step s (from 0): model <- d * model + (1 - d) * trained
        with d = min(decay, (1 + s) / (10 + s)), so that a short run forgets its start too

    Running statistics of batch norm are averaged like weights (as timm and torchvision do): they
    belong to the weights they were measured under. Whole numbers are copied. Frozen weights stay
    what they are, to the bit.

    Papers: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992;
    Tarvainen and Valpola, Mean Teachers, arXiv:1703.01780.
    """

    def __init__(self, trained: AveragedModel, decay: float) -> None:
        """Begin at the weights as they are.

        Args:
            trained: The model to follow; its tensors are held, not copied, so they must stay.
            decay: Share of the average that one step leaves in place, in (0, 1).
        """
        self.decay = decay
        self.model = copy.deepcopy(trained).eval().requires_grad_(False)
        """The average; always as for evaluation."""
        pairs = list(zip(_tensors(self.model), _tensors(trained), strict=True))
        self._moving = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the trained weights, after step number `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        ours, theirs = zip(*self._moving, strict=True)
        torch._foreach_lerp_(ours, theirs, share)
        for average, trained in self._copied:
            average.copy_(trained)
        if isinstance(self.model, DualEncoder):
            self.model.limit_scale()  # a mean of limited numbers may pass the limit by a rounding


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """Weights and buffers, in an order that copies share."""
    return [*model.parameters(), *model.buffers()]
