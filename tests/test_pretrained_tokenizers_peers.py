"""Token ids are those of open_clip, transformers and sentencepiece, on hard texts."""

import io
import json

import numpy as np
import pytest
from strings import SENTENCES, compare, gemma_pairs, hard_strings

from diptych.data.tokenizer import Tokenizer
from diptych.pretrained.clip_vocabulary import TRANSFORMERS_WORDS, clip_tokenizer, clip_vocabulary
from diptych.pretrained.sentencepiece import sentencepiece_tokenizer
from diptych.pretrained.sentencepiece_writer import siglip_files
from diptych.pretrained.tokenizers_of import open_clip_tokenizer, transformers_tokenizer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MANY, SOME, FEW = 1000, 400, 200
FLAGS = {"lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
WORDS = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def texts():
    return hard_strings(MANY)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def ours(tokenizer):
    return lambda texts: tokenizer.encode(texts)[0]


def auto(folder, context):
    """transformers' tokenizer of a folder, as a function from texts to ids."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder)
    how = {"padding": "max_length", "truncation": True, "max_length": context}
    return lambda texts: made(texts, return_tensors="np", **how).input_ids


def wrapped(folder, context, clean):
    """open_clip's HFTokenizer of a folder, as a function from texts to ids."""
    from open_clip.tokenizer import HFTokenizer

    made = HFTokenizer(str(folder), context_length=context, clean=clean)
    return lambda texts: made(texts).numpy()


def text_config(context, clean):
    return {
        "context_length": context,
        "hf_tokenizer_name": "here",
        "tokenizer_kwargs": {"clean": clean},
    }


def write(folder, name, values):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_are_open_clips(texts, tmp_path, clean):
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer(clean=clean)
    config = {"tokenizer_kwargs": {"clean": clean}}
    found = open_clip_tokenizer(tmp_path, {} if clean == "lower" else config)
    kept = texts if clean == "lower" else texts[:SOME]
    assert compare(ours(found), lambda some: theirs(some).numpy(), kept) == []
    assert (found.pad_token, found.end_token) == (0, theirs.eot_token_id)


def test_texts_are_cut_where_open_clip_cuts_and_counted():
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer(context_length=8)
    found = clip_tokenizer("open_clip", 8)
    full = ["a b c d e f", "a <end_of_text> c d e f", "a b c d e f g", "<end_of_text> " * 9]
    ids, cut = found.encode(full)
    np.testing.assert_array_equal(ids, theirs(full).numpy())
    assert cut == 2


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_every_character_is_split_as_open_clip_splits_it(every):
    from open_clip.tokenizer import SimpleTokenizer

    theirs = SimpleTokenizer().pat
    splits = clip_tokenizer("open_clip")._inner.pre_tokenizer[0]
    signs = [chr(code) for code in range(0, 0x110000, every) if not 0xD800 <= code < 0xE000]
    signs += ["\u0345", "ſ", "K", "İ", "\U000323b0", "\U00011de0"]
    for form in ("a{0}1{0} ", "'{0} {0}'s!{0} "):
        for start in range(0, len(signs), 1 << 16):
            text = "".join(form.format(sign) for sign in signs[start : start + (1 << 16)])
            found = [piece for piece, _ in splits.pre_tokenize_str(text)]
            assert found == theirs.findall(text)


def test_ids_of_a_vocabulary_with_more_special_tokens_are_open_clips():
    from open_clip.tokenizer import SimpleTokenizer

    more = ["<coord_1>", "<coord_2>"]
    theirs = SimpleTokenizer(additional_special_tokens=more)
    found = clip_tokenizer("open_clip", extra=tuple(more))
    some = ["at <coord_1> and <COORD_2>, no!<coord_1>", "<coord_1><coord_2>"]
    assert compare(ours(found), lambda some: theirs(some).numpy(), some) == []


def test_ids_are_those_of_transformers_clip(texts, tmp_path):
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary(TRANSFORMERS_WORDS)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(tmp_path)
    write(tmp_path, "config.json", {"model_type": "clip"})
    found, theirs = transformers_tokenizer(tmp_path, context=77), auto(tmp_path, 77)
    assert compare(ours(found), theirs, texts) == []
    assert found.to_json() == clip_tokenizer("transformers").to_json()
    for clean in ("lower", "canonicalize"):
        found = open_clip_tokenizer(tmp_path, text_config(77, clean))
        assert compare(ours(found), wrapped(tmp_path, 77, clean), texts[:FEW]) == []


def test_ids_are_those_of_transformers_clip_without_a_tokenizer_json(texts, tmp_path):
    vocabulary, merges = clip_vocabulary(TRANSFORMERS_WORDS)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    token = {"__type": "AddedToken", "content": "<|startoftext|>", **FLAGS, "lstrip": False}
    write(tmp_path, "vocab.json", vocabulary)
    write(tmp_path, "config.json", {"model_type": "clip"})
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "bos_token": token}
    write(tmp_path, "tokenizer_config.json", settings)
    write(tmp_path, "special_tokens_map.json", {"unk_token": {"content": "<|endoftext|>", **FLAGS}})
    found = transformers_tokenizer(tmp_path, context=77)
    assert compare(ours(found), auto(tmp_path, 77), texts[:SOME]) == []
    assert found.pad_token == 0


