"""Small towers equal a forward pass written with numpy and loops; their rules hold by name."""

import math

import numpy as np
import pytest
import torch
from small import woken
from torch.nn import functional as F

from diptych.errors import ConfigError
from diptych.models.dual_encoder import LARGEST_SCALE, DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.text_tower import TextTower, TextTowerConfig
from diptych.recipes import RECIPES

IMAGE = {
    "image_size": 6,
    "patch_size": 2,
    "width": 12,
    "layers": 2,
    "heads": 3,
    "mlp_width": 20,
    "norm_epsilon": 1e-3,
}
TEXT = {
    "vocabulary": 23,
    "context": 7,
    "width": 12,
    "layers": 2,
    "heads": 3,
    "mlp_width": 20,
    "end_token": 2,
    "pad_token": 0,
    "norm_epsilon": 1e-3,
}
START, END, PAD = 1, 2, 0
TEXTS = torch.tensor(
    [
        [START, 5, 6, 7, END, PAD, PAD],
        [START, 9, END, PAD, PAD, PAD, PAD],
        [START, 8, 8, 20, 21, 22, END],
    ]
)


def weights_of(model):
    """All weights as numpy, every one drawn anew so that none is zero or one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def norm(x, weights, name, epsilon):
    variance = ((x - x.mean()) ** 2).mean()
    scaled = (x - x.mean()) / np.sqrt(variance + epsilon)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0)


ACTIVATIONS = {
    "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
    "gelu_tanh": lambda v: (
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    ),
    "quick_gelu": lambda v: v / (1 + math.exp(-1.702 * v)),
}


def mix(queries, keys, values, heads, sees):
    """Attention, one query and one head at a time; every argument is a list of vectors."""
    side = len(queries[0]) // heads
    mixed = []
    for q, query in enumerate(queries):
        row = np.zeros_like(query)
        for head in range(heads):
            part = slice(head * side, (head + 1) * side)
            seen = [k for k in range(len(keys)) if sees(q, k)]
            scores = [np.exp(query[part] @ keys[k][part] / np.sqrt(side)) for k in seen]
            for score, k in zip(scores, seen, strict=True):
                row[part] += score / sum(scores) * values[k][part]
        mixed.append(row)
    return mixed


def mlp(x, weights, name, activation):
    hidden = [ACTIVATIONS[activation](value) for value in linear(x, weights, f"{name}.up")]
    return linear(np.array(hidden), weights, f"{name}.down")


def block(tokens, weights, name, config, sees):
    epsilon = config.norm_epsilon
    normed = [norm(x, weights, f"{name}.attention_norm", epsilon) for x in tokens]
    qkv = [linear(x, weights, f"{name}.attention.query_key_value") for x in normed]
    queries, keys, values = zip(*(np.split(x, 3) for x in qkv), strict=True)
    mixed = mix(queries, keys, values, config.heads, sees)
    tokens = [
        x + linear(m, weights, f"{name}.attention.out") for x, m in zip(tokens, mixed, strict=True)
    ]
    return [
        x
        + mlp(
            norm(x, weights, f"{name}.mlp_norm", epsilon), weights, f"{name}.mlp", config.activation
        )
        for x in tokens
    ]


def image_oracle(image, weights, config):
    """The vision transformer on one picture of shape (3, side, side)."""
    side = config.patch_size
    tokens = []
    for row in range(config.image_size // side):
        for column in range(config.image_size // side):
            square = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            tokens.append(linear(square.ravel(), weights, "patches.project"))
    if config.class_token:
        tokens.insert(0, weights["class_token"])
    tokens = [x + position for x, position in zip(tokens, weights["positions"], strict=True)]
    if config.pre_norm:
        tokens = [norm(x, weights, "pre_norm", config.norm_epsilon) for x in tokens]
    for number in range(config.layers):
        tokens = block(tokens, weights, f"blocks.{number}", config, lambda q, k: True)
    tokens = [norm(x, weights, "final_norm", config.norm_epsilon) for x in tokens]
    if config.pool == "class":
        return tokens[0]
    if config.pool == "mean":
        return np.mean(tokens[int(config.class_token) :], axis=0)
    query = linear(weights["pool.probe"][0, 0], weights, "pool.attention.query")
    halves = [np.split(linear(x, weights, "pool.attention.key_value"), 2) for x in tokens]
    keys, values = zip(*halves, strict=True)
    mixed = mix([query], keys, values, config.heads, lambda q, k: True)[0]
    pooled = linear(mixed, weights, "pool.attention.out")
    normed = norm(pooled, weights, "pool.mlp_norm", config.norm_epsilon)
    return pooled + mlp(normed, weights, "pool.mlp", config.activation)


def text_oracle(ids, weights, config):
    """The text transformer on one text."""
    ids = [int(token) for token in ids]
    padding = {place for place, token in enumerate(ids) if token == config.pad_token}
    tokens = [weights["tokens.weight"][t] + weights["positions"][p] for p, t in enumerate(ids)]

    def sees(query, key):
        if config.causal:
            return key <= query
        return config.pool == "last" or key not in padding

    for number in range(config.layers):
        tokens = block(tokens, weights, f"blocks.{number}", config, sees)
    tokens = [norm(x, weights, "final_norm", config.norm_epsilon) for x in tokens]
    if config.pool == "end":
        return tokens[ids.index(config.end_token)]
    if config.pool == "last":
        return tokens[-1]
    return np.mean([x for p, x in enumerate(tokens) if p not in padding], axis=0)


IMAGE_SHAPES = {
    "clip": {"activation": "quick_gelu"},
    "open_clip": {"activation": "gelu"},
    "class token, mean pool": {"pool": "mean", "pre_norm": False},
    "mean pool": {"class_token": False, "pool": "mean", "activation": "gelu_tanh"},
    "siglip": {
        "class_token": False,
        "pool": "attention",
        "pre_norm": False,
        "patch_bias": True,
        "activation": "gelu_tanh",
    },
    "one block": {"layers": 1, "heads": 1},
}


@pytest.mark.parametrize("name", IMAGE_SHAPES)
@pytest.mark.parametrize("scheme", ["clip", "siglip"])
def test_an_image_tower_equals_the_explicit_forward_pass(name, scheme):
    config = ImageTowerConfig(**(IMAGE | IMAGE_SHAPES[name]))
    tower = ImageTower(config, scheme).double().eval()
    weights = weights_of(tower)
    image = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    expected = [image_oracle(picture.numpy(), weights, config) for picture in image]
    np.testing.assert_allclose(tower(image).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["end", "mean", "last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_text_tower_equals_the_explicit_forward_pass(pool, causal, activation):
    config = TextTowerConfig(**TEXT, pool=pool, causal=causal, activation=activation)
    tower = TextTower(config, "clip").double().eval()
    weights = weights_of(tower)
    expected = [text_oracle(ids, weights, config) for ids in TEXTS]
    np.testing.assert_allclose(tower(TEXTS).detach().numpy(), expected, rtol=0, atol=1e-10)


def text_tower(**changes):
    torch.manual_seed(0)
    return TextTower(TextTowerConfig(**(TEXT | changes)), "clip").eval()


def test_under_a_causal_mask_a_later_token_never_changes_an_earlier_vector():
    tower = text_tower()
    before = tower(TEXTS[:1])
    for place in range(5, 7):
        changed = TEXTS[:1].clone()
        changed[0, place] = 11
        assert torch.equal(tower(changed), before)
    changed = TEXTS[:1].clone()
    changed[0, 3] = 11
    assert (tower(changed) - before).abs().max() > 1e-3


def test_the_end_pool_reads_the_first_end_token():
    tower = text_tower()
    twice = torch.tensor([[START, 5, END, 6, END, PAD, PAD]])
    once = torch.tensor([[START, 5, END, PAD, PAD, PAD, PAD]])
    assert torch.equal(tower(twice), tower(once))


@pytest.mark.parametrize("pool", ["end", "mean"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_never_changes_a_vector(pool, causal):
    tower = text_tower(pool=pool, causal=causal)
    short = torch.tensor([[START, 5, 6, END]])
    padded = torch.tensor([[START, 5, 6, END, PAD, PAD, PAD]])
    torch.testing.assert_close(tower(short), tower(padded), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["end", "mean", "last"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_text_has_the_same_vector_alone_and_in_any_batch(pool, causal):
    tower = text_tower(pool=pool, causal=causal)
    together = tower(TEXTS)
    for row in range(len(TEXTS)):
        torch.testing.assert_close(tower(TEXTS[row : row + 1])[0], together[row])


def test_the_last_pool_reads_padding_and_refuses_a_shorter_text():
    tower = text_tower(pool="last", causal=False)
    message = 'text has 5 positions, but pool "last" reads position 7. Pad the text to 7 tokens.'
    with pytest.raises(ValueError, match=message):
        tower(TEXTS[:, :5])


@pytest.mark.parametrize("pool", ["end", "mean", "last"])
def test_a_text_longer_than_the_context_is_refused(pool):
    with pytest.raises(ValueError, match=r"text has 8 positions and the tower 7\. Cut the text"):
        text_tower(pool=pool)(torch.ones(1, 8, dtype=torch.int64))


def pictures(count=3, side=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("class_token", [True, False])
def test_training_keeps_a_share_of_the_patches_and_evaluation_all(class_token):
    config = ImageTowerConfig(**IMAGE, keep_patches=0.34, class_token=class_token, pool="mean")
    tower = ImageTower(config, "clip")
    assert tower.train().tokens(pictures()).shape[1] == 3 + class_token
    assert tower.eval().tokens(pictures()).shape[1] == 9 + class_token


def test_kept_patches_carry_their_own_positions():
    config = ImageTowerConfig(**(IMAGE | {"layers": 0}), keep_patches=0.5, pre_norm=False)
    tower = ImageTower(config, "clip")
    every = tower.eval().tokens(pictures())
    kept = tower.train().tokens(pictures())
    assert torch.equal(kept[:, 0], every[:, 0])
    for row in range(3):
        for token in kept[row, 1:]:
            assert sum(torch.allclose(token, whole, atol=1e-6) for whole in every[row, 1:]) == 1


def test_keeping_every_patch_is_training_as_ever():
    tower = ImageTower(ImageTowerConfig(**IMAGE), "clip")
    assert torch.equal(tower.train()(pictures()), tower.eval()(pictures()))


def encoder(**changes):
    torch.manual_seed(0)
    config = DualEncoderConfig(
        image=ImageTowerConfig(**(IMAGE | changes.pop("image", {}))),
        text=TextTowerConfig(**(TEXT | changes.pop("text", {}))),
        embed=8,
    )
    return DualEncoder(DualEncoderConfig(**(config.model_dump() | changes)))


def test_outputs_are_unit_vectors_with_the_temperature_beside_them():
    output = encoder()(pictures(), TEXTS)
    for vectors in (output.image, output.text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert float(output.scale.detach()) == pytest.approx(1 / 0.07)
    assert output.bias is None


def test_outputs_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder()(pictures(), TEXTS)
    assert output.image.dtype == output.text.dtype == torch.float32


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_gets_no_gradient_and_all_else_does(tower):
    model = encoder(**{tower: {"frozen": True}})
    output = model(pictures(), TEXTS)
    (output.scale * (output.image * output.text).sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(f"{tower}."), name


SINGLE = [name for name in RECIPES if name.endswith("-tiny") and not name.startswith("change-")]
"""Recipes of single pictures; those of sequences are in test_recipes.py."""


@pytest.mark.parametrize("recipe", SINGLE)
def test_a_gradient_reaches_every_unfrozen_weight_of_every_recipe(recipe):
    torch.manual_seed(0)
    config = RECIPES[recipe]().model
    model = woken(DualEncoder(config))
    text = torch.randint(3, config.text.vocabulary, (4, config.text.context))
    text[:, -1] = config.text.end_token
    output = model(pictures(4, config.image.image_size), text)
    logits = output.scale * output.image @ output.text.T
    if output.bias is not None:
        logits = logits + output.bias
    signs = 2 * torch.eye(4) - 1
    F.softplus(-signs * logits).mean().backward()
    unused = {
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    }
    assert unused == set()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (ImageTowerConfig, {"patch_size": 4}, "of patch_size 4. Use image_size 4 or 8."),
        (ImageTowerConfig, {"patch_size": 8}, "of patch_size 8. Use image_size 8."),
        (ImageTowerConfig, {"patch_size": 0}, "setting 'patch_size' is 0"),
        (ImageTowerConfig, {"heads": 0}, "setting 'heads' is 0"),
        (ImageTowerConfig, {"layers": -1}, "setting 'layers' is -1"),
        (ImageTowerConfig, {"heads": 5}, "width 12 is not a multiple of heads 5. Use width 10 or"),
        (ImageTowerConfig, {"heads": 24}, "not a multiple of heads 24. Use width 24 or"),
        (ImageTowerConfig, {"keep_patches": 0.0}, "keep_patches 0.0 is not in (0, 1]. Use 0.5"),
        (ImageTowerConfig, {"keep_patches": 1.1}, "keep_patches 1.1 is not in (0, 1]. Use 0.5"),
        (ImageTowerConfig, {"class_token": False}, 'Use pool="mean" or "attention".'),
        (ImageTowerConfig, {"activation": "relu"}, "'gelu', 'gelu_tanh' or 'quick_gelu'"),
        (TextTowerConfig, {"heads": 5}, "width 12 is not a multiple of heads 5."),
        (TextTowerConfig, {"end_token": 23}, "vocabulary of 23. Use an id from 0 to 22."),
        (TextTowerConfig, {"pad_token": -1}, "pad_token -1 is outside the vocabulary of 23."),
        (TextTowerConfig, {"vocabulary": 0}, "setting 'vocabulary' is 0"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_built_are_refused_by_text(kind, changes, words):
    values = (IMAGE if kind is ImageTowerConfig else TEXT) | changes
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert words in str(caught.value)


def test_towers_that_cannot_meet_are_refused_by_text():
    with pytest.raises(
        ConfigError, match=r"vector of 12 numbers must have embed 8\. Use embed=12 or"
    ):
        encoder(image_projection=False)


def spread(weight):
    return float(weight.detach().std())


WIDE = 256
WIDE_IMAGE = IMAGE | {"width": WIDE, "image_size": 64, "patch_size": 4, "heads": 4}
WIDE_TEXT = TEXT | {"width": WIDE, "vocabulary": 500, "context": 200, "heads": 4}


def wide(**changes):
    return encoder(image=WIDE_IMAGE, text=WIDE_TEXT, embed=300, **changes)


def test_clip_starts_as_published():
    model = wide()
    assert spread(model.text.tokens.weight) == pytest.approx(0.02, rel=0.03)
    assert spread(model.text.positions) == pytest.approx(0.01, rel=0.03)
    assert spread(model.image.positions) == pytest.approx(WIDE**-0.5, rel=0.03)
    assert spread(model.image.class_token) == pytest.approx(WIDE**-0.5, rel=0.2)
    assert spread(model.image.patches.project.weight) == pytest.approx((3 * 16) ** -0.5, rel=0.03)
    assert spread(model.image_projection.weight) == pytest.approx(WIDE**-0.5, rel=0.03)
    assert spread(model.text_projection.weight) == pytest.approx(WIDE**-0.5, rel=0.03)
    assert model.text_projection.bias is None
    for tower in (model.image, model.text):
        for block_ in tower.blocks:
            assert spread(block_.attention.out.weight) == pytest.approx(WIDE**-0.5 / 2, rel=0.03)
    for name, parameter in model.named_parameters():
        assert not (name.endswith("bias") and parameter.any()), name
    assert float(model.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert model.bias is None


def test_siglip_starts_as_published():
    model = wide(objective="sigmoid", initialisation="siglip", text_projection_bias=True)
    for table in (model.text.tokens.weight, model.text.positions, model.image.positions):
        assert spread(table) == pytest.approx(WIDE**-0.5, rel=0.03)
    for matrix in model.image.blocks[0].attention.query_key_value.weight.split(WIDE):
        assert float(matrix.detach().abs().max()) <= math.sqrt(3 / WIDE)
        assert spread(matrix) == pytest.approx(WIDE**-0.5, rel=0.03)
    assert spread(model.text.blocks[1].mlp.up.bias) == pytest.approx(1e-6, rel=0.5)
    assert spread(model.image.patches.project.weight) == pytest.approx((3 * 16) ** -0.5, rel=0.03)
    assert not model.text_projection.bias.any()
    assert float(model.log_scale.detach()) == pytest.approx(math.log(10))
    assert float(model.bias.detach()) == -10


def test_the_same_seed_gives_the_same_start():
    ours, again = encoder().state_dict(), encoder().state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_the_scale_is_held_at_a_hundred_and_left_alone_below():
    model = encoder()
    for start, expected in (
        (math.log(250), LARGEST_SCALE),
        (math.log(40), 40),
        (-3.0, math.exp(-3)),
    ):
        with torch.no_grad():
            model.log_scale.fill_(start)
        model.limit_scale()
        assert float(model.log_scale.detach().exp()) == pytest.approx(expected)
