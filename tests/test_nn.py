"""The building blocks equal their definitions, written here with one number at a time."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from diptych.nn import attention as attention_module
from diptych.nn.attention import CrossAttention, SelfAttention, attend
from diptych.nn.blocks import Block, Mlp, activate
from diptych.nn.init import init_block, init_mean_query_pool, init_pool, lecun_linear
from diptych.nn.patches import PatchEmbed, keep_random_patches
from diptych.nn.pool import AttentionPool, MeanQueryPool, mean_of_visible

BATCH, LENGTH, HEADS, HEAD_WIDTH = 2, 5, 3, 4
WIDTH = HEADS * HEAD_WIDTH


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=1e-12
    )


def attend_oracle(query, key, value, sees):
    """One query at a time: a mean of the values it sees, weighted by exp of the products."""
    query, key, value = query.detach(), key.detach(), value.detach()
    result = torch.zeros_like(query)
    for b, h, q in np.ndindex(*query.shape[:3]):
        weights, total = {}, 0.0
        for k in range(key.shape[2]):
            if sees(b, q, k):
                product = sum(
                    float(query[b, h, q, d]) * float(key[b, h, k, d]) for d in range(HEAD_WIDTH)
                )
                weights[k] = math.exp(product / math.sqrt(HEAD_WIDTH))
                total += weights[k]
        for k, weight in weights.items():
            result[b, h, q] += weight / total * value[b, h, k]
    return result


@pytest.fixture(params=["plain products", "torch's kernel"])
def either_way(request, monkeypatch):
    if request.param == "torch's kernel":
        monkeypatch.setattr(attention_module, "PLAIN_LENGTH", 0)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("queries", [1, LENGTH])
def test_attention_is_a_weighted_mean_over_everything(queries):
    query = random(BATCH, HEADS, queries, HEAD_WIDTH, seed=1)
    key = random(BATCH, HEADS, LENGTH, HEAD_WIDTH, seed=2)
    value = random(BATCH, HEADS, LENGTH, HEAD_WIDTH, seed=3)
    close(attend(query, key, value), attend_oracle(query, key, value, lambda b, q, k: True))


@pytest.mark.usefixtures("either_way")
def test_causal_attention_reads_no_later_token():
    query, key, value = random(3, BATCH, HEADS, LENGTH, HEAD_WIDTH)
    found = attend(query, key, value, causal=True)
    close(found, attend_oracle(query, key, value, lambda b, q, k: k <= q))


@pytest.mark.usefixtures("either_way")
def test_attention_reads_no_hidden_token():
    query, key, value = random(3, BATCH, HEADS, LENGTH, HEAD_WIDTH)
    visible = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]]).bool()
    found = attend(query, key, value, visible=visible)
    close(found, attend_oracle(query, key, value, lambda b, q, k: visible[b, k]))


def split_heads(x):
    """(batch, length, width) to (batch, heads, length, head width), head after head."""
    return torch.stack([x[..., h * HEAD_WIDTH : (h + 1) * HEAD_WIDTH] for h in range(HEADS)], 1)


def join_heads(x):
    return torch.cat([x[:, h] for h in range(HEADS)], dim=-1)


def test_self_attention_projects_splits_attends_joins_and_projects():
    torch.manual_seed(0)
    layer = SelfAttention(WIDTH, HEADS).double()
    tokens = random(BATCH, LENGTH, WIDTH)
    weight, bias = layer.query_key_value.weight, layer.query_key_value.bias
    query, key, value = (
        split_heads(tokens @ weight[start : start + WIDTH].T + bias[start : start + WIDTH])
        for start in (0, WIDTH, 2 * WIDTH)
    )
    mixed = join_heads(attend_oracle(query, key, value, lambda b, q, k: True))
    close(layer(tokens), mixed @ layer.out.weight.T + layer.out.bias)


def test_cross_attention_reads_another_sequence():
    torch.manual_seed(0)
    layer = CrossAttention(WIDTH, HEADS).double()
    queries, tokens = random(BATCH, 2, WIDTH, seed=1), random(BATCH, LENGTH, WIDTH, seed=2)
    weight, bias = layer.key_value.weight, layer.key_value.bias
    mixed = attend_oracle(
        split_heads(layer.query(queries)),
        split_heads(tokens @ weight[:WIDTH].T + bias[:WIDTH]),
        split_heads(tokens @ weight[WIDTH:].T + bias[WIDTH:]),
        lambda b, q, k: True,
    )
    close(layer(queries, tokens), layer.out(join_heads(mixed)))


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_their_formula(name):
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = [ACTIVATIONS[name](float(value)) for value in x]
    close(activate(x, name), torch.tensor(expected, dtype=torch.float64))


def test_no_two_activations_are_the_same():
    x = torch.tensor([-2.0, 1.5])
    found = torch.stack([activate(x, name) for name in ACTIVATIONS])
    assert len({tuple(row.tolist()) for row in found}) == 3


def test_a_block_adds_attention_and_then_the_mlp_to_the_stream():
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, 7, "quick_gelu", epsilon=0.1).double()
    x = random(BATCH, LENGTH, WIDTH)

    def norm(x, layer):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (variance + 0.1).sqrt() * layer.weight + layer.bias

    y = x + block.attention(norm(x, block.attention_norm))
    hidden = activate(block.mlp.up(norm(y, block.mlp_norm)), "quick_gelu")
    close(block(x), y + block.mlp.down(hidden))


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_a_convolution_with_stride_and_stand_in_reading_order(bias):
    torch.manual_seed(0)
    layer = PatchEmbed(3, 5, bias=bias).double()
    image = random(BATCH, 3, 6, 9)
    found = layer(image)
    assert found.shape == (BATCH, 6, 5)
    for b, row, column in np.ndindex(BATCH, 2, 3):
        square = image[b, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        weight = layer.project.weight.view(5, 3, 3, 3)
        expected = (weight * square).sum((1, 2, 3)) + (layer.project.bias if bias else 0)
        close(found[b, 3 * row + column], expected)


@pytest.mark.parametrize(
    ("patches", "share", "kept"),
    [(9, 0.5, 4), (16, 0.5, 8), (9, 0.34, 3), (9, 0.01, 1), (7, 1.0, 7)],
)
def test_patch_dropping_keeps_its_share_each_once_and_unchanged(patches, share, kept):
    tokens = random(BATCH, patches, WIDTH)
    found = keep_random_patches(tokens, share)
    assert found.shape == (BATCH, kept, WIDTH)
    for b in range(BATCH):
        places = [
            [p for p in range(patches) if torch.equal(tokens[b, p], token)] for token in found[b]
        ]
        assert all(len(place) == 1 for place in places)
        assert len({place[0] for place in places}) == kept


def test_each_picture_draws_its_own_patches_and_all_are_drawn_equally_often():
    torch.manual_seed(0)
    tokens = torch.arange(8.0).view(1, 8, 1).expand(2000, 8, 1)
    kept = keep_random_patches(tokens, 0.25)[..., 0].long()
    assert len({tuple(sorted(row.tolist())) for row in kept}) == 8 * 7 / 2
    counts = torch.bincount(kept.flatten(), minlength=8)
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_the_mean_leaves_out_what_is_hidden():
    tokens = random(2, 4, 3)
    visible = torch.tensor([[True, False, True, False], [True, True, True, True]])
    found = mean_of_visible(tokens, visible)
    close(found[0], (tokens[0, 0] + tokens[0, 2]) / 2)
    close(found[1], tokens[1].mean(0))
    close(mean_of_visible(tokens, torch.zeros(2, 4).bool()), torch.zeros(2, 3).double())


def test_the_attention_pool_reads_with_a_probe_and_adds_an_mlp():
    torch.manual_seed(0)
    pool = AttentionPool(WIDTH, HEADS, 7, "gelu_tanh", 1e-6).double()
    nn.init.normal_(pool.probe)
    tokens = random(BATCH, LENGTH, WIDTH)
    pooled = pool.attention(pool.probe.expand(BATCH, 1, WIDTH), tokens)
    expected = pooled + pool.mlp(pool.mlp_norm(pooled))
    close(pool(tokens), expected[:, 0])
    close(pool(tokens[:, torch.randperm(LENGTH)]), expected[:, 0])


def test_the_mean_of_two_tokens_gathers_what_a_hand_computes():
    pool = MeanQueryPool(width=2, heads=1, tokens=2).double()
    with torch.no_grad():
        pool.positions.copy_(torch.tensor([[0, 1], [0, 2], [0, 4]]))
        # The query has ln 2 * sqrt 2 for the first number of the mean and nothing for the second,
        # so a key whose first number is n weighs 2^n. Keys and values are the tokens.
        pool.query.weight.copy_(
            torch.tensor([[math.log(2) * math.sqrt(2), 0], [0, 0]], dtype=torch.float64)
        )
        pool.key_value.weight.copy_(torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]]))
        pool.query.bias.zero_()
        pool.key_value.bias.zero_()
    # Mean (1, 0): with positions the tokens are (1, 1), (2, 2) and (0, 4), of weight 2, 4 and 1.
    tokens = torch.tensor([[[2.0, 0], [0, 0]]], dtype=torch.float64)
    expected = [[(2 * 1 + 4 * 2 + 1 * 0) / 7, (2 * 1 + 4 * 2 + 1 * 4) / 7]]
    close(pool(tokens), torch.tensor(expected, dtype=torch.float64))


def test_the_mean_query_pool_adds_positions_and_reads_by_heads():
    torch.manual_seed(0)
    pool = MeanQueryPool(WIDTH, HEADS, LENGTH).double()
    nn.init.normal_(pool.positions)
    tokens = random(BATCH, LENGTH, WIDTH)
    every = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + pool.positions
    key, value = pool.key_value(every).split(WIDTH, dim=-1)
    query = split_heads(pool.query(every[:, :1]))
    mixed = attend_oracle(query, split_heads(key), split_heads(value), lambda b, q, k: True)
    close(pool(tokens), join_heads(mixed)[:, 0])


def spread(weight):
    return float(weight.detach().std())


WIDE, DEEP = 256, 5
"""Wide enough that a measured standard deviation is within 3 % of the true one."""


def test_clip_blocks_start_with_the_published_spreads_and_zero_biases():
    torch.manual_seed(0)
    block = Block(WIDE, 4, 4 * WIDE, "gelu")
    init_block(block, DEEP, "clip")
    assert spread(block.attention.query_key_value.weight) == pytest.approx(WIDE**-0.5, rel=0.03)
    into_stream = WIDE**-0.5 * (2 * DEEP) ** -0.5
    assert spread(block.attention.out.weight) == pytest.approx(into_stream, rel=0.03)
    assert spread(block.mlp.down.weight) == pytest.approx(into_stream, rel=0.03)
    assert spread(block.mlp.up.weight) == pytest.approx((2 * WIDE) ** -0.5, rel=0.03)
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def is_xavier(matrix):
    """Uniform between plus and minus sqrt(6 / (inputs + outputs))."""
    limit = math.sqrt(6 / sum(matrix.shape))
    largest = float(matrix.detach().abs().max())
    return 0.98 * limit < largest <= limit and spread(matrix) == pytest.approx(
        limit / math.sqrt(3), rel=0.03
    )


def check_siglip_mlp(mlp: Mlp):
    for linear in (mlp.up, mlp.down):
        assert is_xavier(linear.weight)
        assert spread(linear.bias) == pytest.approx(1e-6, rel=0.15)


def test_siglip_blocks_start_xavier_uniform_with_almost_zero_mlp_biases():
    torch.manual_seed(0)
    block = Block(WIDE, 4, 4 * WIDE, "gelu_tanh")
    init_block(block, DEEP, "siglip")
    for matrix in block.attention.query_key_value.weight.split(WIDE):
        assert is_xavier(matrix)
    assert is_xavier(block.attention.out.weight)
    assert not block.attention.query_key_value.bias.any()
    assert not block.attention.out.bias.any()
    check_siglip_mlp(block.mlp)


def test_the_siglip_pool_starts_like_the_blocks():
    torch.manual_seed(0)
    pool = AttentionPool(WIDE, 4, 4 * WIDE, "gelu_tanh", 1e-6)
    init_pool(pool)
    assert is_xavier(pool.probe[0])
    assert is_xavier(pool.attention.query.weight)
    for matrix in (*pool.attention.key_value.weight.split(WIDE), pool.attention.out.weight):
        assert is_xavier(matrix)
    assert not any(
        linear.bias.any() for linear in pool.attention.children() if isinstance(linear, nn.Linear)
    )
    check_siglip_mlp(pool.mlp)


def test_the_mean_query_pool_starts_normal_with_zero_biases():
    torch.manual_seed(0)
    pool = MeanQueryPool(WIDE, 4, 200)
    init_mean_query_pool(pool)
    for weight in (pool.positions, pool.query.weight, pool.key_value.weight):
        assert spread(weight) == pytest.approx(WIDE**-0.5, rel=0.03)
    assert not pool.query.bias.any()
    assert not pool.key_value.bias.any()


def test_the_lecun_start_has_variance_one_over_inputs_and_is_cut_at_two_sigma():
    torch.manual_seed(0)
    linear = nn.Linear(WIDE, 400)
    lecun_linear(linear)
    assert spread(linear.weight) == pytest.approx(WIDE**-0.5, rel=0.02)
    assert linear.weight.abs().max() <= 2 * WIDE**-0.5 / 0.87962566
    assert not linear.bias.any()
