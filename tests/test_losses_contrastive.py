"""The tiled losses equal their definition, written here as plain loops, in value and gradient."""

import importlib.util
import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from diptych.losses import contrastive, tiles
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

PAIRS = 7
EMBED = 5
GROUPS = torch.tensor([3, 1, 3, 0, 1, 3, 8])
BOTH = pytest.mark.parametrize("loss_name", ["softmax", "sigmoid"])
TILES = pytest.mark.parametrize("tile", [None, 1, 2, 3, PAIRS, PAIRS + 1])


def are_negatives(i, j, groups):
    """Whether image i and text j are to be told apart."""
    return i != j and (groups is None or groups[i] != groups[j])


def softmax_oracle(image, text, scale, groups=None):
    """The definition, one pair at a time."""
    loss = 0.0
    for i in range(len(image)):
        true = scale * image[i].dot(text[i])
        texts = [
            scale * image[i].dot(text[j]) for j in range(len(text)) if are_negatives(i, j, groups)
        ]
        images = [
            scale * image[j].dot(text[i]) for j in range(len(text)) if are_negatives(i, j, groups)
        ]
        loss = loss + torch.logsumexp(torch.stack([true, *texts]), 0) - true
        loss = loss + torch.logsumexp(torch.stack([true, *images]), 0) - true
    return loss / (2 * len(image))


def sigmoid_oracle(image, text, scale, bias, groups=None):
    """The definition, one pair at a time."""
    loss = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            if i == j or are_negatives(i, j, groups):
                sign = 1 if i == j else -1
                logit = scale * image[i].dot(text[j]) + bias
                loss = loss - F.logsigmoid(sign * logit)
    return loss / len(image)


LOSSES = {
    "softmax": (softmax_contrastive, softmax_oracle),
    "sigmoid": (sigmoid_contrastive, sigmoid_oracle),
}


def leaves_of(loss_name, *, pairs=PAIRS, scale=4.0, dtype=torch.float64, seed=0):
    """Unit embeddings, the scale and for sigmoid the bias, all wanting gradients."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, pairs, EMBED, generator=generator, dtype=torch.float64)
    scalars = [scale] if loss_name == "softmax" else [scale, -2.5]
    leaves = [*F.normalize(vectors, dim=-1), *torch.tensor(scalars, dtype=torch.float64)]
    return [leaf.to(dtype).requires_grad_() for leaf in leaves]


def assert_matches_oracle(loss_name, leaves, tolerance, *, tile=None, groups=None):
    """Value and all gradients, against the definition in float64."""
    ours, oracle = LOSSES[loss_name]
    precise = [leaf.detach().double().requires_grad_() for leaf in leaves]
    loss, expected = ours(*leaves, tile=tile, groups=groups), oracle(*precise, groups=groups)
    found_grads = torch.autograd.grad(3 * loss, leaves)
    expected_grads = torch.autograd.grad(3 * expected, precise)
    for found, exact in zip((loss, *found_grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert [grad.dtype for grad in found_grads] == [leaf.dtype for leaf in leaves]


@BOTH
@TILES
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["all_differ", "groups"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_matches_the_definition_for_every_tile_size(loss_name, tile, groups, dtype, tolerance):
    leaves = leaves_of(loss_name, dtype=dtype)
    assert_matches_oracle(loss_name, leaves, tolerance, tile=tile, groups=groups)


@BOTH
@pytest.mark.parametrize("pairs", [1, 2, 13])
def test_matches_the_definition_for_any_number_of_pairs(loss_name, pairs):
    assert_matches_oracle(loss_name, leaves_of(loss_name, pairs=pairs), 1e-9, tile=4)


@BOTH
@pytest.mark.parametrize("tile", [None, 2])
def test_one_group_leaves_only_the_true_pairs(loss_name, tile):
    groups = torch.zeros(PAIRS, dtype=torch.int64)
    assert_matches_oracle(loss_name, leaves_of(loss_name), 1e-9, tile=tile, groups=groups)


@BOTH
def test_groups_that_all_differ_change_nothing(loss_name):
    leaves = leaves_of(loss_name)
    ours, _ = LOSSES[loss_name]
    assert torch.equal(ours(*leaves), ours(*leaves, groups=torch.arange(PAIRS)))


@BOTH
@pytest.mark.parametrize("size", [1, 30, 1000])
def test_stays_finite_and_right_at_large_logits(loss_name, size):
    """CLIP's largest scale is 100; vectors that are not of unit norm reach logits of 100,000."""
    image, text, *rest = leaves_of(loss_name, scale=100.0, dtype=torch.float32)
    image, text = ((size * vectors).detach().requires_grad_() for vectors in (image, text))
    with torch.no_grad():  # powers of two, so that float32 has no rounding to amplify
        for vectors in (image, text):
            vectors.copy_((vectors * 8).round() / 8)
    assert_matches_oracle(loss_name, [image, text, *rest], 1e-4, tile=3)


