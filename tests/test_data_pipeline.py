"""Batch p depends on source, seed and p alone; nothing is lost, doubled or silently replaced."""

import io
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.augment import AugmentConfig
from diptych.data.pipeline import (
    REPLACEMENTS,
    OrderConfig,
    Pipeline,
    joined,
    same_picture_or_text,
)
from diptych.data.source import Sample
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import DataError, RequestError

SIDE = 8
TRANSFORM = ImageTransformConfig(image_size=SIDE)
WHOLE = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1))
STRONG = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, color=0.4)


class Small:
    """Pictures of one colour each, with captions that name them; some cannot be read."""

    def __init__(self, size=13, captions=2, bad=(), shared=(), endless=False):
        self.name, self.fingerprint, self.notes = "small", "0" * 16, ()
        self.size = None if endless else size
        self._captions, self._bad, self._shared = captions, set(bad), set(shared)

    def captions(self, index):
        if index in self._shared:
            return ("the same words",)
        return tuple(f"caption {number} of picture {index}" for number in range(self._captions))

    def sample(self, index):
        if index in self._bad:
            raise DataError(f"picture {index} is gone. Fetch it.")
        pixels = np.random.default_rng(index).integers(0, 256, (11, 9, 3), np.uint8)
        pixels[..., 0] = index  # red tells which picture it is, where colours are not changed
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return Sample(str(index), buffer.getvalue(), self.captions(index))


@pytest.fixture(scope="module")
def tokenizer():
    source = Small(40)
    texts = [text for index in range(40) for text in source.captions(index)] + ["the same words"]
    return Tokenizer.learn(texts, vocabulary=400, context=12)


@pytest.fixture
def make(tokenizer):
    """Builds a pipeline; what is not said is small and plain."""

    def build(
        source=None,
        *,
        batch=4,
        augment=WHOLE,
        **order,
    ):
        return Pipeline(
            source or Small(),
            tokenizer,
            TRANSFORM,
            OrderConfig(batch=batch, **order),
            augment=augment,
            trims_text=False,
        )

    return build


def take(pipeline, start, stop, workers=0):
    return list(pipeline.batches(start, stop, workers=workers))


def same(one, other):
    """Whether two batches are equal to the last bit, in every field."""
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if not (torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right):
            return False
    return True


def red(batch):
    """Which picture each row shows, read from the pixels."""
    assert (batch.image[..., 0] == batch.image[:, :1, :1, 0]).all()
    return batch.image[:, 0, 0, 0].tolist()


def words(pipeline, batch):
    return [pipeline.tokenizer.decode(row.tolist()) for row in batch.text]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("endless", [False, True])
def test_a_batch_is_the_same_for_0_1_and_3_workers(make, endless):
    pipeline = make(Small(bad=(3, 8), endless=endless), augment=STRONG)
    plain = take(pipeline, 0, 9)
    assert [batch.position for batch in plain] == list(range(9))
    for workers in (1, 3):
        for one, other in zip(plain, take(pipeline, 0, 9, workers), strict=True):
            assert same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_at_any_position_equals_never_having_stopped(make, workers):
    pipeline, again = (make(Small(bad=(3,)), augment=STRONG) for _ in range(2))
    whole = take(pipeline, 0, 8)
    for start in (1, 5, 7):
        for one, other in zip(whole[start:], take(again, start, 8, workers), strict=True):
            assert same(one, other)


