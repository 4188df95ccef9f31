"""How weights start: the published schemes of the two families.

`clip`: Radford et al., arXiv:2103.00020, and OpenAI's code. Normal weights whose spread shrinks
with width, and with depth for whatever writes to the residual stream; biases zero.
`siglip`: big_vision. Xavier-uniform for attention and MLP, normal 1e-6 for the MLP's biases.

OpenAI's code gives its image blocks torch's defaults and scales only the text blocks; here both
towers follow the scaled scheme that the paper states.
"""

import math
from typing import Literal

from torch import nn

from diptych.nn.attention import CrossAttention, SelfAttention
from diptych.nn.blocks import Block, Mlp
from diptych.nn.pool import AttentionPool, MeanQueryPool

Scheme = Literal["clip", "siglip"]


def init_block(block: Block, layers: int, scheme: Scheme) -> None:
    """Start one block of a tower that has `layers` of them."""
    width = block.attention.out.in_features
    if scheme == "siglip":
        init_attention_xavier(block.attention)
        init_mlp_xavier(block.mlp)
        return
    into_stream = width**-0.5 * (2 * layers) ** -0.5
    normal_linear(block.attention.query_key_value, width**-0.5)
    normal_linear(block.attention.out, into_stream)
    normal_linear(block.mlp.up, (2 * width) ** -0.5)
    normal_linear(block.mlp.down, into_stream)


def init_pool(pool: AttentionPool) -> None:
    """Start the attention pool, which only SigLIP's scheme defines."""
    nn.init.xavier_uniform_(pool.probe[0])
    init_attention_xavier(pool.attention)
    init_mlp_xavier(pool.mlp)


def init_mean_query_pool(pool: MeanQueryPool) -> None:
    """Start the pool of CLIP's ResNets: everything normal, with the spread width^-0.5."""
    spread = pool.query.in_features**-0.5
    nn.init.normal_(pool.positions, std=spread)
    normal_linear(pool.query, spread)
    normal_linear(pool.key_value, spread)


def init_attention_xavier(attention: SelfAttention | CrossAttention) -> None:
    """Xavier-uniform for query, key, value and output, each (width, width) on its own."""
    for linear in attention.children():
        if isinstance(linear, nn.Linear):
            for matrix in linear.weight.split(linear.in_features):
                nn.init.xavier_uniform_(matrix)
            nn.init.zeros_(linear.bias)


def init_mlp_xavier(mlp: Mlp) -> None:
    """Xavier-uniform weights, biases almost zero."""
    for linear in (mlp.up, mlp.down):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(linear.bias, std=1e-6)


def normal_linear(linear: nn.Linear, spread: float) -> None:
    """Normal weights with this standard deviation; the bias, if any, is zero."""
    nn.init.normal_(linear.weight, std=spread)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def lecun_linear(linear: nn.Linear) -> None:
    """Normal weights cut at two sigma, with variance 1 / inputs: flax's default."""
    spread = math.sqrt(1 / linear.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(linear.weight, std=spread, a=-2 * spread, b=2 * spread)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
