"""Where a picture differs from the one before it, whether it does at all, and what is there.

The head looks at the two tokens of each place. How much each place changed decides how much its
tokens count in what is read of the change, and the soft maximum over the places says whether
anything changed: labels that only say yes or no teach it where.

It is the same for towers that read the picture before (`models/stateful_encoder.py`) and for those
that see each picture alone; `nn/pool.py` pools the tokens of one picture.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.init import normal_linear


@dataclass(frozen=True)
class Located:
    """What the head says of pairs of pictures."""

    changed: Float[Tensor, " batch"]
    """Logit of "anything changed"."""

    place: Float[Tensor, "batch patches"]
    """Logit of "something changed here"."""

    read: Float[Tensor, "batch both"]
    """The tokens of the places that changed, now and before: 2 * width numbers."""


class ChangeHead(nn.Module):
    """From the two tokens of each place to where, whether and what.

        place[i] = mlp([now[i]; before[i]])
        changed  = scale * log(mean(exp(place))) + bias
        read     = sum over i of softmax(place)[i] * [now[i]; before[i]]

    The soft maximum is that of multiple-instance learning (Ilse et al., arXiv:1802.04712, pool
    with such weights).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * width, width)
        self.down = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))
        normal_linear(self.up, (2 * width) ** -0.5)
        normal_linear(self.down, width**-0.5)

    def forward(
        self,
        now: Float[Tensor, "batch patches width"],
        before: Float[Tensor, "batch patches width"],
    ) -> Located:
        """Judge pairs of pictures by their tokens."""
        both = torch.cat([now, before], dim=-1)
        place = self.down(F.gelu(self.up(both)))[..., 0].float()  # (batch, patches)
        most = place.logsumexp(dim=1) - math.log(place.shape[1])
        share = place.softmax(dim=1)[:, None].to(both.dtype)  # (batch, 1, patches)
        return Located(self.scale * most + self.bias, place, (share @ both)[:, 0])
