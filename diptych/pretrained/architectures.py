"""What bare weights need: the models that have a name, each with its whole contract.

A state dict alone says neither activation nor preprocessing nor tokenizer, so bare weights are
opened only with the name of their architecture, in open_clip's spelling. Names that end in
"-quickgelu" are for weights of OpenAI, MetaCLIP and DFN; those of LAION and DataComp have the plain
names. big_vision's weights of SigLIP take the same names (`big_vision.py`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError, RequestError, nearest
from diptych.pretrained.clip_vocabulary import CLEANING, clip_tokenizer
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.open_clip import foreign
from diptych.pretrained.open_clip_config import PREPROCESS, SIGLIP_SIZES
from diptych.pretrained.sentencepiece import sentencepiece_tokenizer
from diptych.pretrained.tokenizers_of import open_clip_tokenizer
from diptych.pretrained.weights import read_weights

HALF = (0.5, 0.5, 0.5)
SIGLIP_PREPROCESS = {**PREPROCESS, "mean": HALF, "std": HALF, "resize_mode": "squash"}


@dataclass(frozen=True)
class Architecture:
    """A model in open_clip's words."""

    model: dict[str, Any]
    """`model_cfg`."""

    preprocess: dict[str, Any]
    """`preprocess_cfg`, complete."""

    clip_words: bool
    """The vocabulary is CLIP's; otherwise it must come with the weights."""

    others: str = ""
    """Weights of this architecture that want another preprocessing; said to the user."""


def _clip(
    side: int,
    patch: int,
    *,
    width: int,
    layers: int,
    embed: int,
    text_width: int,
    text_layers: int = 12,
    **image: Any,
) -> Architecture:
    """A CLIP with a vision transformer; `image` is what differs from open_clip's defaults."""
    vision = {"image_size": side, "layers": layers, "width": width, "patch_size": patch, **image}
    return _with_clip_text(vision, embed, text_width, text_layers)


def _resnet(
    side: int, layers: list[int], *, width: int, embed: int, text_width: int
) -> Architecture:
    """A CLIP with a residual network."""
    vision: dict[str, Any] = {"image_size": side, "layers": layers, "width": width}
    vision["patch_size"] = None
    return _with_clip_text(vision, embed, text_width, 12)


def _with_clip_text(
    vision: dict[str, Any], embed: int, text_width: int, text_layers: int
) -> Architecture:
    """A CLIP: text towers grow in width, with heads of 64."""
    text = {"context_length": 77, "vocab_size": 49408}
    text |= {"width": text_width, "heads": text_width // 64, "layers": text_layers}
    model: dict[str, Any] = {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}
    return Architecture(model, dict(PREPROCESS), clip_words=True)


def _siglip(trunk: str, *, words: int = 32_000, context: int = 64) -> Architecture:
    """A SigLIP with one of timm's towers; with Gemma's 256,000 words a SigLIP 2."""
    size, patch, side = trunk.split("_")
    width = SIGLIP_SIZES[size][0]
    text_width, layers, heads, hidden = SIGLIP_SIZES["so400m" if size == "giantopt" else size]
    name = f"vit_{size}_{patch}_siglip_{side}"
    vision: dict[str, Any] = {"image_size": int(side), "timm_model_name": name}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    text: dict[str, Any] = {"context_length": context, "vocab_size": words}
    text |= {"width": text_width, "heads": heads, "layers": layers}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": 1e-6}}
    if hidden != 4 * text_width:
        text["mlp_ratio"] = 3.7362  # which gives 4,304
    text |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "canonicalize"}}
    if words == GEMMA:
        text["act_kwargs"] = {"approximate": "tanh"}
    model: dict[str, Any] = {"embed_dim": width, "init_logit_bias": -10, "custom_text": True}
    model |= {"vision_cfg": vision, "text_cfg": text}
    return Architecture(model, dict(SIGLIP_PREPROCESS), clip_words=False)


def _squashed(plain: Architecture) -> Architecture:
    """The same for pictures that are squashed, not cut."""
    return replace(plain, preprocess={**plain.preprocess, "resize_mode": "squash"})


GEMMA, MC4 = 256_000, 250_000
"""Words of SigLIP 2's vocabulary, and of the multilingual SigLIP's."""

