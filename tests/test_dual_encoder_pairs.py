"""Dual encoders of sequences: what the vector is made of, how a trained model becomes one, and what
they refuse."""

import pytest
import torch
from jaxtyping import TypeCheckError
from small_change import woken_state
from torch.nn import functional as F

from diptych.errors import ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig, make_pair
from diptych.models.image_tower import ImageTower
from diptych.models.stateful_encoder import StatefulEncoder
from diptych.nn.state import StateConfig

IMAGE = {
    "image_size": 6,
    "patch_size": 2,
    "width": 12,
    "layers": 2,
    "heads": 3,
    "mlp_width": 20,
}
STATEFUL = IMAGE | {"state": "cross_ffn"}
MEAN = {"class_token": False, "pool": "mean"}
TEXT = {
    "vocabulary": 23,
    "context": 7,
    "width": 12,
    "layers": 1,
    "heads": 3,
    "mlp_width": 20,
    "end_token": 2,
    "pad_token": 0,
}
RESNET = {"kind": "resnet", "image_size": 32, "width": 8, "layers": [1, 1, 1, 1], "heads": 2}
SIGLIP = {"image_projection": False, "embed": 12, "objective": "sigmoid"}
TEXTS = torch.tensor([[1, 5, 6, 7, 2, 0, 0], [1, 9, 2, 0, 0, 0, 0]])
PAIRS = ("located", "difference", "concatenation")
STATES = ("none", "cross_ffn", "self_ext", "adaln_zero", "self_ffn")


def config_of(pair="none", image=IMAGE, **changes):
    return DualEncoderConfig(**({"text": TEXT, "embed": 8} | changes), image=image, pair=pair)


