"""Tokenizers of other libraries' folders: known ids, and a named error for what cannot be read.

`test_pretrained_tokenizers_peers.py` compares them with the libraries themselves.
"""

import contextlib
import json
import random
import re
import struct

import pytest

from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError, RequestError
from diptych.pretrained.clip_vocabulary import TRANSFORMERS_WORDS, clip_tokenizer, clip_vocabulary
from diptych.pretrained.sentencepiece import read_pieces, sentencepiece_tokenizer
from diptych.pretrained.sentencepiece_writer import siglip_files
from diptych.pretrained.tokenizers_of import open_clip_tokenizer, transformers_tokenizer
from diptych.pretrained.transformers_words import write_words


def used(tokenizer, text):
    """Ids up to the padding."""
    ids = tokenizer.encode([text])[0][0].tolist()
    while len(ids) > 1 and ids[-1] == tokenizer.pad_token and ids[-2:] != [ids[-1]]:
        ids.pop()
    return ids


def begin(tokenizer, text, size):
    return tokenizer.encode([text])[0][0, :size].tolist()


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def clip():
    return {library: clip_tokenizer(library) for library in ("open_clip", "transformers")}


def test_the_ids_that_openai_published(clip):
    for library in clip:
        found = begin(clip[library], "a diagram", 4)
        assert found == [49406, 320, 22697, 49407]
        assert begin(clip[library], "A photo of a cat.", 8) == [
            *(49406, 320, 1125, 539, 320, 2368, 269, 49407)
        ]
    assert [clip[library].pad_token for library in clip] == [0, 49407]
    assert [clip[library].end_token for library in clip] == [49407, 49407]
    assert [clip[library].vocabulary for library in clip] == [49408, 49408]


@pytest.mark.parametrize("text", ["&amp;lt;", "it’s", "ＦＵＬＬ", "cafÃ©", "\U000323b0a"])
def test_the_two_libraries_differ_where_they_are_known_to(clip, text):
    assert begin(clip["open_clip"], text, 12) != begin(clip["transformers"], text, 12)


def test_special_tokens_in_a_text_are_read_as_each_library_reads_them(clip):
    one = clip["open_clip"]
    assert begin(one, "<start_of_text>a", 3) == [49406, 49406, 320]
    assert begin(one, "a<end_of_text>", 4) == [49406, 320, 49407, 49407]
    assert begin(one, "!<end_of_text>", 3)[2] != 49407
    assert begin(clip["transformers"], "!<|endoftext|>", 3)[2] == 49407


def test_a_clip_tokenizer_comes_back_from_its_json_and_rules(clip):
    texts = ["a <end_of_text> b", "x " * 200, "ſ 'S", ""]
    for one in clip.values():
        rules = TextRules(**one.rules.model_dump(mode="json"))
        back = Tokenizer.from_json(one.to_json(), rules)
        assert (back.encode(texts)[0] == one.encode(texts)[0]).all()
        assert back.encode(texts)[1] == one.encode(texts)[1] == 1