B: dict[str, Any] = {"width": 768, "layers": 12, "embed": 512, "text_width": 512}
L: dict[str, Any] = {"width": 1024, "layers": 24, "embed": 768, "text_width": 768}
H: dict[str, Any] = {"width": 1280, "layers": 32, "head_width": 80, "embed": 1024}
H |= {"text_width": 1024, "text_layers": 24}
G: dict[str, Any] = {
    "width": 1408,
    "layers": 40,
    "head_width": 88,
    "mlp_ratio": 4.3637,
    "embed": 1024,
}
G |= {"text_width": 1024, "text_layers": 24}
BIG_G: dict[str, Any] = {
    "width": 1664,
    "layers": 48,
    "head_width": 104,
    "mlp_ratio": 4.9231,
    "embed": 1280,
}
BIG_G |= {"text_width": 1280, "text_layers": 32}

CLIP: dict[str, Architecture] = {
    "RN50": _resnet(224, [3, 4, 6, 3], width=64, embed=1024, text_width=512),
    "RN101": _resnet(224, [3, 4, 23, 3], width=64, embed=512, text_width=512),
    "RN50x4": _resnet(288, [4, 6, 10, 6], width=80, embed=640, text_width=640),
    "RN50x16": _resnet(384, [6, 8, 18, 8], width=96, embed=768, text_width=768),
    "RN50x64": _resnet(448, [3, 15, 36, 10], width=128, embed=1024, text_width=1024),
    "ViT-B-32": _clip(224, 32, **B),
    "ViT-B-16": _clip(224, 16, **B),
    "ViT-L-14": _clip(224, 14, **L),
    "ViT-L-14-336": _clip(336, 14, **L),
    "ViT-H-14": _clip(224, 14, **H),
    "ViT-H-14-378": _squashed(_clip(378, 14, **H)),  # DFN5B's are the only weights
    "ViT-bigG-14": _clip(224, 14, **BIG_G),
}
"""Those that also exist with the quick GELU."""

PLAIN: dict[str, Architecture] = {
    "ViT-B-32-256": _clip(256, 32, **B),
    "ViT-L-14-280": _clip(280, 14, **L),
    "ViT-g-14": _clip(224, 14, **G),
}

SIGLIP: dict[str, Architecture] = {
    "ViT-B-16-SigLIP": _siglip("base_patch16_224"),
    "ViT-B-16-SigLIP-256": _siglip("base_patch16_256"),
    "ViT-B-16-SigLIP-384": _siglip("base_patch16_384"),
    "ViT-B-16-SigLIP-512": _siglip("base_patch16_512"),
    "ViT-B-16-SigLIP-i18n-256": _siglip("base_patch16_256", words=MC4),
    "ViT-L-16-SigLIP-256": _siglip("large_patch16_256"),
    "ViT-L-16-SigLIP-384": _siglip("large_patch16_384"),
    "ViT-SO400M-14-SigLIP": _siglip("so400m_patch14_224", context=16),
    "ViT-SO400M-14-SigLIP-378": _siglip("so400m_patch14_378"),
    "ViT-SO400M-14-SigLIP-384": _siglip("so400m_patch14_384"),
    "ViT-B-32-SigLIP2-256": _siglip("base_patch32_256", words=GEMMA),
    "ViT-B-16-SigLIP2": _siglip("base_patch16_224", words=GEMMA),
    "ViT-B-16-SigLIP2-256": _siglip("base_patch16_256", words=GEMMA),
    "ViT-B-16-SigLIP2-384": _siglip("base_patch16_384", words=GEMMA),
    "ViT-B-16-SigLIP2-512": _siglip("base_patch16_512", words=GEMMA),
    "ViT-L-16-SigLIP2-256": _siglip("large_patch16_256", words=GEMMA),
    "ViT-L-16-SigLIP2-384": _siglip("large_patch16_384", words=GEMMA),
    "ViT-L-16-SigLIP2-512": _siglip("large_patch16_512", words=GEMMA),
    "ViT-SO400M-14-SigLIP2": _siglip("so400m_patch14_224", words=GEMMA),
    "ViT-SO400M-14-SigLIP2-378": _siglip("so400m_patch14_378", words=GEMMA),
    "ViT-SO400M-16-SigLIP2-256": _siglip("so400m_patch16_256", words=GEMMA),
    "ViT-SO400M-16-SigLIP2-384": _siglip("so400m_patch16_384", words=GEMMA),
    "ViT-SO400M-16-SigLIP2-512": _siglip("so400m_patch16_512", words=GEMMA),
    "ViT-gopt-16-SigLIP2-256": _siglip("giantopt_patch16_256", words=GEMMA),
    "ViT-gopt-16-SigLIP2-384": _siglip("giantopt_patch16_384", words=GEMMA),
}


