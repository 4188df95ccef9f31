"""The residual network that turns a picture into one vector: CLIP's ModifiedResNet.

A ResNet-D (He et al., Bag of Tricks, arXiv:1812.01187) with anti-aliased strides (Zhang,
arXiv:1904.11486) and another end. Three small convolutions and an average pool begin it; every
stride of the stages, in the branch and in the shortcut, is an average pool before a convolution
without stride, so that no pixel is skipped; the last grid is pooled by attention that the mean of
the grid asks for (`nn/pool.py`). CLIP's pool ends in a projection into the shared space: that is
`DualEncoder.image_projection` here, with a bias.
Paper: Radford et al., CLIP, arXiv:2103.00020, section 2.4.

Batch norms use the statistics of the batch in training and their running statistics, which are part
of the checkpoint, in evaluation: there a vector never depends on the batch. Over several processes
`train/session.py` joins the statistics of all shares of a batch on CUDA (SyncBatchNorm). On CPU
each rank uses those of its own share, so the loss depends on the number of ranks, and the running
statistics that are kept are those of rank 0.

`image_tower.py` is its sibling, the vision transformer.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.errors import ConfigError
from diptych.models.image_tower import check_multiple
from diptych.nn.init import init_mean_query_pool
from diptych.nn.pool import MeanQueryPool

EXPANSION = 4
"""How many times more channels a bottleneck gives out than its 3x3 convolution has."""

FEW_PLACES = 16
"""Largest grid, in places, whose 3x3 convolution is one matrix product on CPU. torch's kernel takes
as long alone; with more threads than free cores it took 20 times as long (docs/decisions.md)."""


class ResNetTowerConfig(Config):
    """Shape of the residual network. Image towers grow in width, depth and resolution together
    (CLIP, arXiv:2103.00020, section 2.5)."""

    kind: Literal["resnet"] = "resnet"
    """Tells the image towers apart in a config file."""

    image_size: int = Field(default=224, ge=1)
    """Side of the square input, in pixels; a multiple of `stride`."""

    width: int = Field(default=64, ge=2)
    """Channels after the stem, and of the 3x3 convolutions of the first stage; even."""

    layers: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(3, 4, 6, 3), min_length=1
    )
    """Blocks of each stage. A stage has twice the channels of the one before on half the side.
    All published sizes have four stages."""

    heads: int = Field(default=32, ge=1)
    """Attention heads of the pool; divides `vector_width`."""

    block: Literal["bottleneck", "basic"] = "bottleneck"
    """`bottleneck`: three convolutions, four times as many channels out (CLIP). `basic`: two 3x3
    convolutions (ResNet-18 and 34, arXiv:1512.03385), which train faster in small towers."""

    stem_pool: bool = True
    """Halve the side after the stem, as published. Pictures of 64 pixels keep more without."""

    pool: Literal["attention", "mean"] = "attention"
    """What becomes the vector: what the mean of the grid gathers (CLIP), or the mean itself."""

    frozen: bool = False
    """Hold the weights and the running statistics fixed, as in LiT (arXiv:2111.07991)."""

    @property
    def stride(self) -> int:
        """Pixels of the picture per step of the last grid; 32 in the published sizes."""
        return int(2 * (1 + self.stem_pool) * 2 ** (len(self.layers) - 1))

    @property
    def vector_width(self) -> int:
        """Numbers of the vector: the channels of the last stage, 32 `width` as published."""
        return outputs_of(self.block, self.width * 2 ** (len(self.layers) - 1))

    @property
    def batch_norm(self) -> bool:
        """Whether training reads statistics of the batch."""
        return True

    @model_validator(mode="after")
    def check(self) -> "ResNetTowerConfig":
        """Refuse shapes that cannot be built."""
        check_multiple("image_size", self.image_size, "the tower's stride", self.stride)
        check_multiple("width", self.width, "the stem's", 2)
        if self.pool == "attention" and self.vector_width % self.heads:
            raise ConfigError(
                f"heads {self.heads} do not divide the {self.vector_width} numbers of the vector. "
                f"Use heads {math.gcd(self.vector_width, 64)}."
            )
        return self


def outputs_of(block: str, channels: int) -> int:
    """Channels that a block gives out whose 3x3 convolutions have so many."""
    return EXPANSION * channels if block == "bottleneck" else channels


class ConvolutionNorm(nn.Module):
    """A convolution without bias, and the batch norm that brings one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(
        self, grid: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """A grid of the same side, or of half of it with stride 2."""
        layer = self.convolution
        plain = type(layer) is nn.Conv2d  # one with an adapter does more (nn/lora.py)
        few = grid.shape[2] * grid.shape[3] <= FEW_PLACES and grid.device.type == "cpu"
        if plain and few and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
            return self.norm(convolve_few(grid, layer.weight))
        return self.norm(layer(grid))


def convolve_few(
    grid: Float[Tensor, "batch inputs rows columns"],
    weight: Float[Tensor, "outputs inputs 3 3"],
) -> Float[Tensor, "batch outputs rows columns"]:
    """A 3x3 convolution with zeros around the grid: nine shifted copies, one matrix product."""
    rows, columns = grid.shape[2:]
    padded = F.pad(grid.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (batch, ..., inputs)
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # (outputs, 9 * inputs)
    return F.linear(torch.cat(shifted, dim=3), matrix).permute(0, 3, 1, 2)


class Bottleneck(nn.Module):
    """Fewer channels, a 3x3 convolution over them, many channels; added to the shortcut.

        branch = relu(reduce(x)); branch = relu(mix(branch)); branch = expand(average(branch))
        return relu(branch + shortcut(x)), shortcut(x) = match(average(x)) or x itself

    The norm of `expand` starts with gain zero, so a block starts as its shortcut.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.reduce = ConvolutionNorm(inputs, channels, 1)
        self.mix = ConvolutionNorm(channels, channels, 3)
        self.average = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.expand = ConvolutionNorm(channels, outputs, 1)
        self.match = ConvolutionNorm(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.expand.norm.weight)

    def forward(
        self, grid: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """A grid of the same side, or of half of it with stride 2."""
        branch = F.relu(self.reduce(grid), inplace=True)
        branch = F.relu(self.mix(branch), inplace=True)
        branch = self.expand(self.average(branch))
        return F.relu(branch + self.match(self.average(grid)), inplace=True)


class Basic(nn.Module):
    """Two 3x3 convolutions, added to the shortcut.

        x = average(x); branch = relu(first(x)); branch = second(branch)
        return relu(branch + shortcut(x)), shortcut(x) = match(x) or x itself

    The norm of `second` starts with gain zero, so a block starts as its shortcut.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.first = ConvolutionNorm(inputs, channels, 3)
        self.second = ConvolutionNorm(channels, channels, 3)
        self.match = ConvolutionNorm(inputs, channels, 1) if inputs != channels else nn.Identity()
        nn.init.zeros_(self.second.norm.weight)

    def forward(
        self, grid: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """A grid of the same side, or of half of it with stride 2."""
        grid = self.average(grid)
        branch = self.second(F.relu(self.first(grid), inplace=True))
        return F.relu(branch + self.match(grid), inplace=True)


class ResNetTower(nn.Module):
    """Stem, stages, one pooled vector."""

    def __init__(self, config: ResNetTowerConfig) -> None:
        super().__init__()
        self.config = config
        half = config.width // 2
        self.stem = nn.ModuleList(
            [
                ConvolutionNorm(3, half, 3, stride=2),
                ConvolutionNorm(half, half, 3),
                ConvolutionNorm(half, config.width, 3),
            ]
        )
        self.stem_pool = nn.AvgPool2d(2) if config.stem_pool else nn.Identity()
        self.stages = nn.ModuleList()
        block = Bottleneck if config.block == "bottleneck" else Basic
        inputs = config.width
        for number, layers in enumerate(config.layers):
            channels = config.width * 2**number
            outputs = outputs_of(config.block, channels)
            first = block(inputs, channels, stride=1 if number == 0 else 2)
            others = (block(outputs, channels, stride=1) for _ in range(layers - 1))
            self.stages.append(nn.Sequential(first, *others))
            inputs = outputs
        self.pool: MeanQueryPool | None = None
        if config.pool == "attention":
            tokens = (config.image_size // config.stride) ** 2
            self.pool = MeanQueryPool(config.vector_width, config.heads, tokens)
            init_mean_query_pool(self.pool)
        if config.frozen:
            self.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> "ResNetTower":
        """As every module, but a frozen tower stays in evaluation: its statistics are fixed too."""
        return super().train(mode and not self.config.frozen)

    def grid(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The last stage's output.

        The picture goes in with its colours side by side in memory (channels_last), and so stays
        every grid after it: convolutions are faster so (docs/decisions.md).
        """
        grid = image.contiguous(memory_format=torch.channels_last)
        for layer in self.stem:
            grid = F.relu(layer(grid), inplace=True)
        grid = self.stem_pool(grid)
        for stage in self.stages:
            grid = stage(grid)
        return grid

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width"]:
        """One vector per picture, not yet projected or normalised."""
        tokens = self.grid(image).flatten(2).transpose(1, 2)  # (batch, rows * columns, channels)
        return tokens.mean(dim=1) if self.pool is None else self.pool(tokens)
