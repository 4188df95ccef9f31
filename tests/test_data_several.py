"""Several sources as one: all samples once, or a mixture whose shares and passes are exact."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from small import caption_of, picture_folder

from diptych.data.augment import AugmentConfig
from diptych.data.opening import open_source
from diptych.data.order import BLOCK, Mixed, Passes, counts_per_block, joined, parted
from diptych.data.pictures import to_rgb
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.data.several import weights_of
from diptych.data.source import SourceOptions
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import DataError, RequestError


@pytest.fixture
def folders(tmp_path):
    """Five pictures in a/, three others in b/; the same file names in both."""
    picture_folder(tmp_path / "a", 5)
    picture_folder(tmp_path / "b", 3)
    return str(tmp_path / "a"), str(tmp_path / "b")


def refusal(kind, *arguments, **options):
    with pytest.raises(kind) as caught:
        open_source(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def samples(source, numbers):
    return [source.sample(number) for number in numbers]


def test_one_source_after_the_other_has_every_sample_once(folders):
    whole = open_source(list(folders))
    parts = [open_source(spec) for spec in folders]
    assert whole.size == 8
    assert whole.name == " + ".join(folders)
    assert whole.notes == parts[0].notes + parts[1].notes
    expected = [*samples(parts[0], range(5)), *samples(parts[1], range(3))]
    for index, part in enumerate(expected):
        sample = whole.sample(index)
        assert sample.captions == whole.captions(index) == part.captions
        assert sample.picture == part.picture
    keys = {sample.key for sample in samples(whole, range(8))}
    assert keys == {f"{folders[0]}:{n:03}.png" for n in range(5)} | {
        f"{folders[1]}:{n:03}.png" for n in range(3)
    }
    assert (
        len({open_source(specs).fingerprint for specs in (folders, folders[::-1], *folders)}) == 4
    )


@pytest.mark.parametrize("part", [(0.0, 0.6), (0.6, 1.0)])
def test_parts_of_several_sources_share_no_caption(folders, part):
    """The captions of b are among those of a, so equal captions must go to the same side."""
    source = open_source(list(folders), SourceOptions(part=part))
    other = (0.0, 0.6) if part[0] else (0.6, 1.0)
    rest = open_source(list(folders), SourceOptions(part=other))
    said = [{text for i in range(one.size) for text in one.captions(i)} for one in (source, rest)]
    assert not said[0] & said[1]
    assert said[0] | said[1] == {caption_of(number) for number in range(5)}
    assert source.size + rest.size == 8


def test_a_source_without_end_cannot_be_followed(folders):
    said = refusal(RequestError, ["scenes:shapes", folders[0]])
    assert said == (
        "scenes:shapes:train has no end, so that no other source can follow it. "
        "Give each source a weight, such as scenes:shapes:train@1."
    )


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([], "no source is given. Give one, such as scenes:shapes."),
        (["x@2"], "x@2 has a weight, and there is no other source to weigh it against. Write x,"),
        (["x@2", "y"], "y has no weight, and other sources have one. Write y@1, or leave all"),
        (["x@2", "y@0"], "the weight of y@0 is 0. Use more than 0, such as @1."),
        (["x@2", "y@" + "9" * 400], "is inf. Use more than 0, such as @1."),
        (["x", "y", "x"], "x is given 2 times. Give it once, with a weight if it is to come more"),
    ],
)
def test_weights_that_make_no_mixture_are_refused_by_text(specs, words):
    assert words in refusal(RequestError, specs)


def test_weights_are_refused_where_every_sample_is_taken_once(folders):
    said = refusal(RequestError, [f"{folders[0]}@3", f"{folders[1]}@1"], weights_allowed=False)
    assert said == (
        f"{folders[0]} has the weight 3, and weights are for training: here every sample is "
        f"taken once. Write {folders[0]}."
    )


def test_a_weight_is_a_number_after_the_last_at_unless_the_path_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos@3").mkdir()
    assert weights_of(["photos@3", "me@home", "a@b/c", "x@-1"]) == (
        ["photos@3", "me@home", "a@b/c", "x@-1"],
        None,
    )
    assert weights_of(["photos@3@2.5", "me@home@1", "scenes:shapes:val@10"]) == (
        ["photos@3", "me@home", "scenes:shapes:val"],
        [2.5, 1.0, 10.0],
    )


@pytest.mark.parametrize("seed", range(25))
def test_counts_per_block_are_the_shares_rounded_by_largest_remainder(seed):
    random = np.random.default_rng(seed)
    weights = random.uniform(0.01, 1, random.integers(1, 7)).tolist()
    counts = counts_per_block(weights)
    exact = np.array(weights) / sum(weights) * BLOCK
    assert sum(counts) == BLOCK
    assert (np.abs(counts - exact) < 1).all()
    more = [e - int(e) for e, c in zip(exact, counts, strict=True) if c > int(e)]
    rest = [e - int(e) for e, c in zip(exact, counts, strict=True) if c == int(e)]
    assert min(more, default=1) >= max(rest, default=0)


def test_a_share_that_no_block_can_hold_is_refused():
    with pytest.raises(RequestError) as caught:
        counts_per_block([1.0, 5000.0])
    assert str(caught.value) == (
        "weight 1 is less than one sample in 1,000 of the weights' sum 5001. "
        "Use weights that are closer together, such as 5.001."
    )


def test_source_and_sample_in_one_number_come_back():
    for sources in (1, 2, 5):
        pairs = [(source, sample) for source in range(sources) for sample in range(4)]
        numbers = [joined(source, sample, sources) for source, sample in pairs]
        assert len(set(numbers)) == len(pairs)
        assert [parted(number, sources) for number in numbers] == pairs


@pytest.mark.parametrize("seed", range(6))
def test_a_mixture_has_exact_shares_and_whole_passes(seed):
    """Per block each share, per pass each sample once, and another order in each pass and seed."""
    random = np.random.default_rng(seed)
    sizes = [int(size) if size else None for size in random.integers(0, 300, 3)]
    counts = counts_per_block(random.uniform(0.05, 1, 3).tolist())
    order, other = (Mixed(sizes, counts, one) for one in (seed, seed + 100))
    drawn = [parted(order.at(number), 3) for number in range(3 * BLOCK)]
    assert drawn != [parted(other.at(number), 3) for number in range(3 * BLOCK)]
    for block in range(3):
        sources = Counter(source for source, _ in drawn[block * BLOCK : (block + 1) * BLOCK])
        assert [sources[source] for source in range(3)] == list(counts)
    for source, size in enumerate(sizes):
        of_source = [sample for one, sample in drawn if one == source]
        if size is None:
            assert of_source == list(range(len(of_source)))
            continue
        passes = [of_source[start : start + size] for start in range(0, len(of_source), size)]
        for one in passes[:-1]:
            assert sorted(one) == list(range(size))
        assert len(set(passes[-1])) == len(passes[-1])
        assert size < 20 or len(passes) < 3 or passes[0] != passes[1]


def test_an_order_can_be_entered_anywhere_and_sent_to_other_processes():
    counts = counts_per_block([3.0, 1.0, 1.0])
    whole = [Mixed((70, None, 5), counts, 4).at(number) for number in range(3000)]
    entered = pickle.loads(pickle.dumps(Mixed((70, None, 5), counts, 4)))
    for number in (2999, 5, 1000, 999, 0, 1001, 2000, 17):
        assert entered.at(number) == whole[number]


def test_the_order_of_one_source_is_what_it_always_was():
    """A run that is resumed under a newer version must see what it would have seen."""
    assert [Passes(7, "order", 3).at(number) for number in range(14)] == [
        *(2, 0, 6, 1, 3, 4, 5),
        *(5, 3, 0, 6, 2, 1, 4),
    ]


def make(specs, *, batch=8, seed=0):
    tokenizer = Tokenizer.learn(map(caption_of, range(9)), vocabulary=300, context=12)
    return Pipeline(
        open_source(list(specs)),
        tokenizer,
        ImageTransformConfig(image_size=8),
        OrderConfig(batch=batch, seed=seed),
        augment=AugmentConfig(),
        trims_text=False,
    )


def weighed(folders):
    return [f"{folders[0]}@3", f"{folders[1]}@1"]


def test_a_mixture_has_no_end_and_says_its_shares(folders):
    source = open_source(weighed(folders))
    assert source.size is None
    assert source.name == f"{folders[0]}@3 + {folders[1]}@1"
    assert source.notes[-1] == (
        f"mixture: of every 1,000 pictures 750 from {folders[0]}, 250 from {folders[1]}"
    )
    others = [f"{folders[0]}@2", f"{folders[1]}@1"]
    assert source.fingerprint == open_source(weighed(folders)).fingerprint
    assert source.fingerprint != open_source(others).fingerprint
    samples = [pickle.loads(pickle.dumps(source)).sample(number) for number in range(20)]
    for number, sample in enumerate(samples):
        assert sample.captions == source.captions(number)
        assert sample.key.startswith(f"{folders[number % 2]}:")
    assert len({sample.key for sample in samples}) == 8


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_batches_of_a_mixture_do_not_depend_on_workers_or_on_where_one_begins(folders):
    pipeline = make(weighed(folders))
    expected = list(pipeline.batches(0, 6, workers=0))
    for workers, start in ((1, 0), (3, 0), (0, 4), (1, 5)):
        found = make(weighed(folders)).batches(start, 6, workers=workers)
        for one, other in zip(expected[start:], found, strict=True):
            for name in ("image", "text", "groups"):
                assert torch.equal(getattr(one, name), getattr(other, name))


def test_pictures_and_captions_of_a_mixture_stay_together(folders):
    """The number of a picture is that of its caption, whichever source it is from."""
    source = open_source(weighed(folders))
    for number in range(16):
        sample = source.sample(number)
        count = int(sample.captions[0].rsplit(" ", 1)[1])
        expected = open_source(folders[number % 2]).sample(count)
        assert to_rgb(sample.picture).tobytes() == to_rgb(expected.picture).tobytes()


def test_a_bad_picture_of_a_mixture_is_replaced_and_named(tmp_path):
    specs = [
        f"{picture_folder(tmp_path / 'a', 6, bad=(2,))}@1",
        f"{picture_folder(tmp_path / 'b', 4, bad=(0, 1))}@1",
    ]
    pipeline = make(specs, batch=10)
    bad = [entry for batch in pipeline.batches(0, 6, workers=0) for entry in batch.bad]
    assert len(bad) > 5
    for name, reason in bad:
        source, number = parted(int(name.rpartition("#")[2]), 2)
        assert f"{'ab'[source]}/{number:03}.png is no picture" in reason


def test_what_is_wrong_with_one_of_several_is_said(folders, tmp_path):
    assert "there is nothing at nowhere" in refusal(RequestError, [folders[0], "nowhere"])
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in refusal(DataError, [f"{folders[0]}@1", f"{tmp_path}/empty@2"])
    assert "is generated and has no columns" in refusal(
        RequestError, [f"{folders[0]}@1", "scenes:shapes@1"], SourceOptions(where="1")
    )


def test_a_source_is_one_whichever_way_it_is_written(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for other in ("a", "./a", "a/", "b/../a"):
        said = refusal(RequestError, [folders[0], other])
        assert f"is given 2 times ({folders[0]} and {other} are one)." in said
    assert "is given 2 times" in refusal(RequestError, ["./a@1", "a@2"])


def test_a_weight_may_begin_with_the_point():
    assert weights_of(["a@.5", "b@1"]) == (["a", "b"], [0.5, 1.0])
