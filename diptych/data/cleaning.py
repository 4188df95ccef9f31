"""What happens to a text before it meets the vocabulary, as a list of named steps.

Libraries clean texts in different ways, and a model must be fed as it was trained: open_clip mends
broken encodings and HTML, transformers does not. Where a step of theirs is Python, the same Python
runs here, so that no character can come out otherwise. `tokenizer.py` does the rest.
"""

import html
import string
from collections.abc import Callable
from typing import Literal

import ftfy

from diptych.config import Config

Step = Literal[
    "ftfy",
    "html",
    "strip",
    "whitespace",
    "lower",
    "lower_ascii",
    "underscore",
    "punctuation",
    "word_mark",
]
"""One step; see `STEPS`."""

MARK = "▁"
"""Stands for a space in sentencepiece's vocabularies."""


class TextRules(Config):
    """What a tokenizer does besides what its tokenizer.json says.

    The defaults are those of a vocabulary that Diptych learned itself.
    """

    cleaning: tuple[Step, ...] = ()
    """What is done to the whole text, in this order, before special tokens are looked for."""

    end: str = "<end>"
    """The end-of-text token in tokenizer.json."""

    reads_special: bool = False
    """A special token that is written in a text becomes the token, as in transformers.
    Otherwise it is letters like any others."""

    special_words: tuple[str, ...] = ()
    """Special tokens that a text can write as a word of its own, as in open_clip: behind a letter,
    a digit or a space they become the token, behind another sign they stay letters."""

    cleaning_between: tuple[Step, ...] = ()
    """What is done to each part between special tokens, after `cleaning`."""

    sentencepiece: Literal["no", "marked", "unmarked"] = "no"
    """Pieces are found as sentencepiece finds them (`unigram.py`), with a mark before the text or
    without (sentencepiece's `add_dummy_prefix`)."""

    behind: str = ""
    """Stands before every part for sentencepiece, and its pieces are dropped again; transformers'
    SiglipTokenizer has "<unk>" there, which decides between parts that are equally good."""


def _unescaped_twice(text: str) -> str:
    """HTML entities as characters; those that were escaped twice too."""
    return html.unescape(html.unescape(text))


def _one_space(text: str) -> str:
    """Runs of white space become one space; none at the ends."""
    return " ".join(text.split())


def _spaced(text: str) -> str:
    """Underscores become spaces."""
    return text.replace("_", " ")


NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
"""Deletes the 32 signs of ASCII."""


def _unpunctuated(text: str) -> str:
    """Without the signs of ASCII."""
    return text.translate(NO_PUNCTUATION)


def _lower_ascii(text: str) -> str:
    """A to Z in lower case, no other letter (big_vision)."""
    return text.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def _word_mark(text: str) -> str:
    """Begins with a mark, and has no other (transformers' SiglipTokenizer)."""
    return MARK + text.replace(MARK, " ")


STEPS: dict[Step, Callable[[str], str]] = {
    "ftfy": ftfy.fix_text,  # mends mojibake, full-width forms, ligatures, curly quotes
    "html": _unescaped_twice,
    "strip": str.strip,
    "whitespace": _one_space,
    "lower": str.lower,
    "lower_ascii": _lower_ascii,
    "underscore": _spaced,
    "punctuation": _unpunctuated,
    "word_mark": _word_mark,
}
"""What each step does."""

MENDING = ("ftfy", "html")
"""Steps that leave the plain signs of ASCII as they are, but for "&"."""


def clean(text: str, steps: tuple[Step, ...]) -> str:
    """The text after these steps, in their order."""
    plain = text.isascii() and text.isprintable() and "&" not in text
    for step in steps:
        if not (plain and step in MENDING):
            text = STEPS[step](text)
    return text
