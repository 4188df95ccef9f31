"""open_clip's `open_clip_config.json` in our words, and ours in its words.

What a file does not say has open_clip's default (version 3.3.0: `model.py`, `transform.py`). What
our towers cannot do is refused by its name: a model that is almost the same gives other vectors.

`open_clip.py` does the files and the tensors.
"""

from collections.abc import Mapping
from typing import Any, Literal

from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransformConfig
from diptych.errors import CheckpointError
from diptych.models.dual_encoder import AnyImageTowerConfig, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.models.timm_tower import TimmTowerConfig
from diptych.nn.blocks import Activation
from diptych.pretrained.kinds import missing_kind

MODEL: dict[str, Any] = {
    "embed_dim": 0,
    "vision_cfg": {},
    "text_cfg": {},
    "quick_gelu": False,
    "init_logit_bias": None,
}
VISION: dict[str, Any] = {
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "no_ln_pre": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "timm_model_name": None,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
}
TEXT: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "eos_id": 2,
    "proj_bias": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
PREPROCESS: dict[str, Any] = {
    "size": 224,
    "mode": "RGB",
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""open_clip's defaults of what is read here."""

UNREAD = (
    *("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "output_tokens"),
    *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "pad_id"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "final_ln_after_pool"),
)
"""Fields that change no vector of a plain model, or that others read (the tokenizer's)."""

OFF: dict[str, tuple[Any, ...]] = {
    "attentional_pool": (False,),
    "pos_embed_type": ("learnable",),
    "embed_cls": (False,),
    "proj_type": ("linear",),
    "hf_model_name": (None, ""),
    "block_type": (None, "default"),
    "ls_init_value": (None,),
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads"), (False,)),
    **dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), (False,)),
}
"""Parts that our towers do not have, and what these fields say where they are not there."""

RESIZE: dict[str, Literal["shortest", "squash", "pad"]] = {
    "shortest": "shortest",
    "squash": "squash",
    "longest": "pad",
}
"""open_clip's word for what happens to pictures that are not square, and ours."""

SIGLIP_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
"""Width, layers, heads and hidden numbers of the sizes of SigLIP's image towers in timm."""

SIGLIP_GELU = (
    *("base_patch16_224", "base_patch16_256", "base_patch16_384", "base_patch16_512"),
    *("large_patch16_256", "large_patch16_384"),
    *("so400m_patch14_224", "so400m_patch14_378", "so400m_patch14_384"),
)
SIGLIP_TANH = (
    *("base_patch32_256", "large_patch16_512", "giantopt_patch16_256", "giantopt_patch16_384"),
    *("so400m_patch16_256", "so400m_patch16_384", "so400m_patch16_512"),
)


def _trunk(name: str, activation: Activation) -> tuple[str, ImageTowerConfig]:
    """timm's name of one of SigLIP's image towers, and the tower."""
    size, patch, side = name.split("_")
    width, layers, heads, hidden = SIGLIP_SIZES[size]
    pixels, patch_size = int(side), int(patch.removeprefix("patch"))
    tower = ImageTowerConfig(
        image_size=pixels,
        patch_size=patch_size,
        cut_edge=pixels % patch_size != 0,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=hidden,
        activation=activation,
        class_token=False,
        pool="attention",
        pre_norm=False,
        patch_bias=True,
        norm_epsilon=1e-6,
    )
    return f"vit_{size}_{patch}_siglip_{side}", tower


SIGLIP_TRUNKS: dict[str, ImageTowerConfig] = dict(
    [_trunk(name, "gelu") for name in SIGLIP_GELU]
    + [_trunk(name, "gelu_tanh") for name in SIGLIP_TANH]
)
"""SigLIP's image towers, which are ours too. timm gives the first of them the exact GELU, where
SigLIP itself has the approximation with tanh: a folder of open_clip means timm's."""


def check_kinds(model: Any) -> None:
    """Refuse a `model_cfg` that has, say, words where numbers belong.

    Raises:
        KeyError: A tower is missing.
        ValueError: Names the field, its value, and what belongs there.
    """
    if not isinstance(model, Mapping):
        raise ValueError(f"model_cfg is {model!r}, and a table belongs there")
    for place, table, defaults in (
        ("", model, MODEL),
        ("vision_cfg.", model["vision_cfg"], VISION),
        ("text_cfg.", model["text_cfg"], TEXT),
    ):
        if not isinstance(table, Mapping):
            raise ValueError(f"model_cfg.{place[:-1]} is {table!r}, and a table belongs there")
        for name, value in table.items():
            default = defaults.get(name)
            for one in _each(value, place + name):
                missing = missing_kind(one, default)
                if missing and not isinstance(default, str):  # these may be null, and are matched
                    raise ValueError(
                        f"model_cfg.{place}{name} is {value!r}, and {missing} belongs there"
                    )


