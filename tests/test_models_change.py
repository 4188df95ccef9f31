"""The change model equals its definition written with loops, reads pictures one by one as it reads
them together, and learns where from yes and no alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from diptych.errors import ConfigError
from diptych.losses.change import answer_loss, changed_loss, place_loss
from diptych.models.change import ChangeModel, ChangeModelConfig
from diptych.models.image_tower import ImageTower
from diptych.models.stateful_encoder import StatefulEncoder

PAD, START, END = 0, 1, 2
IMAGE = {"image_size": 12, "patch_size": 4, "width": 12, "layers": 2, "heads": 3, "mlp_width": 20}
TEXT = {"vocabulary": 13, "context": 9, "width": 8, "layers": 1, "heads": 2, "mlp_width": 16}
TOKENS = {"start_token": START, "end_token": END, "pad_token": PAD}
TEXTS = torch.tensor([[START, 5, 6, END], [START, 9, END, PAD]])
STATES = ["none", "cross_ffn", "self_ext", "adaln_zero"]
TWO_BEFORE = {"variant": "cross_ffn", "window": 2}


def config_of(state="none", *, pictures=2, class_token=False, **image):
    pool = {"class_token": class_token, "pool": "class" if class_token else "mean"}
    return ChangeModelConfig(
        image=IMAGE | pool | {"state": state} | image, text=TEXT | TOKENS, pictures=pictures
    )


def model_of(state="none", **options):
    """A model of which no weight is zero or one."""
    made = ChangeModel(config_of(state, **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return made.eval()


def pictures_of(rows, count, seed=0):
    return torch.randn(rows, count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def oracle(model, images, text):
    """One sequence: a list of pictures, oldest first, and its text."""
    tower, seen, state = model.image, [], None
    for image in images:
        if isinstance(tower, StatefulEncoder):
            tokens, state = tower(image[None], state)
        else:
            tokens = tower.tokens(image[None])
        seen.append(tokens[0])
    now, before = seen[-1], seen[-2] if len(seen) > 1 else seen[-1]
    first, place, both = len(now) - 9, [], []
    for patch in range(first, first + 9):
        both.append(torch.cat([now[patch], before[patch]]))
        place.append(model.head.down(F.gelu(model.head.up(both[-1])))[0])
    total = sum(logit.exp() for logit in place)
    changed = model.head.scale * (total / 9).log() + model.head.bias
    read = sum(logit.exp() / total * tokens for logit, tokens in zip(place, both, strict=True))

    prefix = []
    for number, tokens in enumerate(seen):
        age = len(seen) - 1 - number
        if age < model.config.pictures:
            prefix += [model.connector(token) + model.ages[age] for token in tokens]
    prefix.append(model.change_connector(read))
    logits = model.text(torch.stack(prefix)[None], text[None])[0]
    return logits, changed, torch.stack(place).view(3, 3)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("state", ["none", "cross_ffn"])
def test_outputs_are_those_of_the_definition(state, class_token, count):
    model, images = model_of(state, class_token=class_token), pictures_of(2, count)
    output = model(images, TEXTS)
    for row in range(2):
        text, changed, place = oracle(model, images[row], TEXTS[row])
        torch.testing.assert_close(output.text[row], text, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.changed[row], changed, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.place[row], place, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("state", [*STATES, TWO_BEFORE], ids=str)
def test_pictures_one_by_one_are_those_together(state, pictures):
    model, images = model_of(state, pictures=pictures), pictures_of(2, 5)
    seen = None
    for last in range(5):
        seen = model.see(images[:, last], seen)
        together = model.encode(images[:, : last + 1])
        torch.testing.assert_close(seen.tokens, together, atol=1e-5, rtol=1e-5)
        assert seen.tokens.shape[1] == min(last + 1, max(2, pictures))


def test_one_picture_is_compared_with_itself():
    model, images = model_of(), pictures_of(2, 1)
    twice = images.expand(-1, 2, -1, -1, -1)
    tokens, both = model.encode(images), model.encode(twice)
    torch.testing.assert_close(model.judge(tokens), model.judge(both))


@pytest.mark.parametrize(("state", "matters"), [("none", False), ("cross_ffn", True)])
def test_what_was_before_the_last_two_is_known_through_the_state_alone(state, matters):
    model, images = model_of(state), pictures_of(2, 3)
    other = images.clone()
    other[:, 0] += 1
    before, after = (model(pictures, TEXTS) for pictures in (images, other))
    assert torch.equal(before.text, after.text) is not matters
    assert torch.equal(before.place, after.place) is not matters


def test_the_order_of_the_pictures_matters_without_a_state_too():
    model, images = model_of(), pictures_of(2, 2)
    forward, back = model(images, TEXTS), model(images.flip(1), TEXTS)
    assert (forward.text - back.text).abs().max() > 1e-3
    assert (forward.changed - back.changed).abs().min() > 1e-3


@pytest.mark.parametrize("state", STATES)
def test_gradients_reach_every_weight(state):
    model = model_of(state).train()
    output = model(pictures_of(2, 2), TEXTS)
    mask = torch.zeros(2, 12, 12, dtype=torch.uint8)
    losses = [
        answer_loss(output.text, TEXTS, PAD)[0],
        changed_loss(output.changed, torch.tensor([1.0, math.nan]))[0],
        place_loss(output.place, mask, 4)[0],
    ]
    sum(losses).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_yes_and_no_alone_teach_where():
    """Noise in which one patch may be brighter than before: only told whether, it finds which."""
    torch.manual_seed(0)
    model = ChangeModel(config_of(width=24, layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(rows):
        images = torch.randn(rows, 1, 3, 12, 12).repeat(1, 2, 1, 1, 1) / 2
        changed, patch = torch.rand(rows) < 0.5, torch.randint(9, (rows,))
        for row in range(rows):
            if changed[row]:
                top, left = 4 * (patch[row] // 3), 4 * (patch[row] % 3)
                images[row, 1, :, top : top + 4, left : left + 4] += 2
        return images, changed, patch

    for _ in range(150):
        images, changed, _ = draw(32)
        logits, _ = model.judge(model.encode(images))
        total, count = changed_loss(logits, changed.float())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    images, changed, patch = draw(200)
    with torch.no_grad():
        logits, place = model.judge(model.encode(images))
    assert ((logits > 0) == changed).float().mean() > 0.9
    found = place.flatten(1).argmax(dim=1)
    assert (found == patch)[changed].float().mean() > 0.8


def test_the_state_decides_which_tower_it_is():
    assert type(ChangeModel(config_of()).image) is ImageTower
    assert type(ChangeModel(config_of("cross_ffn")).image) is StatefulEncoder


def test_a_frozen_tower_learns_nothing():
    model = ChangeModel(config_of(frozen=True))
    assert not any(weight.requires_grad for weight in model.image.parameters())
    assert all(weight.requires_grad for weight in model.head.parameters())


def test_towers_that_would_leave_something_unused_are_refused():
    with pytest.raises(ConfigError, match=r"keep_patches 0\.5 drops patches.*Use keep_patches=1"):
        config_of(keep_patches=0.5)
    with pytest.raises(ConfigError, match=r'pool "attention" would never learn.*pool="mean"'):
        config_of(pool="attention")
    with pytest.raises(ConfigError, match="there is no setting 'imagee'"):
        ChangeModelConfig(**config_of().model_dump() | {"imagee": 1})
