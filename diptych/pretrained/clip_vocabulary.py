"""CLIP's vocabulary, and the two tokenizers that people made of it.

`clip_merges.txt.gz` holds the 48,894 byte-pair merges that CLIP uses, one a line, in their order.
They are the first of OpenAI's `bpe_simple_vocab_16e6.txt.gz` (https://github.com/openai/CLIP, MIT
License, Copyright (c) 2021 OpenAI); the file is data, no code.

open_clip and transformers clean and split texts in different ways, so a model needs the one it was
trained with: they differ on HTML entities, curly quotes, full-width forms and newer letters.
`tokenizers_of.py` says which one a folder of another library needs.
"""

import gzip
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from diptych.data.cleaning import Step, TextRules
from diptych.data.tokenizer import Tokenizer

MERGES = Path(__file__).with_name("clip_merges.txt.gz")

Clean = Literal["lower", "whitespace", "canonicalize"]
"""open_clip's names for what it does with a text."""

CLEANING: dict[str, tuple[Step, ...]] = {
    "lower": ("ftfy", "html", "strip", "whitespace", "lower"),
    "whitespace": ("ftfy", "html", "strip", "whitespace"),
    "canonicalize": ("ftfy", "html", "strip", "underscore", "punctuation", "lower", "whitespace"),
}
"""The steps behind them."""

OPEN_CLIP_WORDS = ("<start_of_text>", "<end_of_text>")
TRANSFORMERS_WORDS = ("<|startoftext|>", "<|endoftext|>")

NEW_LETTERS = (
    r"\x{558}\x{58b}-\x{58c}\x{88f}\x{c5c}\x{cdc}\x{208f}\x{209d}-\x{209f}\x{a7ce}-\x{a7cf}"
    r"\x{a7d2}\x{a7d4}\x{a7dd}\x{a7e2}\x{a7f1}\x{ab6c}-\x{ab6d}\x{107bb}-\x{107bf}"
    r"\x{10940}-\x{10959}\x{10ec5}-\x{10ec7}\x{10ed9}-\x{10eee}\x{11b0a}\x{11db0}-\x{11ddb}"
    r"\x{11df1}\x{16ea0}-\x{16eb8}\x{16ebb}-\x{16ed3}\x{16ff2}-\x{16ff3}\x{187f8}-\x{187ff}"
    r"\x{18cd6}-\x{18cda}\x{18d09}-\x{18d20}\x{18d80}-\x{18df2}\x{18e00}-\x{19191}"
    r"\x{191a0}-\x{191d2}\x{1b123}-\x{1b128}\x{1b168}\x{1d6a6}\x{1df1f}-\x{1df24}"
    r"\x{1df2b}-\x{1df81}\x{1df90}-\x{1df96}\x{1dfcd}-\x{1dfff}\x{1e6c0}-\x{1e6de}"
    r"\x{1e6e0}-\x{1e6e2}\x{1e6e4}-\x{1e6e5}\x{1e6e7}-\x{1e6ed}\x{1e6f0}-\x{1e6f4}"
    r"\x{1e6fe}-\x{1e6ff}\x{2b73a}-\x{2b73f}\x{2b81e}\x{2cea2}-\x{2cead}\x{323b0}-\x{33479}"
    r"\x{3d000}-\x{3fc3f}"
)
NEW_NUMBERS = (
    r"\x{11de0}-\x{11de9}\x{1246f}\x{12475}-\x{1247f}\x{12550}-\x{12686}\x{16ff4}-\x{16ff6}"
)
"""Younger than Unicode 16: Python's `regex` 2026.11, which open_clip splits by, knows them, and the
engine inside `tokenizers` 0.23 does not."""

DROPPED = r"\x{345}"
"""The small iota below: where case does not count, `regex` finds it neither inside nor outside the
classes of letters (it folds to a letter and is none), so open_clip drops it."""


def clip_tokenizer(
    library: Literal["open_clip", "transformers"],
    context: int = 77,
    *,
    clean: Clean = "lower",
    extra: tuple[str, ...] = (),
) -> Tokenizer:
    """CLIP's tokenizer as one library has it, with the same ids on every text.

    Args:
        library: "open_clip" (its SimpleTokenizer, and OpenAI's) or "transformers" (CLIPTokenizer).
        context: Length of every encoded text.
        clean: open_clip's `clean`.
        extra: open_clip's `additional_special_tokens`.
    """
    if library == "open_clip":
        return _open_clip(context, clean, (*OPEN_CLIP_WORDS, *extra))
    vocabulary, merges = clip_vocabulary(TRANSFORMERS_WORDS)
    start, end = TRANSFORMERS_WORDS
    inner = transformers_clip(vocabulary, merges, start=start, end=end, unknown=end)
    special = [AddedToken(word, special=True, normalized=False) for word in (start, end)]
    inner.add_special_tokens(special)
    inner.enable_truncation(context)
    inner.enable_padding(pad_id=vocabulary[end], pad_token=end, length=context)
    return Tokenizer(inner, TextRules(end=end, reads_special=True))


def _open_clip(context: int, clean: Clean, words: tuple[str, ...]) -> Tokenizer:
    """open_clip's SimpleTokenizer."""
    vocabulary, merges = clip_vocabulary(words)
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
    )
    contractions = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
    letters, numbers = rf"\p{{L}}{NEW_LETTERS}", rf"\p{{N}}{NEW_NUMBERS}"
    pattern = "|".join(
        [
            *map(_any_case, (*words, *contractions)),
            f"[{letters}]+|[{numbers}]|[^\\s{letters}{numbers}{DROPPED}]+",
        ]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    start, end = words[:2]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(word, vocabulary[word]) for word in (start, end)],
    )
    inner.enable_truncation(context)
    inner.enable_padding(pad_id=0, pad_token="!", length=context)
    rules = TextRules(cleaning=CLEANING[clean], end=end, special_words=words)
    return Tokenizer(inner, rules)


def transformers_clip(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    start: str,
    end: str,
    unknown: str,
) -> tokenizers.Tokenizer:
    """What transformers 5 makes of a vocabulary: its CLIPTokenizer builds the rest itself and
    ignores what tokenizer.json says about cleaning and splitting. Special tokens, length and
    padding are left to the caller."""
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=unknown,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    pattern = words + r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    inner.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]),
        (start, vocabulary[start]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return inner


def clip_vocabulary(words: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of CLIP's tokens, special ones last, and the merges."""
    merges = _merges()
    signs = _byte_signs()
    tokens = [*signs, *(sign + "</w>" for sign in signs)]
    tokens += ["".join(pair) for pair in merges]
    return {token: index for index, token in enumerate([*tokens, *words])}, merges


def _merges() -> list[tuple[str, str]]:
    """The merges in their order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    pairs = [line.split(" ") for line in lines]
    return [(first, second) for first, second in pairs]


def _byte_signs() -> list[str]:
    """The sign that stands for each byte: those that can be printed first, as themselves."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printed))
    return [chr(code) for code in printed] + [chr(256 + index) for index in range(others)]


def _any_case(word: str) -> str:
    """A pattern of the word in upper and lower case; a long s (ſ) is an s."""
    signs = []
    for sign in word:
        both = sorted({sign.lower(), sign.upper()} | ({"ſ"} if sign == "s" else set()))
        signs.append(f"[{''.join(both)}]" if len(both) > 1 else sign)
    return "".join(signs)
