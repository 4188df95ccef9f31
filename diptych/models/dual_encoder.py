"""Two towers into one space: CLIP, SigLIP, LiT and FLIP.

Towers give a vector each; this file projects them to the same number of dimensions, makes them
unit vectors, and owns the learned temperature and bias. What stands for an image may also be a
sequence of pictures, whose text says what the last one changed. The objective is in `losses/`.
"""

import math
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.batch import ContrastiveOutput
from diptych.config import Config
from diptych.errors import ConfigError, RequestError
from diptych.models.image_tower import ImageTower, ImageTowerConfig, VisionTransformer
from diptych.models.resnet_tower import ResNetTower, ResNetTowerConfig
from diptych.models.stateful_encoder import StatefulEncoder, make_stateful
from diptych.models.text_tower import TextTower, TextTowerConfig
from diptych.models.timm_tower import TimmTower, TimmTowerConfig
from diptych.nn.change_head import ChangeHead, Located
from diptych.nn.init import Scheme, lecun_linear, normal_linear
from diptych.nn.state import StateConfig

PairOfPictures = Literal["located", "difference", "concatenation"]
"""What becomes the vector of a sequence of pictures; see `DualEncoderConfig.pair`."""

Pair = Literal["none", PairOfPictures]
"""The same, or none of them: a model of single pictures."""

LARGEST_SCALE = 100.0
"""CLIP (arXiv:2103.00020) clips the scale here so that training stays stable."""

SMALLEST_DIFFERENCE = 1e-3
"""Differences of vectors that are shorter do not become unit vectors: equal pictures have the
difference 0, and the way to a unit vector from there would multiply rounding errors by 1e12."""


def image_kind(values: Any) -> str:
    """Which image tower a config describes; one without `kind` was written when there was one."""
    if isinstance(values, str) and values.startswith("timm:"):
        return "timm"
    kind = values.get("kind", "vit") if isinstance(values, dict) else getattr(values, "kind", "vit")
    return str(kind)


AnyImageTowerConfig = Annotated[
    Annotated[ImageTowerConfig, Tag("vit")]
    | Annotated[ResNetTowerConfig, Tag("resnet")]
    | Annotated[TimmTowerConfig, Tag("timm")],
    Discriminator(image_kind),
]


class DualEncoderConfig(Config):
    """An image tower and a text tower that share a space."""

    image: AnyImageTowerConfig
    """The tower for pictures: a vision transformer, with kind "resnet" a residual network, or with
    kind "timm" any model of timm, for short "timm:NAME"."""

    text: TextTowerConfig
    """The tower for texts."""

    embed: int = Field(default=512, ge=1)
    """Dimensions of the shared space."""

    objective: Literal["softmax", "sigmoid"] = "softmax"
    """Which loss trains it: softmax over the batch (CLIP) or each pair on its own (SigLIP).
    It decides how the temperature starts, whether there is a bias, and what a score means."""

    start_bias: float = -10.0
    """The bias at the start, for the sigmoid objective. SigLIP's -10 is the log odds of a true pair
    among 32k; smaller batches want -ln(batch), or vectors collapse first to make up for it."""

    initialisation: Scheme = "clip"
    """Published start of the weights: CLIP's or SigLIP's."""

    image_projection: bool = True
    """Project the image vector (CLIP). SigLIP has none: then the tower's vector has `embed`
    numbers."""

    image_projection_bias: bool = False
    """Bias of the image projection. CLIP's ResNets have one: there the projection is the last step
    of the attention pool. Its vision transformers have none."""

    text_projection_bias: bool = False
    """Bias of the text projection (SigLIP has one)."""

    pair: Pair = "none"
    """What becomes the vector of a sequence of pictures. "none": it reads single pictures.
    "located": a projection of the tokens, now and before, of the places that changed, which a head
    finds (`nn/change_head.py`). "difference": the vector of the last picture less that of the one
    before. "concatenation": one projection of both. Each with `image.state` or without."""

    changed_weight: float = Field(default=1.0, ge=0)
    """Multiplies the loss of "did anything change?" in the training of "located"."""

    @model_validator(mode="after")
    def check(self) -> "DualEncoderConfig":
        """Refuse towers that cannot meet."""
        width = self.image.vector_width
        if not self.image_projection and width != self.embed:
            raise ConfigError(
                f"without image_projection the image vector of {width} numbers must have embed "
                f"{self.embed}. Use embed={width} or image_projection=true."
            )
        if self.image_projection_bias and not self.image_projection:
            raise ConfigError(
                "image_projection_bias is true and there is no image_projection. "
                "Use image_projection_bias=false or image_projection=true."
            )
        self._check_pair()
        return self

    def _check_pair(self) -> None:
        """Refuse a way to read sequences that the image tower does not have, or the reverse."""
        image = self.image
        if self.pair == "none":
            if isinstance(image, ImageTowerConfig) and image.state.variant != "none":
                raise ConfigError(
                    f"image.state is {image.state.variant!r} and pair is 'none', which reads "
                    'single pictures. Use pair="located" or image.state=none.'
                )
            return
        if self.pair in ("located", "concatenation") and not self.image_projection:
            raise ConfigError(
                f"pair {self.pair!r} is a projection of two vectors, and image_projection is "
                "false. Use image_projection=true."
            )
        if self.pair == "located":
            self._check_located()

    def _check_located(self) -> None:
        """Refuse an image tower of which "located" would not read the tokens of places."""
        image = self.image
        if not isinstance(image, ImageTowerConfig):
            raise ConfigError(
                f'pair "located" reads the tokens of places, and a {image.kind} tower has none. '
                'Use a vision transformer, or pair="difference".'
            )
        if image.pool == "attention":
            raise ConfigError(
                'pool "attention" would never learn: pair "located" reads tokens, not the vector. '
                'Use image.pool="mean".'
            )
        if image.keep_patches < 1:
            raise ConfigError(
                f'keep_patches {image.keep_patches} drops patches, and pair "located" compares '
                "places. Use keep_patches=1."
            )