@BOTH
@pytest.mark.parametrize("tile", [None, 2])
def test_gradient_passes_gradcheck(loss_name, tile):
    ours, _ = LOSSES[loss_name]
    leaves = leaves_of(loss_name, pairs=5)
    assert torch.autograd.gradcheck(lambda *inputs: ours(*inputs, tile=tile), leaves)


@BOTH
def test_only_wanted_gradients_are_made(loss_name):
    ours, oracle = LOSSES[loss_name]
    for wanted in range(len(leaves_of(loss_name))):
        leaves = leaves_of(loss_name)
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i == wanted)
        found = torch.autograd.grad(ours(*leaves, tile=2), leaves[wanted])
        expected = torch.autograd.grad(oracle(*leaves), leaves[wanted])
        torch.testing.assert_close(found, expected)


@BOTH
def test_a_second_backward_gives_the_same_gradient(loss_name):
    leaves = leaves_of(loss_name)
    loss = LOSSES[loss_name][0](*leaves, tile=2)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@BOTH
def test_the_gradient_of_the_gradient_is_refused(loss_name):
    leaves = leaves_of(loss_name)
    weighted = torch.tensor(2.0, requires_grad=True) * LOSSES[loss_name][0](*leaves)
    grads = torch.autograd.grad(weighted, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


@BOTH
def test_evaluation_does_no_work_for_gradients(loss_name, monkeypatch):
    leaves = leaves_of(loss_name)
    expected = LOSSES[loss_name][0](*leaves)
    monkeypatch.setattr(contrastive, "add_products", pytest.fail)
    with torch.no_grad():
        assert torch.equal(LOSSES[loss_name][0](*leaves), expected)
    frozen = [leaf.detach() for leaf in leaves]
    assert torch.equal(LOSSES[loss_name][0](*frozen), expected)


@BOTH
def test_the_order_of_the_pairs_does_not_matter(loss_name):
    image, text, *rest = leaves_of(loss_name)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(1))
    ours, _ = LOSSES[loss_name]
    shuffled = ours(image[order], text[order], *rest, tile=3, groups=GROUPS[order])
    torch.testing.assert_close(shuffled, ours(image, text, *rest, tile=3, groups=GROUPS))


@BOTH
def test_images_and_texts_may_change_places(loss_name):
    image, text, *rest = leaves_of(loss_name)
    ours, _ = LOSSES[loss_name]
    torch.testing.assert_close(ours(text, image, *rest, tile=2), ours(image, text, *rest, tile=2))


@pytest.mark.parametrize("pairs", [1, 2, 100])
def test_softmax_loss_is_ln_of_the_batch_where_all_embeddings_are_equal(pairs):
    same = F.normalize(torch.ones(pairs, EMBED, dtype=torch.float64), dim=1)
    loss = softmax_contrastive(same, same, torch.tensor(50.0), tile=8)
    assert loss.item() == pytest.approx(math.log(pairs), abs=1e-12)


def test_sigmoid_loss_is_ln_2_per_pair_where_all_logits_are_zero():
    zeros = torch.zeros(PAIRS, EMBED, dtype=torch.float64)
    loss = sigmoid_contrastive(zeros, zeros, torch.tensor(10.0), torch.tensor(0.0), tile=2)
    assert loss.item() == pytest.approx(PAIRS * math.log(2), abs=1e-12)


def test_sigmoid_keeps_terms_far_below_the_precision_of_one():
    """exp(-40) vanishes beside 1 even in float64; the loss must still hold it."""
    zeros = torch.zeros(PAIRS, EMBED, dtype=torch.float32)
    bias = torch.tensor(-40.0)
    value = sigmoid_contrastive(zeros, zeros, torch.tensor(10.0), bias).item()
    true_pairs_only = sigmoid_contrastive(
        zeros, zeros, torch.tensor(10.0), bias, groups=torch.zeros(PAIRS, dtype=torch.int64)
    ).item()
    assert true_pairs_only == 40.0
    assert value == 40.0
    logits = torch.full((4, 4), -40.0)
    found = tiles.softplus_sum(logits, torch.empty_like(logits)).item()
    assert found == pytest.approx(16 * math.exp(-40), rel=1e-5)


