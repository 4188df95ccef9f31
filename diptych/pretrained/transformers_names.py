"""Which tensors of `DualEncoder` hold what in transformers' CLIPModel and SiglipModel, both ways.

Both libraries keep a linear layer as (out, in) and a patch projection by colour, row and column, so
nothing is transposed. Queries, keys and values are one matrix here and three there, but in SigLIP's
pooling head they are two here and one there.

`transformers.py` reads and writes the files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diptych.errors import CheckpointError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.nn.shapes import shapes_only

Family = Literal["clip", "siglip"]

HARMLESS = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)
"""Buffers of older versions of transformers: the numbers 0, 1, 2, ..."""

TOKENS = "text_model.embeddings.token_embedding.weight"
"""The table of token vectors."""

LINEAR_OR_NORM = ("weight", "bias")

IN_BLOCK = {
    "attention_norm": ("layer_norm1",),
    "attention.query_key_value": tuple(f"self_attn.{part}_proj" for part in "qkv"),
    "attention.out": ("self_attn.out_proj",),
    "mlp_norm": ("layer_norm2",),
    "mlp.up": ("mlp.fc1",),
    "mlp.down": ("mlp.fc2",),
}
"""Ours to theirs, each with weight and bias."""


@dataclass(frozen=True)
class Match:
    """Tensors of ours and of theirs that hold the same rows, in this order."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shape: tuple[int, ...] | None = None
    """Of each of theirs, where it is not (their share of the rows, columns as ours)."""


def matches(config: DualEncoderConfig, family: Family) -> Iterator[Match]:
    """All tensors of a model."""
    image = config.image
    assert isinstance(image, ImageTowerConfig)
    seen = "vision_model."
    squares = (image.width, 3, image.patch_size, image.patch_size)
    yield Match(
        ("image.patches.project.weight",), (f"{seen}embeddings.patch_embedding.weight",), squares
    )
    yield Match(("image.positions",), (f"{seen}embeddings.position_embedding.weight",))
    yield from _blocks("image", seen, image.layers)
    yield from _layer("image.final_norm", f"{seen}post_layernorm")
    yield from _blocks("text", "text_model.", config.text.layers)
    yield Match(("text.tokens.weight",), (TOKENS,))
    yield Match(("text.positions",), ("text_model.embeddings.position_embedding.weight",))
    yield from _layer("text.final_norm", "text_model.final_layer_norm")
    yield from _clip_only() if family == "clip" else _siglip_only()


def _clip_only() -> Iterator[Match]:
    """What SigLIP has not, or elsewhere."""
    yield Match(("image.class_token",), ("vision_model.embeddings.class_embedding",))
    yield from _layer("image.pre_norm", "vision_model.pre_layrnorm")  # their spelling
    yield Match(("image_projection.weight",), ("visual_projection.weight",))
    yield Match(("text_projection.weight",), ("text_projection.weight",))
    yield Match(("log_scale",), ("logit_scale",), ())


def _siglip_only() -> Iterator[Match]:
    """What CLIP has not, or elsewhere."""
    yield Match(("image.patches.project.bias",), ("vision_model.embeddings.patch_embedding.bias",))
    pool, head = "image.pool.", "vision_model.head."
    yield Match((f"{pool}probe",), (f"{head}probe",))
    for end in LINEAR_OR_NORM:
        parts = (f"{pool}attention.query.{end}", f"{pool}attention.key_value.{end}")
        yield Match(parts, (f"{head}attention.in_proj_{end}",))
    yield from _layer(f"{pool}attention.out", f"{head}attention.out_proj")
    yield from _layer(f"{pool}mlp_norm", f"{head}layernorm")
    yield from _layer(f"{pool}mlp.up", f"{head}mlp.fc1")
    yield from _layer(f"{pool}mlp.down", f"{head}mlp.fc2")
    yield from _layer("text_projection", "text_model.head")
    yield Match(("log_scale",), ("logit_scale",), (1,))
    yield Match(("bias",), ("logit_bias",), (1,))


def _blocks(tower: str, theirs: str, layers: int) -> Iterator[Match]:
    """All transformer blocks of one tower."""
    for layer in range(layers):
        for ours, parts in IN_BLOCK.items():
            names = (f"{theirs}encoder.layers.{layer}.{part}" for part in parts)
            yield from _layer(f"{tower}.blocks.{layer}.{ours}", *names)


def _layer(ours: str, *theirs: str) -> Iterator[Match]:
    """Weight and bias of one layer."""
    for end in LINEAR_OR_NORM:
        yield Match((f"{ours}.{end}",), tuple(f"{name}.{end}" for name in theirs))


def to_ours(
    weights: dict[str, Tensor], config: DualEncoderConfig, family: Family, path: Path
) -> dict[str, Tensor]:
    """Their tensors under our names; `weights` is emptied on the way, so memory holds one model.

    Raises:
        CheckpointError: One is missing, too many or of another shape; it has their name.
    """
    shapes = _shapes(config)
    ours: dict[str, Tensor] = {}
    for match in matches(config, family):
        shape = _their_shape(match, shapes)
        parts = [_take(weights, name, shape, path) for name in match.theirs]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(match.ours) == 1:
            ours[match.ours[0]] = rows.reshape(shapes[match.ours[0]])
            continue
        pieces = rows.split([shapes[name][0] for name in match.ours])
        ours |= {name: piece.clone() for name, piece in zip(match.ours, pieces, strict=True)}
    if weights:
        name = next(iter(weights))
        raise CheckpointError(
            f"{path} does not fit config.json: the model has no {name} "
            f"{list(weights[name].shape)}. Use the config.json that was saved with the weights."
        )
    return ours


def to_theirs(model: DualEncoder, family: Family) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes."""
    ours, shapes = model.state_dict(), _shapes(model.config)
    theirs: dict[str, Tensor] = {}
    for match in matches(model.config, family):
        shape = _their_shape(match, shapes)
        parts = [ours[name].detach().cpu() for name in match.ours]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        pieces = [rows] if len(match.theirs) == 1 else rows.chunk(len(match.theirs))
        theirs |= {
            name: piece.reshape(shape) for name, piece in zip(match.theirs, pieces, strict=True)
        }
    return theirs


def _take(weights: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """One of their tensors, taken out, as float32.

    Raises:
        CheckpointError: It is missing, of another shape, or no floats.
    """
    if name not in weights:
        raise CheckpointError(
            f"{path} does not fit config.json: {name} {list(shape)} is missing. "
            "Copy the whole folder again."
        )
    tensor = weights.pop(name)
    one_number = tensor.numel() == 1 and shape in ((), (1,))
    if tuple(tensor.shape) != shape and not one_number:
        raise CheckpointError(
            f"{path} does not fit config.json: {name} has shape {list(tensor.shape)}, and the "
            f"model wants {list(shape)}. Use the config.json that was saved with the weights."
        )
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{path} holds {name} as {tensor.dtype}, and the model wants floats. "
            "Use weights that are not quantised."
        )
    return tensor.float()


def _shapes(config: DualEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our tensors."""
    with shapes_only():
        model = DualEncoder(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _their_shape(match: Match, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of each of their tensors in a match."""
    if match.shape is not None:
        return match.shape
    rows = sum(shapes[name][0] for name in match.ours)
    return (rows // len(match.theirs), *shapes[match.ours[0]][1:])
