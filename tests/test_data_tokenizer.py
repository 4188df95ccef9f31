"""Texts become ids of one length and back; nothing in a text is ever taken for a special token."""

import json
import unicodedata

import numpy as np
import pytest

from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import END, PAD, START, Tokenizer, trim
from diptych.errors import CheckpointError, DataError, RequestError

CAPTIONS = [
    "a red circle above a blue square",
    "a small green star left of a large yellow heart",
    "two dogs run on the beach",
    "A man rides a bicycle in the rain.",
] * 3
CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.learn(CAPTIONS, vocabulary=400, context=CONTEXT)


@pytest.fixture(scope="module")
def roomy():
    """The same vocabulary with room for long texts."""
    return Tokenizer.learn(CAPTIONS, vocabulary=400, context=400)


def ids_of(tokenizer, text):
    ids, _ = tokenizer.encode([text])
    return ids[0].tolist()


def used(tokenizer, text):
    """Ids without padding."""
    return [token for token in ids_of(tokenizer, text) if token != tokenizer.pad_token]


@pytest.mark.parametrize("text", CAPTIONS[:4])
def test_a_learned_text_comes_back_in_lower_case(tokenizer, text):
    assert tokenizer.decode(ids_of(tokenizer, text)) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "words never seen: zebra, quokka & 17 x 3 = 51!",
        "emoji 👩🏽‍🚀🏳️‍🌈 and 🫠",
        "日本語 한국어 العربية עברית हिन्दी",
        "naïve café façade",
        "math ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
        "control \x00 \x7f and \ufeff \u200b",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    ],
)
def test_any_unicode_comes_back(roomy, text):
    expected = unicodedata.normalize("NFC", text).lower()
    assert roomy.decode(ids_of(roomy, text)) == expected


def test_writing_that_looks_the_same_is_the_same(tokenizer):
    plain = ids_of(tokenizer, "café on the beach")
    for text in ("cafe\u0301 on the beach", "  Café   ON\tthe\n\nbeach "):
        assert ids_of(tokenizer, text) == plain


def test_half_a_character_is_read_as_a_question_mark(tokenizer):
    assert ids_of(tokenizer, "a \ud83d dog") == ids_of(tokenizer, "a ? dog")
    assert Tokenizer.learn(["\ud83d"], vocabulary=300, context=8).encode(["x"])[1] == 0


def test_every_text_has_the_same_length_with_padding_on_the_right(tokenizer):
    texts = ["", "dog", CAPTIONS[0], CAPTIONS[1] * 9]
    ids, _ = tokenizer.encode(texts)
    assert ids.shape == (4, CONTEXT)
    assert ids.dtype == np.int64
    for row in ids.tolist():
        end = row.index(tokenizer.end_token)
        assert tokenizer.pad_token not in row[:end]
        assert set(row[end + 1 :]) <= {tokenizer.pad_token}


def test_start_and_end_stand_around_every_text(tokenizer):
    for text in ("", "dog", CAPTIONS[1] * 9):
        row = used(tokenizer, text)
        assert row[0] == 1
        assert row[-1] == tokenizer.end_token
        assert row.count(tokenizer.end_token) == 1


def test_special_tokens_have_the_ids_that_recipes_state(tokenizer):
    assert (tokenizer.pad_token, tokenizer.end_token) == (0, 2)


def test_the_empty_text_is_start_and_end(tokenizer):
    for text in ("", "   \n"):
        assert used(tokenizer, text) == [1, tokenizer.end_token]
    assert tokenizer.decode(ids_of(tokenizer, "")) == ""


def test_no_texts_give_no_rows(tokenizer):
    ids, cut = tokenizer.encode([])
    assert ids.shape == (0, CONTEXT)
    assert cut == 0


def test_only_texts_that_lost_their_end_are_counted_as_cut(roomy):
    full = len(used(roomy, CAPTIONS[1]))
    for context, expected in ((full + 1, 0), (full, 0), (full - 1, 1), (3, 1)):
        tight = Tokenizer.learn(CAPTIONS, vocabulary=400, context=context)
        ids, cut = tight.encode([CAPTIONS[1], "", CAPTIONS[1]])
        assert cut == 2 * expected
        assert ids.shape == (3, context)


def test_a_cut_text_keeps_its_beginning(tokenizer, roomy):
    long = " ".join(CAPTIONS[:4])
    assert ids_of(tokenizer, long)[:-1] == ids_of(roomy, long)[: CONTEXT - 1]


@pytest.mark.parametrize("token", [PAD, START, END])
def test_a_special_token_in_a_text_is_plain_letters(roomy, token):
    text = f"a {token} dog{token}{token}"
    row = used(roomy, text)
    assert sorted(row).count(1) == 1
    assert row.count(roomy.end_token) == 1
    assert row[-1] == roomy.end_token
    assert roomy.decode(row) == text