def _each(value: Any, name: str) -> list[Any]:
    """The numbers of a field that may have several: sides of pictures, layers of stages; residual
    networks have no patches."""
    if name == "vision_cfg.patch_size" and value is None:
        return []
    several = name in ("vision_cfg.image_size", "vision_cfg.patch_size", "vision_cfg.layers")
    return list(value) if several and isinstance(value, list | tuple) else [value]


def read_model(given: Mapping[str, Any], tokenizer: Tokenizer) -> DualEncoderConfig:
    """The model that `model_cfg` describes.

    Args:
        given: `model_cfg`.
        tokenizer: Of the same model.

    Raises:
        CheckpointError: It has a part that our towers do not have.
        ConfigError: Its sizes contradict each other.
    """
    if "multimodal_cfg" in given:
        raise _refused("multimodal_cfg", given["multimodal_cfg"], "captioners (CoCa) are not read")
    fields = _completed(given, MODEL, "")
    vision = _completed(fields["vision_cfg"], VISION, "vision_cfg.")
    text = _completed(fields["text_cfg"], TEXT, "text_cfg.")
    embed, quick = int(fields["embed_dim"]), bool(fields["quick_gelu"])
    image = _image(vision, quick, embed)
    projected, bias = True, isinstance(image, ResNetTowerConfig)
    if vision["timm_model_name"]:
        projected = vision["timm_proj"] in ("linear", "mlp")
        bias = projected and bool(vision["timm_proj_bias"])
    start = fields["init_logit_bias"]
    return DualEncoderConfig(
        image=image,
        text=_text(text, quick, tokenizer),
        embed=embed,
        objective="softmax" if start is None else "sigmoid",
        initialisation="clip" if start is None else "siglip",
        **({} if start is None else {"start_bias": start}),
        image_projection=projected,
        image_projection_bias=bias,
        text_projection_bias=bool(text["proj_bias"]),
    )


def _completed(given: Mapping[str, Any], defaults: dict[str, Any], place: str) -> dict[str, Any]:
    """What a table says, with open_clip's defaults for what it does not say.

    Raises:
        CheckpointError: It has a part that is not ours, or a field that nobody knows.
    """
    for name, value in given.items():
        if name in OFF and value not in OFF[name]:
            raise _refused(place + name, value, f"only {OFF[name][0]!r} is read")
        if name not in (*defaults, *OFF, *UNREAD):
            raise _refused(place + name, value, "open_clip 3.3.0 has no such field")
    return {**defaults, **{name: value for name, value in given.items() if name in defaults}}


def _refused(name: str, value: Any, why: str) -> CheckpointError:
    """A part that is not ours."""
    return CheckpointError(
        f"open_clip's {name} is {value!r}, which this Diptych cannot open: {why}. "
        "Use open_clip for this model."
    )


def _image(vision: Mapping[str, Any], quick: bool, embed: int) -> AnyImageTowerConfig:
    """The image tower of `vision_cfg`."""
    pixels = _side(vision["image_size"], "vision_cfg.image_size")
    name = vision["timm_model_name"]
    if name in SIGLIP_TRUNKS and vision["timm_pool"] == "map" and vision["timm_proj"]:
        tower = SIGLIP_TRUNKS[name]
        rest = pixels % tower.patch_size
        return tower.model_copy(update={"image_size": pixels, "cut_edge": rest != 0})
    if name:
        return _timm(vision, embed, pixels)
    layers = vision["layers"]
    width = int(vision["width"])
    if isinstance(layers, list | tuple):
        heads = width * 32 // int(vision["head_width"])
        return ResNetTowerConfig(image_size=pixels, width=width, layers=tuple(layers), heads=heads)
    if vision["pool_type"] not in ("tok", "avg"):
        raise _refused("vision_cfg.pool_type", vision["pool_type"], 'only "tok" and "avg" are read')
    if vision["final_ln_after_pool"] and vision["pool_type"] == "avg":
        raise _refused("vision_cfg.final_ln_after_pool", True, "our towers normalise, then average")
    patch_size = _side(vision["patch_size"], "vision_cfg.patch_size")
    return ImageTowerConfig(
        image_size=pixels,
        patch_size=patch_size,
        cut_edge=pixels % patch_size != 0,
        width=width,
        layers=layers,
        heads=width // int(vision["head_width"]),
        mlp_width=int(width * vision["mlp_ratio"]),
        activation=_activation(vision["act_kwargs"], quick, "vision_cfg"),
        pool="class" if vision["pool_type"] == "tok" else "mean",
        pre_norm=not vision["no_ln_pre"],
        norm_epsilon=_epsilon(vision["norm_kwargs"], "vision_cfg"),
    )


