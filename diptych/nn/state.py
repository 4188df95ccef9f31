"""How a block of a vision transformer reads the pictures before: the published ways and a control.

x are a picture's tokens before a block, y those of the picture before at the same block. A state
block wraps the host's block, which stays as it is (norms and biases are left out here):

    self_ext    the host's attention reads [x; y]
    adaln_zero  c = mean(y) shifts and scales both branches of the host, and gates them by 1 + a(c)
    cross       x = x + attention(Q=x, KV=y), then the host
    cross_ffn   x = x + attention(Q=x, KV=y); x = x + mlp(x), then the host
    self_ffn    as cross_ffn, with KV=x for every picture: as many weights, and no memory

Which pictures are read, in a pack or from a stream, says `models/stateful_encoder.py`.
Paper: Wang et al., Stateful Visual Encoders, arXiv:2606.04433, section 3 and table 17.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.errors import ConfigError
from diptych.nn.attention import CrossAttention, attend
from diptych.nn.blocks import Block, Mlp
from diptych.nn.init import Scheme, init_block, normal_linear
from diptych.nn.pool import mean_of_visible

StateVariant = Literal["none", "self_ext", "adaln_zero", "cross", "cross_ffn", "self_ffn"]
"""How a block reads the pictures before; see the head of this file."""

READING_FIRST: tuple[StateVariant, ...] = ("cross", "cross_ffn")
"""Variants whose first picture needs something to read; the others go without."""

START_PLACE = 4.0
"""What the logit of the same place begins with under positions "place": among 64 patches that are
otherwise alike it then gets half of the attention."""

ROTARY_BASE = 10_000.0
"""Ratio of the slowest to the fastest rotation, as in Su et al., RoFormer, arXiv:2104.09864."""


class StateConfig(Config):
    """What a vision transformer takes from the pictures before. The text "cross_ffn" stands for
    that variant with everything else at its default."""

    variant: StateVariant = "none"
    """How each block reads the picture before; "none" is a tower of single pictures, and "self_ffn"
    the control that reads only the picture itself."""

    window: int = Field(default=1, ge=1)
    """Pictures before that are read."""

    clone: bool = True
    """The weights that are added begin as copies of those of the block they stand before; false
    draws them anew."""

    output_std: float = Field(default=0.0, ge=0)
    """Spread of the added output projections at the start. 0 changes nothing at first, bit by bit;
    the paper's runs on real data use 0.0001."""

    stop_gradient: bool = True
    """Learn nothing through the pictures before; how they are read still learns."""

    first: Literal["own", "null"] = "own"
    """What the first picture reads under "cross" and "cross_ffn": itself, or a learned token."""

    positions: Literal["host", "rotary", "place"] = "host"
    """What the added attention knows of places beside what the tokens carry. "rotary" turns queries
    and keys by row and column, as published for towers that do so. "place" adds a learned number
    per head to the logit of the same place."""

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, values: Any) -> Any:
        """Take the name of a variant for a config."""
        return {"variant": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def check(self) -> "StateConfig":
        """Refuse settings that would do nothing."""
        if self.window > 1 and self.variant in ("none", "self_ffn"):
            raise ConfigError(
                f"variant {self.variant!r} reads no picture before, and window is {self.window}. "
                'Use window=1 or variant="cross_ffn".'
            )
        if self.first == "null" and self.variant not in READING_FIRST:
            raise ConfigError(
                f'first "null" is for variants cross and cross_ffn, and variant is '
                f'{self.variant!r}. Use first="own".'
            )
        if self.positions != "host" and self.variant not in (*READING_FIRST, "self_ffn"):
            raise ConfigError(
                f"positions {self.positions!r} is for variants cross, cross_ffn and self_ffn, and "
                f'variant is {self.variant!r}. Use positions="host".'
            )
        return self


@dataclass(frozen=True)
class Past:
    """What each picture of a batch reads at one block."""

    tokens: Float[Tensor, "batch keys width"]
    """Tokens of the pictures before, the newest picture first."""

    visible: Bool[Tensor, "batch keys"] | None
    """False where a picture has fewer before it than others of the batch; None: all are there."""


def rotation(
    tokens: int, side: int, head_width: int, device: torch.device
) -> tuple[Float[Tensor, "tokens head_width"], Float[Tensor, "tokens head_width"]]:
    """Cosine and sine by which each token is turned: one half of the numbers by its row, the other
    by its column.

    Args:
        tokens: side * side patches in reading order; any more stand before them and are not turned.
        side: Patches along one side of the picture.
        head_width: Numbers of a head, a multiple of 4.
        device: Where the result lies.
    """
    quarter = head_width // 4
    speeds = ROTARY_BASE ** -(torch.arange(quarter, device=device) / quarter)
    steps = torch.arange(side, device=device)
    places = torch.cartesian_prod(steps, steps)  # (patches, 2): row and column
    angles = (places[:, :, None] * speeds).flatten(1)  # (patches, head_width / 2)
    angles = F.pad(angles, (0, 0, tokens - len(angles), 0)).repeat(1, 2)
    return angles.cos(), angles.sin()


def turn(
    x: Float[Tensor, "*any tokens head_width"],
    cosine: Float[Tensor, "tokens head_width"],
    sine: Float[Tensor, "tokens head_width"],
) -> Float[Tensor, "*any tokens head_width"]:
    """Turn each pair (x[i], x[i + half]) by its angle."""
    half = x.shape[-1] // 2
    across = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cosine + across * sine).to(x.dtype)


