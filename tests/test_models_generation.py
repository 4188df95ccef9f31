"""Texts are those of the definitions: one token at a time without a cache, and all texts tried."""

import itertools

import pytest
import torch

from diptych.models.decoder import Decoder, DecoderConfig
from diptych.models.generation import beam, greedy, likeliest, nucleus

PAD, START, END = 0, 1, 2
ENDS_DIFFER = 8
"""A seed whose decoder ends texts at many places."""


def decoder_of(vocabulary=7, context=6, *, seed=0, spread=0.8):
    """A decoder with random weights."""
    shape = {"width": 12, "layers": 2, "heads": 3, "mlp_width": 20}
    tokens = {"start_token": START, "end_token": END, "pad_token": PAD}
    config = DecoderConfig(vocabulary=vocabulary, context=context, **shape, **tokens)
    made = Decoder(config, "clip")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return made.eval()


def prefix_of(rows, seed=0):
    return torch.randn(rows, 3, 12, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def chances_oracle(decoder, prefix, text):
    """Log probabilities of what follows a text, everything read again; pad and start are never."""
    asked = torch.tensor([[*text, PAD]])
    logits = decoder(prefix[None], asked)[0, -1]
    allowed = [token for token in range(len(logits)) if token not in (PAD, START)]
    total = sum(logits[token].exp() for token in allowed)
    return {token: float(torch.log(logits[token].exp() / total)) for token in allowed}


def greedy_oracle(decoder, prefix):
    """The likeliest token each time, of one row."""
    text = [START]
    while text[-1] != END and len(text) < decoder.config.context:
        chances = chances_oracle(decoder, prefix, text)
        text.append(max(chances, key=chances.get))
    return text


def exhaustive(decoder, prefix):
    """The best text of all: the highest mean log probability per token."""
    allowed = [token for token in range(decoder.config.vocabulary) if token not in (PAD, START)]
    going_on = [token for token in allowed if token != END]
    room = decoder.config.context - 1
    texts = [
        (*words, END)
        for length in range(room)
        for words in itertools.product(going_on, repeat=length)
    ]
    texts += itertools.product(going_on, repeat=room)  # cut, without an end
    known = {}

    def chance(text):
        total = 0.0
        for place, token in enumerate(text):
            before = (START, *text[:place])
            if before not in known:
                known[before] = chances_oracle(decoder, prefix, before)
            total += known[before][token]
        return total / len(text)

    return [START, *max(texts, key=chance)]


def rows_of(texts):
    """Lists without the padding, which must stand at the right only."""
    rows = []
    for text in texts.tolist():
        used = [token for token in text if token != PAD]
        assert text == used + [PAD] * (len(text) - len(used))
        rows.append(used)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_the_likeliest_token_each_time(seed):
    decoder, prefix = decoder_of(seed=seed, context=8), prefix_of(6, seed)
    found = rows_of(greedy(decoder, prefix))
    assert found == [greedy_oracle(decoder, row) for row in prefix]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_of_a_batch_end_where_they_end_alone(beams):
    decoder, prefix = decoder_of(seed=ENDS_DIFFER, context=12), 3 * prefix_of(16)
    together = rows_of(beam(decoder, prefix, beams=beams))
    assert len({len(row) for row in together}) > 2  # they do end at different places
    alone = [rows_of(beam(decoder, row[None], beams=beams))[0] for row in prefix]
    assert together == alone


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed):
    decoder, prefix = decoder_of(seed=seed, context=8), prefix_of(6, seed)
    assert rows_of(beam(decoder, prefix, beams=1)) == rows_of(greedy(decoder, prefix))


@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_best_text_of_all(seed):
    decoder, prefix = decoder_of(vocabulary=5, context=5, seed=seed, spread=0.5), prefix_of(3, seed)
    found = rows_of(beam(decoder, prefix, beams=81))
    assert found == [exhaustive(decoder, row) for row in prefix]


def test_more_beams_find_texts_that_greedy_misses():
    better = 0
    for seed in range(6):
        decoder, prefix = decoder_of(vocabulary=5, context=5, seed=seed, spread=0.5), prefix_of(4)
        better += rows_of(beam(decoder, prefix, beams=81)) != rows_of(greedy(decoder, prefix))
    assert better


def test_a_tiny_share_of_the_chances_is_greedy():
    decoder, prefix = decoder_of(seed=2), prefix_of(5)
    drawn = nucleus(decoder, prefix, top_p=1e-6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, greedy(decoder, prefix))


def test_the_same_generator_draws_the_same_and_another_draws_otherwise():
    decoder, prefix = decoder_of(spread=0.3, context=9), prefix_of(8)

    def drawn(seed):
        return nucleus(
            decoder, prefix, top_p=1.0, generator=torch.Generator().manual_seed(seed)
        ).tolist()

    assert drawn(4) == drawn(4)
    assert drawn(4) != drawn(5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_draws_are_as_frequent_as_their_chances(top_p, temperature):
    decoder, prefix = decoder_of(context=2, spread=0.5), prefix_of(1)
    chances = chances_oracle(decoder, prefix[0], (START,))
    powers = {token: torch.tensor(chance / temperature).exp() for token, chance in chances.items()}
    total, kept, reached = sum(powers.values()), {}, 0.0
    for token in sorted(powers, key=powers.get, reverse=True):
        if reached < top_p:
            kept[token] = powers[token] / total
        reached += powers[token] / total
    draws = 4000
    texts = nucleus(
        decoder,
        prefix.expand(draws, -1, -1),
        top_p=top_p,
        temperature=temperature,
        generator=torch.Generator().manual_seed(1),
    )
    for token in range(7):
        expected = float(kept.get(token, 0.0) / sum(kept.values()))
        found = (texts[:, 1] == token).float().mean().item()
        assert found == pytest.approx(expected, abs=0.04), token
        assert found == 0 or token in kept


def test_the_likeliest_are_the_fewest_that_sum_to_the_share():
    chances = torch.tensor([[0.5, 0.1, 0.25, 0.15], [0.25, 0.25, 0.25, 0.25]])
    kept = [likeliest(chances, share)[0].tolist() for share in (0.3, 0.5, 0.6, 0.76, 1.0)]
    counts = [sum(chance > 0 for chance in row) for row in kept]
    assert counts == [1, 1, 2, 3, 4]
    assert kept[2] == pytest.approx([0.5, 0.0, 0.25, 0.0])
    assert (likeliest(chances, 0.5)[1] > 0).tolist() == [True, True, False, False]  # earlier first


def test_padding_and_start_are_never_written():
    decoder = decoder_of(spread=0.1, context=12)
    with torch.no_grad():
        decoder.tokens.weight[[PAD, START]] *= 50
    for seed in range(3):
        texts = nucleus(
            decoder, prefix_of(8), top_p=1.0, generator=torch.Generator().manual_seed(seed)
        )
        for row in rows_of(texts):
            assert START not in row[1:]


def test_values_out_of_range_are_refused():
    decoder, prefix, generator = decoder_of(), prefix_of(1), torch.Generator()
    with pytest.raises(ValueError, match=r"beams 0 is below 1\. Use 4"):
        beam(decoder, prefix, beams=0)
    with pytest.raises(ValueError, match=r"top_p 1\.5 is not in \(0, 1\]\. Use 0\.9"):
        nucleus(decoder, prefix, top_p=1.5, generator=generator)
    with pytest.raises(ValueError, match=r"temperature 0\.0 is not above 0\. Use 1"):
        nucleus(decoder, prefix, top_p=0.5, generator=generator, temperature=0.0)