def _timm(vision: Mapping[str, Any], embed: int, pixels: int) -> TimmTowerConfig:
    """An image tower that stays timm's."""
    name, pool, projection = (vision[f"timm_{field}"] for field in ("model_name", "pool", "proj"))
    if pool in ("abs_attn", "rot_attn"):
        raise _refused(
            "vision_cfg.timm_pool", pool, "pools of open_clip's own for timm are not read"
        )
    if projection not in ("linear", "mlp", "none", "", None):
        raise _refused("vision_cfg.timm_proj", projection, '"linear", "mlp" and "none" are read')
    return TimmTowerConfig(
        name=name,
        image_size=pixels,
        pool=pool or "",
        classifier=0 if projection else embed,
        hidden=2 * embed if projection == "mlp" else 0,
    )


def _text(text: Mapping[str, Any], quick: bool, tokenizer: Tokenizer) -> TextTowerConfig:
    """The text tower of `text_cfg`."""
    pool, causal = text["pool_type"], not text["no_causal_mask"]
    if pool not in ("argmax", "eos", "last"):
        raise _refused("text_cfg.pool_type", pool, '"argmax", "eos" and "last" are read')
    if pool != "last" and not causal:
        raise _refused("text_cfg.no_causal_mask", True, "padding would be read before it is cut")
    if pool == "argmax" and tokenizer.end_token != tokenizer.vocabulary - 1:
        raise _refused(
            "text_cfg.pool_type",
            pool,
            f"it means the largest id, and the end token {tokenizer.end_token} of this tokenizer "
            f"is not the largest of {tokenizer.vocabulary}",
        )
    if tokenizer.vocabulary > text["vocab_size"]:
        raise CheckpointError(
            f"open_clip's text_cfg.vocab_size is {text['vocab_size']}, and the tokenizer has "
            f"{tokenizer.vocabulary:,} tokens. Use the tokenizer that was saved with the model."
        )
    width = int(text["width"])
    return TextTowerConfig(
        vocabulary=text["vocab_size"],
        context=text["context_length"],
        width=width,
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=int(width * text["mlp_ratio"]),
        activation=_activation(text["act_kwargs"], quick, "text_cfg"),
        causal=causal,
        pool="last" if pool == "last" else "end",
        end_token=text["eos_id"] if pool == "eos" else tokenizer.end_token,
        pad_token=tokenizer.pad_token,
        norm_epsilon=_epsilon(text["norm_kwargs"], "text_cfg"),
    )


def _side(value: Any, name: str) -> int:
    """One side of a square that may be written as two sides."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise _refused(name, value, "only squares are read")
        value = value[0]
    return int(value)


def _activation(given: Mapping[str, Any] | None, quick: bool, place: str) -> Activation:
    """The activation of a tower's blocks."""
    if given is not None and (quick or given not in ({}, {"approximate": "none"})):
        if given != {"approximate": "tanh"} or quick:
            raise _refused(f"{place}.act_kwargs", given, 'only {"approximate": "tanh"} is read')
        return "gelu_tanh"
    return "quick_gelu" if quick else "gelu"


def _epsilon(given: Mapping[str, Any] | None, place: str) -> float:
    """What is added to the variance in a tower's norms."""
    if given and set(given) != {"eps"}:
        raise _refused(f"{place}.norm_kwargs", given, 'only "eps" is read')
    return float(given["eps"]) if given else 1e-5


def read_transform(
    given: Mapping[str, Any], image_size: int
) -> tuple[ImageTransformConfig, tuple[str, ...]]:
    """The preprocessing that `preprocess_cfg` describes, and what of it open_clip fills in.

    Args:
        given: `preprocess_cfg`; empty where the file has none.
        image_size: The model's, which open_clip takes instead of the `size` written there.

    Raises:
        CheckpointError: It has a part that ours does not have.
    """
    said = {name: value for name, value in given.items() if name in PREPROCESS and value}
    fields = {**PREPROCESS, **said}
    if fields["mode"] != "RGB":
        raise _refused("preprocess_cfg.mode", fields["mode"], 'only "RGB" is read')
    mode = fields["resize_mode"]
    if mode not in RESIZE:
        raise _refused(
            "preprocess_cfg.resize_mode", mode, '"shortest", "squash" and "longest" are read'
        )
    if fields["interpolation"] not in ("bicubic", "bilinear", "random"):
        raise _refused(
            "preprocess_cfg.interpolation",
            fields["interpolation"],
            '"bicubic" and "bilinear" are read',
        )
    filled = [n for n in ("mean", "std", "interpolation", "resize_mode") if n not in said]
    values = ", ".join(f"{name} {fields[name]}" for name in filled)
    notes = (f"preprocess_cfg does not say all; as in open_clip: {values}",) if filled else ()
    transform = ImageTransformConfig(
        image_size=image_size,
        resize=RESIZE[mode],
        **({"fill": fields["fill_color"]} if mode == "longest" else {}),
        interpolation="bilinear" if fields["interpolation"] == "bilinear" else "bicubic",
        mean=_triple(fields["mean"]),
        std=_triple(fields["std"]),
    )
    return transform, notes


def _triple(value: Any) -> tuple[float, float, float]:
    """A number for each colour; one number stands for all."""
    red, green, blue = value if isinstance(value, list | tuple) else (value,) * 3
    return red, green, blue
