"""The walk-through by hand and the losses of the package tell the same numbers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

EXAMPLE = Path(__file__).parents[1] / "examples" / "clip_by_hand.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("clip_by_hand", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def embeddings(example):
    """Unit vectors of the pictures and of the texts."""
    return [np.stack([encoded.unit for encoded in side]) for side in example.encode_all()]


def assert_same(judged, loss, leaves):
    """Value and gradients by hand against those of the package."""
    assert loss.item() == pytest.approx(judged.loss, abs=1e-12)
    grads = torch.autograd.grad(loss, leaves)
    by_hand = [judged.image_grad, judged.text_grad, judged.scale_grad, judged.logits_grad.sum()]
    for found, expected in zip(grads, by_hand, strict=False):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 1, 2])
def test_softmax_by_hand_equals_the_package(example, embeddings, tile):
    leaves = [torch.tensor(array, requires_grad=True) for array in (*embeddings, example.SCALE)]
    judged = example.judge_by_softmax(*embeddings, example.SCALE)
    assert_same(judged, softmax_contrastive(*leaves, tile=tile), leaves)


@pytest.mark.parametrize("tile", [None, 1, 2])
def test_sigmoid_by_hand_equals_the_package(example, embeddings, tile):
    scalars = (example.SCALE, example.BIAS)
    leaves = [torch.tensor(array, requires_grad=True) for array in (*embeddings, *scalars)]
    judged = example.judge_by_sigmoid(*embeddings, *scalars)
    assert_same(judged, sigmoid_contrastive(*leaves, tile=tile), leaves)


def test_the_embeddings_are_the_numbers_on_paper(embeddings):
    image, text = embeddings
    np.testing.assert_allclose(image, [[1, 0], [0.6, 0.8], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(text, [[0.8, 0.6], [0.6, 0.8], [0, 1]], atol=1e-12)
    similarity = [[0.8, 0.6, 0], [0.96, 1, 0.8], [0.6, 0.8, 1]]
    np.testing.assert_allclose(image @ text.T, similarity, atol=1e-12)


def test_the_walk_prints_its_results(example, embeddings, capsys):
    example.main()
    printed = capsys.readouterr().out
    softmax = example.judge_by_softmax(*embeddings, example.SCALE)
    sigmoid = example.judge_by_sigmoid(*embeddings, example.SCALE, example.BIAS)
    assert f"the mean of both = {softmax.loss:.4f}" in printed
    assert f"= {sigmoid.loss:.4f}" in printed
    assert "nan" not in printed