def test_batches_leave_the_global_random_states_out_of_it(make):
    pipeline = make(augment=STRONG)
    first = take(pipeline, 0, 3)
    torch.manual_seed(99)
    np.random.seed(99)
    for one, other in zip(first, take(pipeline, 0, 3), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("batch", [1, 4, 5, 13])
def test_every_epoch_holds_every_sample_once_even_across_batches(make, batch):
    size = 13
    shown = [row for one in take(make(batch=batch), 0, 3 * size // batch + 1) for row in red(one)]
    epochs = [shown[start : start + size] for start in range(0, 3 * size, size)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    assert epochs[0] != epochs[1] != epochs[2]


def test_another_seed_is_another_order_other_captions_and_other_crops(make):
    orders = {
        tuple(row for one in take(make(seed=seed), 0, 3) for row in red(one)) for seed in range(4)
    }
    assert len(orders) == 4
    one, other = (
        take(make(Small(size=2), batch=2, seed=seed, augment=STRONG), 0, 20) for seed in (1, 2)
    )
    assert not any(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert any(not torch.equal(a.text, b.text) for a, b in zip(one, other, strict=True))


def test_each_pass_draws_the_caption_anew_until_all_were_seen(make):
    pipeline = make(Small(size=6, captions=5), batch=6)
    said = Counter()
    for batch in pipeline.batches(0, 60, workers=0):
        for picture, text in zip(red(batch), words(pipeline, batch), strict=True):
            assert text.endswith(f"of picture {picture}")
            said[text] += 1
    assert len(said) == 6 * 5
    assert 2 <= min(said.values()) <= max(said.values()) <= 30


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_the_shares_of_all_ranks_joined_are_the_batch_of_one_process(make, ranks):
    source = Small(bad=(2, 5), shared=(1, 4, 7))
    whole = take(make(source, batch=6, augment=STRONG), 0, 8)
    shares = [
        take(make(source, batch=6, rank=rank, ranks=ranks, augment=STRONG), 0, 8)
        for rank in range(ranks)
    ]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        for name in ("image", "text", "groups"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(one, name))
        assert sum((part.bad for part in parts), ()) == one.bad
        assert sum(part.cut for part in parts) == one.cut


def groups_oracle(pictures, texts):
    """Rows are linked if a chain of rows leads from one to the other, by picture or by text."""
    together = [
        {j for j in range(len(texts)) if pictures[i] == pictures[j] or texts[i] == texts[j]}
        for i in range(len(texts))
    ]
    for _ in texts:
        together = [set().union(*(together[j] for j in row)) for row in together]
    return together


@pytest.mark.parametrize("seed", range(20))
def test_groups_link_what_shares_a_picture_or_a_text_through_others_too(seed):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 12, 15).tolist()
    texts = [str(number) for number in rng.integers(0, 12, 15)]
    found = same_picture_or_text(pictures, texts)
    for row, together in enumerate(groups_oracle(pictures, texts)):
        assert {other for other in range(15) if found[other] == found[row]} == together


def test_a_picture_and_a_text_that_look_alike_are_no_link():
    assert len(set(same_picture_or_text([1, 2], ["2", "1"]).tolist())) == 2


def test_the_groups_of_a_batch_are_those_of_its_pictures_and_texts(make):
    pipeline = make(Small(size=7, shared=(1, 2, 5)), batch=6)
    linked = 0
    for batch in pipeline.batches(0, 20, workers=0):
        expected = groups_oracle(red(batch), words(pipeline, batch))
        for row, together in enumerate(expected):
            assert {r for r in range(6) if batch.groups[r] == batch.groups[row]} == together
            linked += len(together) > 1
    assert linked > 20


def test_bad_pictures_are_replaced_listed_and_never_fatal(make):
    pipeline = make(Small(size=13, bad=(0, 6, 9)), batch=13)
    for batch in pipeline.batches(0, 5, workers=0):
        named = [name for name, _ in batch.bad]
        assert {"small#0", "small#6", "small#9"} <= set(named)
        assert all("is gone. Fetch it." in reason for _, reason in batch.bad)
        shown = red(batch)
        assert not {0, 6, 9} & set(shown)
        for picture, text in zip(shown, words(pipeline, batch), strict=True):
            assert text.endswith(f"of picture {picture}")


def test_the_same_bad_pictures_are_replaced_by_the_same_ones(make):
    one, other = (take(make(Small(bad=(0, 6, 9))), 0, 9) for _ in range(2))
    assert any(batch.bad for batch in one)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_a_replaced_row_is_in_no_group_with_another(make):
    size, bad = 6, (1, 2)
    plain, mended = (
        make(Small(size=size, shared=(1, 2, 3), bad=out), batch=6) for out in ((), bad)
    )
    for one, other in zip(take(plain, 0, 10), take(mended, 0, 10), strict=True):
        for row, picture in enumerate(red(one)):
            if picture in bad:
                assert other.groups.tolist().count(int(other.groups[row])) == 1
            else:
                assert other.groups[row] == one.groups[row]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("endless", [False, True])
def test_a_source_of_nothing_but_bad_pictures_is_an_error_of_one_line(make, workers, endless):
    pipeline = make(Small(bad=range(200), endless=endless))
    with pytest.raises(DataError) as caught:
        next(pipeline.batches(0, 1, workers=workers))
    assert str(caught.value).startswith(f"{REPLACEMENTS} samples in a row cannot be read, the last")
    assert str(caught.value).endswith("Check that the source is what you think it is.")
    assert "\n" not in str(caught.value)


def test_a_sample_without_a_caption_is_named(make):
    with pytest.raises(DataError, match=r"of small has no caption to learn from\. Give it one"):
        make(Small(captions=0))[0]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"batch": 14}, "batch 14 is larger than small with 13 samples. Use --batch 13 or less."),
        ({"batch": 7, "ranks": 2}, "batch 7 cannot be divided among 2 processes. Use --batch 6."),
        ({"batch": 1, "ranks": 3}, "batch 1 cannot be divided among 3 processes. Use --batch 3."),
        (
            {"batch": 14, "ranks": 2},
            "batch 14 is larger than small with 13 samples. Use --batch 12 or less.",
        ),
        ({"batch": 0}, "batch 0 cannot be divided among 1 processes. Use --batch 1."),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_by_text(make, order, words):
    with pytest.raises(RequestError) as caught:
        make(**order)
    assert str(caught.value) == words


def test_one_sample_alone_is_no_batch(make):
    with pytest.raises(
        RequestError, match=r"larger than small with 1 samples\. Offer more samples"
    ):
        make(Small(size=1), batch=2)


def test_without_augmentation_pictures_are_the_same_whatever_the_seed_and_the_pass(make):
    seen = {}
    for seed in (0, 1):
        for batch in make(Small(size=5), batch=5, seed=seed, augment=None).batches(0, 4, workers=0):
            for picture, pixels in zip(batch.image[:, 0, 0, 0].tolist(), batch.image, strict=True):
                assert torch.equal(seen.setdefault(picture, pixels), pixels)
    assert len(seen) == 5


def test_with_augmentation_every_pass_shows_another_crop(make):
    batches = take(make(Small(size=1), batch=1, augment=STRONG), 0, 10)
    assert len({batch.image.numpy().tobytes() for batch in batches}) == 10


def test_texts_are_trimmed_only_where_asked_and_cut_ones_counted(tokenizer):
    short, whole = (
        Pipeline(
            Small(), tokenizer, TRANSFORM, OrderConfig(batch=4), augment=None, trims_text=trims
        )
        for trims in (True, False)
    )
    longest = 0
    for one, other in zip(take(short, 0, 5), take(whole, 0, 5), strict=True):
        length = one.text.shape[1]
        assert other.text.shape[1] == tokenizer.context
        assert torch.equal(one.text, other.text[:, :length])
        assert (other.text[:, length:] == tokenizer.pad_token).all()
        longest = max(longest, length)
    assert longest < tokenizer.context
    tight = Tokenizer.learn(["x"], vocabulary=300, context=5)
    pipeline = Pipeline(
        Small(), tight, TRANSFORM, OrderConfig(batch=4), augment=None, trims_text=True
    )
    assert pipeline[0].cut == 4
    assert take(whole, 0, 1)[0].cut == 0


def running(processes):
    """Those of the processes that have not ended."""
    found = []
    for process in processes:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            continue
        found.append(process)
    return found


@pytest.mark.parametrize("endless", [False, True])
def test_workers_end_when_the_consumer_stops_early(make, endless):
    before = {process.pid for process in multiprocessing.active_children()}
    batches = make(Small(endless=endless)).batches(0, None, workers=2)
    next(batches)
    workers = {process.pid for process in multiprocessing.active_children()} - before
    assert len(workers) == 2
    del batches
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and running(workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(workers) == []


def test_sigterm_ends_a_worker_only_if_the_main_process_sends_it(make):
    before = multiprocessing.active_children()
    batches = make(Small(endless=True)).batches(0, None, workers=1)
    (worker,) = [child for child in multiprocessing.active_children() if child not in before]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # before it is prepared, and
    next(batches)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # after
    assert [next(batches).position for _ in range(20)] == list(range(1, 21))
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_range_of_batches_ends_where_it_should(make):
    assert take(make(), 3, 3) == []
    assert [batch.position for batch in take(make(), 3, 6, workers=1)] == [3, 4, 5]
    endless = make().batches(10**9, None, workers=0)
    assert [next(endless).position for _ in range(3)] == [10**9, 10**9 + 1, 10**9 + 2]


def test_joined_captions_begin_with_the_first_and_never_repeat_another():
    captions = ("name", *(f"word {number}" for number in range(7)))
    random = np.random.default_rng(0)
    drawn = [joined(captions, random).split(", ") for _ in range(2000)]
    assert all(words[0] == "name" for words in drawn)
    assert all(len(set(words)) == len(words) and set(words) <= set(captions) for words in drawn)
    counts = np.bincount([len(words) - 1 for words in drawn], minlength=6)
    assert counts[5:].sum() == 0
    np.testing.assert_allclose(counts[0] / 2000, 0.5 + 0.5 / 5, atol=0.05)
    np.testing.assert_allclose(counts[1:5] / 2000, 0.5 / 5, atol=0.03)
    others = [word for words in drawn for word in words[1:]]
    assert {others.count(word) > 150 for word in captions[1:]} == {True}


def test_a_single_caption_joins_nothing():
    random = np.random.default_rng(0)
    assert {joined(("alone",), random) for _ in range(20)} == {"alone"}


class Named(Small):
    """Pictures 2 and 5 have the same name and other keywords."""

    def captions(self, index):
        name = "twin" if index in (2, 5) else f"name {index}"
        return (name, *(f"caption {number} of picture {index}" for number in range(3)))


def test_joined_captions_with_the_same_first_one_are_no_negatives_of_each_other(make):
    for position in range(6):
        batch = make(Named(6), batch=6, caption="joined")[position]
        which = batch.image[:, 0, 0, 0].tolist()
        groups = dict(zip(which, batch.groups.tolist(), strict=True))
        assert groups[2] == groups[5]
        assert len(set(groups.values())) == 5
