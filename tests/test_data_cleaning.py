"""Every step of cleaning does what its library does; plain text takes the short way."""

import random
import string

import ftfy
import pytest

from diptych.data.cleaning import STEPS, TextRules, clean
from diptych.errors import ConfigError


@pytest.mark.parametrize(
    ("steps", "text", "expected"),
    [
        (("ftfy",), "cafÃ© â€œxâ€\x9d ﬁne ＦＵＬＬ it’s", 'café "x" fine FULL it\'s'),
        (("html",), "&amp;lt; &eacute; &#39;", "< é '"),
        (("strip",), " \ta b\n", "a b"),
        (("whitespace",), " a \x1c\u3000\n b\x85", "a b"),
        (("lower",), "ΟΔΟΣ İ A", "οδος i̇ a"),
        (("lower_ascii",), "ΟΔΟΣ İ A \ud800", "ΟΔΟΣ İ a \ud800"),
        (("underscore",), "a_b", "a b"),
        (("punctuation",), "a.b!—c_d$", "ab—cd"),
        (("word_mark",), "a ▁b", "▁a  b"),
        (("underscore", "punctuation"), "snake_case!", "snake case"),
        (("punctuation", "underscore"), "snake_case!", "snakecase"),
        ((), " A ", " A "),
    ],
)
def test_steps_are_done_in_their_order(steps, text, expected):
    assert clean(text, steps) == expected


def test_plain_text_comes_out_as_if_every_step_had_been_done():
    chance = random.Random(0)
    signs = [chr(code) for code in range(0x20, 0x7F)]
    texts = ["".join(chance.choices(signs, k=chance.randrange(30))) for _ in range(2000)]
    texts += [first + second for first in signs for second in signs]
    texts += ["&lt;b&gt; &amp;amp;", "a\tb", "\x1b[31m", "\r\n", "%s&%s"]
    for text in texts:
        slowly = text
        for step in ("ftfy", "html"):
            slowly = STEPS[step](slowly)
        assert clean(text, ("ftfy", "html")) == slowly


def test_half_a_character_is_mended_before_it_is_lost():
    assert clean("\ud83d\ude00 \ud83d", ("ftfy",)) == ftfy.fix_text("\ud83d\ude00 \ud83d")


def test_punctuation_is_all_of_ascii_and_no_other():
    assert clean(string.punctuation + "¿«…", ("punctuation",)) == "¿«…"


def test_rules_come_back_from_a_contract():
    rules = TextRules(cleaning=("ftfy", "lower"), end="</s>", reads_special=True)
    assert TextRules(**rules.model_dump(mode="json")) == rules
    assert TextRules() == TextRules(cleaning=(), end="<end>", reads_special=False)


@pytest.mark.parametrize("wrong", [{"cleaning": ("upper",)}, {"ends": "</s>"}, {"behind": 3}])
def test_unknown_rules_are_refused(wrong):
    with pytest.raises(ConfigError):
        TextRules(**wrong)
