"""The character map of a sentencepiece model: what each character or run becomes.

The map stands in tokenizer.json as `Precompiled`. The `tokenizers` library looks it up once per
grapheme and so loses accents that sentencepiece keeps ("²" with an acute becomes "2"); therefore
it is applied here, as sentencepiece does: at every place the longest run that the map knows.
"""

from array import array

from diptych.errors import CheckpointError

LABEL, VALUE, ENDS_HERE = 0x800000FF, 0x7FFFFFFF, 0x100
"""Bits of a node: its byte; where its replacement begins; that a run ends there."""


class CharacterMap:
    """Replaces the longest known run at every place of a text."""

    def __init__(self, compiled: bytes) -> None:
        """Read a compiled map; no bytes at all is the map that changes nothing.

        The bytes are a length, a trie of that length (Darts' double array of 32-bit units: label,
        flags, and the way to the children), and the replacements, each ended by a zero byte.

        Raises:
            CheckpointError: These are not the bytes of a character map.
        """
        size = int.from_bytes(compiled[:4], "little")
        if compiled and not (4 <= size <= len(compiled) - 4 and size % 4 == 0):
            raise _damaged(f"its trie has {size} bytes, and {len(compiled)} are there")
        self._units = array("I", compiled[4 : 4 + size])
        self._texts = compiled[4 + size :]
        self._seen: dict[str, tuple[str, int]] = {}
        self._apart: set[str] = set()  # two characters that no run of the map joins

    def __call__(self, text: str) -> str:
        """The text with everything replaced that the map knows.

        Raises:
            CheckpointError: The map leads out of itself.
        """
        if not self._units:
            return text
        parts, place = [], 0
        while place < len(text):
            sign = text[place]
            known = self._seen.get(sign)
            if known is None:
                known = self._seen[sign] = self._first(sign)
            found, node = known
            place += 1
            if node and text[place - 1 : place + 1] not in self._apart:
                found, place = self._longest(text, place, found, node)
            parts.append(found)
        return "".join(parts)

    def _first(self, sign: str) -> tuple[str, int]:
        """What one character becomes, and where the trie goes on (0: nowhere)."""
        found, node = self._step(_way(self._units[0]), sign)
        return (sign if found is None else found), node

    def _longest(self, text: str, place: int, found: str, node: int) -> tuple[str, int]:
        """The replacement of the longest run, and where the text goes on behind it."""
        end, ahead = place, place
        while node and ahead < len(text):
            longer, node = self._step(node, text[ahead])
            ahead += 1
            if longer is not None:
                found, end = longer, ahead
            elif not node and ahead == place + 1:
                self._apart.add(text[place - 1 : ahead])
        return found, end

    def _step(self, node: int, sign: str) -> tuple[str | None, int]:
        """The replacement that ends with this character, if any, and the node behind it or 0."""
        unit = 0
        try:
            for byte in sign.encode():
                node ^= byte
                unit = self._units[node]
                if unit & LABEL != byte:
                    return None, 0
                node ^= _way(unit)
            if not unit & ENDS_HERE:
                return None, node
            start = self._units[node] & VALUE
            return self._texts[start : self._texts.index(0, start)].decode(), node
        except (IndexError, ValueError) as error:
            raise _damaged(f"it leads out of itself at {sign!r}") from error


def _way(unit: int) -> int:
    """How far from a node its children are."""
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def _damaged(what: str) -> CheckpointError:
    """A map that cannot be read."""
    return CheckpointError(
        f"the character map of the tokenizer is damaged: {what}. Copy the file again."
    )
