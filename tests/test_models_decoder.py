"""The decoder equals a forward pass written with loops, reads nothing that comes later, and gives
with kept keys and values what it gives without."""

import math

import pytest
import torch
from torch.nn import functional as F

from diptych.errors import ConfigError
from diptych.models.decoder import Decoder, DecoderConfig

PAD, START, END = 0, 1, 2
SHAPE = {
    "vocabulary": 13,
    "context": 9,
    "width": 12,
    "layers": 2,
    "heads": 3,
    "mlp_width": 20,
    "start_token": START,
    "end_token": END,
    "pad_token": PAD,
}
TEXTS = torch.tensor(
    [
        [START, 5, 6, 7, END, PAD, PAD],
        [START, 9, END, PAD, PAD, PAD, PAD],
        [START, 8, 8, 12, 11, 10, END],
    ]
)


@pytest.fixture(params=[0, 2], ids=["no blocks", "two blocks"])
def decoder(request):
    """A decoder of which no weight is zero or one."""
    made = Decoder(DecoderConfig(**SHAPE | {"layers": request.param}), "clip")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return made.eval()


@pytest.fixture
def prefix():
    return torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(5))


def attention_oracle(block, x, heads):
    """Each position and head on its own, over the positions up to it."""
    width = x.shape[1]
    side = width // heads
    query, key, value = block.attention.query_key_value(block.attention_norm(x)).split(width, 1)
    rows = []
    for place in range(len(x)):
        mixed = []
        for head in range(heads):
            part = slice(head * side, (head + 1) * side)
            scores = torch.stack(
                [query[place, part].dot(key[to, part]) / math.sqrt(side) for to in range(place + 1)]
            )
            chances = scores.exp() / scores.exp().sum()
            mixed.append(sum(chances[to] * value[to, part] for to in range(place + 1)))
        rows.append(block.attention.out(torch.cat(mixed)))
    return torch.stack(rows)


def logits_oracle(decoder, prefix, text):
    """Of one row: what is foretold of each token, with the tokens behind it left out."""
    found = []
    for place in range(len(text)):
        words = [
            decoder.tokens.weight[token] + decoder.positions[i]
            for i, token in enumerate(text[:place])
        ]
        x = torch.stack([*prefix, *words])
        for block in decoder.blocks:
            x = x + attention_oracle(block, x, decoder.config.heads)
            x = x + block.mlp(block.mlp_norm(x))
        found.append(decoder.tokens.weight @ decoder.final_norm(x[-1]))
    return torch.stack(found)


def test_logits_are_those_of_the_definition_with_loops(decoder, prefix):
    expected = torch.stack(
        [logits_oracle(decoder, *row) for row in zip(prefix, TEXTS, strict=True)]
    )
    torch.testing.assert_close(decoder(prefix, TEXTS), expected, atol=1e-5, rtol=1e-5)


def test_a_tokens_logits_do_not_depend_on_it_nor_on_what_follows(decoder, prefix):
    before = decoder(prefix, TEXTS)
    for place in range(TEXTS.shape[1]):
        other = TEXTS.clone()
        other[:, place:] = 4
        after = decoder(prefix, other)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])


def test_every_token_reads_the_whole_prefix(prefix):
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SHAPE), "clip")
    given = prefix.requires_grad_()
    logits = decoder(given, TEXTS)
    for place in range(TEXTS.shape[1]):
        gradient = torch.autograd.grad(logits[:, place].square().sum(), given, retain_graph=True)[0]
        assert (gradient.abs().sum(dim=2) > 0).all()


def test_with_kept_keys_and_values_the_logits_are_the_same(decoder, prefix):
    expected = decoder(prefix, TEXTS)
    cache = decoder.read(prefix)
    for place in range(TEXTS.shape[1] - 1):
        logits = decoder.step(TEXTS[:, place], cache)
        torch.testing.assert_close(logits, expected[:, place + 1], atol=1e-5, rtol=1e-5)


def test_a_row_goes_on_with_the_text_of_another_that_has_its_prefix(decoder, prefix):
    texts = torch.tensor([[START, 5, 6], [START, 7, 8], [START, 9, 9], [START, 4, 11]])
    cache = decoder.read(prefix[:2]).repeated(2)
    for place in range(2):
        decoder.step(texts[:, place], cache)
    rows = torch.tensor([1, 1, 3, 2])
    cache.pick(rows)
    taken = texts[rows]
    logits = decoder.step(taken[:, 2], cache)
    asked = torch.cat([taken, taken[:, :1]], dim=1)
    expected = decoder(prefix[:2].repeat_interleave(2, dim=0), asked)[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight(prefix):
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(**SHAPE | {"context": 8}), "siglip")
    logits = decoder(prefix, torch.cat([TEXTS, TEXTS[:, -1:]], dim=1))
    F.cross_entropy(logits.flatten(0, 1), torch.arange(24) % 13).backward()
    for name, weight in decoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    assert (decoder.positions.grad[:-1].abs().sum(dim=1) > 0).all()
    assert decoder.positions.grad[-1].abs().sum() == 0  # the last token is only asked for


def test_a_frozen_decoder_learns_nothing():
    decoder = Decoder(DecoderConfig(**SHAPE | {"frozen": True}), "clip")
    assert not any(weight.requires_grad for weight in decoder.parameters())


def test_a_text_longer_than_the_context_is_refused(decoder, prefix):
    with pytest.raises(ValueError, match=r"10 positions and the decoder 9\. Cut the text to 9"):
        decoder(prefix, torch.full((3, 10), 4))
    cache = decoder.read(prefix)
    for _ in range(9):
        decoder.step(torch.full((3,), 4), cache)
    with pytest.raises(ValueError, match="10 positions and the decoder 9"):
        decoder.step(torch.full((3,), 4), cache)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"end_token": 13}, r"end_token 13 is outside the vocabulary of 13\. Use an id from 0 to"),
        ({"pad_token": 2}, r"end_token 2 and pad_token 2 are not three different ids"),
        ({"heads": 5}, r"width 12 is not a multiple of heads 5"),
    ],
)
def test_a_shape_that_cannot_work_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        DecoderConfig(**SHAPE | values)
