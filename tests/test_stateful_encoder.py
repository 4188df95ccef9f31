"""A stateful encoder equals its definition written with loops; its pack, its streams and its start
keep what they promise."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diptych.errors import CheckpointError, ConfigError
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.stateful_encoder import State, StatefulEncoder, make_stateful
from diptych.nn.blocks import activate
from diptych.nn.state import ROTARY_BASE, StateConfig

IMAGE = {
    "image_size": 6,
    "patch_size": 3,
    "width": 8,
    "layers": 2,
    "heads": 2,
    "mlp_width": 12,
    "norm_epsilon": 1e-3,
    "pool": "mean",
}
VARIANTS = ("self_ext", "adaln_zero", "cross", "cross_ffn", "self_ffn")
NO_OPS = ("adaln_zero", "cross", "cross_ffn", "self_ffn")
COUNTS = [3, 1, 2]


def pictures(count=6, side=6):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def tower_of(**changes):
    torch.manual_seed(0)
    return ImageTower(ImageTowerConfig(**(IMAGE | changes)), "clip")


def stateful(*, image=None, **state):
    return make_stateful(tower_of(**(image or {})), StateConfig(**state))


def perturbed(encoder):
    """The encoder with every number moved, so that none is zero or a copy."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


# The definition, one sequence, picture, layer, token and head at a time.


def normed(x, norm):
    variance = (x - x.mean()).square().mean()
    return (x - x.mean()) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def through(x, linear):
    return linear.weight @ x + linear.bias


def turned(x, place, config):
    """2-D rotary: the first half of each half by the row, the second by the column."""
    side, half = config.image_size // config.patch_size, len(x) // 2
    patch = place - int(config.class_token)
    if patch < 0:
        return x
    result = list(x)
    for i in range(half):
        quarter = half // 2
        at = patch // side if i < quarter else patch % side
        angle = at * ROTARY_BASE ** (-(i % quarter) / quarter)
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(result)


def read(place, query, keys, values, heads, config, table=None):
    """One token reads many: `keys` and `values` are lists of pictures, each a list of vectors.

    `table` holds what is added to the logit of the same place, by picture and head.
    """
    width = len(query) // heads
    rotary = table is not None and config.state.positions == "rotary"
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        asked = turned(query[part], place, config) if rotary else query[part]
        logits, found = [], []
        for age, picture in enumerate(keys):
            for at, key in enumerate(picture):
                offered = turned(key[part], at, config) if rotary else key[part]
                logit = asked @ offered / math.sqrt(width)
                if table is not None and config.state.positions == "place" and at == place:
                    logit = logit + table[age, head]
                logits.append(logit)
                found.append(values[age][at][part])
        shares = torch.stack(logits).softmax(0)
        parts.append(sum(share * value for share, value in zip(shares, found, strict=True)))
    return torch.cat(parts)


def host_step(host, tokens, pictures_read, numbers=None):
    """The host's block on a list of vectors; keys and values also from `pictures_read`."""
    width = len(tokens[0])
    ones = torch.zeros(width, dtype=tokens[0].dtype)
    scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = numbers or [ones] * 6
    attention = host.attention

    def qkv(x):
        return through(
            (1 + scale) * normed(x, host.attention_norm) + shift, (attention.query_key_value)
        ).split(width)

    own = [qkv(x) for x in tokens]
    theirs = [[qkv(y) for y in picture] for picture in pictures_read]
    keys = [[one[1] for one in picture] for picture in [own, *theirs]]
    values = [[one[2] for one in picture] for picture in [own, *theirs]]
    result = []
    for place, x in enumerate(tokens):
        mixed = read(place, own[place][0], keys, values, attention.heads, None)
        x = x + (1 + gate) * through(mixed, attention.out)
        hidden = through((1 + mlp_scale) * normed(x, host.mlp_norm) + mlp_shift, host.mlp.up)
        result.append(x + (1 + mlp_gate) * through(activate(hidden, "gelu"), host.mlp.down))
    return result


