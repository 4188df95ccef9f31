"""Folders of the transformers library with a CLIP or a SigLIP, read and written.

    config.json                 shapes; `model_type` "clip" or "siglip"
    model.safetensors           weights, also in several files, or as pytorch_model.bin
    preprocessor_config.json    what happens to pictures, also inside processor_config.json
    tokenizer.json and others   what happens to texts

MetaCLIP and DFN are CLIP with another `hidden_act`; SigLIP 2 of fixed resolution is SigLIP. What a
file does not say is completed as transformers does. Shapes are in `transformers_config.py`, names
of tensors in `transformers_names.py`, pictures in `transformers_pixels.py`, texts in
`tokenizers_of.py`; `open_clip.py` is the sibling for the other library.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diptych.checkpoint import Bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError
from diptych.files import read_json, refused
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.layouts import TRANSFORMERS
from diptych.pretrained.positions import resize_positions
from diptych.pretrained.tokenizers_of import (
    lower_cased,
    tokenizer_class,
    transformers_tokenizer,
)
from diptych.pretrained.transformers_config import (
    LEGACY_END,
    family_of,
    read_config,
    section,
    write_config,
)
from diptych.pretrained.transformers_names import HARMLESS, TOKENS, Family, to_ours, to_theirs
from diptych.pretrained.transformers_pixels import read_pixels, write_pixels
from diptych.pretrained.transformers_words import write_words
from diptych.pretrained.weights import read_weights

LOWER_CASED = (
    "SigLIP 2 was trained on lower-cased text, which transformers' GemmaTokenizer does not do: "
    "texts are lower-cased here"
)


def is_transformers(folder: Path) -> bool:
    """Whether this is a model folder of transformers, of whatever kind.

    Raises:
        CheckpointError: It has a config.json that cannot be read.
    """
    path = folder / TRANSFORMERS.mark
    return path.is_file() and "model_type" in _read_json(path)


def read_transformers(folder: Path, *, image_size: int | None = None) -> Foreign:
    """A CLIP or SigLIP with its tokenizer and its way with pictures.

    Args:
        folder: What `save_pretrained` wrote.
        image_size: Another side of the pictures, in pixels; positions are resized as transformers
            does under `interpolate_pos_encoding`. None keeps the model's own.

    Raises:
        CheckpointError: A file is missing or damaged, the parts do not fit each other, or the model
            is of a kind that Diptych does not have.
        ConfigError: `image_size` is no multiple of the patch.
    """
    path = folder / "config.json"
    stated = _read_json(path)
    family = family_of(stated, path)
    context = section(stated, family, "text_config")["max_position_embeddings"]
    transform, pixel_notes = _read_pixels(folder, family)
    tokenizer, word_notes = _read_words(folder, family, context)
    config = read_config(stated, family, tokenizer, path)
    notes = [*pixel_notes, *word_notes]
    if image_size is None and transform.image_size != config.image.image_size:
        raise CheckpointError(
            f"{folder} makes pictures of {transform.image_size} pixels for a model that takes "
            f"{config.image.image_size}. Use image_size={transform.image_size} to resize the "
            "model's positions."
        )
    path = _weights_path(folder)
    weights = read_weights(path)
    dropped = [name for name in HARMLESS if weights.pop(name, None) is not None]
    notes += [f"{name} is left out: a list of numbers that needs no file" for name in dropped]
    tensors = to_ours(weights, config, family, path)
    if image_size is not None:
        config, transform = _resized(config, transform, tensors, image_size)
    return Foreign(config, tensors, tokenizer, transform, "transformers", tuple(notes))


def write_transformers(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write a folder that transformers loads; gives what is not the same there.

    CLIPModel takes the token with id 2 for an old mistake where it ends a text. A model whose end
    token has that id is written with this id and its last one exchanged; its vectors stay the same.

    Args:
        bundle: The model.
        folder: An existing folder.

    Raises:
        RequestError: transformers' CLIP and SigLIP cannot hold the model; says why.
        StorageError: The disk refused.
    """
    stated, family = write_config(bundle.model.config)
    pixels, pixel_notes = write_pixels(bundle.transform, family)
    end, last = bundle.tokenizer.end_token, bundle.tokenizer.vocabulary - 1
    exchanged = (end, last) if family == "clip" and end == LEGACY_END else None
    words, word_notes = write_words(bundle.tokenizer, family, exchanged)
    tensors = to_theirs(bundle.model, family)
    if exchanged is not None:
        _exchange(stated["text_config"], tensors, end, last)
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name, values in (("config.json", stated), ("preprocessor_config.json", pixels)):
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for name, content in words.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
    except (SafetensorError, OSError) as error:
        raise refused(folder, error) from error
    return (*pixel_notes, *word_notes)


def _exchange(settings: dict[str, Any], tensors: dict[str, Tensor], one: int, other: int) -> None:
    """Let two token ids of `text_config` and of the table of token vectors change places."""
    new = {one: other, other: one}
    for name in ("eos_token_id", "pad_token_id"):
        settings[name] = new.get(settings[name], settings[name])
    table = tensors[TOKENS].clone()
    table[[one, other]] = table[[other, one]]
    tensors[TOKENS] = table


def _read_words(folder: Path, family: Family, context: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer, and what is not as transformers has it.

    SigLIP 2 is published as a SigLIP with GemmaTokenizer, which keeps upper case; the model was
    trained without (Tschannen et al., arXiv:2502.14786; transformers#43101).

    Raises:
        CheckpointError: It is missing, damaged, or of a kind that is not read.
    """
    tokenizer = transformers_tokenizer(folder, context=context)
    if family == "siglip" and tokenizer_class(folder) == "GemmaTokenizer":
        return lower_cased(tokenizer), [LOWER_CASED]
    return tokenizer, []


def _read_pixels(folder: Path, family: Family) -> tuple[ImageTransformConfig, list[str]]:
    """What happens to pictures, and what was completed.

    Raises:
        CheckpointError: No file says it, or it cannot be done.
    """
    path = folder / "processor_config.json"
    stated = _read_json(path).get("image_processor") if path.is_file() else None
    if stated is None:
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no preprocessor_config.json, so how to prepare pictures is unknown. "
                "Fetch the file from where the weights came from."
            )
        stated = _read_json(path)
    elif not isinstance(stated, dict):
        raise CheckpointError(
            f"{path} has image_processor={stated!r}, and a table belongs there. Copy the file "
            "again."
        )
    return read_pixels(stated, family, path)


def _weights_path(folder: Path) -> Path:
    """The file with the weights, or with the list of files that have them.

    Raises:
        CheckpointError: There is none.
    """
    for name in TRANSFORMERS.weights:  # in the order of transformers
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has no weights. Fetch model.safetensors from where config.json came from."
    )


def _resized(
    config: DualEncoderConfig,
    transform: ImageTransformConfig,
    tensors: dict[str, Tensor],
    image_size: int,
) -> tuple[DualEncoderConfig, ImageTransformConfig]:
    """Both configs for pictures of another size; the positions in `tensors` are replaced."""
    assert isinstance(config.image, ImageTowerConfig)
    cut = image_size % config.image.patch_size != 0
    image = {**config.image.model_dump(), "image_size": image_size, "cut_edge": cut}
    resized = DualEncoderConfig(**{**config.model_dump(), "image": image})
    table, grid = tensors["image.positions"], image_size // config.image.patch_size
    tensors["image.positions"] = resize_positions(table, grid, method="transformers")
    return resized, ImageTransformConfig(**{**transform.model_dump(), "image_size": image_size})


def _read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {path}. Copy the whole folder again.")
    try:
        return read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the file again.") from error
