"""The vision transformer that turns a picture into one vector.

Paper: Dosovitskiy et al., ViT, arXiv:2010.11929; CLIP's variant adds a norm before the blocks
and a bias-free patch projection (arXiv:2103.00020). `stateful_encoder.py` is the same transformer
for pictures in a row; `resnet_tower.py` and `text_tower.py` are its siblings; the projection into
the shared space is in `dual_encoder.py`.
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
from diptych.nn.state import StateConfig


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

    state: StateConfig = StateConfig()
    """What it takes from the pictures before; by default nothing. Only a `StatefulEncoder` reads
    them."""

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
        if self.state.variant != "none":
            self._check_state()
        return self

    def _check_state(self) -> None:
        """Refuse what no tower can do that reads the pictures before."""
        if self.keep_patches < 1:
            raise ConfigError(
                f"keep_patches {self.keep_patches} leaves out other patches of each picture, and "
                f"state.variant {self.state.variant!r} compares pictures. Use keep_patches=1 or "
                "state=none."
            )
        if not self.layers:
            raise ConfigError(
                f"layers is 0, and state.variant {self.state.variant!r} reads the pictures before "
                "in each layer. Use layers=1 or more, or state=none."
            )
        if self.frozen and self.state.variant != "self_ext":
            raise ConfigError(
                f"frozen is true, which also holds the weights that state.variant "
                f"{self.state.variant!r} adds, so no picture before would ever be read. "
                "Use frozen=false or state=none."
            )
        if self.state.positions == "rotary" and self.width // self.heads % 4:
            raise ConfigError(
                f'state.positions "rotary" turns pairs of numbers by row and by column, and heads '
                f"have {self.width // self.heads} numbers, no multiple of 4. "
                f"Use width {4 * self.heads} or another multiple of it."
            )


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


class VisionTransformer(nn.Module):
    """Patches, positions, blocks and a pool; what the blocks read is left to the two towers."""

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

    def embed(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens before the first block: class token first, then the patches."""
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
        return self.pre_norm(tokens)

    def pooled(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        """One vector per picture from its normalised tokens after the last block."""
        if self.pool is not None:
            return self.pool(tokens)
        if self.config.pool == "class":
            return tokens[:, 0]
        return tokens[:, int(self.config.class_token) :].mean(dim=1)


class ImageTower(VisionTransformer):
    """The vision transformer of single pictures."""

    def __init__(self, config: ImageTowerConfig, scheme: Scheme) -> None:
        if config.state.variant != "none":
            raise ConfigError(
                f"an ImageTower reads single pictures, and state.variant is "
                f"{config.state.variant!r}. Build a StatefulEncoder, or use state=none."
            )
        super().__init__(config, scheme)

    def tokens(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The normalised tokens after the last block: class token first, then the patches."""
        tokens = self.embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return self.final_norm(tokens)

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width"]:
        """One vector per picture, not yet projected or normalised."""
        return self.pooled(self.tokens(image))
