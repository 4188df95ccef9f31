"""open_clip's names and layouts of tensors against ours, both ways.

One list of places serves the reader and the writer (`open_clip.py`), the archives of OpenAI, which
have the same names (`openai.py`), and bare state dicts (`architectures.py`). Towers for pictures
that open_clip takes from timm, SigLIP's among them, have timm's names under `visual.trunk.`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diptych.errors import CheckpointError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.timm_tower import TimmTowerConfig
from diptych.nn.shapes import shapes_only

BLOCK = {
    "attention_norm.": "ln_1.",
    "attention.query_key_value.weight": "attn.in_proj_weight",
    "attention.query_key_value.bias": "attn.in_proj_bias",
    "attention.out.": "attn.out_proj.",
    "mlp_norm.": "ln_2.",
    "mlp.up.": "mlp.c_fc.",
    "mlp.down.": "mlp.c_proj.",
}
TEXT = {
    "text.tokens.": "token_embedding.",
    "text.positions": "positional_embedding",
    "text.blocks.": "transformer.resblocks.",
    "text.final_norm.": "ln_final.",
    "text_projection.": "text_projection.",
    "log_scale": "logit_scale",
    "bias": "logit_bias",
}
VIT = {
    "image.class_token": "visual.class_embedding",
    "image.positions": "visual.positional_embedding",
    "image.patches.project.": "visual.conv1.",
    "image.pre_norm.": "visual.ln_pre.",
    "image.blocks.": "visual.transformer.resblocks.",
    "image.final_norm.": "visual.ln_post.",
    "image_projection.weight": "visual.proj",
}
RESNET = {
    **{f"image.stem.{n}.convolution.": f"visual.conv{n + 1}." for n in range(3)},
    **{f"image.stem.{n}.norm.": f"visual.bn{n + 1}." for n in range(3)},
    **{f"image.stages.{n}.": f"visual.layer{n + 1}." for n in range(4)},
    "image.pool.positions": "visual.attnpool.positional_embedding",
    "image.pool.query.": "visual.attnpool.q_proj.",
    "image.pool.key_value.": "visual.attnpool.kv_proj.",
    "image_projection.": "visual.attnpool.c_proj.",
}
BOTTLENECK = {
    "reduce.convolution.": "conv1.",
    "reduce.norm.": "bn1.",
    "mix.convolution.": "conv2.",
    "mix.norm.": "bn2.",
    "expand.convolution.": "conv3.",
    "expand.norm.": "bn3.",
    "match.convolution.": "downsample.0.",
    "match.norm.": "downsample.1.",
}
TIMM = {"image.trunk.": "visual.trunk.", "image_projection.": "visual.head.proj."}
TIMM_HIDDEN = {
    "image.trunk.": "visual.trunk.",
    "image.hidden.": "visual.head.mlp.fc1.",
    "image_projection.": "visual.head.mlp.fc2.",
}
SIGLIP = {
    "image.positions": "visual.trunk.pos_embed",
    "image.patches.project.": "visual.trunk.patch_embed.proj.",
    "image.blocks.": "visual.trunk.blocks.",
    "image.final_norm.": "visual.trunk.norm.",
    "image.pool.probe": "visual.trunk.attn_pool.latent",
    "image.pool.attention.query.": "visual.trunk.attn_pool.q.",
    "image.pool.attention.key_value.": "visual.trunk.attn_pool.kv.",
    "image.pool.attention.out.": "visual.trunk.attn_pool.proj.",
    "image.pool.mlp_norm.": "visual.trunk.attn_pool.norm.",
    "image.pool.mlp.up.": "visual.trunk.attn_pool.mlp.fc1.",
    "image.pool.mlp.down.": "visual.trunk.attn_pool.mlp.fc2.",
    "image_projection.": "visual.head.proj.",
}
TIMM_BLOCK = {
    "attention_norm.": "norm1.",
    "attention.query_key_value.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "mlp_norm.": "norm2.",
    "mlp.up.": "mlp.fc1.",
    "mlp.down.": "mlp.fc2.",
}

COUNTER = ".num_batches_tracked"
"""A batch norm's count of batches, which files from old versions of torch do not have."""


@dataclass(frozen=True)
class Place:
    """Where one of our tensors stands in a state dict of open_clip."""

    ours: str
    """Our name."""

    theirs: tuple[str, ...]
    """open_clip's name; several are joined along their first axis."""

    shape: tuple[int, ...]
    """Of each of theirs."""

    our_shape: tuple[int, ...]
    """Of ours."""

    transposed: bool = False
    """Whether rows there are columns here; without it, ours is theirs joined and reshaped."""

    whole: bool = False
    """Whether its numbers are whole, as a count of batches."""


