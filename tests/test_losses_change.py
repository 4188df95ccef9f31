"""The losses of the change model equal their definitions, in value and gradient, and add up over
pieces of a batch."""

import math

import pytest
import torch

from diptych.losses.change import answer_loss, changed_loss, patches_of, place_loss

PAD = 0
TEXT = torch.tensor([[1, 5, 6, 2], [1, 2, PAD, PAD], [1, 3, 4, 4], [1, PAD, PAD, PAD]])


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).requires_grad_()


def answer_oracle(logits, text):
    total, count = 0.0, 0
    for row in range(len(text)):
        for place in range(1, text.shape[1]):
            token = text[row, place]
            if token != PAD:
                chances = logits[row, place].exp() / logits[row, place].exp().sum()
                total, count = total - chances[token].log(), count + 1
    return total, count


def yes_or_no(logit, label):
    return -torch.log(1 / (1 + torch.exp(-logit if label else logit)))


def same(found, expected, logits):
    """Value, count, and gradient."""
    torch.testing.assert_close(found[0], expected[0], check_dtype=False)
    assert found[1].item() == expected[1]
    torch.testing.assert_close(
        torch.autograd.grad(found[0], logits),
        torch.autograd.grad(expected[0], logits),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_answer_loss_is_that_of_the_tokens_behind_the_start():
    logits = draw(4, 4, 7)
    same(answer_loss(logits, TEXT, PAD), answer_oracle(logits, TEXT), logits)


def test_the_answer_loss_asks_nothing_of_start_and_padding():
    logits = draw(4, 4, 7)
    gradient = torch.autograd.grad(answer_loss(logits, TEXT, PAD)[0], logits)[0].abs().sum(dim=2)
    assert (gradient > 0).tolist() == [
        [False, True, True, True],
        [False, True, False, False],
        [False, True, True, True],
        [False, False, False, False],
    ]


def test_texts_without_a_token_cost_nothing_and_give_gradients_of_zero():
    logits = draw(2, 3, 7)
    total, count = answer_loss(logits, torch.tensor([[1, PAD, PAD]] * 2), PAD)
    assert (total.item(), count.item()) == (0, 0)
    assert not torch.autograd.grad(total, logits)[0].any()


def test_the_changed_loss_leaves_out_what_nobody_knows():
    logits, labels = draw(5), torch.tensor([1.0, math.nan, 0.0, 1.0, math.nan])
    known = [(logits[row], labels[row] == 1) for row in (0, 2, 3)]
    expected = sum(yes_or_no(*pair) for pair in known), 3
    same(changed_loss(logits, labels), expected, logits)
    gradient = torch.autograd.grad(changed_loss(logits, labels)[0], logits)[0]
    assert (gradient != 0).tolist() == [True, False, True, True, False]


def test_without_any_label_the_changed_loss_is_zero_with_gradients_of_zero():
    logits = draw(2)
    total, count = changed_loss(logits, torch.full((2,), math.nan))
    assert (total.item(), count.item()) == (0, 0)
    assert torch.autograd.grad(total, logits)[0].tolist() == [0, 0]


def test_the_place_loss_asks_each_patch_whether_any_pixel_of_it_changed():
    logits, mask = draw(2, 3, 2), torch.zeros(2, 12, 8, dtype=torch.uint8)
    mask[0, 3, 4] = 1  # the lowest pixel at the left of a patch
    mask[1, 8:, :] = 1
    changed = {(0, 0, 1), (1, 2, 0), (1, 2, 1)}
    places = [(n, row, column) for n in range(2) for row in range(3) for column in range(2)]
    expected = sum(yes_or_no(logits[place], place in changed) for place in places), 12
    same(place_loss(logits, mask, 4), expected, logits)


@pytest.mark.parametrize("seed", range(3))
def test_a_patch_is_marked_where_any_of_its_pixels_is(seed):
    mask = (torch.rand(2, 15, 10, generator=torch.Generator().manual_seed(seed)) > 0.97).byte()
    found = patches_of(mask, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            pixels = mask[:, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            assert found[:, row, column].tolist() == pixels.flatten(1).any(dim=1).float().tolist()


@pytest.mark.parametrize("pixel", range(30))
def test_where_an_edge_is_cut_off_a_pixel_belongs_to_its_own_patch_or_none(pixel):
    """A tower of patches of 8 px sees 24 px of 30."""
    mask = torch.zeros(1, 30, 30, dtype=torch.uint8)
    mask[0, pixel, 8] = 1
    expected = torch.zeros(1, 3, 3)
    if pixel < 24:
        expected[0, pixel // 8, 1] = 1
    assert torch.equal(patches_of(mask, 3, 3, 8), expected)


def test_sums_and_counts_of_pieces_add_up_to_those_of_the_batch():
    logits, labels = draw(4), torch.tensor([1.0, math.nan, 0.0, 1.0])
    text, place = draw(4, 4, 7), draw(4, 2, 2)
    mask = (torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.9).byte()

    def losses(rows):
        return (
            answer_loss(text[rows], TEXT[rows], PAD),
            changed_loss(logits[rows], labels[rows]),
            place_loss(place[rows], mask[rows], 3),
        )

    pieces = [losses(slice(0, 1)), losses(slice(1, 4))]
    for number, (total, count) in enumerate(losses(slice(None))):
        torch.testing.assert_close(total, sum(piece[number][0] for piece in pieces))
        assert count == sum(piece[number][1] for piece in pieces)


def test_confident_answers_of_bf16_models_stay_finite():
    logits = torch.tensor([400.0, -400.0], dtype=torch.bfloat16)
    total, _ = changed_loss(logits, torch.tensor([0.0, 1.0]))
    assert total.item() == pytest.approx(800)
    assert total.dtype == torch.float32
