"""One step by pieces against the plain step: the loss, every gradient, and what is kept."""

import io
import math
import weakref
from collections import Counter

import pytest
import torch
from small import small_run
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from diptych.batch import ImageTextBatch
from diptych.comm import Comm
from diptych.data.transforms import normalise
from diptych.errors import ConfigError
from diptych.losses.tiles import sum_dtype
from diptych.models.dual_encoder import DualEncoder
from diptych.train import session
from diptych.train.log import Live, read_log
from diptych.train.loop import train
from diptych.train.step import Objective, pieces_of

PAIRS = 10


def objective(settings, chunk=None):
    transform, device = settings.data.transform, torch.device("cpu")
    return Objective(transform, Comm(), device, bf16=False, tile=None, chunk=chunk)


def random_batch(settings, pairs=PAIRS):
    """Pairs of noise, two of which share a caption."""
    generator = torch.Generator().manual_seed(3)
    side, text = settings.model.image.image_size, settings.model.text
    ids = torch.randint(3, 400, (pairs, text.context), generator=generator)
    ids[:, -1], ids[-1] = text.end_token, ids[0]
    groups = torch.arange(pairs)
    groups[-1] = 0
    pixels = torch.randint(0, 256, (pairs, side, side, 3), generator=generator).byte()
    return ImageTextBatch(image=pixels, text=ids, groups=groups, position=0)


def start_model(settings):
    torch.manual_seed(5)
    return DualEncoder(settings.model)


def gradients(settings, model, batch, chunk):
    """Loss and gradients of a step by pieces; None takes the plain path, by autograd alone."""
    model.zero_grad()
    torch.manual_seed(9)
    if chunk is None:
        loss = objective(settings)(model, batch)
        loss.backward()
    else:
        loss = objective(settings, chunk).backward(model, batch)
        assert not loss.requires_grad
    after = torch.rand(1)  # where the random numbers stand afterwards
    return loss.item(), {n: w.grad.clone() for n, w in model.named_parameters()}, after


def assert_same(found, expected, name):
    """Equal to a hundred thousandth of the largest gradient of this weight."""
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("chunk", [1, 3, 5, PAIRS - 1, PAIRS, 99])
def test_loss_and_every_gradient_are_those_of_the_plain_step(family, chunk, keep):
    settings = small_run(f"model.image.keep_patches={keep}", family=family)
    model, batch = start_model(settings), random_batch(settings)
    loss, expected, after = gradients(settings, model, batch, None)
    found_loss, found, found_after = gradients(settings, model, batch, chunk)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert torch.equal(after, found_after)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert expected[name].abs().max() > 0, name
        assert_same(gradient, expected[name], name)


def test_dropped_patches_matter_so_both_passes_must_drop_the_same():
    settings = small_run("model.image.keep_patches=0.5")
    model, batch = start_model(settings), random_batch(settings)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(objective(settings, 3).backward(model, batch).item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_gets_no_gradient_and_the_rest_its_own(tower):
    settings = small_run(f"model.{tower}.frozen=true")
    model, batch = start_model(settings), random_batch(settings)
    objective(settings)(model, batch).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    objective(settings, 4).backward(model, batch)
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == name.startswith(f"{tower}."), name
        if weight.grad is not None:
            assert_same(weight.grad, expected[name], name)


def test_gradients_add_to_those_that_are_there():
    settings = small_run()
    model, batch = start_model(settings), random_batch(settings)
    _, once, _ = gradients(settings, model, batch, 4)
    objective(settings, 4).backward(model, batch)
    for name, weight in model.named_parameters():
        assert_same(weight.grad, 2 * once[name], name)


class Kept:
    """One tensor kept for the backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


def most_kept(model, work):
    """Most bytes that autograd keeps at any time while `work` runs, the weights not counted."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    users, sizes, most = Counter(), {}, 0

    def let_go(place):
        users[place] -= 1
        if not users[place]:
            del sizes[place]

    def pack(tensor):
        nonlocal most
        kept, storage = Kept(tensor), tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in weights:
            users[place] += 1
            sizes[place] = storage.nbytes()
            weakref.finalize(kept, let_go, place)
            most = max(most, sum(sizes.values()))
        return kept

    with saved_tensors_hooks(pack, lambda kept: kept.tensor):
        work()
    assert not sizes
    return most


def test_what_is_kept_for_the_backward_pass_grows_with_the_chunk_and_not_with_the_batch():
    settings = small_run()
    model = start_model(settings)

    def kept(pairs, chunk):
        batch = random_batch(settings, pairs)
        return most_kept(model, lambda: objective(settings, chunk).backward(model, batch))

    plain = [kept(pairs, None) for pairs in (16, 64)]
    assert plain[1] > 3.5 * plain[0]
    pieces = [kept(pairs, 8) for pairs in (16, 64)]
    vectors = 64 * 2 * settings.model.embed * 4  # the loss keeps the vectors of the batch
    assert pieces[1] <= max(pieces[0], vectors) * 1.05
    assert plain[1] > 6 * pieces[1]
    assert kept(64, 16) > 1.7 * pieces[1]


class Normalised(nn.Module):
    """A dual encoder whose pictures go through a batch norm first."""

    def __init__(self, model):
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(3), model

    def forward(self, image, text):
        return self.inner(self.norm(image), text)


def test_batch_norm_moves_its_running_statistics_once_per_piece():
    settings = small_run()
    model, batch = Normalised(start_model(settings)), random_batch(settings)
    by_hand, transform = nn.BatchNorm2d(3), settings.data.transform
    for rows in (slice(0, 3), slice(3, 6), slice(6, 10)):
        by_hand(normalise(batch.image[rows], transform.mean, transform.std))
    objective(settings, 4).backward(model, batch)
    for name, buffer in model.norm.named_buffers():
        assert torch.equal(buffer, by_hand.get_buffer(name)), name


def test_judging_by_pieces_gives_the_same_loss_and_leaves_running_statistics():
    settings = small_run()
    model, batches = Normalised(start_model(settings)), [random_batch(settings)] * 2
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = [objective(settings, chunk).judge(model, batches) for chunk in (None, 3)]
    with torch.no_grad():
        expected = objective(settings)(model.eval(), batches[0]).item()
    assert found == pytest.approx([expected] * 2, rel=1e-5)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 10, 64])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64, 99, None])
