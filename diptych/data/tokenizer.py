"""Texts to token ids of one fixed length, and a byte-pair vocabulary learned from texts.

The vocabulary, the special tokens, length and padding live in one `tokenizer.json` of the
`tokenizers` library; what it cannot express is said by `TextRules` (`cleaning.py`) in the model's
contract. Where we learned the vocabulary ourselves, special tokens are never read out of a text: a
caption that says "<end>" gives the letters, not the token.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from diptych.data.cleaning import TextRules, clean
from diptych.data.unigram import Unigram
from diptych.errors import CheckpointError, DataError, RequestError

PAD, START, END = "<pad>", "<start>", "<end>"

MOST_CONTEXT = 65_536
"""Tokens. Text towers have some hundreds at most; the library ends the process where the memory is
too small for the padding."""

MOST_GROWTH = 4096
"""Times that the rules of a tokenizer.json may lengthen a text before it is split. Known ones stay
below 100: a character stands for up to 18 others."""

_OURS = TextRules()


class Tokenizer:
    """Cleans, splits, cuts and pads."""

    def __init__(self, inner: tokenizers.Tokenizer, rules: TextRules = _OURS) -> None:
        """Wrap a tokenizer of the `tokenizers` library.

        Args:
            inner: With truncation and padding to the model's context.
            rules: What it does not say itself.

        Raises:
            CheckpointError: It states no length or no padding, or has not the end token of `rules`,
                or encoding would take memory without end.
        """
        if inner.truncation is None or inner.padding is None:
            raise CheckpointError(
                "the tokenizer states no length and no padding, so its vectors are undefined. "
                "Save it with truncation and padding of the model's context."
            )
        self._inner, self.rules = inner, rules
        self.context: int = inner.truncation["max_length"]
        _check_cost(inner)
        self.pad_token: int = inner.padding["pad_id"]
        self.end_token: int = self._special(rules.end)
        self.vocabulary: int = inner.get_vocab_size()
        self._between = bool(rules.cleaning_between)
        inner.encode_special_tokens = self._between or not rules.reads_special
        self._words = self._words_read()
        longest_first = sorted(self._words, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._pieces: Unigram | None = None
        if rules.sentencepiece != "no":
            special = [token.content for token in inner.get_added_tokens_decoder().values()]
            self._pieces = Unigram(inner.to_str(), special)
            marked = rules.sentencepiece == "marked"
            self._behind = len(self._pieces.ids(rules.behind, marked=marked))
        self._framing = _used(self._encoded(""))

    @classmethod
    def learn(cls, texts: Iterable[str], *, vocabulary: int, context: int) -> "Tokenizer":
        """Learn byte-pair merges from texts (lower-cased, runs of white space become one space).

        Args:
            texts: What to learn from.
            vocabulary: Most tokens to have, special ones and the 256 bytes included.
            context: Length of every encoded text, start and end tokens included.

        Raises:
            RequestError: `vocabulary` or `context` is too small to hold anything.
            DataError: There is no text.
        """
        if vocabulary < 259:
            raise RequestError(
                f"vocabulary {vocabulary} cannot hold 256 bytes and 3 special tokens. "
                "Use 512 or more."
            )
        if context < 3:
            raise RequestError(
                f"context {context} leaves no room between start and end. Use 16 or more."
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(_some(texts), trainer)
        inner.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}",
            special_tokens=[(token, inner.token_to_id(token)) for token in (START, END)],
        )
        inner.enable_truncation(context)
        inner.enable_padding(pad_id=inner.token_to_id(PAD), pad_token=PAD, length=context)
        return cls(inner)

    @classmethod
    def from_json(cls, text: str, rules: TextRules = _OURS) -> "Tokenizer":
        """Read what `to_json` wrote, with the rules that stood beside it.

        Raises:
            CheckpointError: The text is not a tokenizer.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise CheckpointError(
                f"tokenizer.json cannot be read: {error}. Copy the file again."
            ) from error
        return cls(inner, rules)

    def to_json(self) -> str:
        """The whole tokenizer as text."""
        return self._inner.to_str(pretty=True)

    def encode(self, texts: Sequence[str]) -> tuple[Int64[np.ndarray, "texts context"], int]:
        """Ids of each text, and how many texts were longer than the context and were cut."""
        rows, cut = [], 0
        for text in texts:
            whole = _whole(clean(text, self.rules.cleaning))
            if self._pieces is not None or self._written.search(whole):
                ids, lost = self._framed(self._with_words(whole))
            else:
                encoding = self._encoded(self._part(whole))
                ids, lost = encoding.ids, bool(encoding.overflowing)
            rows.append(ids)
            cut += lost
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.context), cut

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True).strip()

    def _special(self, token: str) -> int:
        """The id of a special token.

        Raises:
            CheckpointError: There is none of this name.
        """
        number = self._inner.token_to_id(token)
        if number is None:
            raise CheckpointError(
                f"the tokenizer has no {token!r} token. Use the tokenizer.json of the model."
            )
        return int(number)

    def _words_read(self) -> dict[str, AddedToken]:
        """The special tokens that are looked for in texts here; `tokenizers` finds the others."""
        if self._between and self.rules.reads_special:
            added = self._inner.get_added_tokens_decoder().values()
            return {token.content: token for token in added}
        return {word: AddedToken(word) for word in self.rules.special_words}

    def _part(self, text: str) -> str:
        """What stands between special tokens, clean."""
        return _whole(clean(text, self.rules.cleaning_between))

    def _with_words(self, text: str) -> list[int]:
        """All ids of a text in which special tokens may be written, without start and end."""
        ids: list[int] = []
        if self.rules.special_words:
            ids = self._plain(text)
            for word in self.rules.special_words:
                ids = _replaced(ids, self._plain(word), self._special(word))
            return ids
        place = 0
        for found in self._written.finditer(text):
            token = self._words[found.group()]
            before = text[place : found.start()]
            ids += self._plain(self._part(before.rstrip() if token.lstrip else before))
            ids.append(self._special(token.content))
            behind = text[found.end() :]
            place = len(text) - len(behind.lstrip() if token.rstrip else behind)
        return ids + self._plain(self._part(text[place:]))

    def _plain(self, text: str) -> list[int]:
        """All ids of a text without special tokens, none cut, without start and end."""
        if self._pieces is not None:
            marked = self.rules.sentencepiece == "marked"
            ids = self._pieces.ids(self.rules.behind + text, marked=marked)
            return ids[self._behind :] if len(ids) >= self._behind else ids
        encoding = self._encoded(text, framed=False)
        return [number for part in (encoding, *encoding.overflowing) for number in _used(part)]

    def _encoded(self, text: str, *, framed: bool = True) -> tokenizers.Encoding:
        """What the library makes of a text.

        Raises:
            CheckpointError: It broke off, such as in a pattern that would take without end.
        """
        try:
            return self._inner.encode(text, add_special_tokens=framed)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # cannot be imported, is no Exception
                raise
            raise CheckpointError(
                f"the model's tokenizer.json cannot encode {text[:40]!r}: {error!s:.200}. "
                "Use another text, or a tokenizer.json with simpler patterns."
            ) from None

    def _framed(self, ids: list[int]) -> tuple[list[int], bool]:
        """Start, ids, end and padding; and whether ids were cut."""
        *start, end = self._framing
        kept = [*start, *ids][: self.context - 1]
        if not (self._between and kept[-1:] == [end]):  # transformers adds no second one
            kept.append(end)
        padding = [self.pad_token] * (self.context - len(kept))
        return kept + padding, len(start) + len(ids) + 1 > self.context


