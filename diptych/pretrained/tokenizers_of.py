"""The tokenizer of another library's folder, with the ids that the library itself gives.

transformers 5 builds CLIP's, T5's and Gemma's tokenizers from the vocabulary alone and ignores most
of what tokenizer.json says; so do the functions here, without importing it. The vocabulary of CLIP
itself is in `clip_vocabulary.py`, sentencepiece's files are read by `sentencepiece.py`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError
from diptych.files import read_json
from diptych.pretrained.clip_vocabulary import CLEANING, clip_tokenizer, transformers_clip
from diptych.pretrained.sentencepiece import read_pieces, siglip_tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that transformers knows by their use."""

OF_MODEL = {
    "clip": "CLIPTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip2": "Siglip2Tokenizer",
    "t5": "T5Tokenizer",
}
"""The class that transformers takes for a kind of model."""

AS_STATED = ("PreTrainedTokenizer", "TokenizersBackend", "")
"""Classes that take tokenizer.json as it is; a "Fast" at their end says nothing."""


@dataclass(frozen=True)
class Stated:
    """What a folder says of its tokenizer."""

    folder: Path
    settings: dict[str, Any]
    """tokenizer_config.json; special tokens as their text."""

    file: dict[str, Any]
    """tokenizer.json; empty: none."""

    added: list[AddedToken]
    """Tokens beside the vocabulary, in the order of their ids."""

    def word(self, name: str, default: str) -> str:
        """A special token by its use."""
        return str(self.settings.get(name) or default)


def open_clip_tokenizer(folder: Path, text: Mapping[str, Any]) -> Tokenizer:
    """What open_clip's get_tokenizer("local-dir:FOLDER") gives.

    Args:
        folder: With open_clip_config.json and, unless CLIP's own vocabulary is used, the tokenizer.
        text: `text_cfg` of that file.

    Raises:
        CheckpointError: The tokenizer is missing, damaged, or of a kind that is not read.
    """
    context = text.get("context_length", 77)
    if context < 3:
        raise CheckpointError(
            f"{folder} has context_length {context}, which leaves no room between start and end. "
            "Copy the folder again."
        )
    given = text.get("tokenizer_kwargs") or {}
    settings = dict(given) if isinstance(given, Mapping) else {"tokenizer_kwargs": given}
    theirs = bool(text.get("hf_tokenizer_name"))
    clean = settings.pop("clean", "whitespace" if theirs else "lower")
    extra = () if theirs else _words(settings)
    if text.get("tokenizer_mode"):
        settings["tokenizer_mode"] = text["tokenizer_mode"]
    asked = {name: value for name, value in settings.items() if value}
    known = isinstance(clean, str) and clean in CLEANING
    if asked or not known:
        what = f"{asked}" if known else f"clean={clean!r}"
        raise CheckpointError(
            f"{folder} asks open_clip's tokenizer for {what}, which is not known. "
            f"Known are clean = {', '.join(CLEANING)}, and nothing besides."
        )
    if not theirs:
        return clip_tokenizer("open_clip", context, clean=clean, extra=extra)
    inner = transformers_tokenizer(folder, context=context)
    rules = inner.rules.model_copy(update={"cleaning": (*CLEANING[clean], *inner.rules.cleaning)})
    return Tokenizer.from_json(inner.to_json(), rules)


def _words(settings: dict[str, Any]) -> tuple[str, ...]:
    """open_clip's additional special tokens, taken out; what is no list of words stays there."""
    words = settings.get("additional_special_tokens") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ()
    settings.pop("additional_special_tokens", None)
    return tuple(words)


def transformers_tokenizer(folder: Path, *, context: int) -> Tokenizer:
    """What transformers' AutoTokenizer of a folder gives, padded and cut to `context` tokens.

    Args:
        folder: With tokenizer.json, or the files it is made from, and tokenizer_config.json.
        context: Length of every encoded text.

    Raises:
        CheckpointError: The tokenizer is missing, damaged, or of a kind that is not read.
    """
    kind = tokenizer_class(folder)
    try:
        stated = _stated(folder)
        if kind == "SiglipTokenizer":
            added = {"added_tokens": stated.added} if stated.added else {}
            return siglip_tokenizer(folder / "spiece.model", stated.settings | added, context)
        if kind in AS_STATED:
            return _as_stated(stated, context)
        return BUILDERS[kind](stated, context)
    except KeyError as error:
        known = ", ".join(sorted({*BUILDERS, "SiglipTokenizer", "PreTrainedTokenizerFast"}))
        if error.args == (kind,):
            raise CheckpointError(
                f"{folder} has a tokenizer of class {kind!r}, which is not read. Known: {known}."
            ) from None
        raise _damaged(folder, error) from error
    except CheckpointError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise _damaged(folder, error) from error


