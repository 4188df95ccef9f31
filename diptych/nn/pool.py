"""From a sequence of tokens to one vector.

The vision transformers pool with `AttentionPool` or simpler (`models/image_tower.py`), the residual
networks with `MeanQueryPool` (`models/resnet_tower.py`).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.nn.attention import CrossAttention, attend
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


class MeanQueryPool(nn.Module):
    """The mean of the tokens reads them all and itself; positions are added first.

    CLIP's ResNets end in this. What they project the result with is `DualEncoder.image_projection`.
    Paper: Radford et al., CLIP, arXiv:2103.00020, section 2.4.
    """

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.zeros(1 + tokens, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def forward(self, tokens: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """The mixture of the tokens that their mean asks for."""
        batch, _, width = tokens.shape
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        query = self.query(tokens[:, :1]).view(batch, 1, self.heads, -1).transpose(1, 2)
        key_value = self.key_value(tokens).view(batch, -1, 2, self.heads, width // self.heads)
        key, value = key_value.permute(2, 0, 3, 1, 4)  # each (batch, heads, 1 + length, head width)
        return attend(query, key, value).reshape(batch, width)
