"""What a state block is made of: its settings, rotations by place, and added logits."""

import json
import math

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models.image_tower import ImageTowerConfig
from diptych.nn import attention
from diptych.nn.attention import attend
from diptych.nn.blocks import Block
from diptych.nn.shapes import shapes_only
from diptych.nn.state import (
    START_PLACE,
    CrossBlock,
    Past,
    StateAttention,
    StateConfig,
    make_state_block,
    rotation,
    start_state_block,
    turn,
)

IMAGE = {"image_size": 8, "patch_size": 4, "width": 24, "heads": 3, "layers": 1, "mlp_width": 8}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_name_of_a_variant_stands_for_its_config():
    assert ImageTowerConfig(**IMAGE, state="cross_ffn").state == StateConfig(variant="cross_ffn")
    config = ImageTowerConfig(**IMAGE).override(["state=cross"])
    assert config.state == StateConfig(variant="cross")
    config = config.override(["state.window=3", "state.stop_gradient=false"])
    assert config.state == StateConfig(variant="cross", window=3, stop_gradient=False)
    assert ImageTowerConfig(**json.loads(config.model_dump_json())) == config
    assert ImageTowerConfig(**IMAGE).state.variant == "none"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"variant": "crossed"}, "setting 'variant' is 'crossed'"),
        ({"window": 0, "variant": "cross"}, "setting 'window' is 0"),
        ({"output_std": -1}, "setting 'output_std' is -1"),
        ({"windows": 2}, "there is no setting 'windows'. Did you mean 'window'?"),
        ({"window": 2}, "'none' reads no picture before, and window is 2. Use window=1 or"),
        ({"variant": "self_ffn", "window": 2}, "'self_ffn' reads no picture before"),
        ({"variant": "self_ext", "first": "null"}, "variant is 'self_ext'. Use first=\"own\"."),
        ({"variant": "adaln_zero", "positions": "place"}, 'Use positions="host".'),
    ],
)
def test_settings_that_would_do_nothing_are_refused_by_text(values, words):
    with pytest.raises(ConfigError) as caught:
        StateConfig(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"keep_patches": 0.5}, "keep_patches 0.5 leaves out other patches of each picture, and"),
        ({"layers": 0}, "layers is 0, and state.variant 'cross' reads the pictures before in each"),
        ({"width": 18}, "heads have 6 numbers, no multiple of 4. Use width 12 or another"),
    ],
)
def test_towers_that_cannot_have_a_state_are_refused_by_text(values, words):
    with pytest.raises(ConfigError) as caught:
        ImageTowerConfig(**(IMAGE | values), state={"variant": "cross", "positions": "rotary"})
    assert words in str(caught.value)


def test_a_rotation_keeps_lengths_and_tells_only_how_far_apart_places_are():
    side, head_width = 5, 8
    cosine, sine = rotation(1 + side * side, side, head_width, torch.device("cpu"))
    query, key = drawn(head_width), drawn(1, head_width)[0]
    queries = turn(query.expand(1 + side * side, -1), cosine, sine)
    keys = turn(key.expand(1 + side * side, -1), cosine, sine)
    assert torch.equal(queries[0], query)  # the class token
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(1 + side * side))
    dots, found = (queries[1:] @ keys[1:].T).tolist(), {}
    places = [(row, column) for row in range(side) for column in range(side)]
    for (row, column), line in zip(places, dots, strict=True):
        for (other, another), dot in zip(places, line, strict=True):
            found.setdefault((other - row, another - column), []).append(dot)
    assert all(max(same) - min(same) < 1e-5 for same in found.values())
    apart = [same[0] for same in found.values()]
    assert min(abs(a - b) for i, a in enumerate(apart) for b in apart[:i]) > 1e-6


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_bias_is_added_to_the_logits(monkeypatch, plain, hidden):
    monkeypatch.setattr(attention, "PLAIN_LENGTH", 512 if plain else 0)
    query, key, value, bias = (
        drawn(2, 3, 4, 5),
        drawn(2, 3, 7, 5),
        drawn(2, 3, 7, 6),
        drawn(1, 3, 4, 7),
    )
    visible = torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) > 0.3 if hidden else None
    value = value[..., :5]
    found = attend(query, key, value, bias=bias, visible=visible)
    for row in range(2):
        for head in range(3):
            for q in range(4):
                logits = key[row, head] @ query[row, head, q] / math.sqrt(5) + bias[0, head, q]
                shares = logits.exp() * (visible[row] if hidden else 1)
                expected = (shares / shares.sum()) @ value[row, head]
                torch.testing.assert_close(found[row, head, q], expected)


def test_a_place_looks_at_the_same_place_first():
    config = StateConfig(variant="cross", positions="place", window=2)
    layer = StateAttention(8, 2, 8, config)
    torch.nn.init.zeros_(layer.query.weight)  # all logits alike but for what is added
    torch.nn.init.zeros_(layer.query.bias)
    tokens = drawn(1, 128, 8)
    with torch.no_grad():
        layer.place[1] = 0
        found = layer(drawn(1, 64, 8), tokens)
        values = layer.out(layer.key_value(tokens)[..., 8:])[0]
    weight = math.exp(START_PLACE)
    for place in range(64):
        expected = (values.sum(0) + (weight - 1) * values[place]) / (127 + weight)
        torch.testing.assert_close(found[0, place], expected, rtol=0, atol=1e-5)


def test_without_a_picture_before_it_a_modulated_block_uses_its_biases_alone():
    host = Block(8, 2, 16, "gelu")
    block = make_state_block(host, 2, StateConfig(variant="adaln_zero"))
    block.start(0.3)
    tokens = drawn(3, 5, 8)
    assert torch.equal(block(host, tokens, Past(tokens[:, :0], None)), host(tokens))
    torch.nn.init.constant_(block.modulation.bias, -1.0)  # both gates shut, both scales 0
    torch.testing.assert_close(block(host, tokens, Past(tokens[:, :0], None)), tokens)


@pytest.mark.parametrize("scheme", ["clip", "siglip"])
def test_new_weights_follow_the_scheme(scheme):
    torch.manual_seed(0)
    host = Block(64, 2, 128, "gelu")
    config = StateConfig(variant="cross_ffn", clone=False, output_std=1e-4)
    block = make_state_block(host, 2, config)
    start_state_block(block, host, 4, config, scheme)
    assert isinstance(block, CrossBlock)
    assert float(block.attention.query.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert float(block.mlp.down.weight.detach().std()) == pytest.approx(1e-4, rel=0.05)


def test_shapes_alone_need_no_numbers():
    with shapes_only():
        host = Block(8, 2, 16, "gelu")
        config = StateConfig(variant="cross_ffn", first="null", positions="place")
        block = make_state_block(host, 2, config)
        start_state_block(block, host, 2, config, "clip")
    assert all(weight.is_meta for weight in block.parameters())
