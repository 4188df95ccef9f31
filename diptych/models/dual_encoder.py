"""Two towers into one space: CLIP, SigLIP, LiT and FLIP.

Towers give a vector each; this file projects them to the same number of dimensions, makes them
unit vectors, and owns the learned temperature and bias. The objective itself is in `losses/`.
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
from diptych.errors import ConfigError
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.resnet_tower import ResNetTower, ResNetTowerConfig
from diptych.models.text_tower import TextTower, TextTowerConfig
from diptych.models.timm_tower import TimmTower, TimmTowerConfig
from diptych.nn.init import Scheme, lecun_linear, normal_linear

LARGEST_SCALE = 100.0
"""CLIP (arXiv:2103.00020) clips the scale here so that training stays stable."""


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
        return self


def _image_tower(config: DualEncoderConfig) -> ImageTower | ResNetTower | TimmTower:
    """The tower that the config describes."""
    if isinstance(config.image, TimmTowerConfig):
        return TimmTower(config.image)
    if isinstance(config.image, ResNetTowerConfig):
        return ResNetTower(config.image)
    return ImageTower(config.image, config.initialisation)


class DualEncoder(nn.Module):
    """Pictures and texts as unit vectors whose cosine says how well they belong together."""

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = _image_tower(config)
        self.text = TextTower(config.text, config.initialisation)
        self.image_projection = (
            nn.Linear(config.image.vector_width, config.embed, bias=config.image_projection_bias)
            if config.image_projection
            else nn.Identity()
        )
        self.text_projection = nn.Linear(
            config.text.width, config.embed, bias=config.text_projection_bias
        )
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
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch embed"]:
        """Unit vectors, always float32."""
        return F.normalize(self.image_projection(self.image(image)).float(), dim=-1)

    def encode_text(self, text: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch embed"]:
        """Unit vectors, always float32."""
        return F.normalize(self.text_projection(self.text(text)).float(), dim=-1)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"],
        text: Int64[Tensor, "batch length"],
    ) -> ContrastiveOutput:
        """Both sides of a batch; row i of `image` belongs with row i of `text`."""
        return ContrastiveOutput(
            self.encode_image(image), self.encode_text(text), self.log_scale.exp(), self.bias
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
