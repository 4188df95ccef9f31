"""Folders of open_clip: `open_clip_config.json`, weights and, unless it is OpenAI's, the tokenizer.

What the configuration means is in `open_clip_config.py`, the names of tensors in
`open_clip_names.py`; `open_clip_writer.py` is the way back. Bare weights without a configuration
are in `architectures.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.files import read_json
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.timm_tower import TimmTower, TimmTowerConfig, trunk_size
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.layouts import OPEN_CLIP, open_clip_weights
from diptych.pretrained.open_clip_config import check_kinds, read_model, read_transform
from diptych.pretrained.open_clip_names import places, to_ours
from diptych.pretrained.open_clip_writer import write_open_clip
from diptych.pretrained.positions import resize_positions, resize_text_positions
from diptych.pretrained.tokenizers_of import open_clip_tokenizer
from diptych.pretrained.weights import read_weights

__all__ = ["foreign", "plain_names", "read_open_clip", "write_open_clip"]

TABLE = "state_dict."
"""Before the names of the weights in a training checkpoint."""

WRAPPERS = (TABLE, "module.", "_orig_mod.", "model.")
"""What training checkpoints, DDP, torch.compile and Lightning write before every name."""

FACTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors."""

TEXT_NAMES = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_proj")
"""How the tensors of the text tower begin."""


def read_open_clip(folder: Path, *, image_size: int | None = None) -> Foreign:
    """A folder, as open_clip's `local-dir:` reads it.

    Args:
        folder: With the configuration.
        image_size: In pixels, if not the model's own: positions are resized as open_clip does with
            `force_image_size`.

    Raises:
        CheckpointError: A file is missing or damaged, tensors do not fit the configuration, or the
            model has a part that ours does not have.
    """
    path = folder / OPEN_CLIP.mark
    try:
        written = read_json(path)
        model, preprocess = written["model_cfg"], written.get("preprocess_cfg") or {}
        check_kinds(model)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is no configuration of open_clip: it has no {error}. Copy the folder again."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no configuration of open_clip: {error}. Copy the folder again."
        ) from error
    tokenizer = open_clip_tokenizer(folder, model["text_cfg"])
    weights = find_weights(folder)
    return foreign(
        model,
        preprocess,
        read_weights(weights),
        tokenizer,
        where=str(weights),
        image_size=image_size,
    )


def find_weights(folder: Path) -> Path:
    """The file of weights that open_clip would take.

    Raises:
        CheckpointError: There is none.
    """
    name = open_clip_weights(path.name for path in folder.iterdir() if path.is_file())
    if name is None:
        raise CheckpointError(
            f"{folder} has no weights: neither {OPEN_CLIP.weights[0]} nor another of open_clip's "
            "names. Copy the whole folder again."
        )
    return folder / name


def foreign(
    model: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    loaded: dict[str, Tensor],
    tokenizer: Tokenizer,
    *,
    where: str,
    image_size: int | None = None,
    made_by: str = "open_clip",
    notes: tuple[str, ...] = (),
) -> Foreign:
    """A model out of open_clip's configuration and its tensors.

    Args:
        model: `model_cfg`.
        preprocess: `preprocess_cfg`.
        loaded: What its file of weights holds; it is emptied on the way.
        tokenizer: Of the same model.
        where: What the tensors came from, for messages.
        image_size: In pixels, if not the model's own.
        made_by: The library that made the file.
        notes: What was completed so far.

    Raises:
        CheckpointError: They do not fit each other, or the model has a part that ours has not.
        ConfigError: `image_size` does not fit the model.
    """
    try:
        config = read_model(model, tokenizer)
        transform, filled = read_transform(preprocess, config.image.image_size)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where} comes with a configuration that describes no model ({error}). "
            "Copy the folder again."
        ) from error
    wanted = config
    if image_size is not None:
        wanted = _with_image_size(config, image_size)
        transform = ImageTransformConfig(**{**transform.model_dump(), "image_size": image_size})
    tensors = plain_names(loaded, where)
    if config.objective == "sigmoid" and "logit_bias" not in tensors:
        tensors["logit_bias"] = torch.zeros(())
        notes = (*notes, f"{where} has no logit_bias: 0, as in open_clip")
    _fit_text_positions(tensors, config)
    if isinstance(wanted.image, TimmTowerConfig):
        ours = to_ours(tensors, places(config), where)
        if wanted != config:
            _resize_trunk(ours, config, wanted.image.image_size)
    else:
        _fit_positions(tensors, wanted)
        ours = to_ours(tensors, places(wanted), where)
    return Foreign(wanted, ours, tokenizer, transform, made_by, (*notes, *filled))


