"""The causal transformer that continues given vectors with a text.

It reads vectors that stand for pictures (the prefix) and then token after token; each position
reads those before it. `change.py` makes the prefix, `generation.py` chooses the tokens,
`text_tower.py` is the sibling that turns a text into one vector.

A text is what the tokenizer gives: it begins with the start token, which is given and never asked
for, ends with the end token and is padded on the right.
"""

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from diptych.config import Config
from diptych.errors import ConfigError
from diptych.models.image_tower import check_heads
from diptych.nn.attention import attend
from diptych.nn.blocks import Activation, Block
from diptych.nn.init import Scheme, init_block


class DecoderConfig(Config):
    """Shape of the causal transformer that writes a text."""

    vocabulary: int = Field(ge=1)
    """Number of token ids."""

    context: int = Field(default=77, ge=2)
    """Positions of a text, start and end tokens included. The prefix takes none of them."""

    width: int = Field(default=512, ge=1)
    """Numbers per token."""

    layers: int = Field(default=12, ge=0, le=1000)
    """Number of blocks."""

    heads: int = Field(default=8, ge=1)
    """Attention heads; divides `width`."""

    mlp_width: int = Field(default=2048, ge=1)
    """Hidden numbers of each block's MLP."""

    activation: Activation = "gelu"
    """Of the MLPs; see `nn/blocks.py`."""

    start_token: int
    """Id that begins every text. No default: it must be the tokenizer's."""

    end_token: int
    """Id that ends a text. No default: it must be the tokenizer's."""

    pad_token: int
    """Id that fills a text up; no other token has it. No default: it must be the tokenizer's."""

    norm_epsilon: float = Field(default=1e-5, ge=0)
    """Added to the variance in every norm."""

    frozen: bool = False
    """Hold the weights fixed."""

    @model_validator(mode="after")
    def check(self) -> "DecoderConfig":
        """Refuse shapes that cannot be built, and tokens that cannot be told apart."""
        check_heads(self.width, self.heads)
        names = ("start_token", "end_token", "pad_token")
        for name in names:
            token = getattr(self, name)
            if not 0 <= token < self.vocabulary:
                raise ConfigError(
                    f"{name} {token} is outside the vocabulary of {self.vocabulary}. "
                    f"Use an id from 0 to {self.vocabulary - 1}."
                )
        if len({getattr(self, name) for name in names}) < len(names):
            raise ConfigError(
                f"start_token {self.start_token}, end_token {self.end_token} and pad_token "
                f"{self.pad_token} are not three different ids, so nobody knows where a text ends. "
                "Use a tokenizer that Diptych learned (1, 2 and 0)."
            )
        return self


class Cache:
    """Keys and values of all that was read, for each block, with room for a whole text.

    Every step writes into it: nothing is copied but for the one new position.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], given: int, read: int) -> None:
        """Hold the keys and the values of each block, (batch, heads, room, head width).

        Args:
            keys: Of each block.
            values: Of each block.
            given: Positions of the prefix.
            read: Positions read so far, those of the prefix among them.
        """
        self.keys, self.values, self.given, self.read = keys, values, given, read

    def repeated(self, times: int) -> "Cache":
        """A copy with each row `times` times in a row."""
        keys, values = (
            [kept.repeat_interleave(times, dim=0) for kept in both]
            for both in (self.keys, self.values)
        )
        return Cache(keys, values, self.given, self.read)

    def pick(self, rows: Int64[Tensor, " batch"]) -> None:
        """Row i goes on with the text of row rows[i], which has the same prefix."""
        text = slice(self.given, self.read)
        for kept in (*self.keys, *self.values):
            kept[:, :, text] = kept[rows, :, text]


class Decoder(nn.Module):
    """Token vectors, positions, causal blocks, and a logit for each token of the vocabulary.

    The vectors of the tokens are also the weights of the logits (Press and Wolf, arXiv:1608.05859).
    """

    def __init__(self, config: DecoderConfig, scheme: Scheme) -> None:
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
        """Give every weight its start; token vectors are small, since logits are made of them."""
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.blocks.children():
            assert isinstance(block, Block)
            init_block(block, self.config.layers, scheme)

    def forward(
        self,
        prefix: Float[Tensor, "batch given width"],
        text: Int64[Tensor, "batch length"],
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of each token of the text, given the prefix and the tokens before it.

        Args:
            prefix: At least one vector, with whatever tells its place.
            text: As the tokenizer gives it; its last column is only asked for, never read.

        Raises:
            ValueError: The text is longer than the context.
        """
        self._check_length(text.shape[1])
        given = prefix.shape[1]
        read = self.tokens(text[:, :-1]) + self.positions[: text.shape[1] - 1]
        tokens = torch.cat([prefix.to(read.dtype), read], dim=1)
        for block in self.blocks:
            tokens = block(tokens, causal=True)
        return self._logits(tokens[:, given - 1 :])

    @torch.no_grad()
    def read(self, prefix: Float[Tensor, "batch given width"]) -> Cache:
        """What `step` needs to know of the prefix."""
        batch, given, width = prefix.shape
        heads = self.config.heads
        room = (batch, heads, given + self.config.context, width // heads)
        keys, values = ([prefix.new_empty(room) for _ in self.blocks] for _ in range(2))
        cache = Cache(keys, values, given, 0)
        self._through(prefix, cache)
        return cache

    @torch.no_grad()
    def step(
        self, token: Int64[Tensor, " batch"], cache: Cache
    ) -> Float[Tensor, "batch vocabulary"]:
        """Logits of the token that follows this one; the same as `forward` gives, without reading
        again what was read.

        Args:
            token: The next token of each text, at first the start token.
            cache: Of `read`. The token is added to it.

        Raises:
            ValueError: The text is longer than the context.
        """
        place = cache.read - cache.given
        self._check_length(place + 1)
        tokens = (self.tokens(token) + self.positions[place])[:, None]
        return self._logits(self._through(tokens, cache))[:, 0]

    def _through(
        self, tokens: Float[Tensor, "batch new width"], cache: Cache
    ) -> Float[Tensor, "batch new width"]:
        """All blocks over a whole prefix, or over the one token that follows what was read."""
        batch, new, width = tokens.shape
        until = cache.read + new
        for block, keys, values in zip(
            self.blocks.children(), cache.keys, cache.values, strict=True
        ):
            assert isinstance(block, Block)
            attention = block.attention
            inner = attention.query_key_value(block.attention_norm(tokens))
            inner = inner.view(batch, new, 3, attention.heads, width // attention.heads)
            query, key, value = inner.permute(2, 0, 3, 1, 4)  # each (batch, heads, new, head width)
            keys[:, :, cache.read : until], values[:, :, cache.read : until] = key, value
            read = keys[:, :, :until], values[:, :, :until]
            mixed = attend(query, *read, causal=cache.read == 0)
            tokens = tokens + attention.out(mixed.transpose(1, 2).reshape(batch, new, width))
            tokens = tokens + block.mlp(block.mlp_norm(tokens))
        cache.read = until
        return tokens

    def _logits(
        self, tokens: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """From the last block to the vocabulary, in float32."""
        return nn.functional.linear(self.final_norm(tokens), self.tokens.weight).float()

    def _check_length(self, length: int) -> None:
        """Refuse a text without positions."""
        if length > self.config.context:
            raise ValueError(
                f"text has {length} positions and the decoder {self.config.context}. "
                f"Cut the text to {self.config.context} tokens."
            )
