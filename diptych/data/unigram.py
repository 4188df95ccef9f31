"""Sentencepiece's unigram search, with the same pieces to the last digit.

The `tokenizers` library adds up scores in double precision and sentencepiece in single: they differ
where two paths are equally good, such as "zz" "z" and "z" "zz", so the search is written out here.
`character_map.py` is what happens to the characters before.
"""

import base64
import json
from array import array
from collections.abc import Collection
from typing import Any

from diptych.data.character_map import CharacterMap
from diptych.data.cleaning import MARK
from diptych.errors import CheckpointError

UNKNOWN_PENALTY = 10.0
"""How much worse than the worst piece a character without a piece is."""

HEAD = 3
"""Pieces are looked up by length, as far as any piece with the same first characters is long."""


class Unigram:
    """From a text to the ids of the pieces that are together the most probable."""

    def __init__(self, stated: str, unreachable: Collection[str]) -> None:
        """Take the vocabulary and the character map of a tokenizer.

        Args:
            stated: A tokenizer.json with a Unigram model; its normaliser is a character map or
                nothing.
            unreachable: Pieces that stand for no text.

        Raises:
            CheckpointError: It is of another kind.
        """
        values = json.loads(stated)
        model, normaliser = values["model"], values["normalizer"] or {}
        kinds = model.get("type"), normaliser.get("type", "Precompiled")
        if kinds != ("Unigram", "Precompiled"):
            raise CheckpointError(
                f"the tokenizer has a model {kinds[0]!r} and a normaliser {kinds[1]!r}, and its "
                "rules want a Unigram with a character map. Use the tokenizer.json of the model."
            )
        self._characters = CharacterMap(
            base64.b64decode(normaliser.get("precompiled_charsmap", ""))
        )
        self._unknown: int = model["unk_id"]
        self._bytes = _byte_pieces(model)
        hidden = {*unreachable, model["vocab"][self._unknown][0], *self._bytes}
        self._pieces = {
            piece: (index, score)
            for index, (piece, score) in enumerate(model["vocab"])
            if piece and piece not in hidden
        }
        self._longest: dict[str, int] = {}
        for piece in self._pieces:
            begin = piece[:HEAD]
            self._longest[begin] = max(self._longest.get(begin, 0), len(piece))
        lowest = min((score for _, score in self._pieces.values()), default=0.0)
        self._unknown_piece = self._unknown, array("f", [lowest - UNKNOWN_PENALTY])[0]

    def ids(self, text: str, *, marked: bool) -> list[int]:
        """Ids of a text.

        Args:
            text: Any text.
            marked: A mark goes before the text, as before every other word.
        """
        text = self._characters(text)
        text = text.lstrip(" ")
        if marked and text:
            text = MARK + text
        while "  " in text:
            text = text.replace("  ", " ")
        return self._named(text.replace(" ", MARK).rstrip(MARK))

    def _named(self, text: str) -> list[int]:
        """Ids along the best path; a run of unknown characters is one, or its bytes."""
        ids: list[int] = []
        unknown_before = False
        for begin, end, index in self._path(text):
            unknown = index == self._unknown
            if unknown and self._bytes:
                names = (f"<0x{byte:02X}>" for byte in text[begin:end].encode())
                ids += [self._bytes[name] for name in names]
            elif not (unknown and unknown_before):
                ids.append(index)
            unknown_before = unknown
        return ids

    def _path(self, text: str) -> list[tuple[int, int, int]]:
        """Beginning, end and id of each piece of the best path.

        Sums are in single precision, as sentencepiece has them.
        """
        size = len(text)
        best, total = array("f", [0.0]) * (size + 1), array("f", [0.0])
        begins, chosen = [-1] * (size + 1), [0] * (size + 1)
        pieces, longest = self._pieces, self._longest
        for begin in range(size):
            here = best[begin]
            length = longest.get(text[begin : begin + HEAD], HEAD - 1)
            for end in range(begin + 1, min(begin + length, size) + 1):
                piece = pieces.get(text[begin:end])
                if piece is None:
                    if end > begin + 1:
                        continue
                    piece = self._unknown_piece
                total[0] = here + piece[1]
                if begins[end] < 0 or total[0] > best[end]:
                    best[end], begins[end], chosen[end] = total[0], begin, piece[0]
        path = []
        end = size
        while end > 0:
            path.append((begins[end], end, chosen[end]))
            end = begins[end]
        return path[::-1]


def _byte_pieces(model: dict[str, Any]) -> dict[str, int]:
    """Ids of the pieces that stand for bytes, by their names; none if there are not all 256."""
    if not model.get("byte_fallback"):
        return {}
    wanted = {f"<0x{byte:02X}>" for byte in range(256)}
    found = {piece: index for index, (piece, _) in enumerate(model["vocab"]) if piece in wanted}
    return found if len(found) == 256 else {}