def cross_step(block, tokens, pictures_read, config):
    """What comes before the host's block in cross, cross_ffn and self_ffn."""
    attention, table = block.attention, block.attention.place
    pairs = [
        [through(normed(y, block.past_norm), attention.key_value).chunk(2) for y in picture]
        for picture in pictures_read
    ]
    keys = [[pair[0] for pair in picture] for picture in pairs]
    values = [[pair[1] for pair in picture] for picture in pairs]
    table = torch.zeros(len(keys), attention.heads) if table is None else table
    result = []
    for place, x in enumerate(tokens):
        query = through(normed(x, block.query_norm), attention.query)
        mixed = read(place, query, keys, values, attention.heads, config, table)
        x = x + through(mixed, attention.out)
        if config.state.variant != "cross":
            hidden = through(normed(x, block.mlp_norm), block.mlp.up)
            x = x + through(activate(hidden, "gelu"), block.mlp.down)
        result.append(x)
    return result


def layer_oracle(host, block, tokens, before, config):
    """One layer of one picture; `before` are the pictures before it, the newest first."""
    state = config.state
    before = before[: state.window]
    if state.stop_gradient:
        before = [[y.detach() for y in picture] for picture in before]
    if state.variant == "self_ext":
        return host_step(host, tokens, before)
    if state.variant == "adaln_zero":
        every = [y for picture in before for y in picture]
        mean = sum(every) / len(every) if every else torch.zeros_like(tokens[0])
        numbers = through(mean * torch.sigmoid(mean), block.modulation).chunk(6)
        return host_step(host, tokens, [], numbers)
    if state.variant == "self_ffn":
        before = [tokens]
    elif not before:
        before = [tokens if state.first == "own" else [block.null] * len(tokens)]
    return host_step(host, cross_step(block, tokens, before, config), [])


def oracle(encoder, images, counts):
    """The tokens of all pictures of all sequences."""
    config, result, images = encoder.config, [], list(images)
    for count in counts:
        inputs = []  # of each picture so far, newest first, at each layer
        for _ in range(count):
            tokens = list(encoder.embed(images.pop(0)[None])[0])
            mine = []
            for number in range(config.layers):
                mine.append(tokens)
                before = [picture[number] for picture in inputs]
                tokens = layer_oracle(
                    encoder.blocks[number], encoder.state_blocks[number], tokens, before, config
                )
            inputs.insert(0, mine)
            result.append(torch.stack([normed(x, encoder.final_norm) for x in tokens]))
    return torch.stack(result)


