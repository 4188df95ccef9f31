"""config.json of transformers, to and from the shape of a `DualEncoder`.

`transformers.py` reads and writes the rest of the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.nn.blocks import Activation
from diptych.pretrained.kinds import missing_kind
from diptych.pretrained.transformers_names import Family

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Theirs to ours."""

TOWER = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "layer_norm_eps": "norm_epsilon",
}
"""What both towers have, theirs to ours."""

SIZE_B = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
LIKE_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
LIKE_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
DEFAULTS: dict[Family, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
            **LIKE_CLIP,
        },
        "vision_config": {
            **SIZE_B,
            **LIKE_CLIP,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 32,
        },
    },
    "siglip": {
        "text_config": {
            **SIZE_B,
            **LIKE_SIGLIP,
            "vocab_size": 32000,
            "max_position_embeddings": 64,
        },
        "vision_config": {
            **SIZE_B,
            **LIKE_SIGLIP,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 16,
            "vision_use_head": True,
        },
    },
}
"""What transformers takes where config.json is silent; it writes only what differs from these."""

SHAPES: dict[Family, dict[str, Any]] = {
    "clip": {
        "image.class_token": True,
        "image.pool": "class",
        "image.pre_norm": True,
        "image.patch_bias": False,
        "image_projection": True,
        "image_projection_bias": False,
        "text.causal": True,
        "text.pool": "end",
        "text_projection_bias": False,
    },
    "siglip": {
        "image.class_token": False,
        "image.pool": "attention",
        "image.pre_norm": False,
        "image.patch_bias": True,
        "image_projection": False,
        "image_projection_bias": False,
        "text.causal": False,
        "text.pool": "last",
        "text_projection_bias": True,
    },
}
"""Our words for what every CLIPModel and every SiglipModel has."""

LEGACY_END = 2
"""An `eos_token_id` that was written wrongly for years; transformers takes the largest id of each
text as its end where it stands."""


def family_of(stated: Mapping[str, Any], path: Path) -> Family:
    """Which of the two kinds of model.

    Raises:
        CheckpointError: Another kind.
    """
    kind = stated.get("model_type")
    if kind == "clip" or kind == "siglip":
        return kind
    if kind == "siglip2":
        raise CheckpointError(
            f"{path} is of a SigLIP 2 NaFlex model (model_type 'siglip2'): its pictures keep their "
            "proportions, which Diptych cannot do. Use a SigLIP 2 of fixed resolution, such as "
            "google/siglip2-base-patch16-224."
        )
    raise CheckpointError(
        f"{path} has model_type {kind!r}, and Diptych reads 'clip' and 'siglip'. "
        "MetaCLIP, DFN and SigLIP 2 of fixed resolution have one of these types."
    )


def section(stated: Mapping[str, Any], family: Family, name: str) -> dict[str, Any]:
    """The settings of one tower, `text_config` or `vision_config`, completed.

    Old files of CLIP have `text_config_dict` too: it wins, with the defaults of its own.

    Raises:
        CheckpointError: A setting is of another kind than transformers' default, such as a text
            where a number belongs.
    """
    defaults = DEFAULTS[family][name]
    settings = {**defaults, **_given(stated.get(name))}
    older = stated.get(f"{name}_dict") if family == "clip" else None
    if older is not None:
        settings |= {**defaults, **_given(older)}
    for field, default in defaults.items():
        missing = missing_kind(settings[field], default)
        if missing:
            raise CheckpointError(
                f"config.json has {field}={settings[field]!r} in {name}, and {missing} belongs "
                "there. Use a model for square pictures, with one value for each setting."
            )
    return settings


