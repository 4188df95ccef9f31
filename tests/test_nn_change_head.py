"""The head that finds a change equals its definition written with loops, and labels that only say
yes or no teach it where."""

import pytest
import torch
from torch.nn import functional as F

from diptych.nn.change_head import ChangeHead

WIDTH = 5


def head_of(width=WIDTH):
    """A head of which no weight is zero or one."""
    head = ChangeHead(width)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return head.double()


def tokens_of(rows, patches):
    """Tokens now and before."""
    generator = torch.Generator().manual_seed(rows + patches)
    shape = (2, rows, patches, WIDTH)
    return torch.randn(shape, generator=generator).double().requires_grad_().unbind()


def oracle(head, now, before):
    """One pair of pictures, one place at a time."""
    both, place = [], []
    for one, other in zip(now, before, strict=True):
        both.append(torch.cat([one, other]))
        hidden = F.gelu(head.up.weight @ both[-1] + head.up.bias)
        place.append((head.down.weight @ hidden + head.down.bias)[0])
    total = sum(logit.exp() for logit in place)
    read = sum(logit.exp() / total * tokens for logit, tokens in zip(place, both, strict=True))
    changed = head.scale * torch.log(total / len(place)) + head.bias
    return changed, torch.stack(place), read


@pytest.mark.parametrize(("rows", "patches"), [(1, 1), (3, 1), (2, 9), (1, 12)])
def test_it_is_the_definition_with_every_gradient(rows, patches):
    head, (now, before) = head_of(), tokens_of(rows, patches)
    found = head(now, before)
    parts = zip(*(oracle(head, now[row], before[row]) for row in range(rows)), strict=True)
    expected = [torch.stack(part) for part in parts]
    inputs = [now, before, *head.parameters()]
    for got, wanted in zip((found.changed, found.place, found.read), expected, strict=True):
        close = {"rtol": 1e-5, "atol": 1e-6}  # logits are float32, whatever the tokens are
        torch.testing.assert_close(got, wanted, check_dtype=False, **close)
        weights = torch.linspace(-1, 2, got.numel()).view_as(got).double()
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        ours, theirs = (
            torch.autograd.grad((one * weights).sum(), inputs, **options) for one in (got, wanted)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_places_changes_neither_what_is_read_nor_whether():
    head, (now, before) = head_of(), tokens_of(2, 7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    found, other = head(now, before), head(now[:, order], before[:, order])
    torch.testing.assert_close(other.place, found.place[:, order])
    torch.testing.assert_close(other.changed, found.changed)
    torch.testing.assert_close(other.read, found.read)


def test_a_place_that_surely_changed_is_all_that_is_read():
    head, (now, before) = head_of(), tokens_of(1, 4)
    with torch.no_grad():
        head.down.weight.mul_(1e4)
        found = head(now, before)
    place = int(found.place[0].argmax())
    torch.testing.assert_close(found.read[0], torch.cat([now[0, place], before[0, place]]))
    assert found.changed.isfinite().all()


def test_half_precision_tokens_give_whole_logits_and_are_read_as_they_are():
    head, (now, before) = head_of().bfloat16(), tokens_of(2, 6)
    found = head(now.bfloat16(), before.bfloat16())
    assert (found.place.dtype, found.read.dtype) == (torch.float32, torch.bfloat16)


def test_yes_and_no_alone_teach_where_and_what_is_there_is_read():
    """Noise in which one place may have a mark it had not: told only whether, it finds which."""
    torch.manual_seed(0)
    head, mark = ChangeHead(8), torch.eye(8)[2] * 3
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)

    def draw(rows):
        before = torch.randn(rows, 16, 8) / 2
        changed, place = torch.rand(rows) < 0.5, torch.randint(16, (rows,))
        at = F.one_hot(place, 16) * changed[:, None]
        return before + at[..., None] * mark, before, changed, place

    for _ in range(150):
        now, before, changed, _ = draw(64)
        loss = F.binary_cross_entropy_with_logits(head(now, before).changed, changed.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    now, before, changed, place = draw(400)
    with torch.no_grad():
        found = head(now, before)
    assert ((found.changed > 0) == changed).float().mean() > 0.9
    assert (found.place.argmax(dim=1) == place)[changed].float().mean() > 0.9
    read = found.read[changed]
    assert (read[:, 2] - read[:, 8 + 2]).mean() > 2  # now less before: most of the mark, 3


def test_it_begins_undecided():
    torch.manual_seed(0)
    head = ChangeHead(64)
    with torch.no_grad():
        found = head(*torch.randn(2, 50, 16, 64))
    assert found.changed.abs().max() < 2
    assert 0.1 < found.place.std() < 2