def test_a_special_token_in_what_is_learned_from_stays_letters():
    learned = Tokenizer.learn([f"the {END} of {PAD}"] * 50, vocabulary=400, context=40)
    assert used(learned, END).count(learned.end_token) == 1
    assert learned.decode(ids_of(learned, f"the {END}")) == f"the {END}"
    assert len(used(learned, PAD)) > 2


def test_learning_merges_what_is_frequent(tokenizer):
    assert len(used(tokenizer, "circle")) == 3
    assert len(used(tokenizer, "qxzvkj")) == 2 + 1 + 6
    assert 259 < tokenizer.vocabulary <= 400


def test_learned_twice_gives_the_same_tokenizer():
    again = [Tokenizer.learn(iter(CAPTIONS), vocabulary=350, context=9) for _ in range(2)]
    assert again[0].to_json() == again[1].to_json()


def test_json_brings_back_the_same_tokenizer(tokenizer):
    back = Tokenizer.from_json(tokenizer.to_json())
    texts = [*CAPTIONS[:4], "", f"a {END} <start> 👩🏽‍🚀", "x" * 99]
    np.testing.assert_array_equal(back.encode(texts)[0], tokenizer.encode(texts)[0])
    assert back.encode(texts)[1] == tokenizer.encode(texts)[1] == 2
    for name in ("context", "pad_token", "end_token", "vocabulary"):
        assert getattr(back, name) == getattr(tokenizer, name)
    assert back.to_json() == tokenizer.to_json()


def test_trimming_drops_only_columns_that_are_padding_in_every_row(tokenizer):
    ids, _ = tokenizer.encode(["dog", CAPTIONS[2], ""])
    shorter = trim(ids, tokenizer.pad_token, tokenizer.end_token)
    assert shorter.shape == (3, len(used(tokenizer, CAPTIONS[2])))
    np.testing.assert_array_equal(shorter, ids[:, : shorter.shape[1]])
    assert (ids[:, shorter.shape[1] :] == tokenizer.pad_token).all()


