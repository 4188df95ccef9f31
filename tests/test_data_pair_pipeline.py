"""Batches of pictures in a row: all of a row change alike, and the mask with them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.augment import AugmentConfig
from diptych.data.opening import open_source
from diptych.data.pair_pipeline import PairPipeline
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.data.source import Sample
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import DataError
from tests.small import listed, picture_of

TRANSFORM = ImageTransformConfig(image_size=24)
WHOLE = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1))
MOVING = AugmentConfig(crop_scale=(0.4, 1), flip=0.5, turn=40, zoom=1.3, shear=0.2, shift=0.2)
MOVING_WHOLE = WHOLE.model_copy(update={"flip": 0.5, "quarter_turns": True})
STRONG = MOVING.model_copy(update={"color": 0.4, "hue": 0.3, "grey": 0.3})
TEXTS = ("the thing was moved", "nothing has changed", "a thing is new", "something is there now")


class Pairs:
    """A source of the given samples."""

    name, fingerprint, notes = "pairs", "0" * 16, ()

    def __init__(self, samples):
        self.samples, self.size = samples, len(samples)

    def captions(self, index):
        return self.samples[index].captions

    def sample(self, index):
        if self.samples[index].picture == b"":
            raise DataError(f"picture {index} is gone. Fetch it.")
        return self.samples[index]


def pair(number, *, captions=None, before=1, **rest):
    """A sample of unlike pictures; before the last one there are `before` others."""
    texts = captions or (f"number {number} was moved", f"number {number} is elsewhere")
    others = tuple(picture_of(1000 * turn + number) for turn in range(1, before + 1))
    return Sample(f"#{number}", picture_of(number), texts, before=others, **rest)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for number in range(20) for text in pair(number).captions]
    return Tokenizer.learn([*texts, *TEXTS], vocabulary=400, context=12)


@pytest.fixture
def make(tokenizer):
    """Builds a pipeline; what is not said is small and plain."""

    def build(source, *, batch=4, augment=WHOLE, transform=TRANSFORM, **order):
        source = source if hasattr(source, "sample") else Pairs(source)
        order = OrderConfig(batch=batch, **order)
        return PairPipeline(source, tokenizer, transform, order, augment=augment, trims_text=False)

    return build


def test_a_batch_has_the_pictures_in_their_order_and_what_is_said(make, tokenizer):
    samples = [pair(number, before=2, changed=number % 2 == 0) for number in range(3)]
    pipeline = make(samples, batch=3, augment=None)
    batch = pipeline[0]
    assert batch.image.shape == (3, 3, 24, 24, 3)
    single = Pipeline(
        Pairs([Sample("x", p, ("x",)) for s in samples for p in (*s.before, s.picture)]),
        tokenizer,
        TRANSFORM,
        OrderConfig(batch=9),
        augment=None,
        trims_text=False,
    )
    expected = {tuple(row.flatten().tolist()) for row in single[0].image}
    assert {tuple(picture.flatten().tolist()) for row in batch.image for picture in row} == expected
    for row in range(3):
        text = tokenizer.decode(batch.text[row].tolist())
        number = int(re.search(r"\d+", text)[0])
        assert batch.changed[row] == (number % 2 == 0)
        last = Pipeline(
            Pairs([samples[number]]),
            tokenizer,
            TRANSFORM,
            OrderConfig(batch=1),
            augment=None,
            trims_text=False,
        )
        assert torch.equal(batch.image[row, -1], last[0].image[0])
        assert text in samples[number].captions


@pytest.mark.parametrize("augment", [None, WHOLE, MOVING, STRONG])
def test_all_pictures_of_a_row_are_cropped_turned_and_coloured_alike(make, augment):
    same = [
        Sample(str(n), picture_of(n), TEXTS, before=(picture_of(n), picture_of(n)))
        for n in range(5)
    ]
    for position in range(4):
        image = make(same, batch=5, augment=augment)[position].image
        assert torch.equal(image[:, 0], image[:, 1])
        assert torch.equal(image[:, 0], image[:, 2])


def test_the_rows_of_a_batch_are_changed_each_in_its_own_way(make):
    same = [Sample("x", picture_of(1), TEXTS, before=(picture_of(1),)) for _ in range(5)]
    image = make(same, batch=5, augment=MOVING)[0].image
    assert len({tuple(row.flatten().tolist()) for row in image}) == 5


@pytest.mark.parametrize("augment", [None, WHOLE, MOVING])
@pytest.mark.parametrize("resize", ["shortest", "pad"])
def test_the_mask_moves_with_the_picture_and_ends_where_the_picture_does(make, augment, resize):
    """The picture is black where its mask is, on a blue ground; what is filled in is grey."""
    samples = []
    for number in range(6):
        inside = np.zeros((40, 52), bool)
        inside[4 * number : 4 * number + 18, 10 + number : 33 + number] = True
        colours = np.where(inside[..., None], 0, (60, 90, 255)).astype(np.uint8)
        picture = Image.fromarray(colours)
        mask = Image.fromarray((inside * 255).astype(np.uint8))
        samples.append(Sample(str(number), picture, TEXTS, before=(picture,), mask=mask))
    fill = ImageTransformConfig(image_size=24, resize=resize, fill=130)
    for position in range(3):
        batch = make(samples, batch=6, augment=augment, transform=fill)[position]
        assert batch.mask.dtype == torch.uint8
        assert torch.equal(batch.mask, (batch.image[:, 1, :, :, 2] < 128).to(torch.uint8))
        assert batch.mask.sum() > 100
        assert (batch.mask == 0).sum() > 100


def test_colours_leave_the_mask_alone(make):
    source = open_source("scenes:changes-few:val")
    moved, recoloured = (make(source, augment=augment)[0] for augment in (MOVING, STRONG))
    assert torch.equal(moved.mask, recoloured.mask)
    assert not torch.equal(moved.image, recoloured.image)


def test_a_batch_has_no_mask_unless_every_row_has_one(make):
    mask = Image.new("L", (48, 40))
    with_masks = [pair(number, mask=mask) for number in range(4)]
    assert make(with_masks)[0].mask.shape == (4, 24, 24)
    assert make([*with_masks[:3], pair(3)])[0].mask is None


def test_what_nobody_knows_to_have_changed_is_no_number(make):
    samples = [pair(0, changed=True), pair(1, changed=False), pair(2)]
    pipeline = make(samples, batch=3)
    batch = pipeline[0]
    numbers = [int(re.search(r"\d+", text)[0]) for text in decoded(pipeline, batch)]
    expected = [{0: 1.0, 1: 0.0, 2: float("nan")}[number] for number in numbers]
    torch.testing.assert_close(batch.changed, torch.tensor(expected), equal_nan=True)


def decoded(pipeline, batch):
    return [pipeline.tokenizer.decode(ids.tolist()) for ids in batch.text]


def test_rows_with_the_same_change_are_no_negatives_whatever_words_are_drawn(make):
    moved = ("the thing was moved", "the thing is elsewhere")
    samples = [pair(0, captions=moved), pair(1, captions=moved), pair(2), pair(3)]
    pipeline = make(samples)
    for position in range(6):
        batch = pipeline[position]
        texts = decoded(pipeline, batch)
        same = [text in moved for text in texts]
        groups = [group for group, one in zip(batch.groups.tolist(), same, strict=True) if one]
        assert len(groups) == 2
        assert len(set(groups)) == 1
        assert len(set(batch.groups.tolist())) == 3


def test_batches_are_the_same_for_any_number_of_workers_and_from_any_start(make):
    source = open_source("scenes:changes-few:val")

    def marks(**options):
        batches = make(source, batch=6, augment=STRONG).batches(stop=5, **options)
        return [
            (b.position, b.image.sum(), b.text.sum(), b.mask.sum(), b.groups.tolist())
            for b in batches
        ]

    whole = marks(start=0, workers=0)
    assert [mark[0] for mark in whole] == [0, 1, 2, 3, 4]
    assert marks(start=2, workers=0) == whole[2:]
    assert marks(start=1, workers=2) == whole[1:]


def test_ranks_share_a_batch(make):
    source = open_source("scenes:changes-few:val")
    whole = make(source, batch=6)[3]
    parts = [make(source, batch=6, rank=rank, ranks=3)[3] for rank in range(3)]
    for name in ("image", "text", "changed", "mask", "groups"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))


def test_a_pair_that_cannot_be_read_is_replaced_and_named(make):
    lost = Sample("lost", b"", TEXTS, before=(picture_of(1),))
    broken = Sample("broken", picture_of(1), TEXTS, before=(b"no picture",))
    batch = make([lost, broken, pair(2), pair(3), pair(4)], batch=5)[0]
    assert batch.image.shape[:2] == (5, 2)
    assert {"pairs#0", "pairs#1"} <= {key for key, _ in batch.bad}
    assert any("gone" in reason for _, reason in batch.bad)


def test_a_row_without_a_picture_before_is_replaced_and_named(make):
    batch = make([pair(0, before=0), pair(1), pair(2), pair(3)])[0]
    assert batch.image.shape[:2] == (4, 2)
    assert {key for key, _ in batch.bad} == {"pairs#0"}
    assert "#0 of pairs has no picture before it" in batch.bad[0][1]


def boxed(left, top, side=6, *, width=640, height=640):
    """A pair of pictures that are large for the model, and a small box of what changed."""
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 255
    picture = Image.new("RGB", (width, height))
    return Sample(
        f"{left}, {top}",
        picture,
        TEXTS,
        before=(picture,),
        mask=Image.fromarray(mask),
        changed=True,
    )


@pytest.mark.parametrize("augment", [None, WHOLE])
def test_a_change_that_is_smaller_than_a_pixel_of_the_model_stays_in_the_mask(make, augment):
    """640 px become 64: 6 px are 0.36 of a pixel at most, and less across a border."""
    boxes = [(3, 1), (27, 38), (40, 637), (637, 0), (309, 305), (305, 309)]
    samples = [boxed(left, top) for left, top in boxes]
    both = np.maximum(
        *(np.asarray(boxed(*place, side).mask) for place, side in (((9, 9), 6), ((300, 300), 90)))
    )
    samples.append(
        Sample(
            "both", samples[0].picture, TEXTS, before=samples[0].before, mask=Image.fromarray(both)
        )
    )
    transform = ImageTransformConfig(image_size=64)
    masks = make(samples, batch=7, augment=augment, transform=transform)[0].mask.numpy()
    found = []
    for mask in masks:
        rows, columns = mask.nonzero()
        if mask.sum() > 4:
            assert mask[30:39, 30:39].all()
            assert mask.sum() - 81 in (1, 2, 4)
            assert mask[:2, :2].any()
            continue
        found.append((10 * (columns.mean() + 0.5), 10 * (rows.mean() + 0.5)))
    for left, top in boxes:  # the middle of what is marked is near the middle of the box
        assert min(np.hypot(x - left - 3, y - top - 3) for x, y in found) < 8
    assert len(found) == 6


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_without_crops_training_sees_what_evaluation_sees(make, resize):
    """A change at the right end of a picture that is not square."""
    transform = ImageTransformConfig(image_size=24, resize=resize, fill=9)
    sample = boxed(80, 20, 16, width=96, height=64)
    sample = replace(sample, picture=picture_of(3, side=96).crop((0, 0, 96, 64)))
    plain, trained = (
        make([sample], batch=1, augment=augment, transform=transform)[0]
        for augment in (None, WHOLE)
    )
    assert torch.equal(plain.image, trained.image)
    assert torch.equal(plain.mask, trained.mask)
    assert plain.mask.any()
    moved = make([sample], batch=1, augment=MOVING_WHOLE, transform=transform)
    assert all(moved[position].mask.any() for position in range(4))


def test_single_pictures_are_refused(make):
    source = listed(8)
    with pytest.raises(DataError, match=r"no picture before it.*Use a source of pairs: scenes:cha"):
        make(source)[0]
    with pytest.raises(DataError, match="has no picture before it"):
        next(iter(make(source).batches(0, 2, workers=1)))


def test_rows_of_different_lengths_are_refused(make):
    samples = [pair(0, before=1), pair(1, before=1), pair(2, before=2), pair(3, before=1)]
    with pytest.raises(DataError, match=r"has (2|3) pictures and #\d has (2|3)\. Give all samples"):
        make(samples)[0]


def test_a_pipeline_of_single_pictures_takes_the_last_one(tokenizer):
    pairs = [pair(number) for number in range(4)]
    lasts = [Sample(one.key, one.picture, one.captions) for one in pairs]
    one, other = (
        Pipeline(
            Pairs(samples),
            tokenizer,
            TRANSFORM,
            OrderConfig(batch=4),
            augment=STRONG,
            trims_text=False,
        )[0]
        for samples in (pairs, lasts)
    )
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.text, other.text)
