"""The transformer that turns token ids into one vector.

Text is padded on the right. What padding may touch depends on the pool:
`end`  (CLIP) reads the end-of-text token; with `causal` nothing before it sees padding,
`mean` averages the tokens that are no padding; padding is masked in attention,
`last` (SigLIP) reads the last position, so padding is part of the input: the text must have the
       full length, and a shorter one is refused instead of giving another vector.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from diptych.config import Config
from diptych.errors import ConfigError
from diptych.models.image_tower import check_heads
from diptych.nn.blocks import Activation, Block
from diptych.nn.init import Scheme, init_block
from diptych.nn.pool import mean_of_visible


class TextTowerConfig(Config):
    """Shape of the text transformer. Text towers grow in width only
    (CLIP, arXiv:2103.00020, section 2.5)."""

    vocabulary: int = Field(ge=1)
    """Number of token ids."""

    context: int = Field(default=77, ge=1)
    """Positions, special tokens included."""

    width: int = Field(default=512, ge=1)
    """Numbers per token."""

    layers: int = Field(default=12, ge=0, le=1000)
    """Number of blocks."""

    heads: int = Field(default=8, ge=1)
    """Attention heads; divides `width`."""

    mlp_width: int = Field(default=2048, ge=1)
    """Hidden numbers of each block's MLP."""

    activation: Activation = "gelu"
    """OpenAI's weights need `quick_gelu`, SigLIP's `gelu_tanh`."""

    causal: bool = True
    """Tokens read only what stands before them (CLIP)."""

    pool: Literal["end", "last", "mean"] = "end"
    """What becomes the vector; see the head of this file."""

    end_token: int
    """Id of the end-of-text token. No default: it must be the tokenizer's."""

    pad_token: int
    """Id that fills the text up. No default: it must be the tokenizer's."""

    norm_epsilon: float = Field(default=1e-5, ge=0)
    """Added to the variance in every norm; SigLIP uses 1e-6."""

    frozen: bool = False
    """Hold the weights fixed."""

    @model_validator(mode="after")
    def check(self) -> "TextTowerConfig":
        """Refuse shapes that cannot be built."""
        check_heads(self.width, self.heads)
        for name in ("end_token", "pad_token"):
            token = getattr(self, name)
            if not 0 <= token < self.vocabulary:
                raise ConfigError(
                    f"{name} {token} is outside the vocabulary of {self.vocabulary}. "
                    f"Use an id from 0 to {self.vocabulary - 1}."
                )
        return self


class TextTower(nn.Module):
    """Token vectors, positions, blocks, one pooled vector."""

    def __init__(self, config: TextTowerConfig, scheme: Scheme) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.zeros(config.context, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_width,
                config.activation,
                config.norm_epsilon,
            )
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self._start(scheme)
        if config.frozen:
            self.requires_grad_(False)

    def _start(self, scheme: Scheme) -> None:
        """Give every weight its published start."""
        siglip = scheme == "siglip"
        nn.init.normal_(self.tokens.weight, std=self.config.width**-0.5 if siglip else 0.02)
        nn.init.normal_(self.positions, std=self.config.width**-0.5 if siglip else 0.01)
        for block in self.blocks.children():
            assert isinstance(block, Block)
            init_block(block, self.config.layers, scheme)

    def forward(self, text: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch width"]:
        """One vector per text, not yet projected or normalised.

        Raises:
            ValueError: `text` is longer than the context, or shorter under pool "last".
        """
        self._check_length(text.shape[1])
        visible = None
        if not self.config.causal and self.config.pool != "last":
            visible = text != self.config.pad_token
        tokens = self.tokens(text) + self.positions[: text.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, causal=self.config.causal, visible=visible)
        tokens = self.final_norm(tokens)
        if self.config.pool == "last":
            return tokens[:, -1]
        if self.config.pool == "mean":
            return mean_of_visible(tokens, text != self.config.pad_token)
        end = (text == self.config.end_token).int().argmax(dim=1)  # the first one
        return tokens[torch.arange(len(text), device=text.device), end]

    def _check_length(self, length: int) -> None:
        """Refuse what would give a wrong vector."""
        context = self.config.context
        if length > context:
            raise ValueError(
                f"text has {length} positions and the tower {context}. "
                f"Cut the text to {context} tokens."
            )
        if self.config.pool == "last" and length < context:
            raise ValueError(
                f'text has {length} positions, but pool "last" reads position {context}. '
                f"Pad the text to {context} tokens."
            )
