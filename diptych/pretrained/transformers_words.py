"""Our tokenizers as files that transformers' AutoTokenizer reads.

CLIP's, SigLIP's and SigLIP 2's vocabularies become transformers' classes for them. Any other
tokenizer.json is written as it is, and transformers is told to take it so; cleaning that Diptych
does in Python becomes steps inside it. What comes out otherwise is said. `tokenizers_of.py` is the
way back, `sentencepiece_writer.py` writes SigLIP's.
"""

import json
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers

from diptych.data.cleaning import MENDING, Step
from diptych.data.tokenizer import Tokenizer
from diptych.errors import RequestError
from diptych.pretrained.clip_vocabulary import OPEN_CLIP_WORDS, clip_tokenizer, clip_vocabulary
from diptych.pretrained.sentencepiece_writer import siglip_files
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
READ_AS_TOKENS = (
    "transformers reads <|startoftext|> and <|endoftext|> written in a text as tokens, open_clip "
    "<start_of_text> and <end_of_text>: texts with such words get other ids there"
)
RARE = "transformers cleans texts inside tokenizer.json: rare letters may come out otherwise there"

SIGLIP_2 = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
}
"""What transformers' Siglip2Tokenizer does before its byte pairs, as tokenizer.json says it."""

SIGLIP_2_WORDS = {"<bos>", "<unk>", "<mask>"}
"""Special tokens that it would add."""

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
        notes += [NOT_MENDED, READ_AS_TOKENS]
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
        pieces, more, notes = siglip_files(tokenizer)
        notes += [NOT_MENDED] if set(steps) & set(MENDING) else []
        return {"tokenizer_config.json": _pretty(settings | more), "spiece.model": pieces}, notes
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
    settings["tokenizer_class"] = _class(stated, rules.end, family)
    settings["split_special_tokens"] = not rules.reads_special or "punctuation" in rules.cleaning
    return {"tokenizer.json": _pretty(stated), "tokenizer_config.json": _pretty(settings)}, notes


def _is_open_clip(tokenizer: Tokenizer) -> bool:
    """Whether this is CLIP's own vocabulary with open_clip's cleaning."""
    if tokenizer.rules.special_words != OPEN_CLIP_WORDS:
        return False
    vocabulary, _ = clip_vocabulary(OPEN_CLIP_WORDS)
    return bool(json.loads(tokenizer.to_json())["model"]["vocab"] == vocabulary)


def _class(stated: dict[str, Any], end: str, family: Family) -> str:
    """transformers' class for a tokenizer.json."""
    if end == "<|endoftext|>" and family == "clip":
        return "CLIPTokenizer"
    model = stated["model"]
    pairs = model["type"] == "BPE" and model["byte_fallback"] and model["fuse_unk"]
    words = {token["content"] for token in stated["added_tokens"]}
    around = {name: stated[name] for name in SIGLIP_2}
    if pairs and around == SIGLIP_2 and words >= SIGLIP_2_WORDS and family == "siglip":
        return "Siglip2Tokenizer"
    return "PreTrainedTokenizerFast"


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


def _pretty(values: dict[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(values, indent=2) + "\n"
