"""Texts to token ids of one fixed length, and a byte-pair vocabulary learned from texts.

The vocabulary, the cleaning and the special tokens live in one `tokenizer.json` of the
`tokenizers` library. Special tokens are never read out of a text: a caption that says "<end>"
gives the letters, not the token.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Int64
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from diptych.errors import CheckpointError, DataError, RequestError

PAD, START, END = "<pad>", "<start>", "<end>"


class Tokenizer:
    """Cleans, splits, cuts and pads."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True
        if inner.truncation is None or inner.padding is None:
            raise CheckpointError(
                "the tokenizer states no length and no padding, so its vectors are undefined. "
                "Save it with truncation and padding of the model's context."
            )
        self._inner = inner
        self.context: int = inner.truncation["max_length"]
        self.pad_token: int = inner.padding["pad_id"]
        end = inner.token_to_id(END)
        if end is None:
            raise CheckpointError(
                f"the tokenizer has no {END!r} token. Use the tokenizer.json of a Diptych model."
            )
        self.end_token: int = end
        self.vocabulary: int = inner.get_vocab_size()

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
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: The text is not a tokenizer.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise CheckpointError(
                f"tokenizer.json cannot be read: {error}. Copy the file again."
            ) from error
        return cls(inner)

    def to_json(self) -> str:
        """The whole tokenizer as text."""
        return self._inner.to_str(pretty=True)

    def encode(self, texts: Sequence[str]) -> tuple[Int64[np.ndarray, "texts context"], int]:
        """Ids of each text, and how many texts were longer than the context and were cut."""
        encodings = [self._inner.encode(_whole(text)) for text in texts]
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        return ids.reshape(len(encodings), self.context), cut

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True).strip()


def trim(
    ids: Int64[np.ndarray, "texts length"], pad_token: int
) -> Int64[np.ndarray, "texts shorter"]:
    """Drop the columns at the right in which every text is padding.

    Only for text towers that never read padding (every pool but "last").
    """
    used = np.flatnonzero((ids != pad_token).any(axis=0))
    return ids[:, : used[-1] + 1] if len(used) else ids[:, :1]


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
