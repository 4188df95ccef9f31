"""A tokenizer that came from sentencepiece as the files transformers' SiglipTokenizer reads.

`sentencepiece.py` is the way back: what was read there is written here with the same ids.
"""

import base64
import json
import struct
from typing import Any

from diptych.data.tokenizer import Tokenizer
from diptych.errors import RequestError
from diptych.pretrained.sentencepiece import BYTE, CONTROL, NORMAL, UNIGRAM, UNKNOWN


def siglip_files(tokenizer: Tokenizer) -> tuple[bytes, dict[str, Any], list[str]]:
    """The contents of spiece.model and tokenizer_config.json, and what is not the same there.

    Raises:
        RequestError: The tokenizer did not come from sentencepiece.
    """
    rules = tokenizer.rules
    if rules.sentencepiece == "no":
        raise RequestError(
            "this model's tokenizer does not come from sentencepiece, so it has no spiece.model. "
            "Convert to diptych instead."
        )
    values = json.loads(tokenizer.to_json())
    model, added = values["model"], values["added_tokens"]
    unknown = model["vocab"][model["unk_id"]][0]
    notes = []
    if rules.cleaning[-1:] != ("word_mark",):
        added = [token for token in added if token["content"] in (rules.end, unknown)]
        notes.append(
            "transformers' SiglipTokenizer removes punctuation and lower-cases every letter, and "
            f"this model's texts go through {list(rules.cleaning)}: such texts get other ids there"
        )
    settings = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": tokenizer.context,
        "do_lower_case": bool(notes) or "lower" in (*rules.cleaning, *rules.cleaning_between),
        "eos_token": rules.end,
        "pad_token": values["padding"]["pad_token"],
        "unk_token": rules.behind or unknown,
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in added
        },
        "model_input_names": ["input_ids"],
    }
    if rules.sentencepiece == "unmarked":
        settings["legacy"] = False
    special = {token["content"] for token in added}
    return _message(values, special), settings, notes


def _message(values: dict[str, Any], special: set[str]) -> bytes:
    """spiece.model of a tokenizer.json."""
    model = values["model"]
    pieces = [
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for (piece, score), kind in zip(model["vocab"], _kinds(model, special), strict=True)
    ]
    falls_back = int(bool(model.get("byte_fallback")))
    trainer = _field(3, UNIGRAM) + _field(35, falls_back) + _field(40, model["unk_id"])
    encoded = (values["normalizer"] or {}).get("precompiled_charsmap", "")
    normaliser = _field(2, base64.b64decode(encoded))
    return b"".join(pieces) + _field(2, trainer) + _field(3, normaliser)


def _kinds(model: dict[str, Any], special: set[str]) -> list[int]:
    """The kind of each piece, of which tokenizer.json says nothing."""
    names = {f"<0x{byte:02X}>" for byte in range(256)} if model.get("byte_fallback") else set()
    kinds = []
    for index, (piece, score) in enumerate(model["vocab"]):
        mark = score == 0 and piece[:1] == "<" and piece[-1:] == ">"
        if index == model["unk_id"]:
            kinds.append(UNKNOWN)
        elif piece in names:
            kinds.append(BYTE)
        else:
            kinds.append(CONTROL if piece in special or mark else NORMAL)
    return kinds


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _integer(number << 3) + _integer(value)
    return _integer(number << 3 | 2) + _integer(len(value)) + value


def _integer(value: int) -> bytes:
    """7 bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
