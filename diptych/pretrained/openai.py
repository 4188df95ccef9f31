"""OpenAI's archives of CLIP: one file of float16 tensors, whose shapes say everything.

They are TorchScript archives, or the same tensors saved as a state dict; the names are open_clip's.
Activation (the quick GELU), preprocessing and vocabulary are the same for all of them.
Paper: Radford et al., CLIP, arXiv:2103.00020.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.errors import CheckpointError
from diptych.pretrained.clip_vocabulary import clip_tokenizer
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.open_clip import FACTS, foreign, plain_names
from diptych.pretrained.open_clip_config import PREPROCESS
from diptych.pretrained.weights import read_weights

HEAD_WIDTH = 64
"""Numbers per attention head in every tower."""


def is_openai(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one of OpenAI's archives: they count themselves."""
    return all(name in tensors for name in (*FACTS, "visual.conv1.weight"))


def read_openai(
    path: Path, *, tensors: dict[str, Tensor] | None = None, image_size: int | None = None
) -> Foreign:
    """An archive, or a state dict of one.

    Args:
        path: The file.
        tensors: What `read_weights` gives for it, if that is known; it is emptied on the way.
        image_size: In pixels, if not the model's own: positions are resized as open_clip does.

    Raises:
        CheckpointError: It is damaged, or holds another model.
    """
    loaded = read_weights(path) if tensors is None else tensors
    named = plain_names(loaded, str(path))
    try:
        model: dict[str, Any] = {"quick_gelu": True, **_shapes(named)}
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no archive of OpenAI's CLIP: its tensors describe no model ({error}). "
            "Name its architecture, or use the original file."
        ) from error
    tokenizer = clip_tokenizer("open_clip", model["text_cfg"]["context_length"])
    return foreign(
        model,
        PREPROCESS,
        named,
        tokenizer,
        where=str(path),
        image_size=image_size,
        made_by="openai",
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """open_clip's configuration of the model, read off its shapes as in OpenAI's code."""
    width, embed = tensors["text_projection"].shape
    text = {
        "context_length": len(tensors["positional_embedding"]),
        "vocab_size": len(tensors["token_embedding.weight"]),
        "width": width,
        "heads": width // HEAD_WIDTH,
        "layers": _count(tensors, "transformer.resblocks.", 2),
    }
    vision = _vit(tensors) if "visual.proj" in tensors else _resnet(tensors)
    return {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}


def _vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`vision_cfg` of a vision transformer."""
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    side = isqrt(len(tensors["visual.positional_embedding"]) - 1)
    return {
        "image_size": side * patch,
        "layers": _count(tensors, "visual.transformer.resblocks.", 3),
        "width": width,
        "patch_size": patch,
    }


def _resnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`vision_cfg` of a residual network; its last grid is a thirty-second of the picture."""
    side = isqrt(len(tensors["visual.attnpool.positional_embedding"]) - 1)
    return {
        "image_size": 32 * side,
        "layers": [_count(tensors, f"visual.layer{stage}.", 2) for stage in (1, 2, 3, 4)],
        "width": len(tensors["visual.layer1.0.conv1.weight"]),
        "patch_size": None,
    }


def _count(tensors: Mapping[str, Tensor], begin: str, place: int) -> int:
    """Numbered parts under a name: how many different words stand at `place` of its dotted names.

    Raises:
        ValueError: There are none.
    """
    parts = {name.split(".")[place] for name in tensors if name.startswith(begin)}
    if not parts:
        raise ValueError(f"nothing begins with {begin}")
    return len(parts)
