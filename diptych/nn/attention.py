"""Multi-head attention of a sequence over itself, or of a few queries over a sequence.

On CPU, short sequences are attended in plain matrix products: torch's fused kernel takes 7 times
as long there, forward and backward in bf16 (docs/decisions.md). Elsewhere torch's kernel is used.

The block around it (norms, residuals, MLP) is in `blocks.py`; pooling by attention in `pool.py`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN_LENGTH = 512
"""Longest sequence that is attended in plain products on CPU; they hold length^2 weights."""


def attend(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads length head_width"],
    value: Float[Tensor, "batch heads length head_width"],
    *,
    causal: bool = False,
    visible: Bool[Tensor, "batch length"] | None = None,
    bias: Float[Tensor, "1 heads queries length"] | None = None,
) -> Float[Tensor, "batch heads queries head_width"]:
    """softmax(query key^T / sqrt(head_width) + bias) value, over what each query may see.

    Paper: Vaswani et al., Attention Is All You Need, arXiv:1706.03762.
    """
    mask = None if visible is None else visible[:, None, None, :]
    if query.device.type != "cpu" or key.shape[2] > PLAIN_LENGTH:
        if bias is not None:
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        weights = weights + bias
    if causal:
        later = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        weights = weights.masked_fill(later, float("-inf"))
    if mask is not None:
        weights = weights.masked_fill(~mask, float("-inf"))
    return weights.softmax(dim=-1) @ value


class SelfAttention(nn.Module):
    """Every token reads every token it may see."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "batch length width"],
        *,
        causal: bool = False,
        visible: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Mix tokens.

        Args:
            tokens: The sequence.
            causal: Token i reads tokens 0..i only.
            visible: False marks padding that no token reads; not together with `causal`,
                which needs none, since padding stands on the right.
        """
        batch, length, width = tokens.shape
        qkv = self.query_key_value(tokens).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head width)
        mixed = attend(query, key, value, causal=causal, visible=visible)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class CrossAttention(nn.Module):
    """Queries read another sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "batch queries width"],
        tokens: Float[Tensor, "batch length width"],
    ) -> Float[Tensor, "batch queries width"]:
        """For each query, a mixture of the tokens."""
        batch, count, width = queries.shape
        shape = (batch, -1, self.heads, width // self.heads)
        query = self.query(queries).view(shape).transpose(1, 2)
        key_value = self.key_value(tokens).view(batch, -1, 2, self.heads, width // self.heads)
        key, value = key_value.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))