def test_trimming_leaves_a_column_where_all_is_padding():
    assert trim(np.zeros((2, 5), np.int64), 0, 1).shape == (2, 1)
    assert trim(np.ones((2, 5), np.int64), 0, 1).shape == (2, 5)


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (RequestError, {"vocabulary": 258}, "258 cannot hold 256 bytes and 3 special tokens. Use"),
        (RequestError, {"context": 2}, "context 2 leaves no room between start and end. Use 16"),
        (DataError, {"texts": []}, "no text to learn a vocabulary from. Give a source with capt"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_text(kind, arguments, words):
    values = {"texts": CAPTIONS, "vocabulary": 400, "context": CONTEXT} | arguments
    with pytest.raises(kind) as caught:
        Tokenizer.learn(values.pop("texts"), **values)
    assert words in str(caught.value)


def without(tokenizer, key):
    values = json.loads(tokenizer.to_json())
    values[key] = None
    return json.dumps(values)


def test_what_is_no_tokenizer_of_ours_is_refused_by_text(tokenizer):
    texts = {
        "{": "tokenizer.json cannot be read",
        "[]": "tokenizer.json cannot be read",
        without(tokenizer, "padding"): "states no length and no padding",
        without(tokenizer, "truncation"): "states no length and no padding",
        tokenizer.to_json().replace(END, "<stop>"): "has no '<end>' token",
    }
    for text, words in texts.items():
        with pytest.raises(CheckpointError) as caught:
            Tokenizer.from_json(text)
        assert words in str(caught.value)


def with_rules(tokenizer, **rules):
    return Tokenizer.from_json(tokenizer.to_json(), TextRules(**rules))


def test_rules_clean_a_text_before_the_vocabulary(tokenizer):
    cleaned = with_rules(tokenizer, cleaning=("html", "punctuation"))
    assert ids_of(cleaned, "two &lt;dogs&gt;!") == ids_of(tokenizer, "two dogs")


def test_another_end_token_is_found_by_its_name(roomy):
    named = with_rules(roomy, end=START)
    assert named.end_token == 1
    with pytest.raises(CheckpointError, match=r"has no '</s>' token\. Use the"):
        with_rules(roomy, end="</s>")


def test_special_tokens_are_read_where_the_rules_say_so(roomy):
    reading = with_rules(roomy, reads_special=True)
    assert used(reading, f"a{END}b").count(reading.end_token) == 2
    assert used(roomy, f"a{END}b").count(roomy.end_token) == 1


def test_parts_between_special_tokens_are_cleaned_alone(roomy):
    between = with_rules(roomy, reads_special=True, cleaning_between=("punctuation",))
    expected = [*used(roomy, "a dog")[:-1], 2, *used(roomy, "runs")[1:]]
    assert used(between, f"a (dog){END}<runs>") == expected
    assert between.encode(["x " * 800])[1] == 1
    assert used(between, f"a dog{END}") == used(roomy, "a dog")


@pytest.mark.parametrize("rules", [{}, {"reads_special": True, "cleaning_between": ("strip",)}])
def test_a_text_that_just_fits_is_not_counted_as_cut(rules):
    for text in ("a red circle", f"a {START}red circle"):
        full = len(
            used(with_rules(Tokenizer.learn(CAPTIONS, vocabulary=400, context=99), **rules), text)
        )
        for context, expected in ((full, 0), (full - 1, 1)):
            tight = with_rules(Tokenizer.learn(CAPTIONS, vocabulary=400, context=context), **rules)
            ids, cut = tight.encode([text])
            assert (ids[0, -1], cut) == (tight.end_token, expected)


def test_one_end_token_stays_where_texts_are_padded_with_it():
    ids = np.array([[1, 5, 2, 2, 2, 2], [1, 5, 6, 7, 2, 2], [1, 2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(trim(ids, 2, 2), ids[:, :5])
    np.testing.assert_array_equal(trim(ids[2:], 2, 2), ids[2:, :2])
    full = np.array([[1, 5, 6, 7, 8, 2]])
    np.testing.assert_array_equal(trim(full, 2, 2), full)
    np.testing.assert_array_equal(trim(np.full((2, 3), 2), 2, 2), np.full((2, 1), 2))


def edited(tokenizer, **changes):
    """Its tokenizer.json with other parts."""
    return json.dumps(json.loads(tokenizer.to_json()) | changes)


@pytest.mark.parametrize("context", [65_537, 10**12])
def test_a_context_without_end_is_refused_before_it_is_padded(tokenizer, context):
    values = json.loads(tokenizer.to_json())
    values["truncation"]["max_length"] = context
    values["padding"]["strategy"] = {"Fixed": context}
    with pytest.raises(CheckpointError, match=f"texts of {context:,} tokens, and at most 65,536 a"):
        Tokenizer.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("padding", "words"),
    [
        ({"strategy": {"Fixed": 10**12}}, f"to {CONTEXT} tokens and pads them to {10**12} (m"),
        ({"strategy": "BatchLongest"}, "and pads them to None (multiples of None). Save it"),
        ({"pad_to_multiple_of": 10**12}, f"multiples of {10**12}). Save it with padding to 16."),
    ],
)
def test_padding_to_another_length_than_the_context_is_refused(tokenizer, padding, words):
    values = json.loads(tokenizer.to_json())
    values["padding"] |= padding
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_json(json.dumps(values))
    assert words in str(caught.value)


def test_a_text_whose_pattern_takes_without_end_is_a_named_error(tokenizer, capfd):
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = {"Regex": "(x+x+)+y"}
    slow = Tokenizer.from_json(edited(tokenizer, pre_tokenizer=split | {"pattern": pattern}))
    assert slow.encode(["dog"])[1] == 0
    with pytest.raises(CheckpointError) as caught:
        slow.encode(["dog", "x" * 40])
    capfd.readouterr()  # the library says it too
    assert str(caught.value) == (
        f"the model's tokenizer.json cannot encode {'x' * 40!r}: Onig: Regex search error: "
        "retry-limit-in-match over. Use another text, or a tokenizer.json with simpler patterns."
    )


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*rules):
    return {"type": "Sequence", "normalizers": list(rules)}


@pytest.mark.parametrize(
    "rules",
    [
        sequence(*[replace({"String": "a"}, "aa")] * 34),
        sequence(*[sequence(replace({"String": "ab"}, "abab"))] * 13),
        sequence(*[replace({"Regex": "(?=a)"}, "a")] * 34),
        sequence(*[replace({"String": ""}, "a")] * 34),
        sequence(*[{"type": "ByteLevel"}] * 34),
        replace({"String": "a"}, "a" * 4097),
    ],
)
def test_a_normalizer_that_makes_texts_without_end_is_refused(tokenizer, rules):
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_json(edited(tokenizer, normalizer=rules))
    assert "normalizer of tokenizer.json may make texts " in str(caught.value)
    assert " times as long, and at most 4,096 times is read. Use a" in str(caught.value)


def test_a_normalizer_of_known_kinds_is_read(tokenizer):
    """Rules of ALBERT, SigLIP and Gemma, and more that keep the length."""
    rules = sequence(
        *[replace({"String": "``"}, '"'), replace({"Regex": " {2,}"}, "\u2581")],
        *[replace({"String": " "}, "\u2581"), {"type": "NFKD"}, {"type": "Lowercase"}],
        *[replace({"String": "a"}, "b"), replace({"Regex": "[!-/]"}, "")] * 20,
    )
    assert used(Tokenizer.from_json(edited(tokenizer, normalizer=rules)), "dog")