class StateAttention(CrossAttention):
    """The tokens of a picture read those of the pictures before."""

    def __init__(self, width: int, heads: int, side: int, config: StateConfig) -> None:
        super().__init__(width, heads)
        self.side = side if config.positions == "rotary" else 0
        self.place = (
            nn.Parameter(torch.full((config.window, heads), START_PLACE))
            if config.positions == "place"
            else None
        )

    def forward(
        self,
        queries: Float[Tensor, "batch queries width"],
        tokens: Float[Tensor, "batch keys width"],
        *,
        visible: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """For each query, a mixture of the tokens that its picture may see."""
        batch, count, width = queries.shape
        query = self.query(queries).view(batch, count, self.heads, -1).transpose(1, 2)
        key_value = self.key_value(tokens).view(batch, -1, 2, self.heads, width // self.heads)
        key, value = key_value.permute(2, 0, 3, 1, 4)  # each (batch, heads, keys, head width)
        if self.side:
            cosine, sine = rotation(count, self.side, query.shape[-1], query.device)
            pictures = key.shape[2] // count
            query = turn(query, cosine, sine)
            key = turn(key, cosine.repeat(pictures, 1), sine.repeat(pictures, 1))
        bias = None
        if self.place is not None:
            same = torch.eye(count, device=query.device)
            ages = self.place[: key.shape[2] // count]
            bias = (ages.T[:, None, :, None] * same[:, None, :]).flatten(2)[None]
            bias = bias.to(query.dtype)  # (1, heads, queries, keys)
        mixed = attend(query, key, value, visible=visible, bias=bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class CrossBlock(nn.Module):
    """Read the pictures before, think about it (with an MLP), then the host's block.

    Heads, MLP and norms are shaped as the host's.
    """

    def __init__(self, host: Block, side: int, config: StateConfig) -> None:
        super().__init__()
        width, epsilon = host.attention.out.in_features, host.attention_norm.eps
        self.query_norm = nn.LayerNorm(width, eps=epsilon)
        self.past_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = StateAttention(width, host.attention.heads, side, config)
        self.mlp_norm, self.mlp = None, None
        if config.variant != "cross":
            self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
            self.mlp = Mlp(width, host.mlp.up.out_features, host.mlp.activation)
        self.null = nn.Parameter(torch.zeros(width)) if config.first == "null" else None

    def forward(
        self, host: Block, tokens: Float[Tensor, "batch length width"], past: Past
    ) -> Float[Tensor, "batch length width"]:
        """One layer."""
        read = self.past_norm(past.tokens)
        tokens = tokens + self.attention(self.query_norm(tokens), read, visible=past.visible)
        if self.mlp is not None and self.mlp_norm is not None:
            tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return host(tokens)

    @torch.no_grad()
    def start(self, like: Block, output_std: float) -> None:
        """Begin with copies of a block's weights, and output projections that say little."""
        width = self.attention.out.in_features
        whole = like.attention.query_key_value
        for name, parameter in (("weight", whole.weight), ("bias", whole.bias)):
            query, key_value = parameter.split([width, 2 * width])
            getattr(self.attention.query, name).copy_(query)
            getattr(self.attention.key_value, name).copy_(key_value)
        for norm in (self.query_norm, self.past_norm):
            norm.load_state_dict(like.attention_norm.state_dict())
        normal_linear(self.attention.out, output_std)
        if self.mlp is not None and self.mlp_norm is not None:
            self.mlp_norm.load_state_dict(like.mlp_norm.state_dict())
            self.mlp.up.load_state_dict(like.mlp.up.state_dict())
            normal_linear(self.mlp.down, output_std)
        if self.null is not None:
            nn.init.normal_(self.null, std=width**-0.5)


class ModulatedBlock(nn.Module):
    """The mean of the pictures before shifts, scales and gates both branches of the host's block.

    The gates begin at 1: at 0, as the equation is printed, the host's branches would be gone. The
    activation before the one linear layer is that of Peebles and Xie, DiT, arXiv:2212.09748.
    """

    def __init__(self, host: Block) -> None:
        super().__init__()
        width = host.attention.out.in_features
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, host: Block, tokens: Float[Tensor, "batch length width"], past: Past
    ) -> Float[Tensor, "batch length width"]:
        """One layer. The mean is 0 where there is no picture before."""
        visible = past.visible
        if visible is None:
            visible = torch.ones(past.tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mean = F.silu(mean_of_visible(past.tokens, visible))
        numbers = self.modulation(mean)[:, None].chunk(6, dim=-1)  # each (batch, 1, width)
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = numbers
        normed = (1 + scale) * host.attention_norm(tokens) + shift
        tokens = tokens + (1 + gate) * host.attention(normed)
        normed = (1 + mlp_scale) * host.mlp_norm(tokens) + mlp_shift
        return tokens + (1 + mlp_gate) * host.mlp(normed)

    def start(self, output_std: float) -> None:
        """Begin with numbers that change little."""
        normal_linear(self.modulation, output_std)


class ExtendedBlock(nn.Module):
    """The host's block, whose attention reads the pictures before beside the picture itself."""

    def forward(
        self, host: Block, tokens: Float[Tensor, "batch length width"], past: Past
    ) -> Float[Tensor, "batch length width"]:
        """One layer."""
        batch, count, width = tokens.shape
        attention = host.attention
        read = host.attention_norm(torch.cat([tokens, past.tokens], dim=1))
        qkv = attention.query_key_value(read).view(
            batch, -1, 3, attention.heads, width // attention.heads
        )
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, count + keys, ...)
        visible = past.visible
        if visible is not None:
            visible = F.pad(visible, (count, 0), value=True)
        mixed = attend(query[:, :, :count], key, value, visible=visible)
        tokens = tokens + attention.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return tokens + host.mlp(host.mlp_norm(tokens))


StateBlock = CrossBlock | ModulatedBlock | ExtendedBlock


def make_state_block(host: Block, side: int, config: StateConfig) -> StateBlock:
    """What stands around one block of a tower; see `start_state_block` for its weights.

    Args:
        host: The block, which is not part of the result.
        side: Patches along one side of the picture.
        config: Says the variant, which is not "none".
    """
    if config.variant == "adaln_zero":
        return ModulatedBlock(host)
    return ExtendedBlock() if config.variant == "self_ext" else CrossBlock(host, side, config)


def start_state_block(
    block: StateBlock, host: Block, layers: int, config: StateConfig, scheme: Scheme
) -> None:
    """Give the added weights their start: copies of the host's, or those of a new block.

    Args:
        block: What was made for the host.
        host: With the weights to copy.
        layers: Blocks of the tower, for weights drawn anew.
        config: Says whether to copy, and the spread of the output projections.
        scheme: How weights are drawn anew.
    """
    if isinstance(block, ModulatedBlock):
        block.start(config.output_std)
    if isinstance(block, CrossBlock):
        if not config.clone:
            mlp = host.mlp
            host = Block(
                mlp.up.in_features, host.attention.heads, mlp.up.out_features, mlp.activation
            )
            init_block(host, layers, scheme)
        block.start(host, config.output_std)
