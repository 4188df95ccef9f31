"""Our tokenizers as files that transformers' AutoTokenizer reads.

CLIP's and SigLIP's own vocabularies become transformers' classes for them. Any other tokenizer.json
is written as it is, and transformers is told to take it so; cleaning that Diptych does in Python
becomes steps inside it. What comes out otherwise is said. `tokenizers_of.py` is the way back.
"""

import base64
import json
import re
import struct
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers

from diptych.data.cleaning import MENDING, Step, TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.errors import RequestError
from diptych.pretrained.clip_vocabulary import OPEN_CLIP_WORDS, clip_tokenizer, clip_vocabulary
from diptych.pretrained.sentencepiece import BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN
from diptych.pretrained.transformers_names import Family

STEPS: dict[Step, list[Any]] = {
    "strip": [normalizers.Strip()],
    "whitespace": [normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "), normalizers.Strip()],
    "lower": [normalizers.Lowercase()],
    "lower_ascii": [normalizers.Lowercase()],
    "underscore": [normalizers.Replace("_", " ")],
    "punctuation": [normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")],
    "ftfy": [],
    "html": [],
}
"""Steps of cleaning as normalizers of the tokenizers library; mending has none."""

NOT_MENDED = (
    "transformers' tokenizers do not mend encodings and HTML: texts with such faults, curly quotes "
    "or full-width forms get other ids there"
)
RARE = "transformers cleans texts inside tokenizer.json: rare letters may come out otherwise there"
STRICTER = "transformers' SiglipTokenizer also takes punctuation away"

Words = dict[str, str | bytes]
"""Contents of files by their name."""


def write_words(
    tokenizer: Tokenizer, family: Family, exchanged: tuple[int, int] | None = None
) -> tuple[Words, list[str]]:
    """The files of a tokenizer, and what is not the same there.

    Args:
        tokenizer: Of the model.
        family: SigLIP's texts go without a mask of their padding: its model reads all of it.
        exchanged: Two ids that change places.

    Raises:
        RequestError: transformers cannot do what the tokenizer does.
    """
    notes = []
    if _is_open_clip(tokenizer):
        tokenizer = clip_tokenizer("transformers", tokenizer.context)
        notes.append(NOT_MENDED)
    rules = tokenizer.rules
    stated = json.loads(tokenizer.to_json())
    settings = {
        "model_max_length": tokenizer.context,
        "eos_token": rules.end,
        "pad_token": stated["padding"]["pad_token"],
        "padding_side": stated["padding"]["direction"].lower(),
        "truncation_side": stated["truncation"]["direction"].lower(),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"] if family == "clip" else ["input_ids"],
    }
    steps = [*rules.cleaning, *rules.cleaning_between]
    if rules.sentencepiece != "no" and family == "siglip":
        settings |= _siglip_settings(stated, rules)
        notes += [STRICTER] if "punctuation" not in steps else []
        return {"tokenizer_config.json": _pretty(settings), "spiece.model": _spiece(stated)}, notes
    unknown = [step for step in steps if step not in STEPS]
    if unknown or rules.special_words or rules.sentencepiece != "no":
        what = f"the words {rules.special_words}" if rules.special_words else f"steps {unknown}"
        what = what if rules.sentencepiece == "no" else "sentencepiece's search for pieces"
        raise RequestError(
            f"this model's tokenizer has {what}, which transformers' tokenizers cannot do. "
            "Convert to diptych or open_clip instead."
        )
    if steps:
        stated = _with_steps(tokenizer, [one for step in steps for one in STEPS[step]])
        notes += [RARE, *([NOT_MENDED] if set(steps) & set(MENDING) else [])]
    if exchanged is not None:
        _exchange(stated, *exchanged)
    own = rules.end == "<|endoftext|>" and family == "clip"
    settings["tokenizer_class"] = "CLIPTokenizer" if own else "PreTrainedTokenizerFast"
    settings["split_special_tokens"] = not rules.reads_special or "punctuation" in rules.cleaning
    return {"tokenizer.json": _pretty(stated), "tokenizer_config.json": _pretty(settings)}, notes


def _is_open_clip(tokenizer: Tokenizer) -> bool:
    """Whether this is CLIP's own vocabulary with open_clip's cleaning."""
    if tokenizer.rules.special_words != OPEN_CLIP_WORDS:
        return False
    vocabulary, _ = clip_vocabulary(OPEN_CLIP_WORDS)
    return bool(json.loads(tokenizer.to_json())["model"]["vocab"] == vocabulary)


def _with_steps(tokenizer: Tokenizer, steps: list[Any]) -> dict[str, Any]:
    """tokenizer.json with more normalizers before its own."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    own = [] if inner.normalizer is None else [inner.normalizer]
    inner.normalizer = normalizers.Sequence([*steps, *own])
    return dict(json.loads(inner.to_str()))


def _exchange(stated: dict[str, Any], one: int, other: int) -> None:
    """Let two ids of a tokenizer.json change places, wherever they stand."""
    new = {one: other, other: one}
    vocabulary = stated["model"]["vocab"]
    for token, number in vocabulary.items():
        vocabulary[token] = new.get(number, number)
    for added in stated["added_tokens"]:
        added["id"] = new.get(added["id"], added["id"])
    stated["added_tokens"].sort(key=lambda added: added["id"])
    padding = stated["padding"]
    padding["pad_id"] = new.get(padding["pad_id"], padding["pad_id"])
    for special in (stated["post_processor"] or {}).get("special_tokens", {}).values():
        special["ids"] = [new.get(number, number) for number in special["ids"]]


def _siglip_settings(stated: dict[str, Any], rules: TextRules) -> dict[str, Any]:
    """What tokenizer_config.json says of a SiglipTokenizer beside its vocabulary."""
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    theirs = "word_mark" in rules.cleaning  # otherwise the class has flags of its own
    added = {
        str(token["id"]): {name: token[name] for name in flags} for token in stated["added_tokens"]
    }
    return {
        "tokenizer_class": "SiglipTokenizer",
        "legacy": rules.sentencepiece == "marked",
        "unk_token": stated["model"]["vocab"][stated["model"]["unk_id"]][0],
        "do_lower_case": bool(
            {"lower", "lower_ascii"} & {*rules.cleaning, *rules.cleaning_between}
        ),
        **({"added_tokens_decoder": added} if theirs else {}),
    }


def _spiece(stated: dict[str, Any]) -> bytes:
    """A sentencepiece file of a tokenizer.json with a unigram vocabulary: a protobuf message."""
    model = stated["model"]
    pieces = b""
    for index, (piece, score) in enumerate(model["vocab"]):
        kind = NORMAL
        if index == model["unk_id"]:
            kind = UNKNOWN
        elif model["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            kind = BYTE
        elif score == 0 and re.fullmatch("<.+>", piece):
            kind = CONTROL
        name = _bytes(1, piece.encode())
        pieces += _bytes(1, name + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    trainer = _number(3, UNIGRAM) + _number(4, len(model["vocab"]))
    trainer += _number(35, int(model["byte_fallback"])) + _number(40, model["unk_id"])
    characters = base64.b64decode((stated["normalizer"] or {}).get("precompiled_charsmap", ""))
    return pieces + _bytes(2, trainer) + _bytes(3, _bytes(2, characters))


def _bytes(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    return _integer(number << 3 | 2) + _integer(len(value)) + value


def _number(number: int, value: int) -> bytes:
    """A protobuf field of an integer."""
    return _integer(number << 3) + _integer(value)


def _integer(value: int) -> bytes:
    """An integer of 7 bits a byte, the lowest first."""
    start = bytearray()
    while value > 0x7F:
        start.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*start, value])


def _pretty(values: dict[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(values, indent=2) + "\n"
