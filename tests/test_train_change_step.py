"""The step of the change model against its definition, and steps of pictures in a row by pieces."""

import math

import pytest
import torch
from small_change import DIFFERENCE, change_run, pair_batch, woken_state
from torch.nn import functional as F

from diptych.batch import ImagePairBatch
from diptych.comm import Comm
from diptych.data.transforms import normalise
from diptych.models.change import ChangeModelConfig
from diptych.models.kinds import build_model
from diptych.train.change_step import ChangeObjective
from diptych.train.step import Objective, pictures_of

COUNT = 7
WEIGHTS = ("model.text_weight=0.7", "model.changed_weight=2", "model.place_weight=3")


def start_model(run):
    torch.manual_seed(5)
    return woken_state(build_model(run.model))


def objective(run, chunk=None):
    transform, device = run.data.transform, torch.device("cpu")
    if isinstance(run.model, ChangeModelConfig):
        return ChangeObjective(run.model, transform, Comm(), device, bf16=False, chunk=chunk)
    return Objective(
        transform,
        Comm(),
        device,
        bf16=False,
        tile=None,
        chunk=chunk,
        changed_weight=run.model.changed_weight,
    )


def captioner(*settings):
    return change_run(*WEIGHTS, *settings, recipe="change-caption-tiny")


def gradients(run, model, batch, chunk):
    """Loss and gradients; by the plain path where chunk is None."""
    model.zero_grad()
    if chunk is None:
        loss = objective(run)(model, batch)
        loss.backward()
    else:
        loss = objective(run, chunk).backward(model, batch)
        assert not loss.requires_grad
    return loss.item(), {n: w.grad.clone() for n, w in model.named_parameters()}


def oracle(run, model, batch):
    """The definition, one token, row and patch at a time."""
    shape = batch.image.shape
    transform = run.data.transform
    image = normalise(batch.image.flatten(0, 1), transform.mean, transform.std)
    output = model(image.unflatten(0, shape[:2]), batch.text)
    tokens, rows, patches = [], [], []
    size = run.model.image.patch_size
    for row in range(shape[0]):
        for place in range(1, batch.text.shape[1]):
            token = batch.text[row, place]
            if token != run.model.text.pad_token:
                tokens.append(-F.log_softmax(output.text[row, place], dim=0)[token])
        if not math.isnan(batch.changed[row]):
            sign = 1 if batch.changed[row] else -1
            rows.append(-F.logsigmoid(sign * output.changed[row]))
        for y in range(output.place.shape[1]):
            for x in range(output.place.shape[2]):
                if batch.mask is not None:
                    seen = batch.mask[row, y * size : (y + 1) * size, x * size : (x + 1) * size]
                    sign = 1 if seen.any() else -1
                    patches.append(-F.logsigmoid(sign * output.place[row, y, x]))
    parts = ((0.7, tokens), (2, rows), (3, patches))
    return sum(weight * torch.stack(part).mean() for weight, part in parts if part)


@pytest.mark.parametrize("mask", [True, False])
def test_the_loss_is_its_definition_with_every_gradient(mask):
    run = captioner()
    model, batch = start_model(run), pair_batch(run, COUNT, mask=mask)
    loss, found = gradients(run, model, batch, None)
    model.zero_grad()
    expected = oracle(run, model, batch)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("chunk", [1, 3, COUNT, 99])
@pytest.mark.parametrize(
    "run",
    [
        captioner(),
        change_run("model.changed_weight=3"),
        change_run("model.image.state=none"),
        change_run(*DIFFERENCE),
        change_run("model.pair=concatenation"),
    ],
    ids=["change model", "located", "located, no state", "difference", "concatenation"],
)
def test_by_pieces_the_loss_and_every_gradient_are_those_of_the_plain_step(run, chunk):
    model, batch = start_model(run), pair_batch(run, COUNT)
    loss, expected = gradients(run, model, batch, None)
    found_loss, found = gradients(run, model, batch, chunk)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in found.items():
        assert expected[name].abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_rows_of_which_nobody_knows_anything_still_give_every_weight_a_gradient():
    run = captioner()
    batch = pair_batch(run, 2, mask=False)
    unknown = ImagePairBatch(**vars(batch) | {"changed": torch.full((2,), float("nan"))})
    loss, found = gradients(run, start_model(run), unknown, None)  # as DDP asks of every rank
    assert math.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not found["head.bias"].any()  # what the text teaches the head is where, not whether


def pair_oracle(run, model, batch, weight):
    """The definition of the loss of a model that locates, one row at a time."""
    transform, shape = run.data.transform, batch.image.shape
    image = normalise(batch.image.flatten(0, 1), transform.mean, transform.std)
    output = model(image.unflatten(0, shape[:2]), batch.text)
    logits, groups = output.scale * output.image @ output.text.T, batch.groups
    rows, labelled = [], []
    for row in range(len(groups)):
        others = [one for one in range(len(groups)) if one == row or groups[one] != groups[row]]
        for line in (logits[row], logits[:, row]):
            rows.append(line[others].logsumexp(dim=0) - line[row])
        if not math.isnan(batch.changed[row]):
            sign = 1 if batch.changed[row] else -1
            labelled.append(-F.logsigmoid(sign * output.changed[row]))
    return torch.stack(rows).mean() + weight * torch.stack(labelled).mean()


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("state", ["none", "cross_ffn"])
def test_a_model_that_locates_learns_whether_anything_changed_too(state, weight):
    run = change_run(f"model.image.state={state}", f"model.changed_weight={weight}")
    model, batch = start_model(run), pair_batch(run, COUNT)
    assert int(batch.changed.isnan().sum()) == 1
    loss, found = gradients(run, model, batch, None)
    model.zero_grad()
    expected = pair_oracle(run, model, batch, weight)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert bool(found["head.bias"].any()) == (weight > 0)


@pytest.mark.parametrize("chunk", [None, 3])
def test_without_labels_it_learns_from_the_texts_alone(chunk):
    run = change_run()
    batch = pair_batch(run, COUNT)
    unknown = ImagePairBatch(**vars(batch) | {"changed": torch.full((COUNT,), float("nan"))})
    model = start_model(run)
    loss, found = gradients(run, model, unknown, chunk)
    unasked, expected = gradients(run.override(["model.changed_weight=0"]), model, batch, chunk)
    assert loss == pytest.approx(unasked)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert not found["head.bias"].any()
    assert found["head.down.weight"].any()  # from what was read


@pytest.mark.parametrize("chunk", [None, 3])
def test_judging_gives_the_mean_of_the_training_loss_and_leaves_the_model_as_it_was(chunk):
    run = captioner()
    model, batches = start_model(run).train(), [pair_batch(run, count) for count in (4, 7)]
    expected = [objective(run)(model, batch).item() for batch in batches]
    found = objective(run, chunk).judge(model, batches)
    assert found == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("images", [1, 2, 3])
def test_pictures_in_a_row_are_normalised_as_each_alone(images):
    run = change_run()
    batch, transform = pair_batch(run, 3, images=images), run.data.transform
    found = pictures_of(batch, slice(1, 3), transform, torch.device("cpu"))
    assert found.shape == (2, images, 3, 32, 32)
    for row in (1, 2):
        alone = normalise(batch.image[row], transform.mean, transform.std)
        assert torch.equal(found[row - 1], alone)