def _check_cost(inner: tokenizers.Tokenizer) -> None:
    """Refuse settings under which any text would take the memory.

    Raises:
        CheckpointError: Names the setting.
    """
    context, padding = (inner.truncation or {})["max_length"], inner.padding or {}
    if context > MOST_CONTEXT:
        raise CheckpointError(
            f"the tokenizer makes texts of {context:,} tokens, and at most {MOST_CONTEXT:,} are "
            "read. Use the context of the model's text tower, such as 77."
        )
    if padding["length"] != context or padding["pad_to_multiple_of"]:
        raise CheckpointError(
            f"the tokenizer cuts texts to {context} tokens and pads them to {padding['length']} "
            f"(multiples of {padding['pad_to_multiple_of']}). Save it with padding to {context}."
        )
    rules = inner.normalizer
    growth = _growth(json.loads(rules.__getstate__())) if rules is not None else 1
    if growth > MOST_GROWTH:
        raise CheckpointError(
            f"the normalizer of tokenizer.json may make texts {growth:,.0f} times as long, and at "
            f"most {MOST_GROWTH:,} times is read. Use a tokenizer.json with fewer replacements."
        )


def _growth(rule: dict[str, Any]) -> float:
    """How many times longer a rule of a `normalizer` may make a text if it is applied after others
    that did the same; rules of Unicode do so once at most."""
    match rule:
        case {"type": "Sequence", "normalizers": list(rules)}:
            return math.prod(map(_growth, rules))
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return max(1.0, len(content) / len(pattern)) if pattern else len(content) + 1.0
        case {"type": "Replace", "content": str(content)}:
            return len(content) + 1.0  # a pattern may match nothing, at each place
        case {"type": "ByteLevel"}:
            return 4.0
        case {"type": "Precompiled"}:
            return 32.0
    return 1.0


def _used(encoding: tokenizers.Encoding) -> list[int]:
    """Ids without padding."""
    pairs = zip(encoding.ids, encoding.attention_mask, strict=True)
    return [number for number, used in pairs if used]


def _replaced(ids: list[int], spelled: list[int], token: int) -> list[int]:
    """Every run of `spelled` becomes one token."""
    out: list[int] = []
    for number in ids:
        out.append(number)
        if out[-len(spelled) :] == spelled:
            out[-len(spelled) :] = [token]
    return out


def trim(
    ids: Int64[np.ndarray, "texts length"], pad_token: int, end_token: int
) -> Int64[np.ndarray, "texts shorter"]:
    """Drop the columns at the right in which every text is padding.

    Only for text towers that never read padding (every pool but "last"). Where texts are padded
    with the end token, as in transformers' CLIP, the first of them is no padding and stays.
    """
    used = np.flatnonzero((ids != pad_token).any(axis=0))
    end = int(used[-1]) + 1 if len(used) else 0
    return ids[:, : max(1, end + (pad_token == end_token))]


def _whole(text: str) -> str:
    """The text; halves of characters (lone surrogates, which no encoding has) become "?"."""
    return text.encode(errors="replace").decode()


def _some(texts: Iterable[str]) -> Iterable[str]:
    """The same texts; an error if there are none."""
    empty = True
    for text in texts:
        empty = False
        yield _whole(text)
    if empty:
        raise DataError("there is no text to learn a vocabulary from. Give a source with captions.")
