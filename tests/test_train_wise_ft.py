"""Between two models: the line itself, its ends to the bit, and the rule that takes a place."""

import pytest
import torch
from small import random_model

from diptych.train.wise_ft import ALPHAS, between, choose_alpha

RESNET = (
    'model.image={"kind":"resnet","image_size":32,"width":8,"layers":[1],"block":"basic",'
    '"pool":"mean"}'
)


@pytest.fixture(params=["clip", "siglip", "resnet"])
def ends(request, tmp_path):
    """Two models of one shape with other weights, buffers and counts."""
    settings = (RESNET,) if request.param == "resnet" else ()
    family = "siglip" if request.param == "siglip" else "clip"
    before, after = (random_model(tmp_path, *settings, family=family)._net for _ in range(2))
    torch.manual_seed(1)
    for tensor in after.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * 3 if tensor.is_floating_point() else tensor + 7)
    return before, after


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_every_tensor_lies_on_the_line(ends, alpha):
    before, after = (end.state_dict() for end in ends)
    for name, tensor in between(*ends, alpha).state_dict().items():
        if tensor.is_floating_point():
            expected = (1 - alpha) * before[name] + alpha * after[name]
            torch.testing.assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, after[name])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_models_themselves(ends, alpha):
    expected = ends[int(alpha)].state_dict()
    for name, tensor in between(*ends, alpha).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_ends_stay_as_they_are(ends):
    copies = [{k: v.clone() for k, v in end.state_dict().items()} for end in ends]
    for weight in between(*ends, 0.3).parameters():
        weight.data.zero_()
    for end, copy in zip(ends, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in end.state_dict().items())


@pytest.mark.parametrize(
    ("recalls", "most_lost", "expected"),
    [
        ((0.5, 0.49, 0.3), 0.01, 0.5),  # exactly one point is still allowed
        ((0.5, 0.48, 0.495), 0.01, 1.0),
        ((0.5, 0.48, 0.2), 0.01, 0.0),
        ((0.5, 0.6, 0.5), 0.0, 1.0),
        ((0.5, 0.1, 0.0), 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("falls", [0, 1])
def test_the_furthest_place_that_loses_little_either_way_is_taken(
    recalls, most_lost, expected, falls
):
    """The other direction rises all the way."""
    found = {}
    for alpha, recall in zip((0.0, 0.5, 1.0), recalls, strict=True):
        found[alpha] = [0.2 + alpha / 2] * 2
        found[alpha][falls] = recall
    assert choose_alpha(found, most_lost) == expected


def test_eleven_places_are_tried_from_end_to_end():
    assert ALPHAS == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
