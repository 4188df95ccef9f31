"""What Diptych writes of a tokenizer gives the same ids in transformers."""

import io
import json

import pytest
from strings import compare, gemma_pairs, hard_strings

from diptych.checkpoint import Bundle
from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.pretrained.sentencepiece import sentencepiece_tokenizer
from diptych.pretrained.tokenizers_of import transformers_tokenizer
from diptych.pretrained.transformers import read_transformers, write_transformers

pytestmark = pytest.mark.peers

CONTEXT = 12
TEXTS = ["a red kite", "Two dogs, don't run", "", "snow " * 30, "Straße 123"]
OPTIONS = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
TOWER = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 48}
SIGLIP_IMAGE = {"class_token": False, "pool": "attention", "pre_norm": False, "patch_bias": True}
SIGLIP = {"embed": 32, "objective": "sigmoid", "image_projection": False}


@pytest.fixture(scope="module")
def learned():
    """A vocabulary of our own; its end token has the id 2, which is exchanged for the last."""
    return Tokenizer.learn(TEXTS, vocabulary=300, context=CONTEXT)


def bundle_of(tokenizer, *, siglip=False):
    """A model that has this tokenizer."""
    image = {**TOWER, "image_size": 32, "patch_size": 8, **(SIGLIP_IMAGE if siglip else {})}
    text = {**TOWER, "vocabulary": tokenizer.vocabulary, "context": CONTEXT}
    text |= {"end_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
    text |= {"causal": not siglip, "pool": "last" if siglip else "end"}
    whole = {**SIGLIP, "text_projection_bias": True} if siglip else {"embed": 24}
    model = DualEncoder(DualEncoderConfig(image=image, text=text, **whole)).eval()
    return Bundle(model, tokenizer, ImageTransformConfig(image_size=32, resize="squash"), "")


def exchanged(tokenizer, texts):
    """Our ids of these texts with 2 and the last id in each other's place."""
    new = {2: tokenizer.vocabulary - 1, tokenizer.vocabulary - 1: 2}
    return [[new.get(n, n) for n in row] for row in tokenizer.encode(texts)[0].tolist()]


def test_a_special_token_in_a_text_stays_letters_where_we_learned_the_vocabulary(tmp_path, learned):
    from transformers import AutoTokenizer

    assert write_transformers(bundle_of(learned), tmp_path) == ()
    words = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "a <end> b", "<pad>"]
    assert words(texts, **OPTIONS)["input_ids"] == exchanged(learned, texts)


def test_cleaning_becomes_steps_of_the_tokenizer(tmp_path, learned):
    """As in SigLIP: lower case, no punctuation, one space between words."""
    from transformers import AutoTokenizer

    rules = TextRules(cleaning=("lower", "punctuation", "whitespace"))
    tokenizer = Tokenizer.from_json(learned.to_json(), rules)
    (note,) = write_transformers(bundle_of(tokenizer), tmp_path)
    assert "rare letters" in note
    words = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["A  Red-kite!", " [two] {dogs}\t~", "#snow\n\n`on` ~it|", "Ärger @ home"]
    assert words(texts, **OPTIONS)["input_ids"] == exchanged(tokenizer, texts)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["split_special_tokens"]


def trained_pieces():
    """A sentencepiece model as SigLIP's: padding 0, end 1, unknown 2."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, "the hill by the sea", "ﬁne ½ cup"] * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    return written.getvalue()


@pytest.mark.parametrize("source", ["transformers", "big_vision"])
def test_a_siglip_vocabulary_is_written_as_a_sentencepiece_file(tmp_path, source):
    from transformers import AutoTokenizer, SiglipTokenizer

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "spiece.model").write_bytes(trained_pieces())
    original = SiglipTokenizer(str(first / "spiece.model"), model_max_length=CONTEXT)
    original.save_pretrained(first)
    if source == "transformers":
        tokenizer = transformers_tokenizer(first, context=CONTEXT)
    else:
        tokenizer = sentencepiece_tokenizer(first / "spiece.model", CONTEXT)
    notes = write_transformers(bundle_of(tokenizer, siglip=True), second)
    assert len(notes) == (source == "big_vision")
    again = AutoTokenizer.from_pretrained(second)
    assert type(again) is SiglipTokenizer
    texts = [*TEXTS, "THE Hill; by the-sea!", "ﬁne   ½ cup", "a</s>b <pad> kite", "日本 kite", "▁a"]
    expected = original(texts, **OPTIONS)["input_ids"]
    assert again(texts, **OPTIONS)["input_ids"] == expected
    if source == "transformers":
        assert read_transformers(second).tokenizer.encode(texts)[0].tolist() == expected


def gemma_folder(folder):
    """A SigLIP 2 as it is published: a SigLIP with transformers' GemmaTokenizer."""
    from transformers import GemmaTokenizer

    vocabulary, merges = gemma_pairs(1500)
    settings = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    made = GemmaTokenizer(
        vocab=vocabulary, merges=merges, model_input_names=["input_ids"], **settings
    )
    made.save_pretrained(folder)
    plain = transformers_tokenizer(folder, context=CONTEXT)
    write_transformers(bundle_of(plain, siglip=True), folder)
    made.save_pretrained(folder)
    return made


def test_siglip_2_is_lower_cased_whatever_its_folder_says_and_stays_so(tmp_path):
    from transformers import AutoTokenizer
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    def ids_of(tokenizer):
        return lambda texts: tokenizer(texts, **OPTIONS, return_tensors="np").input_ids

    first, second = tmp_path / "first", tmp_path / "second"
    gemma = gemma_folder(first)
    assert type(AutoTokenizer.from_pretrained(first)) is type(gemma)
    found = read_transformers(first)
    assert "which transformers' GemmaTokenizer does not do: texts are lower-cased" in found.notes[0]

    def ours(texts):
        return found.tokenizer.encode(texts)[0]

    def lowered(texts):  # sign by sign: a sigma at the end of a word is one like any other
        return ids_of(gemma)(["".join(map(str.lower, text)) for text in texts])

    texts = hard_strings(400)
    assert compare(ours, ids_of(gemma), texts) != []
    assert compare(ours, lowered, texts) == []
    second.mkdir()
    assert write_transformers(bundle_of(found.tokenizer, siglip=True), second) == ()
    again = AutoTokenizer.from_pretrained(second)
    assert type(again) is Siglip2Tokenizer
    assert compare(ours, ids_of(again), texts) == []
    back = read_transformers(second)
    assert (back.notes, back.tokenizer.to_json()) == ((), found.tokenizer.to_json())