def plain_names(loaded: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a file with the names of open_clip's CLIP class, whatever wraps them.

    Reads what DDP, torch.compile and Lightning wrote, a training checkpoint's table `state_dict`
    (the rest of it is dropped), and CustomTextCLIP, which has the text tower under `text.`.

    Args:
        loaded: What the file holds; its names are changed in place.
        where: The file, for messages.

    Raises:
        CheckpointError: Two tensors would get one name.
    """
    if any(name.startswith(TABLE) for name in loaded):
        for name in [name for name in loaded if not name.startswith(TABLE)]:
            del loaded[name]
    wrapper = _wrapper(loaded)
    while wrapper:
        for name in list(loaded):
            loaded[name.removeprefix(wrapper)] = loaded.pop(name)
        wrapper = _wrapper(loaded)
    for name in FACTS:
        loaded.pop(name, None)
    inner = tuple(f"text.{name}" for name in TEXT_NAMES)
    for name in list(loaded):
        if name.startswith(inner):
            plain = name.removeprefix("text.")
            if plain in loaded:
                raise CheckpointError(
                    f"{where} has the tensors {plain} and {name}, and a model has one of them. "
                    "Use the file that open_clip wrote, or take one out."
                )
            loaded[plain] = loaded.pop(name)
    return loaded


def _wrapper(loaded: dict[str, Tensor]) -> str | None:
    """What stands before every name, and is no part of it."""
    for wrapper in WRAPPERS:
        if loaded and all(name.startswith(wrapper) for name in loaded):
            return wrapper
    return None


def _with_image_size(config: DualEncoderConfig, image_size: int) -> DualEncoderConfig:
    """The same model for pictures of another size."""
    values: dict[str, Any] = {**config.image.model_dump(), "image_size": image_size}
    if isinstance(config.image, ImageTowerConfig):
        values["cut_edge"] = image_size % config.image.patch_size != 0
    return DualEncoderConfig(**{**config.model_dump(), "image": values})


def _fit_positions(tensors: dict[str, Tensor], config: DualEncoderConfig) -> None:
    """Bring the table of the image tower to the config's grid, if it has another."""
    image = config.image
    if isinstance(image, ResNetTowerConfig):
        name, grid = "visual.attnpool.positional_embedding", image.image_size // image.stride
    elif isinstance(image, ImageTowerConfig):
        name, grid = "visual.positional_embedding", image.side
        if not image.class_token:
            name = "visual.trunk.pos_embed"
    table = tensors.get(name)
    if table is None or table.ndim not in (2, 3):
        return  # what is wrong with it is said with all the others
    flat = table if table.ndim == 2 else table[0]
    resized = resize_positions(flat, grid, method="open_clip")
    tensors[name] = resized if table.ndim == 2 else resized[None]


def _fit_text_positions(tensors: dict[str, Tensor], config: DualEncoderConfig) -> None:
    """Bring the table of the text tower to the config's length, if it has another."""
    table = tensors.get("positional_embedding")
    if table is not None and table.ndim == 2 and len(table) > 0:
        tensors["positional_embedding"] = resize_text_positions(table, config.text.context)


def _resize_trunk(tensors: dict[str, Tensor], config: DualEncoderConfig, image_size: int) -> None:
    """Bring the tensors of timm's tower to another size of pictures, by timm's own means."""
    assert isinstance(config.image, TimmTowerConfig)
    tower, begin = TimmTower(config.image), "image.trunk."
    trunk: Any = tower.trunk
    if not hasattr(trunk, "set_input_size") or trunk_size(trunk) == image_size:
        return
    names = [name for name in tensors if name.startswith(begin)]
    trunk.load_state_dict(
        {name.removeprefix(begin): tensors.pop(name) for name in names}, assign=True
    )
    trunk.set_input_size(image_size)
    tensors |= {begin + name: tensor for name, tensor in trunk.state_dict().items()}
