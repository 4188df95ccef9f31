"""Transformer blocks with the norm before each branch, as CLIP and SigLIP have them.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

Attention itself is in `attention.py`; how weights start is in `init.py`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.nn.attention import SelfAttention

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""`quick_gelu` is x * sigmoid(1.702 x): OpenAI's CLIP and DFN. `gelu_tanh`: SigLIP."""


def activate(x: Float[Tensor, "*any"], activation: Activation) -> Float[Tensor, "*any"]:
    """Apply the activation by name; the three differ by up to 0.02 and are never exchangeable."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """Each token on its own."""
        return self.down(activate(self.up(x), self.activation))


class Block(nn.Module):
    """Attention and MLP, each on a residual branch behind its norm."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: Activation, epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.mlp = Mlp(width, hidden, activation)

    def forward(
        self,
        tokens: Float[Tensor, "batch length width"],
        *,
        causal: bool = False,
        visible: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """One step of the residual stream; see `SelfAttention` for the masks."""
        mixed = self.attention(self.attention_norm(tokens), causal=causal, visible=visible)
        tokens = tokens + mixed
        return tokens + self.mlp(self.mlp_norm(tokens))