def places(config: DualEncoderConfig) -> list[Place]:
    """Every tensor of a model, with the names of open_clip's CLIP class."""
    with shapes_only():
        tensors = DualEncoder(config).state_dict()
    return [
        replace(_place(name, tuple(tensor.shape), config), whole=not tensor.is_floating_point())
        for name, tensor in tensors.items()
    ]


def _place(ours: str, shape: tuple[int, ...], config: DualEncoderConfig) -> Place:
    """Where the tensor of this name and shape stands."""
    image = config.image
    patch: tuple[int, ...] = ()
    parts: dict[str, str] = {}
    if isinstance(image, TimmTowerConfig):
        starts = TIMM_HIDDEN if image.hidden else TIMM
    elif isinstance(image, ResNetTowerConfig):
        starts, parts = RESNET, BOTTLENECK
    else:
        starts, parts = (VIT, BLOCK) if image.class_token else (SIGLIP, TIMM_BLOCK)
        patch = (3, image.patch_size, image.patch_size)
    if not ours.startswith("image"):
        starts, parts = TEXT, BLOCK
    theirs = _renamed(ours, starts, parts)
    if theirs.startswith("visual.attnpool.kv_proj."):
        both = tuple(theirs.replace("kv_proj", part) for part in ("k_proj", "v_proj"))
        return Place(ours, both, (shape[0] // 2, *shape[1:]), shape)
    if theirs == "text_projection.weight" and not config.text_projection_bias:
        return Place(ours, ("text_projection",), shape[::-1], shape, transposed=True)
    if theirs == "visual.proj":
        return Place(ours, (theirs,), shape[::-1], shape, transposed=True)
    if ours == "image.patches.project.weight":
        return Place(ours, (theirs,), (shape[0], *patch), shape)
    if ours == "image.positions" and starts is SIGLIP:
        return Place(ours, (theirs,), (1, *shape), shape)
    return Place(ours, (theirs,), shape, shape)


def _renamed(name: str, starts: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """The name with its beginning and the part within a block replaced."""
    start = next(start for start in starts if name.startswith(start))
    rest = name[len(start) :]
    if start in ("image.blocks.", "text.blocks.") or start.startswith("image.stages."):
        for our, their in parts.items():
            rest = rest.replace(our, their)
    return starts[start] + rest


def to_ours(tensors: dict[str, Tensor], listed: list[Place], where: str) -> dict[str, Tensor]:
    """Our tensors, float32, taken out of open_clip's one by one.

    Args:
        tensors: A state dict with the names of `listed`; it is empty afterwards.
        listed: Of the model's config.
        where: What the tensors came from, for messages.

    Raises:
        CheckpointError: One is missing, too many, or of another shape or kind; it names open_clip's
            tensor.
    """
    ours = {}
    for place in listed:
        parts = [_taken(tensors, name, place, where) for name in place.theirs]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensor = tensor.T.contiguous() if place.transposed else tensor.reshape(place.our_shape)
        ours[place.ours] = tensor if place.whole else tensor.float()
    for name, tensor in tensors.items():
        raise CheckpointError(
            f"{where} has a tensor {name} {list(tensor.shape)}, which the model it describes does "
            "not have. Check that weights and configuration belong together."
        )
    return ours


def _taken(tensors: dict[str, Tensor], name: str, place: Place, where: str) -> Tensor:
    """One tensor, taken out and checked."""
    shape = place.shape
    if name not in tensors and name.endswith(COUNTER):
        return torch.zeros((), dtype=torch.int64)
    if name not in tensors:
        raise CheckpointError(
            f"{where} has no tensor {name} {list(shape)}. "
            "Check that weights and configuration belong together."
        )
    tensor = tensors.pop(name)
    if shape == () and tensor.numel() == 1:
        tensor = tensor.reshape(())
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{where} has a tensor {name} of shape {list(tensor.shape)}, and the model it "
            f"describes wants {list(shape)}. Check that weights and configuration belong together."
        )
    if tensor.is_floating_point() == place.whole:
        kinds = "whole numbers" if place.whole else "floats"
        raise CheckpointError(
            f"{where} has a tensor {name} of {tensor.dtype}, and the model it describes wants "
            f"{kinds}. Use weights that were not quantised."
        )
    return tensor


def to_theirs(tensors: Mapping[str, Tensor], listed: list[Place]) -> dict[str, Tensor]:
    """open_clip's tensors out of ours: what `to_ours` undoes."""
    theirs = {}
    for place in listed:
        tensor = tensors[place.ours].detach().cpu()
        if place.transposed:
            tensor = tensor.T.contiguous()
        if len(place.theirs) == 1:
            theirs[place.theirs[0]] = tensor.reshape(place.shape)
            continue
        for name, part in zip(place.theirs, tensor.chunk(len(place.theirs)), strict=True):
            theirs[name] = part.clone()  # a safetensors file takes no two tensors of one storage
    return theirs