def test_decoding_gives_the_words_back(clip):
    for one in clip.values():
        assert one.decode(begin(one, "Two dogs, running.", 7)) == "two dogs , running ."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"tokenizer_kwargs": {"clean": "upper"}}, "for clean='upper', which is not known. Known"),
        ({"tokenizer_kwargs": {"reduction_mask": "random"}}, "{'reduction_mask': 'random'}"),
        ({"hf_tokenizer_name": "x", "tokenizer_mode": "clips"}, "{'tokenizer_mode': 'clips'}"),
        ({"hf_tokenizer_name": "x", "tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep"),
        ({"hf_tokenizer_name": "x"}, "has no tokenizer.json. Copy the whole folder"),
        ({"tokenizer_kwargs": "x"}, "{'tokenizer_kwargs': 'x'}, which is not known. Known"),
        ({"tokenizer_kwargs": [1]}, "{'tokenizer_kwargs': [1]}"),
        ({"tokenizer_kwargs": 5}, "{'tokenizer_kwargs': 5}"),
        ({"tokenizer_kwargs": {"clean": ["lower"]}}, "for clean=['lower'], which is not known"),
        ({"tokenizer_kwargs": {"additional_special_tokens": "x"}}, "special_tokens': 'x'}"),
        ({"context_length": 1}, "has context_length 1, which leaves no room between start and"),
    ],
)
def test_what_open_clip_is_asked_for_and_is_not_known_is_refused(tmp_path, text, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        open_clip_tokenizer(tmp_path, text)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no tokenizer.json"),
        ({"config.json": {"model_type": "clip"}}, "nor vocab.json with merges.txt. Copy the whole"),
        ({"config.json": {"model_type": "siglip"}}, "there is no vocabulary"),
        ({"config.json": {"model_type": "siglip2"}}, "has no tokenizer.json"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast"}},
            "has a tokenizer of class 'BertTokenizer', which is not read. Known: CLIPTokenizer, G",
        ),
        ({"tokenizer_config.json": {"tokenizer_class": 5}}, "a tokenizer of class '5', which"),
        ({"tokenizer_config.json": ["x"]}, "tokenizer_config.json cannot be read: it holds a list"),
        (
            {"tokenizer.json": {"model": {"type": "BPE"}}, "config.json": {"model_type": "clip"}},
            "cannot be read: KeyError('merges'). Copy the whole folder again.",
        ),
        ({"tokenizer.json": {"model": 3}}, "cannot be read: "),
        (
            {
                "tokenizer_config.json": {"added_tokens_decoder": {"x": {}}},
                "tokenizer.json": {"a": 1},
            },
            "cannot be read: ",
        ),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_refused_by_text(tmp_path, files, words):
    for name, values in files.items():
        write(tmp_path, name, values)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        transformers_tokenizer(tmp_path, context=8)


def test_a_padding_token_that_is_no_token_is_refused(tmp_path):
    learned = Tokenizer.learn(["a b"], vocabulary=300, context=9)
    write(tmp_path, "tokenizer.json", json.loads(learned.to_json()) | {"padding": None})
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(CheckpointError, match=r"has no padding token '' in its vocabulary\. N"):
        transformers_tokenizer(tmp_path, context=8)


def test_a_clip_folder_gives_the_ids_of_the_vocabulary_in_it(tmp_path, clip):
    vocabulary, merges = clip_vocabulary(TRANSFORMERS_WORDS)
    model = {"type": "BPE", "vocab": vocabulary, "merges": [" ".join(pair) for pair in merges]}
    write(tmp_path, "tokenizer.json", {"model": model, "added_tokens": []})
    write(tmp_path, "config.json", {"model_type": "clip"})
    found = transformers_tokenizer(tmp_path, context=77)
    assert found.to_json() == clip["transformers"].to_json()
    write(tmp_path, "tokenizer_config.json", {"split_special_tokens": True, "pad_token": "!"})
    found = transformers_tokenizer(tmp_path, context=9)
    assert (found.context, found.pad_token, found.rules.reads_special) == (9, 0, False)


def field(number, value):
    """One field of a protobuf message, as its documentation says; numbers below 128."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1)]
PIECES += [("▁a", -2.5, 1), ("b", -3.0, 1), ("c", -3.5, 1), ("bc", -4.0, 1)]


def spiece(pieces=PIECES, trainer=b"", normaliser=b""):
    """A sentencepiece file written by hand."""
    every = (
        field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in pieces
    )
    made = b"".join(field(1, piece) for piece in every)
    return made + field(2, field(3, 1) + trainer) + field(3, normaliser)


@pytest.fixture
def siglip(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece())
    write(tmp_path, "config.json", {"model_type": "siglip"})
    return tmp_path


def test_a_sentencepiece_file_gives_its_pieces(siglip):
    found = read_pieces(siglip / "spiece.model")
    assert found.scores == [(text, score) for text, score, _ in PIECES]
    assert (found.unknown, found.characters, found.bytes_for_unknown) == (2, b"", False)


def test_siglip_texts_are_lower_cased_without_punctuation_and_padded_with_their_end(siglip):
    found = transformers_tokenizer(siglip, context=6)
    assert begin(found, "A  Bc.", 6) == [4, 3, 7, 1, 1, 1]
    assert begin(found, "a</s>c", 6) == [4, 1, 6, 1, 1, 1]
    ids, cut = found.encode(["a bc bc bc", "a b b", "a b b b"])
    assert ids.tolist() == [[4, 3, 7, 3, 7, 1], [4, 3, 5, 3, 5, 1], [4, 3, 5, 3, 5, 1]]
    assert cut == 2


def test_big_visions_texts_keep_punctuation_and_read_no_special_token(siglip):
    found = sentencepiece_tokenizer(siglip / "spiece.model", 6)
    assert begin(found, "A bc", 6) == [4, 3, 7, 1, 1, 1]
    assert begin(found, "a</s>c.", 6) == [4, 2, 6, 2, 1, 1]


def test_a_siglip_tokenizer_is_written_as_it_was_read(siglip, tmp_path):
    found = transformers_tokenizer(siglip, context=6)
    model, settings, notes = siglip_files(found)
    again = tmp_path / "again"
    again.mkdir()
    (again / "spiece.model").write_bytes(model)
    write(again, "tokenizer_config.json", settings)
    back = transformers_tokenizer(again, context=6)
    assert (back.to_json(), back.rules, notes) == (found.to_json(), found.rules, [])


def test_what_the_other_library_does_otherwise_is_said(siglip):
    _, _, notes = siglip_files(sentencepiece_tokenizer(siglip / "spiece.model", 6))
    assert "texts go through ['lower_ascii']: such texts get other ids there" in notes[0]
    with pytest.raises(RequestError, match="does not come from sentencepiece"):
        siglip_files(clip_tokenizer("transformers"))


def test_cleaning_before_siglips_own_is_said_to_be_missing_in_transformers(siglip):
    text = {"hf_tokenizer_name": "here", "context_length": 6}
    text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    files, notes = write_words(open_clip_tokenizer(siglip, text), "siglip")
    assert set(files) == {"spiece.model", "tokenizer_config.json"}
    assert ["do not mend encodings and HTML" in note for note in notes] == [True]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            spiece(trainer=field(3, 2)),
            "holds a model of kind 2 (BPE is 2), and only unigram models",
        ),
        (spiece(normaliser=field(4, 0)), "model that treats white space otherwise than sentencep"),
        (spiece(trainer=field(24, 1)), "model that treats white space otherwise"),
        (spiece([*PIECES, ("x", -1.0, 5)]), "holds a vocabulary with gaps, or without an unknown"),
        (spiece(PIECES[:2] + PIECES[3:]), "holds a vocabulary with gaps, or without an unknown"),
        (b"", "holds a vocabulary with gaps"),
        (b"\x80" * 20, "cannot be read as a sentencepiece model: no end of an integer at byte 10"),
        (b"\x0a\x7fx", "it ends inside a field of 127 bytes at byte 2"),
        (b"\x0b", "a field of kind 3 at byte 1"),
        (field(1, field(1, b"\xff")), "cannot be read as a sentencepiece model"),
        (field(1, 7), "cannot be read as a sentencepiece model"),
    ],
)
def test_a_file_that_is_no_unigram_model_is_refused_by_text(tmp_path, made, words):
    (tmp_path / "spiece.model").write_bytes(made)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_pieces(tmp_path / "spiece.model")


def test_any_damage_is_a_named_error_or_harmless(tmp_path):
    whole = spiece()
    path = tmp_path / "spiece.model"
    chance = random.Random(0)
    damaged = [whole[:size] for size in range(0, len(whole), 3)]
    for _ in range(300):
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] = chance.randrange(256)
        damaged.append(bytes(broken))
    for made in damaged:
        path.write_bytes(made)
        with contextlib.suppress(CheckpointError):
            sentencepiece_tokenizer(path, 6).encode(["a bc"])


def test_a_vocabulary_whose_second_piece_ends_no_text_is_not_big_visions(tmp_path):
    (tmp_path / "x.model").write_bytes(spiece([PIECES[0], PIECES[3], *PIECES[1:3], *PIECES[4:]]))
    with pytest.raises(CheckpointError, match="piece 1 is '▁' and not the end of a text"):
        sentencepiece_tokenizer(tmp_path / "x.model", 6)
