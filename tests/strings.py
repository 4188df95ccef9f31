"""Hard texts for tokenizers, the same for the same seed, a comparison of two tokenizers, and a
vocabulary for them."""

import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SENTENCES = [
    "A man rides a bicycle in the rain, doesn't he? They've seen it; I'm sure we'll go.",
    "Der große Hund läuft über die Straße, und die Übung macht's.",
    "Une élève naïve mange des œufs à l'hôtel où l'été s'achève.",
    "Dos niños pequeños juegan al fútbol en la playa: ¿qué más? ¡Olé!",
    "Маленькая девочка ест мороженое у моря, а ёжик спит.",
    "Ο ΟΔΟΣ και ο σκύλος τρέχουν στην παραλία, ΚΌΣΜΕ.",
    "小さな犬がビーチを走っています。ｶﾞｷﾞｸﾞ と ガギグ",
    "一个男人在雨中骑自行车，两只狗在海滩上跑。",
    "작은 개가 해변에서 달리고 있습니다 각각",
    "كلب صغير يجري على الشاطئ، مُحَمَّد ٣٤٥",
    "समुद्र तट पर एक छोटा कुत्ता दौड़ रहा है १२३",
    "İstanbul'da IŞIK ve ıhlamur; DİYARBAKIR",
    "כלב קטן רץ על החוף שָׁלוֹם",
    "สุนัขตัวเล็กวิ่งบนชายหาด",
    "Những chú chó nhỏ chạy trên bãi biển Việt Nam",
]
"""Fifteen languages."""

PIECES = [
    *("&amp;", "&amp;lt;", "&lt;b&gt;", "&#39;", "&#x1F600;", "&nbsp;", "&eacute;", "&bogus;", "&"),
    *("“quoted”", "‘single’", "it’s", "don`t", "´", "…", "—", "–", "«x»", "„low“"),
    *(
        "ＦＵＬＬ　ＷＩＤＴＨ",
        "ａｂｃ１２３",
        "ﬁne ﬂow ﬀ ﬃ ﬆ",
        "①②Ⅷ½",
        "²³",
        "℃ ℡ ㎏ ㍿",
        "ſhort ſt 'ſ",
    ),
    *(
        "a\u200db",
        "\u200b",
        "\ufeff",
        "soft\u00adhyphen",
        "\u202eright\u202c",
        "e\u0301",
        "²\u0301",
    ),
    *("👩🏽‍🚀", "🏳️‍🌈", "👨‍👩‍👧‍👦", "🇩🇪🇯🇵", "☕️", "😀😀😀", "1️⃣", "🫠", "❤️‍🔥", "\U0001fae8"),
    *("cafÃ©", "â€œmojibakeâ€\x9d", "âœ”", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ã\x81\x93", "schÃ¶n", "l’humanitÃ©"),
    *("<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "!!<start_of_text>", "<ſtart_of_text>"),
    *("<end_of_text><end_of_text>", "x<end_of_text>y", "<|endoftext|>", "<|startoftext|>", "</s>"),
    *("<|ENDOFTEXT|>", "<pad>", "<eos>", "<bos>", "<unk>", "<s>", "<mask>", "</s></s>", "<0x41>"),
    *("▁", "▁▁ x", "_", "__init__", "snake_case", "\\", "{}", "$5.00", "50%", "C++", "#tag", "@me"),
    *(
        "\x00",
        "\x07",
        "\x1b[31mred\x1b[0m",
        "\x1c",
        "\x85",
        "\u2028",
        "\u3000",
        "\xa0",
        "\r\n",
        "\t",
    ),
    *("'s", "'S", "'Re", "'LL", "'''", "’s", "1st", "3.14", "1,000,000", "٣", "x²", "10-20", "²²"),
    *("\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\U0001e7e0", "\U000323b0", "ꟍ", "𝔘𝔫𝔦", "ǅ", "ŉ"),
    *("STRASSE ẞ", "ΣΊΣΥΦΟΣ", "Ω Å K", "가 각", "क्षि", "ﷺ", "ﻻ", "ﾊﾟ", "か\u3099"),
]
"""What tokenizers have been seen to differ on."""


def hard_strings(count: int, seed: int = 0) -> list[str]:
    """Texts of fifteen languages with entities, emoji, wrong encodings, odd signs and great length.

    The first ones are fixed: every sentence and piece alone, nothing, spaces, 10,000 characters.
    """
    fixed = ["", " ", "\n\t ", *SENTENCES, *PIECES, "word " * 2000, "x" * 10_000, "漢字😀" * 500]
    chance = random.Random(seed)
    texts = list(fixed)
    while len(texts) < count:
        parts = []
        for _ in range(chance.randint(1, 12)):
            kind = chance.random()
            if kind < 0.35:
                words = chance.choice(SENTENCES).split()
                start = chance.randrange(len(words))
                parts.append(" ".join(words[start : start + chance.randint(1, 8)]))
            elif kind < 0.75:
                parts.append(chance.choice(PIECES))
            elif kind < 0.9:
                block = chance.randrange(0x110000 // 128) if chance.random() < 0.3 else None
                first = block * 128 if block is not None else chance.randrange(0, 0x3100, 128)
                parts.append("".join(_sign(chance, first) for _ in range(chance.randint(1, 6))))
            else:
                parts.append("".join(chance.choices("abcxyzSZ 019'.,!?-_<>|/&;", k=6)))
        text = "".join(part + chance.choice(["", " ", " ", "  "]) for part in parts)
        texts.append(text * 9 if chance.random() < 0.02 else text)
    return texts[:count]


def compare(
    ours: Callable[[list[str]], np.ndarray],
    theirs: Callable[[list[str]], np.ndarray],
    texts: Sequence[str],
) -> list[str]:
    """The texts on which two functions from texts to ids differ."""
    pairs = zip(np.asarray(ours(list(texts))), np.asarray(theirs(list(texts))), strict=True)
    return [text for text, (a, b) in zip(texts, pairs, strict=True) if not np.array_equal(a, b)]


def gemma_pairs(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of Gemma's kind, learned from hard texts: at most `size` tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    learned = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=1200,
        show_progress=False,
    )
    texts = [text for text in hard_strings(800, seed=3) if len(text) < 400]
    learned.train_from_iterator([*texts, *SENTENCES * 10], trainer)
    model = json.loads(learned.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def _sign(chance: random.Random, first: int) -> str:
    """A character of a block of 128; halves of characters are left out."""
    code = first + chance.randrange(128)
    return "?" if 0xD800 <= code < 0xE000 else chr(code)
