"""Unigram pieces and character maps against the slow definition of each."""

import base64
import contextlib
import itertools
import json
import random

import numpy as np
import pytest

from diptych.data.character_map import CharacterMap
from diptych.data.unigram import Unigram
from diptych.errors import CheckpointError

RUNS = {
    "A": "a",
    "é": "e",
    "①": "1",
    "ab": "X",
    "abc": "Y",
    "\u200b": "",
    "\u3000": " ",
    "が": "か゛",
}


def compiled(runs):
    """A character map in sentencepiece's format: each node of the trie has 256 units to itself."""
    nodes = {b""} | {run.encode()[:end] for run in runs for end in range(1, len(run.encode()) + 1)}
    place = {b"": 0}
    block = {node: 256 * (1 + index) for index, node in enumerate(sorted(nodes))}
    for node in nodes - {b""}:
        place[node] = block[node[:-1]] ^ node[-1]
    units = np.zeros(256 * (len(nodes) + 1), "<u4")
    texts = b""
    for node in nodes:
        ends = node.decode(errors="replace") in runs
        label = node[-1] if node else 0
        units[place[node]] = (place[node] ^ block[node]) << 10 | ends << 8 | label
        if ends:
            units[block[node]] = 1 << 31 | len(texts)
            texts += runs[node.decode()].encode() + b"\0"
    return len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + texts


def mapped(runs, text):
    """The definition: at every place the longest run."""
    out = ""
    while text:
        run = max((run for run in runs if text.startswith(run)), key=len, default=text[0])
        out, text = out + runs.get(run, run), text[len(run) :]
    return out


def test_the_longest_run_is_replaced_at_every_place():
    characters = CharacterMap(compiled(RUNS))
    chance = random.Random(0)
    for _ in range(2000):
        text = "".join(chance.choices("Aéabc①\u200b\u3000がx日😀", k=chance.randrange(12)))
        assert characters(text) == mapped(RUNS, text)


def test_no_map_changes_nothing():
    assert CharacterMap(b"")("Ａé") == "Ａé"


def test_a_damaged_map_is_refused_or_read_but_never_followed_out_of_itself():
    whole = compiled(RUNS)
    for size in (1, 3, 9, len(whole) // 2):
        with pytest.raises(CheckpointError, match="character map of the tokenizer is damaged"):
            CharacterMap(whole[:size])
    chance = random.Random(1)
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(20):
            broken[chance.randrange(4, len(broken))] = chance.randrange(256)
        with contextlib.suppress(CheckpointError):
            CharacterMap(bytes(broken))("Aabcé①がx日")


PIECES = {"<unk>": 0.0, "</s>": 0.0, "▁": -2.5, "a": -3.25, "b": -3.5, "ab": -4.0, "▁a": -4.125}
PIECES |= {"abb": -6.0, "▁ab": -5.5, "ba": -5.0, "<": -6.5, "s": -6.75, "ss": -7.0, "日": -5.75}


def stated(pieces=PIECES, fallback=False, normaliser=None):
    model = {"type": "Unigram", "unk_id": 0, "vocab": list(pieces.items())}
    return json.dumps({"model": model | {"byte_fallback": fallback}, "normalizer": normaliser})


def best(text):
    """The definition: the best of all ways to cut a text, unknown characters being 10 worse.

    None where two ways are equally good.
    """
    usual = {piece: score for piece, score in PIECES.items() if piece not in ("<unk>", "</s>")}
    low = min(usual.values()) - 10
    ways = []
    for cuts in itertools.product([False, True], repeat=max(len(text) - 1, 0)):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(text)]
        parts = [text[a:b] for a, b in itertools.pairwise(places)]
        if all(part in usual or len(part) == 1 for part in parts):
            ways.append((sum(usual.get(part, low) for part in parts), parts))
    top = [parts for score, parts in ways if score > max(ways)[0] - 1e-4]
    ids = [[*PIECES].index(part) if part in usual else 0 for part in top[0]]
    found = [number for i, number in enumerate(ids) if number or not i or ids[i - 1]]
    return found if len(top) == 1 else None


def test_pieces_are_the_most_probable_ones():
    pieces = Unigram(stated(), ["</s>"])
    for length in range(1, 7):
        for signs in itertools.islice(itertools.product("abs▁日?<", repeat=length), 0, None, 37):
            text = "".join(signs)
            expected = best(text)
            if expected is not None and not text.endswith("▁"):
                assert pieces.ids(text, marked=False) == expected


def test_white_space_becomes_one_mark_and_none_at_the_end():
    pieces = Unigram(stated(), ["</s>"])
    expected = [[*PIECES].index(piece) for piece in ("▁a", "▁", "b")]
    for text in ("a b", "  a   b  ", "a b▁"):
        assert pieces.ids(text, marked=True) == expected
    assert pieces.ids("", marked=True) == pieces.ids("  ", marked=True) == []


def test_equal_sums_in_single_precision_keep_what_came_first():
    one, two, before = map(np.float32, (-3.1, -5.3, -0.7))
    pieces = {"<unk>": 0.0, "z": float(one), "zz": float(two), "a": float(before)}
    found = Unigram(stated(pieces), []).ids("zzz", marked=False)
    assert one + two == two + one
    assert found == [1, 2]
    sums = (before + one) + two, (before + two) + one
    found = Unigram(stated(pieces), []).ids("azzz", marked=False)
    assert found == ([3, 1, 2] if sums[0] >= sums[1] else [3, 2, 1])


def test_unknown_characters_become_their_bytes_where_there_are_bytes():
    pieces = PIECES | {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
    found = Unigram(stated(pieces, fallback=True), ["</s>"]).ids("aé<0x41>", marked=False)
    names = [[*pieces][number] for number in found]
    assert names[:4] == ["a", "<0xC3>", "<0xA9>", "<"]
    assert "<0x41>" not in names


def test_the_map_of_the_vocabulary_is_applied():
    encoded = base64.b64encode(compiled({"A": "a"})).decode()
    normaliser = {"type": "Precompiled", "precompiled_charsmap": encoded}
    pieces = Unigram(stated(normaliser=normaliser), ["</s>"])
    assert pieces.ids("Ab", marked=False) == pieces.ids("ab", marked=False)


def test_another_kind_of_tokenizer_is_refused_by_text():
    with pytest.raises(CheckpointError, match="a normaliser 'NFC', and its rules want a Unigram"):
        Unigram(stated(normaliser={"type": "NFC"}), [])