def tokenizer_class(folder: Path) -> str:
    """The class that AutoTokenizer takes, without "Fast": the folder's word counts, but for the
    kind "siglip2", where it is known to be wrong.

    Raises:
        CheckpointError: A file is damaged.
    """
    config = _json(folder / "config.json")
    written = _json(folder / "tokenizer_config.json").get("tokenizer_class")
    stated = str(written or config.get("tokenizer_class") or "")
    kind = str(config.get("model_type", ""))
    if kind == "siglip2" or not stated:
        return OF_MODEL.get(kind, "")
    return stated.removesuffix("Fast")


def _stated(folder: Path) -> Stated:
    """Everything that is written about a tokenizer; tokenizer_config.json counts more than older
    files, and its list of added tokens more than that of tokenizer.json."""
    settings, file = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    decoder: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for number, token in settings["added_tokens_decoder"].items():
            decoder[int(number)] = _token(token)
    else:
        settings |= _json(folder / "special_tokens_map.json")
        specials = {_content(settings[name]) for name in NAMED if settings.get(name)}
        for word, number in _json(folder / "added_tokens.json").items():
            decoder[number] = AddedToken(
                word, special=word in specials, normalized=word not in specials
            )
        for token in file.get("added_tokens", ()):
            decoder[token["id"]] = _token(token)
    added = [decoder[number] for number in sorted(decoder)]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    known = {token.content for token in added}
    for value in [*(settings.get(name) for name in NAMED), *extra]:
        if value and _content(value) not in known:
            token = _token(value if isinstance(value, dict) else {"content": value})
            token.special = True
            added.append(token)
            known.add(token.content)
    words = {name: _content(settings[name]) for name in NAMED if settings.get(name)}
    for token in added:
        token.special = token.special or token.content in words.values()
    return Stated(folder, settings | words, file, added)


def _as_stated(stated: Stated, context: int) -> Tokenizer:
    """tokenizer.json as it is."""
    inner = tokenizers.Tokenizer.from_str(json.dumps(_needed(stated)))
    padding = stated.file.get("padding") or {}
    end = stated.word("eos_token", "")
    pad = stated.word("pad_token", padding.get("pad_token", ""))
    return _finished(inner, stated, context, end=end, pad=pad)


def _clip(stated: Stated, context: int) -> Tokenizer:
    """CLIPTokenizer."""
    if stated.file:
        vocabulary, merges = _byte_pairs(stated)
    else:
        vocabulary = _json(stated.folder / "vocab.json")
        path = stated.folder / "merges.txt"
        if not vocabulary or not path.is_file():
            raise _missing(stated.folder, "tokenizer.json, nor vocab.json with merges.txt")
        lines = path.read_text(encoding="utf-8").split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        merges = [(first, second) for first, second in pairs]
    start, end = stated.word("bos_token", "<|startoftext|>"), stated.word("eos_token", END_OF_CLIP)
    inner = transformers_clip(
        vocabulary, merges, start=start, end=end, unknown=stated.word("unk_token", END_OF_CLIP)
    )
    pad = stated.word("pad_token", END_OF_CLIP)
    return _finished(inner, stated, context, end=end, pad=pad, also=(start, end, pad))


END_OF_CLIP = "<|endoftext|>"


def _gemma(stated: Stated, context: int) -> Tokenizer:
    """GemmaTokenizer: spaces are "▁", characters without a token become bytes, case is kept."""
    vocabulary, merges = _byte_pairs(stated)
    unknown = stated.word("unk_token", "<unk>")
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if stated.file.get("post_processor"):
        bare = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
        bare["post_processor"] = stated.file["post_processor"]
        inner.post_processor = tokenizers.Tokenizer.from_str(json.dumps(bare)).post_processor
    end, pad = stated.word("eos_token", "<eos>"), stated.word("pad_token", "<pad>")
    start, mask = stated.word("bos_token", "<bos>"), stated.word("mask_token", "<mask>")
    also = (start, end, unknown, pad, mask)
    return _finished(inner, stated, context, end=end, pad=pad, side="left", also=also)


def _siglip2(stated: Stated, context: int) -> Tokenizer:
    """Siglip2Tokenizer: Gemma's in lower case."""
    return lower_cased(_gemma(stated, context))


def lower_cased(gemma: Tokenizer) -> Tokenizer:
    """What Siglip2Tokenizer makes of a GemmaTokenizer: texts in lower case, special tokens as they
    are."""
    made = tokenizers.Tokenizer.from_str(gemma.to_json())
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), made.normalizer])
    return Tokenizer(made, gemma.rules)