def test_pieces_are_few_and_even_and_cover_every_row_once(rows, chunk):
    pieces = [list(range(rows))[piece] for piece in pieces_of(rows, chunk)]
    assert [row for piece in pieces for row in piece] == list(range(rows))
    sizes = {len(piece) for piece in pieces}
    assert max(sizes) <= (chunk or rows)
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == math.ceil(rows / (chunk or rows))


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_losses_are_summed_in_what_the_device_has(device, dtype):
    assert sum_dtype(torch.device(device)) == dtype


RESNET = 'model.image={"kind":"resnet","image_size":32,"width":4,"layers":[1,1],"heads":4}'
FROZEN = RESNET.replace("}", ',"frozen":true}')


def told(tmp_path, *settings):
    """What a run of one step with a residual network says."""
    live = Live(io.StringIO())
    run = small_run(RESNET, "steps=1", "data.val=null", *settings)
    train(run, tmp_path / "run", live=live)
    return live.stream.getvalue()


def test_a_run_by_pieces_with_batch_norm_says_that_statistics_are_those_of_a_piece(tmp_path):
    assert (
        "chunk 3: batch norm uses the statistics of each piece, so loss and gradients are not "
        "quite those of the whole batch\n"
    ) in told(tmp_path, "chunk=3")


@pytest.mark.parametrize("settings", [("chunk=8",), (), ("chunk=3", FROZEN)])
def test_nothing_is_said_of_statistics_that_are_those_of_the_batch_or_fixed(tmp_path, settings):
    assert "batch norm" not in told(tmp_path, *settings)


@pytest.mark.parametrize(
    ("batch", "chunk", "said"),
    [
        (8, 1, r"and the 8 of a process .*\(batch 8, chunk 1\)\. Use --chunk 3 or more\."),
        (7, 2, r"and the 7 of a process .*\(batch 7, chunk 2\)\. Use --chunk 3 or more\."),
    ],
)
def test_a_piece_of_one_pair_is_refused_where_there_is_batch_norm(tmp_path, batch, chunk, said):
    with pytest.raises(ConfigError, match=said):
        told(tmp_path, f"batch={batch}", f"chunk={chunk}")
    assert not (tmp_path / "run").exists()


def test_one_pair_per_process_is_refused_but_where_statistics_are_joined():
    run, eight = small_run(RESNET, "batch=8"), Comm(0, 8, 0)
    with pytest.raises(ConfigError, match=r"\(batch 8, chunk None\)\. Use --batch 16 or more\."):
        session._batch_norm_notes(run, eight, torch.device("cpu"))
    assert session._batch_norm_notes(run, eight, torch.device("cuda")) == []


def losses(folder):
    rows = read_log(folder / "log.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "step"]


def test_a_run_by_pieces_learns_what_the_plain_run_learns(tmp_path):
    with (tmp_path / "said").open("w") as stream:
        for name, settings in (("plain", ()), ("pieces", ("chunk=3",))):
            train(small_run(*settings), tmp_path / name, live=Live(stream))
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