def model_of(pair="none", image=IMAGE, **changes):
    torch.manual_seed(0)
    model = DualEncoder(config_of(pair, image, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "norm" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def sequences(images, side=6):
    return torch.randn(2, images, 3, side, side, generator=torch.Generator().manual_seed(0))


def unit(vector):
    return vector / vector.norm()


def tokens_one_by_one(model, pictures):
    """The tokens of each picture of one sequence, read as a stream."""
    found, state = [], None
    for picture in pictures:
        if isinstance(model.image, StatefulEncoder):
            tokens, state = model.image(picture[None], state)
        else:
            tokens = model.image.tokens(picture[None])
        found.append(tokens[0])
    return found


def vectors_one_by_one(model, pictures):
    """The vector of each picture of one sequence, read as a stream."""
    if not isinstance(model.image, StatefulEncoder | ImageTower):
        return [model.image(picture[None])[0] for picture in pictures]
    return [model.image.pooled(one[None])[0] for one in tokens_one_by_one(model, pictures)]


def located_oracle(model, pictures):
    """Vector, logit and logits of places of one sequence, place by place."""
    before, now = tokens_one_by_one(model, pictures)[-2:]
    first, both, place = len(now) - 9, [], []
    for patch in range(first, first + 9):
        both.append(torch.cat([now[patch], before[patch]]))
        place.append(model.head.down(F.gelu(model.head.up(both[-1])))[0])
    total = sum(logit.exp() for logit in place)
    read = sum(logit.exp() / total * tokens for logit, tokens in zip(place, both, strict=True))
    changed = model.head.scale * torch.log(total / 9) + model.head.bias
    return unit(model.image_projection(read)), changed, torch.stack(place)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("pool", [{}, MEAN], ids=["class token", "mean"])
@pytest.mark.parametrize("state", STATES)
def test_located_projects_what_is_read_at_the_places_that_changed(state, pool, images, bias):
    model = model_of("located", IMAGE | pool | {"state": state}, image_projection_bias=bias)
    pictures = sequences(images)
    output, located = model(pictures, TEXTS), model.locate(pictures)
    for row in range(2):
        vector, changed, place = located_oracle(model, pictures[row])
        torch.testing.assert_close(output.image[row], vector, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.changed[row], changed, rtol=0, atol=1e-5)
        torch.testing.assert_close(located.changed[row], changed, rtol=0, atol=1e-5)
        torch.testing.assert_close(located.place[row], place, rtol=0, atol=1e-5)
    assert torch.equal(model.encode_image(pictures), output.image)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("image", [IMAGE, STATEFUL, RESNET], ids=["plain", "stateful", "resnet"])
def test_difference_is_the_last_picture_less_the_one_before(image, images, bias):
    model = model_of("difference", image, image_projection_bias=bias)
    pictures = sequences(images, model.config.image.image_size)
    output = model(pictures, TEXTS)
    for row in range(2):
        before, last = vectors_one_by_one(model, pictures[row])[-2:]
        expected = unit(model.image_projection(last) - model.image_projection(before))
        torch.testing.assert_close(output.image[row], expected, rtol=0, atol=1e-5)
    assert output.changed is None


@pytest.mark.parametrize("images", [2, 3])
@pytest.mark.parametrize("image", [IMAGE, STATEFUL, RESNET], ids=["plain", "stateful", "resnet"])
def test_concatenation_projects_both_vectors_at_once(image, images):
    model = model_of("concatenation", image)
    pictures = sequences(images, model.config.image.image_size)
    output = model(pictures, TEXTS)
    width = model.config.image.vector_width
    assert model.image_projection.weight.shape == (8, 2 * width)
    early, late = model.image_projection.weight.split(width, dim=1)
    for row in range(2):
        before, last = vectors_one_by_one(model, pictures[row])[-2:]
        expected = unit(early @ before + late @ last)
        torch.testing.assert_close(output.image[row], expected, rtol=0, atol=1e-5)
    assert output.changed is None


@pytest.mark.parametrize("pool", [{}, MEAN], ids=["class token", "mean"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_gradient_reaches_every_weight(pair, state, pool):
    model = woken_state(model_of(pair, IMAGE | pool | {"state": state}))
    output = model(sequences(2), TEXTS)
    loss = F.cross_entropy(output.scale * output.image @ output.text.T, torch.arange(2))
    if pair == "located":
        loss = loss + F.binary_cross_entropy_with_logits(output.changed, torch.tensor([1.0, 0.0]))
    loss.backward()
    largest = {name: weight.grad.abs().max() for name, weight in model.named_parameters()}
    unused = {name for name in largest if largest[name] < 1e-6}  # rounding, where parts cancel
    # the last bias is the same in both vectors and so not in their difference
    assert unused == ({"image.final_norm.bias"} if pair == "difference" else set())
    torch.testing.assert_close(output.image.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("image", [IMAGE, STATEFUL], ids=["plain", "stateful"])
@pytest.mark.parametrize("pair", PAIRS)
def test_equal_pictures_have_a_finite_vector_and_a_quiet_gradient(pair, image):
    model = model_of(pair, image)
    pictures = sequences(1).expand(-1, 2, -1, -1, -1)
    output = model(pictures, TEXTS)
    (output.scale * (output.image * output.text)).sum().backward()
    assert output.image.isfinite().all()
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())
    if pair == "difference":
        assert output.image.abs().max() < 1e-2
        quiet = max(float(weight.grad.abs().max()) for weight in model.image.parameters()) < 1
        assert quiet or image is STATEFUL  # there the two pictures play different parts


@pytest.mark.parametrize(
    ("image", "changes"),
    [
        (IMAGE, {}),
        (IMAGE | MEAN, {"image_projection_bias": True}),
        (IMAGE | MEAN, SIGLIP),
        (IMAGE | MEAN | {"pool": "attention"}, SIGLIP),
        (RESNET, {"image_projection_bias": True}),
    ],
    ids=["class token", "mean, bias", "no projection", "attention pool", "resnet"],
)
@pytest.mark.parametrize("state", ["none", "cross_ffn"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_trained_model_of_pictures_begins_as_the_difference(pair, state, image, changes):
    resnet = image is RESNET
    if resnet and (state != "none" or pair == "located"):
        return  # refused; see below
    plain = model_of(image=image, **changes)
    model = make_pair(plain, StateConfig(variant=state), pair)
    assert (model.config.pair, model.training) == (pair, False)
    assert isinstance(model.image, StatefulEncoder) == (state != "none")
    pictures = sequences(3, plain.config.image.image_size)
    project, mean = plain.image_projection, pair == "located" and not resnet
    for row in range(2):
        if mean:
            before, now = (plain.image.tokens(one[None])[0, -9:] for one in pictures[row, -2:])
            share = model.locate(pictures[row : row + 1]).place[0].softmax(dim=0)
            before, now = share @ before, share @ now
        else:
            before, now = (plain.image(one[None])[0] for one in pictures[row, -2:])
        expected = unit(project(now) - project(before))
        found = model.encode_image(pictures[row : row + 1])[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(model.encode_text(TEXTS), plain.encode_text(TEXTS))


def test_what_a_model_becomes_has_its_weights_and_those_of_its_start():
    plain = model_of()
    model = make_pair(plain, StateConfig(variant="cross_ffn"))
    ours, theirs = model.state_dict(), plain.state_dict()
    added = ("image.state_blocks.", "head.")
    assert all(name in theirs or name.startswith(added) for name in ours)
    copied = set(theirs) - {"image_projection.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in theirs)
    block, host = model.image.state_blocks[1], model.image.blocks[1]
    assert torch.equal(block.mlp.up.weight, host.mlp.up.weight)
    assert ours["head.up.weight"].std() > 0.1
    unread = make_pair(plain)
    assert type(unread.image) is ImageTower
    assert unread.config.image == plain.config.image


def test_an_attention_pool_that_located_would_not_read_is_left_out():
    plain = model_of(image=IMAGE | MEAN | {"pool": "attention"}, **SIGLIP)
    model = make_pair(plain)
    assert model.config.image.pool == "mean"
    assert not any(name.startswith("image.pool.") for name in model.state_dict())
    kept = make_pair(plain, pair="difference")
    assert kept.config.image.pool == "attention"
    assert not kept.config.image_projection


def test_only_a_model_of_single_pictures_becomes_one_of_sequences():
    state = StateConfig(variant="cross")
    for pair in PAIRS:
        for wanted in PAIRS:
            with pytest.raises(RequestError) as caught:
                make_pair(model_of(pair), pair=wanted)
            assert str(caught.value) == (
                f"the model reads pictures in a row already (pair '{pair}'), so it does not become "
                f"one of pair '{wanted}'. Use one of single pictures."
            )
    with pytest.raises(RequestError, match=r"a resnet image tower cannot have the state 'cross': "):
        make_pair(model_of(image=RESNET), state, "difference")
    with pytest.raises(TypeCheckError, match="none"):
        make_pair(model_of(), pair="none")
    with pytest.raises(ConfigError, match=r"a resnet tower has none\. Use a vision transformer"):
        make_pair(model_of(image=RESNET))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pair": "none", "image": STATEFUL},
            "image.state is 'cross_ffn' and pair is 'none', which reads single pictures. Use pair=",
        ),
        (
            {"pair": "concatenation", "image_projection": False, "embed": 12},
            "is a projection of two vectors, and image_projection is false. Use image_projection=t",
        ),
        (
            {"pair": "located", "image_projection": False, "embed": 12},
            "pair 'located' is a projection of two vectors, and image_projection is false.",
        ),
        ({"pair": "located", "image": RESNET}, "and a resnet tower has none. Use a vision trans"),
        (
            {"pair": "located", "image": IMAGE | {"pool": "attention"}},
            'pool "attention" would never learn: pair "located" reads tokens, not the vector. Use',
        ),
        (
            {"pair": "located", "image": IMAGE | {"keep_patches": 0.5}},
            'keep_patches 0.5 drops patches, and pair "located" compares places. Use keep_patches',
        ),
        ({"pair": "stateful"}, "setting 'pair' is 'stateful'"),
        ({"changed_weight": -1}, "changed_weight"),
    ],
)
def test_pairs_that_no_tower_reads_are_refused_by_text(changes, words):
    with pytest.raises(ConfigError) as caught:
        DualEncoderConfig(**({"image": IMAGE, "text": TEXT, "embed": 8} | changes))
    assert words in str(caught.value)


def test_the_wrong_number_of_pictures_is_refused_by_text():
    with pytest.raises(ValueError, match=r'with pair "none" a model reads single pictures\. Give'):
        model_of()(sequences(2), TEXTS)
    for pair in PAIRS:
        with pytest.raises(ValueError, match=r"has shape \[2, 3, 6, 6\], and with pair '"):
            model_of(pair)(sequences(1)[:, 0], TEXTS)
        with pytest.raises(ValueError, match=r"have 1 picture, and pair .* Give 2 or more\."):
            model_of(pair, STATEFUL)(sequences(1), TEXTS)
    with pytest.raises(ValueError, match=r"have 1 picture, and pair 'located' reads the last"):
        model_of("located").locate(sequences(1))


@pytest.mark.parametrize("pair", ["difference", "concatenation"])
def test_only_located_says_where(pair):
    with pytest.raises(ValueError, match=f"'{pair}' does not say where .* Use pair=\"located\""):
        model_of(pair).locate(sequences(2))


def test_settings_of_a_pair_are_written_as_others_are():
    config = config_of().override(["pair=located", "image.state=cross_ffn"])
    assert config == config_of("located", STATEFUL)
    assert config.override(["pair=difference", "image.state=none"]) == config_of("difference")