CASES = [
    *({"variant": variant} for variant in VARIANTS),
    *({"variant": variant, "window": 2} for variant in VARIANTS[:-1]),
    {"variant": "cross", "stop_gradient": False},
    {"variant": "self_ext", "stop_gradient": False},
    {"variant": "cross_ffn", "first": "null"},
    {"variant": "cross", "first": "null", "window": 2},
    {"variant": "cross_ffn", "positions": "rotary"},
    {"variant": "cross", "positions": "rotary", "window": 2, "stop_gradient": False},
    {"variant": "cross_ffn", "positions": "place"},
    {"variant": "cross", "positions": "place", "window": 2},
    {"variant": "self_ffn", "positions": "place"},
]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("state", CASES, ids=lambda state: " ".join(map(str, state.values())))
def test_a_pack_equals_the_definition_with_its_gradients(state, class_token):
    encoder = perturbed(stateful(image={"class_token": class_token}, **state)).double()
    images = pictures().double().requires_grad_()
    inputs = [images, *encoder.parameters()]
    weights = torch.randn(6, 4 + class_token, 8, generator=torch.Generator().manual_seed(5))
    found, expected = encoder.packed(images, COUNTS), oracle(encoder, images, COUNTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    ours, theirs = (
        torch.autograd.grad(
            (tokens * weights).sum(), inputs, allow_unused=True, materialize_grads=True
        )
        for tokens in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def streamed(encoder, images, counts):
    """The tokens of all pictures, each sequence a stream of its own."""
    result, images = [], list(images)
    for count in counts:
        state = None
        for _ in range(count):
            tokens, state = encoder(images.pop(0)[None], state)
            result.append(tokens)
        assert state.seen == count
    return torch.cat(result)


@pytest.mark.parametrize("counts", [[3, 1, 2], [1, 1], [2, 2, 2], [1, 5]])
@pytest.mark.parametrize("state", CASES, ids=lambda state: " ".join(map(str, state.values())))
def test_a_pack_equals_streams(state, counts):
    encoder = perturbed(stateful(**state))
    images = pictures(sum(counts))
    found, expected = encoder.packed(images, counts), streamed(encoder, images, counts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_streams_run_side_by_side():
    encoder = perturbed(stateful(variant="cross_ffn", window=2))
    images = pictures(8).view(2, 4, 3, 6, 6)  # (streams, pictures, ...)
    state = None
    for number in range(4):
        tokens, state = encoder(images[:, number], state)
        alone = streamed(encoder, images[:, : number + 1].flatten(0, 1), [number + 1] * 2)
        torch.testing.assert_close(tokens, alone[number :: number + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_picture_knows_of_one_more_picture_before_it_with_each_layer(variant):
    encoder = perturbed(stateful(variant=variant))
    images = pictures(5)
    last = encoder.packed(images, [5])[-1]
    for age in range(1, 5):
        changed = images.clone()
        changed[4 - age] += 1
        moved = not torch.equal(encoder.packed(changed, [5])[-1], last)
        assert moved == (variant != "self_ffn" and age <= encoder.config.layers), age


@pytest.mark.parametrize("clone", [True, False])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("variant", NO_OPS)
def test_the_start_changes_no_bit_of_the_host(variant, window, clone):
    window = 1 if variant == "self_ffn" else window
    tower = perturbed(tower_of())
    encoder = make_stateful(tower, StateConfig(variant=variant, window=window, clone=clone))
    tokens = encoder.packed(pictures(), COUNTS)
    assert torch.equal(tokens, tower.tokens(pictures()))
    assert torch.equal(encoder.pooled(tokens), tower(pictures()))
    assert torch.equal(encoder(pictures())[0], tower.tokens(pictures()))


@pytest.mark.parametrize("variant", NO_OPS)
def test_an_encoder_from_scratch_starts_as_its_own_host(variant):
    config = ImageTowerConfig(**IMAGE, state=variant)
    encoder = StatefulEncoder(config, "siglip")
    plain = ImageTower(ImageTowerConfig(**IMAGE), "siglip")
    plain.load_state_dict({name: encoder.state_dict()[name] for name in plain.state_dict()})
    assert torch.equal(encoder.packed(pictures(), COUNTS), plain.tokens(pictures()))


def test_extended_attention_is_the_host_for_first_pictures_alone():
    tower = perturbed(tower_of())
    encoder = make_stateful(tower, StateConfig(variant="self_ext"))
    tokens, plain = encoder.packed(pictures(), COUNTS), tower.tokens(pictures())
    first = [0, 3, 4]
    torch.testing.assert_close(tokens[first], plain[first], rtol=0, atol=1e-5)
    assert (tokens[[1, 2, 5]] - plain[[1, 2, 5]]).abs().max() > 1e-2


OUTPUTS = ("attention.out.weight", "attention.out.bias", "mlp.down.weight", "mlp.down.bias")


@pytest.mark.parametrize("variant", NO_OPS)
def test_at_first_only_output_projections_learn_and_then_everything(variant):
    encoder = stateful(variant=variant)

    def learning():
        encoder.zero_grad()
        (encoder.packed(pictures(), COUNTS) * torch.linspace(-1, 2, 8)).square().sum().backward()
        return {
            name
            for name, weight in encoder.named_parameters()
            if weight.grad is not None and weight.grad.any()
        }

    names = {name for name, _ in encoder.named_parameters()}
    added = {name for name in names if name.startswith("state_blocks.")}
    modulation = variant == "adaln_zero"
    outputs = {name for name in added if modulation or name.endswith(OUTPUTS)}
    assert len(outputs) == 2 * {"adaln_zero": 2, "cross": 2}.get(variant, 4)
    assert learning() == names - added | outputs
    perturbed(encoder)
    assert learning() == names


@pytest.mark.parametrize("state", [{"positions": "place"}, {"first": "null"}])
def test_what_an_ablation_adds_learns_too(state):
    encoder = perturbed(stateful(variant="cross_ffn", **state))
    encoder.packed(pictures(), COUNTS).square().sum().backward()
    assert all(weight.grad.any() for weight in encoder.parameters())


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS[:-1])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_gradient_goes_through_the_pictures_before_only_if_it_may(variant, stop_gradient, window):
    encoder = perturbed(stateful(variant=variant, window=window, stop_gradient=stop_gradient))
    images = pictures(3).requires_grad_()
    encoder.packed(images, [3])[-1].square().sum().backward()
    assert images.grad[2].any()
    assert bool(images.grad[:2].any()) != stop_gradient
    _, state = encoder(images[:1])
    assert all(kept.requires_grad != stop_gradient for kept in state.inputs)


def test_a_trained_tower_lends_its_weights_and_keeps_its_own():
    tower = perturbed(tower_of()).eval()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    encoder = make_stateful(tower, StateConfig(variant="cross_ffn", output_std=0.01))
    block, host = encoder.state_blocks[1], tower.blocks[1]
    query, key, value = host.attention.query_key_value.weight.split(8)
    assert torch.equal(block.attention.query.weight, query)
    assert torch.equal(block.attention.key_value.weight, torch.cat([key, value]))
    assert torch.equal(
        torch.cat([block.attention.query.bias, block.attention.key_value.bias]),
        host.attention.query_key_value.bias,
    )
    for name in ("query_norm", "past_norm"):
        assert torch.equal(getattr(block, name).weight, host.attention_norm.weight)
        assert torch.equal(getattr(block, name).bias, host.attention_norm.bias)
    assert torch.equal(block.mlp_norm.weight, host.mlp_norm.weight)
    assert torch.equal(block.mlp.up.weight, host.mlp.up.weight)
    assert torch.equal(block.mlp.up.bias, host.mlp.up.bias)
    assert 0.005 < block.attention.out.weight.std() < 0.02
    assert not block.attention.out.bias.any()
    assert not block.mlp.down.bias.any()
    assert not encoder.training
    perturbed(encoder)
    assert all(torch.equal(tower.state_dict()[name], value) for name, value in before.items())


def test_weights_that_are_no_copies_are_drawn_anew():
    tower = perturbed(tower_of())
    encoder = make_stateful(tower, StateConfig(variant="cross_ffn", clone=False))
    block, host = encoder.state_blocks[0], tower.blocks[0]
    assert not torch.equal(block.mlp.up.weight, host.mlp.up.weight)
    assert torch.equal(block.query_norm.weight, torch.ones(8))
    assert not block.attention.query.bias.any()
    assert block.attention.query.weight.any()


def test_names_of_the_host_stay_and_a_frozen_tower_stays_frozen():
    assert set(tower_of().state_dict()) < set(stateful(variant="cross_ffn").state_dict())
    encoder = stateful(variant="self_ext", image={"frozen": True})
    assert not any(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one != "self_ext"])
def test_a_frozen_tower_gets_no_weights_that_would_never_learn(variant):
    with pytest.raises(ConfigError) as caught:
        stateful(variant=variant, image={"frozen": True})
    assert str(caught.value) == (
        f"frozen is true, which also holds the weights that state.variant '{variant}' adds, so no "
        "picture before would ever be read. Use frozen=false or state=none."
    )


def test_the_update_is_what_the_picture_before_did_to_each_patch():
    encoder = perturbed(stateful(variant="cross_ffn"))
    images = pictures(4)
    images[3] = images[2]
    found = encoder.update(images, [2, 2])
    told, alone = encoder.packed(images, [2, 2]), encoder.packed(images, [1, 1, 1, 1])
    for picture in range(4):
        for patch in range(4):
            change = (told[picture, 1 + patch] - alone[picture, 1 + patch]) ** 2
            torch.testing.assert_close(found[picture, patch], change.mean())
    assert not found[0].any()
    assert found[1].min() > 0
    assert found[3].max() < 1e-8  # the picture before was the same: it read itself


def test_runs_under_autocast():
    for variant in VARIANTS:
        encoder = stateful(variant=variant)
        with torch.autocast("cpu", torch.bfloat16):
            encoder.packed(pictures(), COUNTS).float().sum().backward()
    encoder = perturbed(stateful(variant="cross_ffn", positions="rotary", window=2))
    whole = encoder.packed(pictures(), COUNTS)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.packed(pictures(), COUNTS)
    assert F.cosine_similarity(whole, half.float(), dim=-1).min() > 0.99


# Streams that are kept.


def test_a_saved_stream_goes_on_as_if_it_had_never_stopped(tmp_path):
    encoder = perturbed(stateful(variant="cross_ffn", window=2)).eval()
    images = pictures(5)
    state = None
    for number in range(3):
        _, state = encoder(images[number : number + 1], state)
    state.save(tmp_path / "stream.safetensors", encoder)
    loaded = State.load(tmp_path / "stream.safetensors", encoder)
    assert loaded.seen == 3
    assert all(torch.equal(*pair) for pair in zip(loaded.inputs, state.inputs, strict=True))
    for number in range(3, 5):
        expected, state = encoder(images[number : number + 1], state)
        found, loaded = encoder(images[number : number + 1], loaded)
        assert torch.equal(found, expected)


def test_a_state_costs_the_pictures_of_the_window_and_no_more():
    encoder = stateful(variant="cross", window=2)
    state = None
    for picture in pictures(4):
        _, state = encoder(picture[None], state)
    assert [list(kept.shape) for kept in state.inputs] == [[1, 2, 5, 8]] * 2
    assert state.seen == 4


def test_the_state_of_another_encoder_is_refused_by_text(tmp_path):
    path = tmp_path / "stream.safetensors"
    ours = stateful(variant="cross")
    _, state = ours(pictures(1))
    state.save(path, ours)
    for other in (
        perturbed(stateful(variant="cross")),  # other weights
        stateful(variant="cross", image={"activation": "gelu_tanh"}),  # the same weights
        stateful(variant="cross", image={"layers": 1}),
    ):
        with pytest.raises(
            CheckpointError, match=r"is the state of another encoder \(fingerprint "
        ):
            State.load(path, other)
    with pytest.raises(CheckpointError, match="Load the model that made it, or begin the stream"):
        State.load(path, perturbed(ours))


def test_a_file_that_is_no_state_is_refused_by_text(tmp_path):
    encoder = stateful(variant="cross")
    path = tmp_path / "stream.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        State.load(path, encoder)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        State.load(path, encoder)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"is no state of a stream: it holds weight\. Use a"):
        State.load(path, encoder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder": torch.tensor([0.5, 1e9])},
        {"encoder": torch.tensor([300, -1])},
        {"encoder": torch.tensor(7.0)},
        {"seen": torch.tensor([1, 2])},
        {"seen": torch.tensor(float("nan"))},
        {"seen": torch.tensor([], dtype=torch.long)},
    ],
)
def test_a_state_whose_numbers_are_of_another_kind_is_refused_by_text(tmp_path, wrong):
    encoder, path = stateful(variant="cross"), tmp_path / "stream.safetensors"
    _, state = encoder(pictures(1))
    state.save(path, encoder)
    save_file(load_file(path) | wrong, path)
    with pytest.raises(CheckpointError, match=r"is no state of a stream: it holds layers\.0, "):
        State.load(path, encoder)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([], r"image_counts is empty, so which of 6 pictures .* Give .* such as \[6\] for one"),
        ([3, 0, 3], "image_counts has 0, and a sequence has at least 1 picture. Leave empty"),
        ([3, -1, 4], "image_counts has -1, and a sequence has at least 1"),
        ([3, 2], r"image_counts sums to 5, and there are 6 pictures\. Give .* such as \[6\]"),
        ([3, 2, 2], "image_counts sums to 7, and there are 6 pictures"),
    ],
)
def test_a_grouping_that_does_not_fit_is_never_skipped(counts, words):
    for variant in VARIANTS:
        with pytest.raises(ValueError, match=words):
            stateful(variant=variant).packed(pictures(), counts)