@pytest.fixture(scope="module", params=[False, True], ids=["unknown", "bytes"])
def spiece(request, tmp_path_factory):
    """A folder with a unigram vocabulary trained here: pad 0, end 1, unknown 2, as SigLIP's."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("siglip")
    some = [text for text in hard_strings(1200, seed=7) if len(text) < 400]
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*some, *SENTENCES * 20]),
        model_writer=made,
        vocab_size=2900,
        model_type="unigram",
        byte_fallback=request.param,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=0.985,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    added = {"1": "</s>", "2": "<unk>"}
    settings = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": 64,
        "added_tokens_decoder": {
            number: {"content": word, **FLAGS, "special": True} for number, word in added.items()
        },
        **WORDS,
    }
    write(folder, "tokenizer_config.json", settings)
    write(folder, "config.json", {"model_type": "siglip"})
    return folder


def test_ids_are_those_of_transformers_siglip(texts, spiece):
    found = transformers_tokenizer(spiece, context=64)
    assert compare(ours(found), auto(spiece, 64), texts[:SOME]) == []
    assert found.pad_token == found.end_token == 1
    back = Tokenizer.from_json(found.to_json(), found.rules)
    assert compare(ours(back), ours(found), texts[:FEW]) == []
    for clean in ("canonicalize", "lower"):
        found = open_clip_tokenizer(spiece, text_config(64, clean))
        assert compare(ours(found), wrapped(spiece, 64, clean), texts[:FEW]) == []


def test_a_written_siglip_tokenizer_gives_the_same_ids_in_transformers(texts, spiece, tmp_path):
    found = transformers_tokenizer(spiece, context=64)
    model, settings, notes = siglip_files(found)
    (tmp_path / "spiece.model").write_bytes(model)
    write(tmp_path, "tokenizer_config.json", settings)
    write(tmp_path, "config.json", {"model_type": "siglip"})
    assert compare(ours(found), auto(tmp_path, 64), texts[:FEW]) == []
    again = transformers_tokenizer(tmp_path, context=64)
    assert (again.to_json(), again.rules, notes) == (found.to_json(), found.rules, [])


def test_ids_are_those_of_big_vision(texts, spiece):
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(spiece / "spiece.model"))

    def sticky(texts):
        """`tokenize(16, eos="sticky", pad_value=1)` as its documentation says."""
        every = [[*theirs.encode(text.encode().lower().decode()), 1] for text in texts]
        return np.array(
            [[*ids, *[1] * 16][:16] if len(ids) < 16 else [*ids[:15], 1] for ids in every]
        )

    found = sentencepiece_tokenizer(spiece / "spiece.model", 16)
    assert compare(ours(found), sticky, texts[:SOME]) == []


def test_ids_are_those_of_transformers_t5(texts, spiece, tmp_path):
    """open_clip's SigLIP vocabularies are saved as T5's."""
    from transformers import AutoTokenizer

    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **WORDS}
    (tmp_path / "spiece.model").write_bytes((spiece / "spiece.model").read_bytes())
    write(tmp_path, "tokenizer_config.json", settings)
    write(tmp_path, "config.json", {"model_type": "siglip"})
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(saved)
    write(saved, "config.json", {"model_type": "siglip"})
    for folder in (tmp_path, saved):
        found = transformers_tokenizer(folder, context=64)
        assert compare(ours(found), auto(folder, 64), texts[:FEW]) == []
        found = open_clip_tokenizer(folder, text_config(64, "canonicalize"))
        assert compare(ours(found), wrapped(folder, 64, "canonicalize"), texts[:FEW]) == []


@pytest.fixture(scope="module")
def byte_pairs():
    return gemma_pairs(3000)


@pytest.mark.parametrize(
    ("kind", "model_type", "more"),
    [
        ("GemmaTokenizer", "siglip", {"padding_side": "right"}),
        ("GemmaTokenizer", "siglip2", {"padding_side": "right"}),
        ("Siglip2Tokenizer", "siglip2", {"padding_side": "right"}),
        ("Siglip2Tokenizer", "siglip2", {"add_bos_token": True}),
        ("GemmaTokenizer", "siglip", {"add_bos_token": True, "truncation_side": "left"}),
    ],
)
def test_ids_are_those_of_siglip_2(texts, tmp_path, byte_pairs, kind, model_type, more):
    import transformers
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    made = Siglip2Tokenizer if kind == "Siglip2Tokenizer" else getattr(transformers, kind)
    vocabulary, merges = byte_pairs
    settings = {"add_bos_token": False, "add_eos_token": True, "model_max_length": 64} | more
    made(vocab=vocabulary, merges=merges, **settings).save_pretrained(tmp_path)
    write(tmp_path, "config.json", {"model_type": model_type})
    found = transformers_tokenizer(tmp_path, context=64)
    assert compare(ours(found), auto(tmp_path, 64), texts[:SOME]) == []
    found = open_clip_tokenizer(tmp_path, text_config(64, "canonicalize"))
    assert compare(ours(found), wrapped(tmp_path, 64, "canonicalize"), texts[:FEW]) == []


def test_a_tokenizer_json_that_counts_as_it_is_gives_the_ids_of_transformers(texts, tmp_path):
    from transformers import PreTrainedTokenizerFast

    learned = Tokenizer.learn(SENTENCES * 9, vocabulary=900, context=40)
    made = PreTrainedTokenizerFast(
        tokenizer_object=learned._inner, eos_token="<end>", pad_token="<pad>", bos_token="<start>"
    )
    made.save_pretrained(tmp_path)
    found = transformers_tokenizer(tmp_path, context=33)
    assert found.context == 33
    write(tmp_path, "config.json", {"model_type": "clip"})
    assert compare(ours(found), auto(tmp_path, 33), texts[:SOME]) == []