def _t5(stated: Stated, context: int) -> Tokenizer:
    """T5Tokenizer: open_clip's SigLIP."""
    path = stated.folder / "spiece.model"
    if stated.file:
        scores = [(piece, score) for piece, score in stated.file["model"]["vocab"]]
        characters = _precompiled(stated.file.get("normalizer"))
    elif path.is_file():
        pieces = read_pieces(path)
        scores, characters = pieces.scores, None
        if pieces.characters:
            characters = normalizers.Precompiled(pieces.characters)
        stated = replace(stated, added=[*stated.added, *pieces.own(stated.added)])
    else:
        raise _missing(stated.folder, "tokenizer.json, nor spiece.model")
    inner = tokenizers.Tokenizer(models.Unigram(scores, 2, byte_fallback=False))
    if characters is not None:
        inner.normalizer = characters
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    end, pad = stated.word("eos_token", "</s>"), stated.word("pad_token", "<pad>")
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", inner.token_to_id(end))]
    )
    also = (end, stated.word("unk_token", "<unk>"), pad)
    return _finished(inner, stated, context, end=end, pad=pad, also=also)


BUILDERS: dict[str, Callable[[Stated, int], Tokenizer]] = {
    "CLIPTokenizer": _clip,
    "GemmaTokenizer": _gemma,
    "Siglip2Tokenizer": _siglip2,
    "T5Tokenizer": _t5,
}
"""Classes of transformers that make their own rules for a vocabulary."""


def _finished(
    inner: tokenizers.Tokenizer,
    stated: Stated,
    context: int,
    *,
    end: str,
    pad: str,
    side: str = "right",
    also: tuple[str, ...] = (),
) -> Tokenizer:
    """With added tokens, length and padding.

    Args:
        inner: Vocabulary and rules.
        stated: The folder.
        context: Length of every encoded text.
        end: The end-of-text token.
        pad: The token that fills up.
        side: Where it does, if the folder does not say.
        also: Special tokens of the class.
    """
    known = {token.content for token in stated.added}
    added = [AddedToken(word, special=True) for word in dict.fromkeys(also) if word not in known]
    inner.add_tokens([*stated.added, *added])
    settings, file = stated.settings, stated.file
    cut = settings.get("truncation_side") or (file.get("truncation") or {}).get("direction")
    filled = settings.get("padding_side") or (file.get("padding") or {}).get("direction") or side
    inner.enable_truncation(context, direction=str(cut or "right").lower())
    number = inner.token_to_id(pad)
    if number is None:
        raise CheckpointError(
            f"{stated.folder} has no padding token {pad!r} in its vocabulary. "
            "Name one as pad_token in tokenizer_config.json."
        )
    inner.enable_padding(
        pad_id=number, pad_token=pad, length=context, direction=str(filled).lower()
    )
    reads_special = not settings.get("split_special_tokens", False)
    return Tokenizer(inner, TextRules(end=end, reads_special=reads_special))


def _byte_pairs(stated: Stated) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges in tokenizer.json."""
    model = _needed(stated)["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return model["vocab"], [(first, second) for first, second in pairs]


def _precompiled(stated: dict[str, Any] | None) -> Any:
    """The character map among the normalisers of a tokenizer.json, as a normaliser; or None."""
    every = [stated, *((stated or {}).get("normalizers") or ())]
    for one in every:
        if one and one.get("type") == "Precompiled":
            bare = {"version": "1.0", "normalizer": one}
            bare["model"] = {"type": "BPE", "vocab": {}, "merges": []}
            return tokenizers.Tokenizer.from_str(json.dumps(bare)).normalizer
    return None


def _needed(stated: Stated) -> dict[str, Any]:
    """tokenizer.json.

    Raises:
        CheckpointError: There is none.
    """
    if not stated.file:
        raise _missing(stated.folder, "tokenizer.json")
    return stated.file


def _token(value: Any) -> AddedToken:
    """An added token as tokenizer.json and tokenizer_config.json write it."""
    fields = {name: value[name] for name in ("content", *FLAGS) if name in value}
    return AddedToken(**fields)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _content(value: Any) -> str:
    """The text of a special token, which may be written with its flags."""
    return str(value["content"] if isinstance(value, dict) else value)


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy the file again.") from error


def _missing(folder: Path, what: str) -> CheckpointError:
    """The vocabulary is not there."""
    return CheckpointError(f"{folder} has no {what}. Copy the whole folder of the model.")


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    """Files that contradict each other or miss something."""
    return CheckpointError(
        f"the tokenizer in {folder} cannot be read: {error!r}. Copy the whole folder again."
    )