def test_a_grouping_that_is_missing_is_never_skipped():
    with pytest.raises(TypeError, match="image_counts"):
        stateful(variant="cross_ffn").packed(pictures())


def test_a_state_of_other_streams_is_refused_by_text():
    encoder = stateful(variant="cross")
    _, state = encoder(pictures(2))
    with pytest.raises(
        ValueError, match=r"the state has 2 layers of shape \[\(2, 1, 5, 8\)\], and"
    ):
        encoder(pictures(1), state)
    with pytest.raises(ValueError, match="Give the state that it returned for the pictures before"):
        stateful(variant="cross", image={"layers": 1})(pictures(2), state)
    _, state = encoder(pictures(2), state)
    with pytest.raises(ValueError, match=r"this encoder reads 2 of shape \(2, 2, 5, 8\)"):
        stateful(variant="cross", window=2)(pictures(2), state)


def test_towers_and_states_that_do_not_belong_together_are_refused_by_text():
    with pytest.raises(ConfigError, match=r"state.variant is 'cross'\. Build a StatefulEncoder"):
        ImageTower(ImageTowerConfig(**IMAGE, state="cross"), "clip")
    with pytest.raises(ConfigError, match=r"state.variant is 'none'\. Use state=cross_ffn, or"):
        StatefulEncoder(ImageTowerConfig(**IMAGE), "clip")
    with pytest.raises(ConfigError, match=r"state.variant is 'none'\. Use state=cross_ffn, or"):
        make_stateful(tower_of(), StateConfig())
