"""From a sequence of tokens to one vector."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.nn.attention import CrossAttention
from diptych.nn.blocks import Activation, Mlp


def mean_of_visible(
    tokens: Float[Tensor, "batch length width"], visible: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch width"]:
    """Mean over the tokens that are no padding."""
    weight = visible.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class AttentionPool(nn.Module):
    """One learned probe reads all tokens; an MLP follows on a residual branch.

    The "MAP head" of SigLIP. Paper: Zhai et al., Scaling Vision Transformers, arXiv:2106.04560.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, activation: Activation, epsilon: float
    ) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, tokens: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """The vector that the probe gathers."""
        probe = self.probe.expand(len(tokens), -1, -1)
        pooled = self.attention(probe, tokens)
        return (pooled + self.mlp(self.mlp_norm(pooled)))[:, 0]
