"""Sentencepiece's files (`spiece.model`, `sentencepiece.model`) as a tokenizer with the same ids.

Unigram models with sentencepiece's usual treatment of white space, as SigLIP and T5 have them. The
file is a protobuf message, of which the few fields that matter are read here by hand; nothing in
it is run. `data/unigram.py` finds the pieces of a text.
"""

import base64
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, processors

from diptych.data.cleaning import Step, TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, OWN, BYTE = 1, 2, 3, 4, 6
"""Kinds of pieces; `OWN` are symbols that the trainer asked for. 5 are gaps."""

UNIGRAM = 1
"""The kind of model; BPE is 2."""


@dataclass(frozen=True)
class Pieces:
    """What a sentencepiece file says."""

    scores: list[tuple[str, float]]
    """Every piece with its logarithmic probability, in the order of the ids."""

    kinds: list[int]
    """`NORMAL`, `UNKNOWN`, `CONTROL`, `OWN` or `BYTE` for each of them."""

    characters: bytes
    """The compiled character map; empty: none."""

    bytes_for_unknown: bool
    """Characters without a piece become their bytes instead of the unknown piece."""

    @property
    def unknown(self) -> int:
        """Id of the unknown piece."""
        return self.kinds.index(UNKNOWN)

    def own(self, beside: list[AddedToken]) -> list[AddedToken]:
        """What transformers makes tokens of its own of, beside those there already."""
        known = {token.content for token in beside}
        return [
            AddedToken(piece, special=kind == CONTROL, normalized=False)
            for (piece, _), kind in zip(self.scores, self.kinds, strict=True)
            if kind in (CONTROL, OWN) and piece not in known
        ]


def sentencepiece_tokenizer(path: Path, context: int) -> Tokenizer:
    """The tokenizer of SigLIP in big_vision: `tokenize(context, model=path, eos="sticky",
    pad_value=1)`.

    A to Z are lower-cased, no other letter; the end token stays when a text is cut; padding is the
    end token; nothing in a text is a special token.

    Args:
        path: A file of sentencepiece, such as c4_en's.
        context: Length of every encoded text.

    Raises:
        CheckpointError: The file is missing, damaged, or of a kind that is not read.
    """
    pieces = read_pieces(path)
    if pieces.kinds[1] != CONTROL:
        raise CheckpointError(
            f"{path}: piece 1 is {pieces.scores[1][0]!r} and not the end of a text, as SigLIP's "
            "vocabularies have it. Use the sentencepiece.model that the model was trained with."
        )
    inner = unigram(pieces)
    end = pieces.scores[1][0]
    hidden = [
        AddedToken(piece, special=True, normalized=False)
        for (piece, _), kind in zip(pieces.scores, pieces.kinds, strict=True)
        if kind in (CONTROL, UNKNOWN)
    ]
    finish(inner, hidden, end, end, context)
    rules = TextRules(cleaning=("lower_ascii",), end=end, sentencepiece="marked")
    return Tokenizer(inner, rules)


def siglip_tokenizer(path: Path, settings: dict[str, Any], context: int) -> Tokenizer:
    """transformers' SiglipTokenizer.

    Args:
        path: spiece.model.
        settings: tokenizer_config.json, with the added tokens as AddedToken.
        context: Length of every encoded text.

    Raises:
        CheckpointError: The file is missing, damaged, or of a kind that is not read.
    """
    pieces = read_pieces(path)
    inner = unigram(pieces)
    end = settings.get("eos_token", "</s>")
    pad = settings.get("pad_token", "</s>")
    words = dict.fromkeys((end, settings.get("unk_token", "<unk>"), pad))
    added = [*settings.get("added_tokens", [])]
    known = {token.content for token in added}
    added += [
        AddedToken(word, lstrip=True, rstrip=True, special=True, normalized=False)
        for word in words
        if word not in known
    ]
    finish(inner, added, end, pad, context)
    lower: tuple[Step, ...] = ("lower",) if settings.get("do_lower_case", True) else ()
    rules = TextRules(
        cleaning=("word_mark",),
        end=end,
        reads_special=True,
        cleaning_between=(*lower, "punctuation", "whitespace"),
        sentencepiece="marked" if settings.get("legacy", True) else "unmarked",
        behind=settings.get("unk_token", "<unk>"),
    )
    return Tokenizer(inner, rules)