def _image_tower(
    config: DualEncoderConfig,
) -> ImageTower | StatefulEncoder | ResNetTower | TimmTower:
    """The tower that the config describes."""
    if isinstance(config.image, TimmTowerConfig):
        return TimmTower(config.image)
    if isinstance(config.image, ResNetTowerConfig):
        return ResNetTower(config.image)
    if config.image.state.variant != "none":
        return StatefulEncoder(config.image, config.initialisation)
    return ImageTower(config.image, config.initialisation)


class DualEncoder(nn.Module):
    """Pictures and texts as unit vectors whose cosine says how well they belong together."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = _image_tower(config)
        self.text = TextTower(config.text, config.initialisation)
        doubled = config.pair in ("located", "concatenation")
        width = config.image.vector_width * (2 if doubled else 1)
        self.image_projection = (
            nn.Linear(width, config.embed, bias=config.image_projection_bias)
            if config.image_projection
            else nn.Identity()
        )
        self.text_projection = nn.Linear(
            config.text.width, config.embed, bias=config.text_projection_bias
        )
        self.head = ChangeHead(config.image.vector_width) if config.pair == "located" else None
        sigmoid = config.objective == "sigmoid"
        self.log_scale = nn.Parameter(torch.tensor(math.log(10 if sigmoid else 1 / 0.07)))
        self.bias = nn.Parameter(torch.tensor(config.start_bias)) if sigmoid else None
        for projection in (self.image_projection, self.text_projection):
            if isinstance(projection, nn.Linear):
                if config.initialisation == "siglip":
                    lecun_linear(projection)
                else:
                    normal_linear(projection, projection.in_features**-0.5)

    def encode_image(
        self, image: Float[Tensor, "batch *images 3 size size"]
    ) -> Float[Tensor, "batch embed"]:
        """Unit vectors, always float32.

        Args:
            image: Single pictures, (batch, 3, size, size); for a `pair` other than "none"
                sequences, oldest picture first, (batch, images, 3, size, size).

        Raises:
            ValueError: It is the other of the two, or a sequence is too short for `pair`.
        """
        return self._image_side(image)[0]

    def locate(self, image: Float[Tensor, "batch images 3 size size"]) -> Located:
        """Where the last picture changed, whether it did, and what was read there.

        Raises:
            ValueError: `pair` is not "located", or they are no sequences.
        """
        self._check_rank(image)
        if self.head is None or not isinstance(self.image, VisionTransformer):
            raise ValueError(
                f"a model with pair {self.config.pair!r} does not say where pictures changed. "
                'Use pair="located".'
            )
        patches = self._last_two(image, tokens=True)[:, :, int(self.image.config.class_token) :]
        return self.head(patches[:, 1], patches[:, 0])

    def _image_side(
        self, image: Float[Tensor, "batch *images 3 size size"]
    ) -> tuple[Float[Tensor, "batch embed"], Float[Tensor, " batch"] | None]:
        """Unit vectors, and with "located" the logit of "something changed"."""
        self._check_rank(image)
        pair, changed = self.config.pair, None
        if pair == "none":
            vectors = self.image_projection(self.image(image))
        elif pair == "located":
            located = self.locate(image)
            vectors, changed = self.image_projection(located.read), located.changed
        else:
            last_two = self._last_two(image)
            if pair == "concatenation":
                vectors = self.image_projection(last_two.flatten(1))
            else:
                before, last = self.image_projection(last_two).unbind(1)
                vectors = last - before
        smallest = 1e-12 if pair in ("none", "concatenation") else SMALLEST_DIFFERENCE
        return F.normalize(vectors.float(), dim=-1, eps=smallest), changed

    def _last_two(
        self, image: Float[Tensor, "batch images 3 size size"], *, tokens: bool = False
    ) -> Float[Tensor, "batch 2 *numbers"]:
        """Of the last two pictures of each sequence, oldest first, the vector; or the tokens."""
        if isinstance(self.image, StatefulEncoder):
            batch, images = image.shape[:2]
            found = self.image.packed(image.flatten(0, 1), [images] * batch)
            found = found.unflatten(0, (batch, images))[:, -2:].flatten(0, 1)
            found = found if tokens else self.image.pooled(found)
        else:
            pictures, tower = image[:, -2:].flatten(0, 1), self.image
            if tokens and isinstance(tower, ImageTower):
                found = tower.tokens(pictures)
            else:
                found = tower(pictures)
        return found.unflatten(0, (-1, 2))

    def _check_rank(self, image: Float[Tensor, "batch *images 3 size size"]) -> None:
        """Refuse single pictures where sequences are read, and the reverse.

        Raises:
            ValueError: Says what is read.
        """
        pair, shape = self.config.pair, list(image.shape)
        if pair == "none" and image.ndim != 4:
            raise ValueError(
                f'the image has shape {shape}, and with pair "none" a model reads single pictures. '
                'Give (batch, 3, size, size), or use pair="located".'
            )
        if pair != "none" and image.ndim != 5:
            raise ValueError(
                f"the image has shape {shape}, and with pair {pair!r} a model reads sequences of "
                "pictures, oldest first. Give (batch, images, 3, size, size)."
            )
        if pair != "none" and image.shape[1] < 2:
            raise ValueError(
                f"the sequences have {image.shape[1]} picture, and pair {pair!r} reads the last "
                "and the one before. Give 2 or more."
            )

    def encode_text(self, text: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch embed"]:
        """Unit vectors, always float32."""
        return F.normalize(self.text_projection(self.text(text)).float(), dim=-1)

    def forward(
        self,
        image: Float[Tensor, "batch *images 3 size size"],
        text: Int64[Tensor, "batch length"],
    ) -> ContrastiveOutput:
        """Both sides of a batch; row i of `image` belongs with row i of `text`."""
        vectors, changed = self._image_side(image)
        return ContrastiveOutput(
            vectors, self.encode_text(text), self.log_scale.exp(), self.bias, changed
        )

    def join_statistics(self) -> None:
        """Make batch norms use the statistics of all processes (SyncBatchNorm, on CUDA only)."""
        if isinstance(self.image, TimmTower):
            self.image.join_statistics()
        else:
            self.image = nn.SyncBatchNorm.convert_sync_batchnorm(self.image)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep the scale at or below 100; called after each optimizer step, as CLIP does."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


def make_pair(
    model: DualEncoder, state: StateConfig | None = None, pair: PairOfPictures = "located"
) -> DualEncoder:
    """A model of sequences that has the weights of a trained one of pictures.

    At first its tower sees in each picture what it saw (see `make_stateful`), and the projection
    gives the difference between now and before, whichever `pair` it is. What that has to do with
    texts is not known yet, so temperature and bias begin anew.

    Args:
        model: Of single pictures.
        state: How the tower is to read the pictures before; None leaves it as it is.
        pair: What is to become the vector of a sequence.

    Raises:
        RequestError: The model reads sequences already, or its image tower cannot have a state.
        ConfigError: The tower cannot be read in this way.
    """
    if model.config.pair != "none":
        raise RequestError(
            f"the model reads pictures in a row already (pair {model.config.pair!r}), so it does "
            f"not become one of pair {pair!r}. Use one of single pictures."
        )
    weights = model.state_dict()
    config = model.config.image
    if state is not None and state.variant != "none":
        if not isinstance(model.image, ImageTower):
            raise RequestError(
                f"a {config.kind} image tower cannot have the state {state.variant!r}: only a "
                "vision transformer reads the pictures before. Use state=None, or another model."
            )
        tower = make_stateful(model.image, state, model.config.initialisation)
        weights |= {f"image.{name}": value for name, value in tower.state_dict().items()}
        config = tower.config
    if pair == "located" and isinstance(config, ImageTowerConfig) and config.pool == "attention":
        config = config.model_copy(update={"pool": "mean"})
        weights = {k: value for k, value in weights.items() if not k.startswith("image.pool.")}
    values = model.config.model_dump() | {"image": config.model_dump(), "pair": pair}
    if pair != "difference":
        values |= {"image_projection": True, "image_projection_bias": False}
        weights |= {"image_projection.weight": _difference_projection(model, pair)}
        weights.pop("image_projection.bias", None)  # it cancels
    paired = DualEncoder(DualEncoderConfig(**values))
    start = paired.state_dict()
    anew = [name for name in start if name in ("log_scale", "bias") or name.startswith("head.")]
    paired.load_state_dict(weights | {name: start[name] for name in anew})
    return paired.to(model.log_scale).train(model.training)


def _difference_projection(model: DualEncoder, pair: PairOfPictures) -> Float[Tensor, "embed both"]:
    """What projects two vectors to the difference of their projections."""
    if isinstance(model.image_projection, nn.Linear):
        weight = model.image_projection.weight.detach()
    else:
        weight = torch.eye(model.config.embed, device=model.log_scale.device)
    now_first = pair == "located"
    return torch.cat([weight, -weight] if now_first else [-weight, weight], dim=1)
