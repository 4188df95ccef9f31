"""The vision transformer that turns a picture into one vector.

Paper: Dosovitskiy et al., ViT, arXiv:2010.11929; CLIP's variant adds a norm before the blocks
and a bias-free patch projection (arXiv:2103.00020). `resnet_tower.py` and `text_tower.py`
are its siblings; the projection into the shared space is in `dual_encoder.py`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diptych.config import Config
from diptych.errors import ConfigError
from diptych.nn.blocks import Activation, Block
from diptych.nn.init import Scheme, init_block, init_pool, lecun_linear, normal_linear
from diptych.nn.patches import PatchEmbed, keep_random_patches
from diptych.nn.pool import AttentionPool


class ImageTowerConfig(Config):
    """Shape of the vision transformer. Image towers grow in width, depth and resolution together
    (CLIP, arXiv:2103.00020, section 2.5)."""

    kind: Literal["vit"] = "vit"
    """Tells the image towers apart in a config file."""

    image_size: int = Field(default=224, ge=1)
    """Side of the square input, in pixels."""

    patch_size: int = Field(default=16, ge=1)
    """Side of one patch, in pixels; divides `image_size`, or `cut_edge` is true."""

    cut_edge: bool = False
    """Leave out the pixels at the right and at the bottom that fill no patch, as SigLIP's So400m/14
    does at 384 pixels: it sees 378."""

    width: int = Field(default=768, ge=1)
    """Numbers per token."""

    layers: int = Field(default=12, ge=0, le=1000)
    """Number of blocks."""

    heads: int = Field(default=12, ge=1)
    """Attention heads; divides `width`."""

    mlp_width: int = Field(default=3072, ge=1)
    """Hidden numbers of each block's MLP."""

    activation: Activation = "gelu"
    """OpenAI's weights need `quick_gelu`, SigLIP's `gelu_tanh`."""

    class_token: bool = True
    """Prepend a learned token (CLIP)."""

    pool: Literal["class", "mean", "attention"] = "class"
    """What becomes the vector: the class token, the mean of the patches, or a probe (SigLIP)."""

    pre_norm: bool = True
    """Normalise once before the first block (CLIP's `ln_pre`)."""

    patch_bias: bool = False
    """Bias of the patch projection (SigLIP has one, CLIP none)."""

    norm_epsilon: float = Field(default=1e-5, ge=0)
    """Added to the variance in every norm; SigLIP uses 1e-6."""

    keep_patches: float = 1.0
    """Share of patches kept in training, in (0, 1]. FLIP (arXiv:2212.00794) uses 0.5.
    Evaluation always sees every patch."""

    frozen: bool = False
    """Hold the weights fixed. With pretrained weights this is LiT (arXiv:2111.07991)."""

    @property
    def vector_width(self) -> int:
        """Numbers of the vector."""
        return self.width

    @property
    def batch_norm(self) -> bool:
        """Whether training reads statistics of the batch."""
        return False

    @property
    def side(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @model_validator(mode="after")
    def check(self) -> "ImageTowerConfig":
        """Refuse shapes that cannot be built."""
        if not self.cut_edge:
            check_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        elif self.image_size < self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} holds no patch of patch_size {self.patch_size}. "
                f"Use image_size {self.patch_size} or more."
            )
        check_heads(self.width, self.heads)
        if not 0 < self.keep_patches <= 1:
            raise ConfigError(
                f"keep_patches {self.keep_patches} is not in (0, 1]. Use 0.5 to drop half."
            )
        if self.pool == "class" and not self.class_token:
            raise ConfigError(
                'pool "class" needs class_token, which is false. Use pool="mean" or "attention".'
            )
        return self


def check_multiple(name: str, value: int, of: str, unit: int) -> None:
    """Refuse a value that is no multiple of `unit`, which `of` names."""
    if value % unit:
        below = value - value % unit
        values = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(f"{name} {value} is not a multiple of {of} {unit}. Use {name} {values}.")


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if width % heads:
        raise ConfigError(
            f"width {width} is not a multiple of heads {heads}. "
            f"Use width {width - width % heads or heads} or another number of heads."
        )


class ImageTower(nn.Module):
    """Patches, positions, blocks, one pooled vector."""

    def __init__(self, config: ImageTowerConfig, scheme: Scheme) -> None:
        super().__init__()
        self.config = config
        patches = config.side**2
        width, epsilon = config.width, config.norm_epsilon
        self.patches = PatchEmbed(config.patch_size, width, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.positions = nn.Parameter(torch.zeros(patches + config.class_token, width))
        self.pre_norm = nn.LayerNorm(width, eps=epsilon) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_width, config.activation, epsilon)
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=epsilon)
        self.pool = (
            AttentionPool(width, config.heads, config.mlp_width, config.activation, epsilon)
            if config.pool == "attention"
            else None
        )
        self._start(scheme)
        if config.frozen:
            self.requires_grad_(False)

    def _start(self, scheme: Scheme) -> None:
        """Give every weight its published start."""
        spread = self.config.width**-0.5
        nn.init.normal_(self.positions, std=spread)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=spread)
        if scheme == "siglip":
            lecun_linear(self.patches.project)
        else:
            normal_linear(self.patches.project, self.patches.project.in_features**-0.5)
        for block in self.blocks.children():
            assert isinstance(block, Block)
            init_block(block, self.config.layers, scheme)
        if self.pool is not None:
            init_pool(self.pool)

    def tokens(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The normalised tokens after the last block: class token first, then the patches."""
        if self.config.cut_edge:
            seen = self.config.side * self.config.patch_size
            image = image[:, :, :seen, :seen]
        tokens = self.patches(image)
        first = 0 if self.class_token is None else 1
        tokens = tokens + self.positions[first:]
        if self.training and self.config.keep_patches < 1:
            tokens = keep_random_patches(tokens, self.config.keep_patches)
        if self.class_token is not None:
            class_token = (self.class_token + self.positions[0]).to(tokens.dtype)
            tokens = torch.cat([class_token.expand(len(tokens), 1, -1), tokens], dim=1)
        tokens = self.pre_norm(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.final_norm(tokens)

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width"]:
        """One vector per picture, not yet projected or normalised."""
        tokens = self.tokens(image)
        if self.pool is not None:
            return self.pool(tokens)
        if self.config.pool == "class":
            return tokens[:, 0]
        return tokens[:, int(self.config.class_token) :].mean(dim=1)