@BOTH
def test_bfloat16_embeddings_are_judged_in_float32(loss_name):
    ours, _ = LOSSES[loss_name]
    image, text, *rest = leaves_of(loss_name, dtype=torch.float32)
    half = [vectors.detach().bfloat16().requires_grad_() for vectors in (image, text)]
    full = [vectors.detach().float().requires_grad_() for vectors in half]
    loss, expected = ours(*half, *rest), ours(*full, *rest)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for found, exact in zip(
        torch.autograd.grad(loss, half), torch.autograd.grad(expected, full), strict=True
    ):
        assert torch.equal(found, exact.bfloat16())


@BOTH
def test_image_and_text_may_differ_in_precision(loss_name):
    ours, _ = LOSSES[loss_name]
    image, text, *rest = leaves_of(loss_name)
    loss = ours(image, text.float(), *rest)
    torch.testing.assert_close(loss, ours(image, text, *rest), rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss, image)[0].dtype == torch.float64


@BOTH
def test_autocast_does_not_lower_the_precision(loss_name):
    ours, _ = LOSSES[loss_name]
    leaves = leaves_of(loss_name, dtype=torch.float32)
    expected = ours(*leaves, tile=2)
    expected_grads = torch.autograd.grad(expected, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(*leaves, tile=2)
        grads = torch.autograd.grad(loss, leaves)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@BOTH
def test_two_runs_agree_bit_by_bit(loss_name):
    ours, _ = LOSSES[loss_name]
    results = []
    for _ in range(2):
        leaves = leaves_of(loss_name, pairs=300, dtype=torch.float32)
        loss = ours(*leaves, tile=64)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("offset", [-4, 0, 2, 4, 9])
def test_a_block_may_have_its_true_pairs_on_any_diagonal(offset):
    """What a loss over many processes needs: 4 images against 6 texts, some of them theirs."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(4, EMBED, generator=generator, dtype=torch.float64),
        torch.randn(6, EMBED, generator=generator, dtype=torch.float64),
    )
    block = tiles.Block(
        image, text, image.new_tensor(2.0), image.new_tensor(1.0), None, None, offset, tile=3
    )
    true = torch.tensor([[j == i + offset for j in range(6)] for i in range(4)])
    logits = 2 * image @ text.T + 1
    expected = F.softplus(torch.where(true, -logits, logits)).sum()
    loss, _ = contrastive.sigmoid_sums(block, None)
    torch.testing.assert_close(loss, expected)


@pytest.fixture(scope="module")
def as_users_see_it():
    """The module without the shape checks of the tests, which would speak up first."""
    spec = importlib.util.spec_from_file_location("unchecked_contrastive", contrastive.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_errors_name_the_value_and_a_remedy(as_users_see_it):
    image, text, scale = torch.ones(3, 8), torch.ones(4, 8), torch.tensor(1.0)
    softmax, sigmoid = as_users_see_it.softmax_contrastive, as_users_see_it.sigmoid_contrastive
    with pytest.raises(ValueError, match=r"tile is 0, below 1. Use tile=1 or more, or None"):
        softmax(image, image, scale, tile=0)
    with pytest.raises(ValueError, match=r"tile is -2, below 1. Use tile=1 or more, or None"):
        sigmoid(image, image, scale, scale, tile=-2)
    with pytest.raises(ValueError, match=r"image is \(3, 8\) and text is \(4, 8\).* Give at least"):
        softmax(image, text, scale)
    with pytest.raises(ValueError, match=r"image is \(0, 8\).* Give at least one pair"):
        sigmoid(image[:0], image[:0], scale, scale)
    with pytest.raises(ValueError, match=r"groups is \(4,\) for 3 pairs. .*shape \(3,\)"):
        softmax(image, image, scale, groups=torch.arange(4))


MEMORY_PROBE = """
import resource, torch
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

def run(pairs):
    image, text = torch.nn.functional.normalize(torch.randn(2, pairs, 64), dim=-1)
    scalars = torch.tensor(10.0), torch.tensor(-10.0)
    leaves = [leaf.requires_grad_() for leaf in (image, text, *scalars)]
    softmax_contrastive(*leaves[:3]).backward()
    sigmoid_contrastive(*leaves).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(-run(600) + run(4096))
"""


def test_memory_grows_with_the_batch_and_not_its_square():
    command = [sys.executable, "-c", MEMORY_PROBE]
    extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert extra < 4096 * 4096 * 4 / 4  # one square of logits would take four times as much


@pytest.mark.peers
@BOTH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_equals_open_clip_in_value_and_gradient(loss_name, dtype, tolerance):
    open_clip_loss = pytest.importorskip("open_clip.loss")
    peer = open_clip_loss.ClipLoss() if loss_name == "softmax" else open_clip_loss.SigLipLoss()
    leaves = leaves_of(loss_name, pairs=50, scale=14.0, dtype=dtype)
    loss, expected = LOSSES[loss_name][0](*leaves, tile=16), peer(*leaves)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for found, exact in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)
