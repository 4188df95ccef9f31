"""Low-rank adapters (LoRA): a layer keeps its weights, and what is learned is a small product.

    y = W x + (alpha / rank) * B A dropout(x)        A: (rank, inputs), B: (outputs, rank), B = 0

Only A and B learn. A model with adapters is the model itself plus `lora_A` and `lora_B` beside the
weights they adapt; `merged` gives a plain model that computes the same.

Which layers of a model get adapters says `train/start.py`; how they are written and read, so that
PEFT understands them, `train/lora_files.py`.
Paper: Hu et al., LoRA, arXiv:2106.09685.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.errors import ConfigError

Target = Literal["query_key_value", "out", "up", "down", "convolution"]
"""Layers of a block: of attention (the fused query, key and value; the output), of the MLP, and of
a residual network."""


class LoraConfig(Config):
    """Adapters in the blocks of both towers."""

    rank: int = Field(default=0, ge=0)
    """Rank of what is learned, such as 8; 0 has no adapters and trains the weights themselves."""

    alpha: float = Field(default=16.0, gt=0)
    """Strength: the product is multiplied by alpha / rank."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs left out in training."""

    targets: tuple[Target, ...] = ("query_key_value", "out", "up", "down", "convolution")
    """Layers that get an adapter. All of them: with attention alone LoRA stays behind tuning every
    weight (Dettmers et al., QLoRA, arXiv:2305.14314, section 4)."""


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; it takes over the weights of the layer it stands for."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(**_shape_of(base))
        self.weight, self.bias = base.weight, base.bias
        self.alpha, self.dropout = alpha, dropout
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, input: Float[Tensor, "*any inputs"]) -> Float[Tensor, "*any outputs"]:
        """The layer, and what was learned beside it."""
        dropped = F.dropout(input, self.dropout, self.training)
        learned = F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        return super().forward(input) + learned * (self.alpha / len(self.lora_A))


class LoraConvolution(nn.Conv2d):
    """The same for a convolution: A has `rank` channels, B mixes them place by place."""

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(**_shape_of(base))
        self.weight, self.bias = base.weight, base.bias
        self.alpha, self.dropout = alpha, dropout
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, *base.weight.shape[1:]))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_channels, rank, 1, 1))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(
        self, input: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """The layer, and what was learned beside it."""
        dropped = F.dropout(input, self.dropout, self.training)
        learned = F.conv2d(dropped, self.lora_A, None, self.stride, self.padding)
        learned = F.conv2d(learned, self.lora_B)
        return super().forward(input) + learned * (self.alpha / len(self.lora_A))


AnyModule = TypeVar("AnyModule", bound=nn.Module)

Adapted = LoraLinear | LoraConvolution
"""A layer with an adapter."""


def add_adapters(
    model: nn.Module, names: Iterable[str], *, rank: int, alpha: float, dropout: float = 0.0
) -> None:
    """Hold every weight of the model fixed and give these layers adapters, in place.

    Args:
        model: Changed; it computes the same as before until the adapters learn.
        names: Dotted names of linear layers and convolutions in the model.
        rank: Of each product; 1 or more.
        alpha: The product is multiplied by alpha / rank.
        dropout: Share of an adapter's inputs left out in training.

    Raises:
        ConfigError: A name is no layer that can have an adapter.
    """
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    for name in names:
        base = modules.get(name)
        adapted: Adapted
        if isinstance(base, nn.Linear):
            adapted = LoraLinear(base, rank, alpha, dropout)
        elif isinstance(base, nn.Conv2d) and base.groups == 1 and base.dilation == (1, 1):
            adapted = LoraConvolution(base, rank, alpha, dropout)
        else:
            kind = "not there" if base is None else f"a {type(base).__name__}"
            raise ConfigError(
                f"{name} is {kind}, and adapters are for linear layers and plain convolutions. "
                "Name such a layer."
            )
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, adapted.train(base.training))


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The layers with an adapter, by their dotted names."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLinear | LoraConvolution)
    }


def is_adapter(name: str) -> bool:
    """Whether a name of a model's tensors is that of an adapter's."""
    return name.endswith((".lora_A", ".lora_B"))


@torch.no_grad()
def learned_change(layer: Adapted) -> Tensor:
    """What an adapter adds to the weight of its layer, in the shape of the weight."""
    product = layer.lora_B.flatten(1) @ layer.lora_A.flatten(1)
    return (product * (layer.alpha / len(layer.lora_A))).view(layer.weight.shape)


def merged(model: AnyModule) -> AnyModule:
    """A copy of the model without adapters that computes the same."""
    plain = copy.deepcopy(model)
    modules = dict(plain.named_modules())
    for name, layer in adapted_layers(plain).items():
        kind = nn.Linear if isinstance(layer, LoraLinear) else nn.Conv2d
        bare = kind(**_shape_of(layer))
        bare.weight = nn.Parameter(layer.weight + learned_change(layer), requires_grad=False)
        bare.bias = layer.bias
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, bare.train(layer.training))
    return plain


def _shape_of(layer: nn.Linear | nn.Conv2d) -> dict[str, Any]:
    """What makes a layer of the same shape, without memory for its weights."""
    common = {"bias": layer.bias is not None, "device": "meta"}
    if isinstance(layer, nn.Linear):
        return common | {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return common | {name: getattr(layer, name) for name in names}
