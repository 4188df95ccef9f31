"""The change model: pictures in a row, and a text that says what the last one changed.

    token of each place, and of the same place before -> "did something change here?"
    tokens of the pictures, and of what changed -> connector -> prefix of a causal decoder -> text

The vision transformer may be stateful (`stateful_encoder.py`: each picture reads the one before) or
not (its stateless twin: then only decoder and head compare). The decoder is in `decoder.py`, the
choice of tokens in `generation.py`, the losses in `losses/change.py`; the contrastive model of
changes is a `DualEncoder` with `pair`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.batch import ChangeOutput
from diptych.config import Config
from diptych.errors import ConfigError
from diptych.models.decoder import Decoder, DecoderConfig
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.stateful_encoder import State, StatefulEncoder
from diptych.nn.change_head import ChangeHead, Located
from diptych.nn.init import Scheme, normal_linear


class ChangeModelConfig(Config):
    """A vision transformer, a decoder, and a head that says where something changed."""

    kind: Literal["change"] = "change"
    """Tells the models apart in a config file."""

    image: ImageTowerConfig
    """The vision transformer. With `state` "none" it sees each picture alone."""

    text: DecoderConfig
    """The decoder that writes what changed."""

    pictures: int = Field(default=2, ge=1)
    """How many pictures of a sequence the decoder reads, the last one among them. What was before
    those reaches it through the state alone."""

    initialisation: Scheme = "clip"
    """Published start of the weights: CLIP's or SigLIP's."""

    text_weight: float = Field(default=1.0, ge=0)
    """Multiplies the loss of the text in training."""

    changed_weight: float = Field(default=1.0, ge=0)
    """Multiplies the loss of "did anything change?" in training."""

    place_weight: float = Field(default=1.0, ge=0)
    """Multiplies the loss of "did something change here?", where the data says it."""

    @model_validator(mode="after")
    def check(self) -> "ChangeModelConfig":
        """Refuse towers of which this model would leave something unused."""
        if self.image.keep_patches < 1:
            raise ConfigError(
                f"keep_patches {self.image.keep_patches} drops patches, and the change model says "
                "for each one whether it changed. Use keep_patches=1."
            )
        if self.image.pool == "attention":
            raise ConfigError(
                'pool "attention" would never learn: the change model reads tokens, not the '
                'vector. Use pool="mean".'
            )
        return self


class Connector(nn.Module):
    """From the tokens of pictures to what the decoder reads: norm, linear, GELU, linear."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, out)
        self.down = nn.Linear(out, out)
        normal_linear(self.up, width**-0.5)
        normal_linear(self.down, 0.02)  # as small as the vectors of words beside them

    def forward(self, tokens: Float[Tensor, "*any width"]) -> Float[Tensor, "*any out"]:
        """Each token on its own."""
        return self.down(F.gelu(self.up(self.norm(tokens))))


@dataclass(frozen=True)
class Seen:
    """What is kept of the pictures of a stream; one row for each stream of a batch."""

    tokens: Float[Tensor, "batch kept tokens width"]
    """Of the last pictures, oldest first."""

    state: State | None
    """What the encoder reads with the next picture; None for one that reads single pictures."""


class ChangeModel(nn.Module):
    """Says what changed in the last picture of a sequence, whether anything did, and where."""

    def __init__(self, config: ChangeModelConfig) -> None:
        super().__init__()
        self.config = config
        stateful = config.image.state.variant != "none"
        tower = StatefulEncoder if stateful else ImageTower
        self.image = tower(config.image, config.initialisation)
        self.text = Decoder(config.text, config.initialisation)
        self.connector = Connector(config.image.width, config.text.width)
        self.change_connector = Connector(2 * config.image.width, config.text.width)
        self.ages = nn.Parameter(torch.zeros(config.pictures, config.text.width))
        nn.init.normal_(self.ages, std=0.02)
        self.head = ChangeHead(config.image.width)

    def forward(
        self,
        image: Float[Tensor, "batch images 3 size size"],
        text: Int64[Tensor, "batch length"],
    ) -> ChangeOutput:
        """What the model says of sequences, and of each token of their texts given those before.

        Args:
            image: Pictures, oldest first; one alone is compared with itself.
            text: As the tokenizer gives it; see `decoder.py`.
        """
        tokens = self.encode(image)
        changed, place = self.judge(tokens)
        return ChangeOutput(self.text(self.prefix(tokens), text), changed, place)

    @property
    def kept(self) -> int:
        """How many pictures' tokens are needed at the end of a sequence: what the decoder reads,
        and the two that the head compares."""
        return max(2, self.config.pictures)

    def encode(
        self, image: Float[Tensor, "batch images 3 size size"]
    ) -> Float[Tensor, "batch kept tokens width"]:
        """Tokens of the last `kept` pictures (of all, if there are fewer), oldest first."""
        batch = len(image)
        if isinstance(self.image, StatefulEncoder):
            tokens = self.image.packed(image.flatten(0, 1), [image.shape[1]] * batch)
        else:
            image = image[:, -self.kept :]
            tokens = self.image.tokens(image.flatten(0, 1))
        return tokens.unflatten(0, (batch, image.shape[1]))[:, -self.kept :]

    def see(self, image: Float[Tensor, "batch 3 size size"], seen: Seen | None = None) -> Seen:
        """The next picture of each stream, at the cost of one picture: `tokens` are what `encode`
        gives for all pictures up to here.

        Args:
            image: One picture for each stream.
            seen: Of the pictures before; None for the first.
        """
        if isinstance(self.image, StatefulEncoder):
            tokens, state = self.image(image, None if seen is None else seen.state)
        else:
            tokens, state = self.image.tokens(image), None
        tokens = tokens[:, None]
        if seen is not None:
            tokens = torch.cat([seen.tokens, tokens], dim=1)[:, -self.kept :]
        return Seen(tokens, state)

    def prefix(
        self, tokens: Float[Tensor, "batch kept tokens width"]
    ) -> Float[Tensor, "batch given decoder_width"]:
        """What the decoder reads: the tokens of the pictures, oldest first, each with its age, and
        last what the head read of the change."""
        change = self.change_connector(self._located(tokens).read)
        tokens = tokens[:, -self.config.pictures :]
        ages = self.ages[: tokens.shape[1]].flip(0)  # row 0 belongs to the last picture
        pictures = (self.connector(tokens) + ages[:, None]).flatten(1, 2)
        return torch.cat([pictures, change[:, None].to(pictures.dtype)], dim=1)

    def judge(
        self, tokens: Float[Tensor, "batch kept tokens width"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch rows columns"]]:
        """Logits of "anything changed in the last picture", and of "something changed here"."""
        located, side = self._located(tokens), self.config.image.side
        return located.changed, located.place.unflatten(1, (side, side))

    def _located(self, tokens: Float[Tensor, "batch kept tokens width"]) -> Located:
        """What the head says of the last picture and the one before."""
        patches = tokens[:, :, int(self.config.image.class_token) :]
        return self.head(patches[:, -1], patches[:, -2 if tokens.shape[1] > 1 else -1])