def _quick(plain: Architecture) -> Architecture:
    """The same with the quick GELU."""
    return replace(plain, model={"quick_gelu": True, **plain.model})


OTHERS = {
    "ViT-L-14": "laion2b_s32b_b82k has mean and std 0.5",
    "ViT-H-14-quickgelu": "dfn5b squashes pictures",
}
"""Published weights that want another preprocessing than the rest of their architecture."""

ARCHITECTURES: dict[str, Architecture] = {
    name: replace(known, others=OTHERS.get(name, ""))
    for name, known in {
        **CLIP,
        **{f"{name}-quickgelu": _quick(plain) for name, plain in CLIP.items()},
        **PLAIN,
        **SIGLIP,
    }.items()
}
"""All that have a name."""


def find_architecture(name: str) -> Architecture:
    """The architecture of a name.

    Raises:
        RequestError: There is none; the nearest name and all names are offered.
    """
    if name not in ARCHITECTURES:
        raise RequestError(
            f"there is no architecture {name!r}. {_near(name)}Known: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def _near(name: str) -> str:
    """The nearest known name as a question, if any is near."""
    offer = nearest(name, ARCHITECTURES)
    return f"{offer} " if offer.startswith("Did you mean") else ""


def refuse_bare(path: Path) -> CheckpointError:
    """What to say of weights that come with nothing else."""
    return CheckpointError(
        f"{path} holds bare weights: how to feed the model (activation, preprocessing, tokenizer) "
        "is unknown. Make a model of them, with the name of the architecture they belong to: "
        f"diptych convert {path} NEW --to diptych --architecture ViT-B-32. "
        f"Known: {', '.join(ARCHITECTURES)}."
    )


def read_named(
    path: Path,
    architecture: str,
    *,
    tensors: dict[str, Tensor] | None = None,
    tokenizer: Path | None = None,
    image_size: int | None = None,
) -> Foreign:
    """Bare weights in open_clip's names, as a model that has a name.

    Training checkpoints of open_clip and what DDP and Lightning wrap around names are read too.

    Args:
        path: The file of weights.
        architecture: One of `ARCHITECTURES`.
        tensors: What `read_weights` gives for the file, if that is known; emptied on the way.
        tokenizer: A folder with the vocabulary, or its spiece.model or tokenizer.json; for SigLIP.
        image_size: In pixels, if not the architecture's own.

    Raises:
        RequestError: The name is unknown, or the tokenizer is missing.
        CheckpointError: The file is damaged, or its tensors are another model's.
    """
    known = find_architecture(architecture)
    words = _tokenizer(architecture, tokenizer)
    note = f"{path.name} says nothing but tensors: the contract is that of {architecture}"
    if known.others:
        note += f" ({known.others})"
    return foreign(
        known.model,
        known.preprocess,
        read_weights(path) if tensors is None else tensors,
        words,
        where=str(path),
        image_size=image_size,
        notes=(note,),
    )


def _tokenizer(architecture: str, given: Path | None) -> Tokenizer:
    """The tokenizer of a named model, from its folder or file if it is not CLIP's.

    Raises:
        RequestError: It is not CLIP's, and none was given.
    """
    known = ARCHITECTURES[architecture]
    text = known.model["text_cfg"]
    if known.clip_words:
        return clip_tokenizer("open_clip", text["context_length"])
    if given is None:
        raise RequestError(
            f"{architecture} has a vocabulary that Diptych does not bring. Give its folder (with "
            "tokenizer.json) or its spiece.model: --tokenizer FOLDER."
        )
    if not given.exists():
        raise RequestError(f"there is no tokenizer at {given}. Check the path.")
    if given.suffix != ".model":
        return open_clip_tokenizer(given if given.is_dir() else given.parent, text)
    pieces = sentencepiece_tokenizer(given, text["context_length"])
    cleaning = (*CLEANING["canonicalize"], *pieces.rules.cleaning)
    rules = pieces.rules.model_copy(update={"cleaning": cleaning})
    return Tokenizer.from_json(pieces.to_json(), rules)