def read_config(
    stated: Mapping[str, Any], family: Family, tokenizer: Tokenizer, path: Path
) -> DualEncoderConfig:
    """The shape of the model.

    Args:
        stated: What config.json says.
        family: Of the model.
        tokenizer: Of the model; says which token ends a text and which fills it up.
        path: Of config.json, for messages.

    Raises:
        CheckpointError: The shapes contradict each other, or one has no counterpart here.
    """
    text, image = (section(stated, family, name) for name in DEFAULTS[family])
    clip = family == "clip"
    embed = _given(stated).get("projection_dim", 512)
    if not clip:
        embed = text.get("projection_size", text["hidden_size"])
    towers: dict[str, dict[str, Any]] = {
        "image": {name: image[name] for name in ("image_size", "patch_size")},
        "text": {
            "vocabulary": text["vocab_size"],
            "context": text["max_position_embeddings"],
            "end_token": _end_token(text, family, tokenizer, path),
            "pad_token": tokenizer.pad_token,
        },
    }
    values: dict[str, Any] = {**towers, "embed": embed, "initialisation": family}
    values["objective"] = "softmax" if clip else "sigmoid"
    for name, value in SHAPES[family].items():
        tower, _, field = name.rpartition(".")
        (values[tower] if tower else values)[field] = value
    try:
        for tower, settings in (("image", image), ("text", text)):
            values[tower] |= {ours: settings[theirs] for theirs, ours in TOWER.items()}
            values[tower]["activation"] = _activation(settings["hidden_act"])
        patch = max(1, image["patch_size"])  # less is refused by the tower
        values["image"]["cut_edge"] = image["image_size"] % patch != 0
        if image["num_channels"] != 3 or image.get("vision_use_head") is False:
            raise ConfigError(
                f"the image tower has num_channels={image['num_channels']} and "
                f"vision_use_head={image.get('vision_use_head', True)}. "
                "Use a model for colour pictures that has its pooling head."
            )
        return DualEncoderConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def write_config(config: DualEncoderConfig) -> tuple[dict[str, Any], Family]:
    """What config.json says of the model, and which kind it is.

    Raises:
        RequestError: Neither CLIPModel nor SiglipModel can hold it.
    """
    family: Family = "clip" if config.objective == "softmax" else "siglip"
    kind = "CLIPModel" if family == "clip" else "SiglipModel"
    image, text = config.image, config.text
    if not isinstance(image, ImageTowerConfig):
        raise RequestError(
            f"this model has an image tower of kind {image.kind!r}, and transformers' {kind} has a "
            "vision transformer. Convert to diptych or open_clip instead."
        )
    for name, wanted in SHAPES[family].items():
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        if found != wanted:
            raise RequestError(
                f"this model has {name}={found!r}, and transformers' {kind} can only have "
                f"{wanted!r}. Convert to diptych or open_clip instead."
            )
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    vision_config, text_config = (
        {
            **{name: getattr(tower, ours) for name, ours in TOWER.items()},
            "hidden_act": theirs[tower.activation],
        }
        for tower in (image, text)
    )
    vision_config |= {"image_size": image.image_size, "patch_size": image.patch_size}
    text_config |= {
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
        "bos_token_id": None,
        "eos_token_id": text.end_token,
        "pad_token_id": text.pad_token,
        "projection_dim" if family == "clip" else "projection_size": config.embed,
    }
    stated = {
        "architectures": [kind],
        "model_type": family,
        "dtype": "float32",
        "text_config": text_config,
        "vision_config": vision_config,
    }
    return stated | ({"projection_dim": config.embed} if family == "clip" else {}), family


def _end_token(text: Mapping[str, Any], family: Family, tokenizer: Tokenizer, path: Path) -> int:
    """The id at whose place the text is read.

    Raises:
        CheckpointError: It is not the one with which the tokenizer ends a text.
    """
    if tokenizer.vocabulary > text["vocab_size"]:
        raise CheckpointError(
            f"{path} has a vocabulary of {text['vocab_size']}, and the tokenizer beside it has "
            f"{tokenizer.vocabulary} tokens. Use the tokenizer that was saved with the model."
        )
    stated = text.get("eos_token_id")
    if family == "siglip" or stated == tokenizer.end_token != LEGACY_END:
        return tokenizer.end_token
    if stated == LEGACY_END and tokenizer.end_token == tokenizer.vocabulary - 1:
        return tokenizer.end_token
    meaning = "the largest id of a text" if stated == LEGACY_END else f"token {stated}"
    raise CheckpointError(
        f"{path} has eos_token_id {stated}, so the model reads a text at {meaning}, and its "
        f"tokenizer ends texts with token {tokenizer.end_token}. "
        "Use the tokenizer that was saved with the model."
    )


def _activation(name: str) -> Activation:
    """Ours for theirs.

    Raises:
        ConfigError: There is none.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"hidden_act is {name!r}. Known: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _given(settings: Any) -> dict[str, Any]:
    """Settings that are not null.

    Raises:
        CheckpointError: They are no table.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise CheckpointError(
            f"config.json has {settings!r} where the settings of a tower should be. "
            "Copy the file again."
        )
    return {key: value for key, value in (settings or {}).items() if value is not None}
