"""A model as a folder that open_clip itself opens with `local-dir:`.

`open_clip_config.py` reads what is written here; a model read and written again is the same.
What open_clip has no word for is refused, and what it does to texts and pictures beyond that is
said in notes.
"""

import json
from pathlib import Path
from typing import Any

from diptych.checkpoint import Bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import RequestError
from diptych.files import whole_file
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.models.timm_tower import TimmTower, TimmTowerConfig, trunk_size
from diptych.nn.blocks import Activation
from diptych.pretrained.clip_vocabulary import CLEANING, Clean, clip_tokenizer
from diptych.pretrained.open_clip_config import RESIZE, SIGLIP_TRUNKS
from diptych.pretrained.open_clip_names import places, to_theirs
from diptych.pretrained.sentencepiece_writer import siglip_files
from diptych.tensors import save_tensors


def write_open_clip(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write a model into an existing folder, in open_clip's layout.

    Args:
        bundle: The model.
        folder: Where its files go.

    Returns:
        What open_clip does otherwise, which its layout cannot say.

    Raises:
        RequestError: The model has a part that open_clip does not have.
        StorageError: The disk refused.
    """
    config = bundle.model.config
    _require_timm_size(bundle)
    vision, text = _vision(config), _text(config.text)
    quick = _quick_gelu(config)
    tokens, files, notes = _tokenizer(bundle.tokenizer)
    model: dict[str, Any] = {"embed_dim": config.embed, "vision_cfg": vision, "text_cfg": text}
    text |= {"proj_bias": config.text_projection_bias, **tokens}
    if quick:
        model["quick_gelu"] = True
    if config.objective == "sigmoid":
        model["init_logit_bias"] = config.start_bias
    tensors = to_theirs(bundle.model.state_dict(), places(config))
    if "timm_model_name" in vision:
        model["custom_text"] = True
        tensors = {_custom(name): tensor for name, tensor in tensors.items()}
    written = {"model_cfg": model, "preprocess_cfg": _preprocess(bundle.transform)}
    for name, content in {"open_clip_config.json": _pretty(written), **files}.items():
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(content)
    save_tensors(folder / "open_clip_model.safetensors", tensors)
    if bundle.transform.resize == "shortest" and bundle.transform.crop == "floor":
        notes.append("open_clip cuts pictures with an odd margin one pixel further on")
    return tuple(notes)


def _custom(name: str) -> str:
    """The name in open_clip's CustomTextCLIP, which keeps the text tower apart."""
    return name if name.startswith(("visual.", "logit_")) else f"text.{name}"


def _refused(what: str, remedy: str) -> RequestError:
    """A model that open_clip has no word for."""
    return RequestError(f"open_clip cannot hold this model: {what}. {remedy}")


def _vision(config: DualEncoderConfig) -> dict[str, Any]:
    """`vision_cfg` of the image tower."""
    image = config.image
    if isinstance(image, TimmTowerConfig):
        return _timm(config, image)
    if isinstance(image, ResNetTowerConfig):
        return _resnet(config, image)
    if not image.class_token:
        return _siglip(config, image)
    if image.pool == "attention" or image.patch_bias:
        raise _refused(
            f'its image tower has a class token, pool "{image.pool}" and patch_bias '
            f"{str(image.patch_bias).lower()}",
            'It takes pool "class" or "mean" and patch_bias=false.',
        )
    if not config.image_projection or config.image_projection_bias:
        raise _refused(
            f"its image projection is {config.image_projection} with bias "
            f"{config.image_projection_bias}",
            "Vision transformers have one without bias there.",
        )
    _require_layers(image.layers, "image")
    return {
        "image_size": image.image_size,
        "layers": image.layers,
        "width": image.width,
        "head_width": image.width // image.heads,
        "mlp_ratio": _ratio(image.width, image.mlp_width),
        "patch_size": image.patch_size,
        "no_ln_pre": not image.pre_norm,
        "pool_type": "tok" if image.pool == "class" else "avg",
        **_act_and_norm(image.activation, image.norm_epsilon),
    }


def _resnet(config: DualEncoderConfig, image: ResNetTowerConfig) -> dict[str, Any]:
    """`vision_cfg` of a residual network."""
    plain = image.block == "bottleneck" and image.stem_pool and image.pool == "attention"
    if not plain or len(image.layers) != 4 or not config.image_projection_bias:
        raise _refused(
            f"its residual network has block {image.block!r}, stem_pool {image.stem_pool}, pool "
            f"{image.pool!r}, {len(image.layers)} stages and an image projection with bias "
            f"{config.image_projection_bias}",
            'It takes "bottleneck", true, "attention", 4 and true.',
        )
    return {
        "image_size": image.image_size,
        "layers": list(image.layers),
        "width": image.width,
        "head_width": image.vector_width // image.heads,
        "patch_size": None,
    }


def _siglip(config: DualEncoderConfig, image: ImageTowerConfig) -> dict[str, Any]:
    """`vision_cfg` of one of SigLIP's towers, which open_clip has from timm in some sizes."""
    plain = image.model_copy(update={"keep_patches": 1.0, "frozen": False})
    for name, tower in SIGLIP_TRUNKS.items():
        if plain == tower:
            return {
                "image_size": image.image_size,
                "timm_model_name": name,
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "linear" if config.image_projection else "none",
                "timm_proj_bias": config.image_projection_bias,
            }
    raise _refused(
        "its image tower has no class token and is none of timm's SigLIP towers "
        f"(width {image.width}, {image.layers} layers, {image.image_size} px, "
        f"activation {image.activation})",
        f"Those are {', '.join(SIGLIP_TRUNKS)}.",
    )


def _timm(config: DualEncoderConfig, image: TimmTowerConfig) -> dict[str, Any]:
    """`vision_cfg` of a tower of timm."""
    if image.hidden not in (0, 2 * config.embed) or image.classifier not in (0, config.embed):
        raise _refused(
            f"its timm tower has hidden {image.hidden} and classifier {image.classifier}",
            f"It takes hidden={2 * config.embed} or classifier={config.embed}.",
        )
    projection = "mlp" if image.hidden else "linear"
    if not config.image_projection:
        projection = "" if image.classifier else "none"
    return {
        "image_size": image.image_size,
        "timm_model_name": image.name,
        "timm_model_pretrained": False,
        "timm_pool": image.pool,
        "timm_proj": projection,
        "timm_proj_bias": config.image_projection_bias,
    }


def _require_timm_size(bundle: Bundle) -> None:
    """Refuse a tower of timm that open_clip would build for pictures of another size.

    Raises:
        RequestError: open_clip builds it in timm's own size.
    """
    tower = bundle.model.image
    if not isinstance(tower, TimmTower) or not hasattr(tower.trunk, "set_input_size"):
        return
    made, wanted = trunk_size(tower.trunk), tower.config.image_size
    if made != wanted:
        raise _refused(
            f"timm's {tower.config.name} is built for {made} px there, and this one for {wanted}",
            f"Use image_size={made}.",
        )


def _text(text: TextTowerConfig) -> dict[str, Any]:
    """`text_cfg` of the text tower, without projection and tokenizer."""
    if text.pool == "mean" or (text.pool == "end" and not text.causal):
        raise _refused(
            f'its text tower has pool "{text.pool}" and causal={str(text.causal).lower()}',
            'It takes pool "end" with causal=true, or pool "last".',
        )
    _require_layers(text.layers, "text")
    pool = {"pool_type": "last"}
    if text.pool == "end":
        largest = text.end_token == text.vocabulary - 1
        pool = {"pool_type": "argmax" if largest else "eos"}
    return {
        "context_length": text.context,
        "vocab_size": text.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": _ratio(text.width, text.mlp_width),
        "no_causal_mask": not text.causal,
        **pool,
        **({"eos_id": text.end_token} if pool["pool_type"] == "eos" else {}),
        **_act_and_norm(text.activation, text.norm_epsilon),
    }


def _require_layers(layers: int, tower: str) -> None:
    """Refuse a tower without blocks, which open_clip cannot run."""
    if layers < 1:
        raise _refused(f"its {tower} tower has {layers} layers", "It takes 1 or more.")


def _ratio(width: int, hidden: int) -> float:
    """The ratio that open_clip, which cuts off what stands behind the point, makes `hidden` of."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _act_and_norm(activation: Activation, epsilon: float) -> dict[str, Any]:
    """What differs from open_clip's defaults."""
    fields: dict[str, Any] = {}
    if activation == "gelu_tanh":
        fields["act_kwargs"] = {"approximate": "tanh"}
    if epsilon != 1e-5:
        fields["norm_kwargs"] = {"eps": epsilon}
    return fields


def _quick_gelu(config: DualEncoderConfig) -> bool:
    """Whether the towers that open_clip's one switch turns have the quick GELU.

    Raises:
        RequestError: One of them has it and the other has not.
    """
    kinds = {config.text.activation}
    if isinstance(config.image, ImageTowerConfig) and config.image.class_token:
        kinds.add(config.image.activation)
    if "quick_gelu" in kinds and len(kinds) > 1:
        raise _refused(
            f"its towers have the activations {' and '.join(sorted(kinds))}",
            "quick_gelu is for both towers there, or for none.",
        )
    return "quick_gelu" in kinds


def _preprocess(transform: ImageTransformConfig) -> dict[str, Any]:
    """`preprocess_cfg`."""
    fields: dict[str, Any] = {
        "size": transform.image_size,
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": transform.interpolation,
        "resize_mode": {ours: theirs for theirs, ours in RESIZE.items()}[transform.resize],
    }
    if transform.resize == "pad":
        fields["fill_color"] = transform.fill
    return fields


def _tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    """What `text_cfg` says of the tokenizer, its files, and what open_clip does otherwise."""
    rules = tokenizer.rules
    for clean in ("lower", "whitespace", "canonicalize"):
        if rules.cleaning != CLEANING[clean] or not rules.special_words:
            continue
        theirs = clip_tokenizer("open_clip", tokenizer.context, clean=clean)
        if theirs.rules == rules and theirs.to_json() == tokenizer.to_json():
            return ({} if clean == "lower" else {"tokenizer_kwargs": {"clean": clean}}), {}, []
    clean = _nearest_clean(tokenizer)
    notes = []
    begin = rules.cleaning[: len(CLEANING[clean])]
    if begin != CLEANING[clean]:
        steps = [*rules.cleaning, *rules.cleaning_between]
        notes.append(
            f'open_clip cleans texts with "{clean}", and this model with {steps}: '
            "HTML entities, full-width and broken characters may get other ids there"
        )
    if rules.sentencepiece != "no":
        pieces, settings, more = siglip_files(tokenizer)
        files = {"spiece.model": pieces, "tokenizer_config.json": _pretty(settings)}
        notes += more
    else:
        files = _as_it_is(tokenizer)
    if not rules.reads_special:
        notes.append(f"open_clip reads {rules.end!r} written in a text as the token, this does not")
    return {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": clean}}, files, notes


def _as_it_is(tokenizer: Tokenizer) -> dict[str, bytes]:
    """tokenizer.json, and what makes transformers take it as it is."""
    inner = json.loads(tokenizer.to_json())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context,
        "pad_token": inner["padding"]["pad_token"],
        "padding_side": inner["padding"]["direction"].lower(),
        "truncation_side": inner["truncation"]["direction"].lower(),
        "eos_token": tokenizer.rules.end,
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer.json": _pretty(inner), "tokenizer_config.json": _pretty(settings)}


def _nearest_clean(tokenizer: Tokenizer) -> Clean:
    """The cleaning of open_clip that comes nearest; it has none that does nothing."""
    steps = [*tokenizer.rules.cleaning, *tokenizer.rules.cleaning_between]
    if "punctuation" in steps or tokenizer.rules.sentencepiece != "no":
        return "canonicalize"  # which transformers' SiglipTokenizer also does
    return "lower" if "lower" in steps else "whitespace"


def _pretty(values: dict[str, Any]) -> bytes:
    """JSON for people."""
    return (json.dumps(values, indent=2) + "\n").encode()