def unigram(pieces: Pieces) -> tokenizers.Tokenizer:
    """The vocabulary with its character map; `data/unigram.py` searches in it."""
    model = models.Unigram(pieces.scores, pieces.unknown, byte_fallback=pieces.bytes_for_unknown)
    inner = tokenizers.Tokenizer(model)
    if pieces.characters:
        values = json.loads(inner.to_str())
        encoded = base64.b64encode(pieces.characters).decode()
        values["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": encoded}
        inner = tokenizers.Tokenizer.from_str(json.dumps(values))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return inner


def finish(
    inner: tokenizers.Tokenizer, added: list[AddedToken], end: str, pad: str, context: int
) -> None:
    """Add special tokens, the end of a text, length and padding at the right."""
    inner.add_tokens(added)
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, inner.token_to_id(end))]
    )
    inner.enable_truncation(context)
    inner.enable_padding(pad_id=inner.token_to_id(pad), pad_token=pad, length=context)


def read_pieces(path: Path) -> Pieces:
    """Read a sentencepiece file.

    Raises:
        CheckpointError: It is missing, damaged, or of a kind that is not read.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        found = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
        characters = normalizer.get(2, b"")
        if not isinstance(characters, bytes):
            raise ValueError("a character map that is a number")
        kinds = [kind for _, _, kind in found]
        pieces = Pieces(
            scores=_scores(found),
            kinds=kinds,
            characters=characters,
            bytes_for_unknown=bool(trainer.get(35, 0)),
        )
        model = trainer.get(3, UNIGRAM)
        plain = all(normalizer.get(number, 1) == 1 for number in (3, 4, 5)) and not trainer.get(24)
    except FileNotFoundError:
        raise CheckpointError(f"there is no vocabulary {path}. Copy the whole folder.") from None
    except (ValueError, IndexError, struct.error, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a sentencepiece model: {error}. Copy the file again."
        ) from error
    if model != UNIGRAM:
        raise _unread(path, f"model of kind {model} (BPE is 2), and only unigram models are read")
    others = set(kinds) - {NORMAL, UNKNOWN, CONTROL, OWN, BYTE}
    if kinds.count(UNKNOWN) != 1 or others or len(kinds) < 3:
        raise _unread(path, "vocabulary with gaps, or without an unknown piece")
    if not plain:
        raise _unread(path, "model that treats white space otherwise than sentencepiece's default")
    return pieces


def _scores(found: list[tuple[str, float, int]]) -> list[tuple[str, float]]:
    """Every piece with the score that sentencepiece searches with: own symbols always win."""
    usual = [score for _, score, kind in found if kind == NORMAL]
    low = min(usual, default=0.0)
    return [(piece, max(low, -0.1) if kind == OWN else score) for piece, score, kind in found]


def _unread(path: Path, what: str) -> CheckpointError:
    """A kind of file that has no tokenizer here."""
    return CheckpointError(f"{path} holds a {what}. Use a folder that has a tokenizer.json.")


def _piece(message: bytes) -> tuple[str, float, int]:
    """One piece: its text, score and kind."""
    values = {3: NORMAL, 2: bytes(4)} | dict(_fields(message))
    piece, score, kind = values.get(1), values[2], values[3]
    if not (isinstance(piece, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError(f"a piece with fields {sorted(values)} of other kinds")
    (number,) = struct.unpack("<f", score)
    if not math.isfinite(number):
        raise ValueError(f"a piece with score {number}")
    return piece.decode(), number, kind


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: number, and an integer or bytes.

    Raises:
        ValueError: It ends inside a field, or has a field of another kind.
    """
    place = 0
    while place < len(message):
        key, place = _integer(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _integer(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _integer(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {place}")
        if place + size > len(message):
            raise ValueError(f"it ends inside a field of {size} bytes at byte {place}")
        yield number, message[place : place + size]
        place += size


def _integer(message: bytes, place: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"no end of an integer at byte {place}")
