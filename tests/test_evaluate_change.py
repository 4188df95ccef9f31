"""Judging changes: models that know all, nothing, or what they write; sources that say little."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small import Constant, picture_folder, random_model
from small_compare import pair_model, reader_of, saved

from diptych.cli import run
from diptych.data.source import Sample
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import DataError, RequestError
from diptych.evaluate.change import judge_change, mask_as_seen
from diptych.evaluate.judge import Judged, Settings, result_file
from diptych.evaluate.tasks import evaluate
from diptych.predict.change import Change

SIDE, CELL, CELLS = 32, 8, 16
SAME = ("Nothing has changed.", "It is the same.")
TRANSFORM = ImageTransformConfig(image_size=SIDE)


def ground(number):
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


def pair_of(number):
    """Number 0 and every third after it are in another light; in others a cell becomes white."""
    before = ground(number)
    pixels, mask = np.asarray(before).copy(), np.zeros((SIDE, SIDE), np.uint8)
    if number % 3 == 0:
        lit = Image.fromarray(pixels + np.uint8(20))
        return Sample(f"#{number}", lit, SAME, before=(before,), changed=False)
    cell = number % CELLS
    row, column = divmod(cell, SIDE // CELL)
    place = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    pixels[place], mask[place] = 255, 255
    return Sample(
        f"#{number}",
        Image.fromarray(pixels),
        (f"White at {cell}.", f"There is white at {cell}."),
        before=(before,),
        changed=True,
        mask=Image.fromarray(mask),
    )


class Pairs:
    """A source of given samples."""

    name, notes, fingerprint = "pairs", (), "pairs fingerprint"

    def __init__(self, samples):
        self.samples, self.size = samples, len(samples)

    def captions(self, index):
        return self.samples[index].captions

    def sample(self, index):
        return self.samples[index]


def pairs(count=24, **changes):
    return Pairs([replace(pair_of(number), **changes) for number in range(count)])


class Knows:
    """Sees which cell became white, and reads its number."""

    fingerprint, transform, has_places, seen_side = "knows", TRANSFORM, True, SIDE

    def __init__(self, pair="difference"):
        self.pair = pair

    def prepare(self, picture):
        return evaluation_transform(picture, self.transform)

    def cells(self, pixels):
        """How much each cell became brighter, (sequences, 4, 4), less the light."""
        gain = pixels[:, -1].astype(np.float32) - pixels[:, -2]
        cells = gain.reshape(len(gain), SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean((2, 4, 5))
        return np.clip((cells - 20) / 255, 0, 1).astype(np.float32)

    def encode_prepared_sequences(self, pixels):
        cells = self.cells(pixels).reshape(len(pixels), -1)
        found = np.where(cells.max(axis=1) > 0.1, cells.argmax(axis=1), CELLS)
        return np.eye(CELLS + 1, dtype=np.float32)[found]

    def differences(self, pixels):
        return self.cells(pixels)

    def changed_prepared(self, pixels):
        assert self.pair == "located"
        return self.cells(pixels).max(axis=(1, 2))

    def encode_text(self, texts):
        words = [text.rstrip(".").rpartition(" ")[2] for text in texts]
        return np.eye(CELLS + 1, dtype=np.float32)[
            [int(word) if word.isdecimal() else CELLS for word in words]
        ]


class Blind(Knows):
    """Everything looks and reads the same."""

    def encode_prepared_sequences(self, pixels):
        return np.eye(3, dtype=np.float32)[np.zeros(len(pixels), int)]

    def differences(self, pixels):
        return np.zeros((len(pixels), 4, 4), np.float32)

    def encode_text(self, texts):
        return np.eye(3, dtype=np.float32)[np.zeros(len(texts), int)]


class Writes:
    """Writes what `Knows` sees; tells each text half a nat a token."""

    fingerprint, transform, seen_side = "writes", TRANSFORM, SIDE

    def read(self, sequences):
        eye = Knows()
        changes = []
        for sequence in sequences:
            pixels = np.stack([eye.prepare(picture) for picture in sequence])[None]
            heat = eye.differences(pixels)[0]
            text = f"white at {heat.argmax()}" if heat.max() > 0.1 else "Nothing has changed."
            changes.append(Change(text, float(heat.max()), "probability", heat))
        return changes

    def foretold(self, sequences, texts):
        assert len(sequences) == len(texts)
        tokens = np.array([len(text.split()) for text in texts])
        return (0.5 * tokens).astype(np.float32), tokens


def test_a_model_that_knows_finds_all_tells_all_and_points_right():
    result = evaluate(Knows(), pairs(), task="change", resamples=100)
    assert (result.pairs, result.changed, result.unchanged) == (24, 16, 8)
    for direction in (result.retrieval.text_to_image, result.retrieval.image_to_text):
        assert direction.recall[1].value == 1
        assert direction.queries == 16
    assert (result.detection.auc.value, result.detection.score) == (1, "unlike no change")
    assert (result.location.hits.value, result.location.pixel_auc.value) == (1, 1)
    assert result.location.hits_by_chance == pytest.approx(1 / CELLS)
    assert (result.location.pairs, result.texts) == (16, None)


def test_pairs_with_the_same_first_text_show_the_same_change():
    """Numbers 1 and 17 whiten the same cell; the text of one is right for the other."""
    source = Pairs([pair_of(number) for number in (1, 17, 2, 5)])
    found = evaluate(Knows(), source, task="change", resamples=100).retrieval
    assert (found.pictures, found.texts) == (4, 3)
    assert found.text_to_image.recall[1].value == 1


def test_a_blind_model_gets_no_credit():
    for pair in ("none", "difference"):
        result = evaluate(Blind(pair), pairs(), task="change", resamples=100)
        assert result.retrieval.text_to_image.recall[1].value == 0
        assert result.detection.auc.value == 0
        assert result.location.hits.value == 0
        assert result.location.pixel_auc.value == 0.5


def test_a_model_of_single_pictures_is_judged_by_its_distance():
    result = evaluate(Knows("none"), pairs(), task="change", resamples=100)
    assert (result.detection.auc.value, result.detection.score) == (1, "distance")
    without = Knows("none")
    without.has_places = False
    result = evaluate(without, pairs(), task="change", resamples=100)
    assert result.detection is result.location is None
    assert result.retrieval is not None


def test_a_model_that_locates_is_judged_by_its_probability():
    result = evaluate(Knows("located"), pairs(), task="change", resamples=100)
    assert (result.detection.auc.value, result.detection.score) == (1, "probability")
    assert (result.retrieval is None, result.location.hits.value) == (False, 1)
    wrong = Knows("located")
    wrong.changed_prepared = lambda pixels: 1 - Knows.changed_prepared(wrong, pixels)
    result = evaluate(wrong, pairs(), task="change", resamples=100)
    assert result.detection.auc.value == 0  # not by its vectors, and not by its maps


def test_texts_are_judged_by_their_sentences_and_tokens():
    source = pairs()
    source.samples[1] = replace(source.samples[1], captions=("White at 7.",))  # wrong, to `Writes`
    result = evaluate(Writes(), source, task="change", resamples=100)
    assert result.texts.pairs == 24
    assert result.texts.all_right.value == pytest.approx(23 / 24)
    assert result.texts.all_right_if_changed.value == pytest.approx(15 / 16)
    assert result.texts.changes_told.value == pytest.approx(15 / 16)
    assert result.texts.perplexity.value == pytest.approx(np.exp(0.5))
    assert (result.detection.auc.value, result.detection.score) == (1, "probability")
    assert (result.location.hits.value, result.retrieval) == (1, None)


@pytest.mark.parametrize(
    "model",
    [Knows(), Knows("located"), Knows("none"), Writes()],
    ids=["pair", "located", "none", "writes"],
)
def test_what_the_source_does_not_say_is_not_judged(model):
    result = evaluate(model, pairs(changed=None, mask=None), task="change", resamples=100)
    assert (result.changed, result.unchanged, result.detection, result.location) == (
        0,
        0,
        None,
        None,
    )
    assert "24 unknown" in result.summary()
    without = evaluate(model, pairs(captions=()), task="change", resamples=100)
    assert without.retrieval is without.texts is None
    assert without.detection.auc.value == 1
    alone = evaluate(model, pairs(changed=True), task="change", resamples=100)
    assert alone.detection is None


@pytest.mark.parametrize("model", [Knows(), Writes()], ids=["encodes", "writes"])
def test_results_are_the_same_with_the_same_seed_and_say_themselves(model):
    one, two = (
        judge_change(model, pairs(), Settings(seed=3, resamples=100)).result for _ in range(2)
    )
    assert one.to_dict() == two.to_dict()
    values = json.loads(json.dumps(one.to_dict()))
    assert values["seed"] == 3
    lines = one.summary().splitlines()
    assert lines[0] == "24 pairs: 16 changed, 8 did not; 95 % intervals in brackets"
    assert max(map(len, lines)) <= 120
    written = result_file(Judged(one, {}), model, pairs(), model="runs/x", options={})
    assert (written["task"], written["model"]["fingerprint"]) == ("change", model.fingerprint)


def test_pictures_that_cannot_be_read_are_listed_and_sequences_may_be_longer():
    source = pairs()
    source.samples[4] = replace(source.samples[4], picture=b"no picture")
    source.samples[5] = replace(source.samples[5], before=(b"",))
    for number in (7, 9):
        sample = source.samples[number]
        source.samples[number] = replace(sample, before=(ground(99), *sample.before))
    for model in (Knows(), Knows("located")):
        judged = judge_change(model, source, Settings(resamples=100))
        assert sorted(judged.bad) == ["pairs#4", "pairs#5"]
        assert judged.result.pairs == 22
        assert judged.result.retrieval.text_to_image.recall[1].value == 1
        assert judged.result.detection.auc.value == 1


def test_sources_without_pairs_are_refused():
    single = Pairs([replace(pair_of(1), before=(), changed=None, mask=None)] * 3)
    with pytest.raises(DataError, match=r"pairs#0 has no picture before.*scenes:changes:test"):
        evaluate(Knows(), single, task="change")
    broken = Pairs([replace(pair_of(number), picture=b"?") for number in range(3)])
    with pytest.raises(DataError, match="pairs has 0 pair that can be read, of 3"):
        evaluate(Knows(), broken, task="change")
    with pytest.raises(RequestError, match="1 sample cannot be told apart"):
        evaluate(Knows(), pairs(), task="change", limit=1)


def test_a_model_that_has_not_what_a_task_needs_is_refused():
    with pytest.raises(RequestError, match="a Constant does not read sequences of pictures"):
        evaluate(Constant(), pairs(), task="change")
    with pytest.raises(RequestError, match=r"has no vectors, and the task is retrieval\. Ask for"):
        evaluate(Writes(), pairs())
    with pytest.raises(RequestError, match="templates belongs to the task zeroshot"):
        evaluate(Writes(), pairs(), task="change", templates=["{}"])


def test_a_pair_without_a_picture_before_is_listed_and_left_out():
    source = pairs()
    source.samples[4] = replace(source.samples[4], before=(), changed=None, mask=None)
    judged = judge_change(Knows(), source, Settings(resamples=100))
    assert "pairs#4 has no picture before" in judged.bad["pairs#4"]
    assert judged.result.pairs == 23


class SeesLess(Knows):
    """Sees the upper left 24 of 32 pixels, as a tower that leaves out an edge."""

    seen_side = 24

    def differences(self, pixels):
        return self.cells(pixels)[:, :3, :3]


class WritesLess(Writes):
    """Writes what `SeesLess` sees."""

    seen_side = 24

    def read(self, sequences):
        changes = super().read(sequences)
        return [replace(change, heatmap=change.heatmap[:3, :3]) for change in changes]


@pytest.mark.parametrize("model", [SeesLess(), WritesLess()], ids=["encodes", "writes"])
def test_a_map_is_judged_over_the_part_of_the_picture_that_it_lies_over(model):
    """And what changed beside it is not asked for: 3 x 3 of the 4 x 4 cells are seen."""
    source = pairs(48)
    located = judge_change(model, source, Settings(resamples=100)).result.location
    cells = [divmod(number % CELLS, 4) for number in range(48) if number % 3]
    assert located.pairs == sum(max(cell) < 3 for cell in cells)
    assert (located.hits.value, located.pixel_auc.value) == (1, 1)
    assert located.hits_by_chance == pytest.approx(1 / 9)


def test_a_tower_that_leaves_out_an_edge_says_so(tmp_path):
    cut = ("model.image.cut_edge=true", "model.image.image_size=30")
    transform = ("data.transform.image_size=30",)
    for settings, side in (((), 32), ((*cut, *transform), 24)):
        model = pair_model(tmp_path, "difference", settings=settings)
        assert model.seen_side == side
        pixels = np.zeros((1, 2, *[model.transform.image_size] * 2, 3), np.uint8)
        places = side // model._bundle.model.config.image.patch_size
        assert model.differences(pixels).shape == (1, places, places)


def test_the_smallest_changes_are_judged_too():
    transform = ImageTransformConfig(image_size=64)
    for left, top in ((3, 1), (27, 38), (637, 0), (305, 309)):
        mask = np.zeros((640, 640), np.uint8)
        mask[top : top + 6, left : left + 6] = 255
        found = mask_as_seen(Image.fromarray(mask), transform)
        rows, columns = found.nonzero()
        assert 1 <= len(rows) <= 4
        assert abs(10 * rows.mean() + 5 - top - 3) < 8
        assert abs(10 * columns.mean() + 5 - left - 3) < 8


@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
def test_a_mask_is_brought_to_the_size_of_the_model_as_its_picture_is(resize):
    transform = ImageTransformConfig(image_size=16, resize=resize)
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, 16:48] = 255
    found = mask_as_seen(Image.fromarray(mask), transform)
    picture = Image.fromarray(mask).convert("RGB")
    seen = evaluation_transform(picture, transform.model_copy(update={"fill": 0}))
    np.testing.assert_array_equal(found, seen[:, :, 0] > 127)
    shares = {"shortest": 0.5, "squash": 0.25, "pad": 0.125}
    assert found.mean() == pytest.approx(shares[resize])


@pytest.mark.parametrize("maker", [random_model, pair_model, reader_of])
def test_the_command_judges_every_kind_of_model(capsys, tmp_path, maker):
    folder = saved(maker(tmp_path), tmp_path / "model")
    asked = ["evaluate", str(folder), "--task", "change", "--data", "scenes:changes-few:val"]
    options = ["--limit", "12", "--resamples", "100", "--json", "--device", "cpu"]
    assert run([*asked, *options]) == 0, capsys.readouterr().err
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["pairs"] == 12
    writes = maker is reader_of
    assert (metrics["texts"] is not None, metrics["retrieval"] is None) == (writes, writes)
    assert 0 <= metrics["detection"]["auc"]["value"] <= 1
    assert metrics["location"]["pairs"] == metrics["changed"]
    capsys.readouterr()
    if maker is not random_model:
        single = picture_folder(tmp_path / "pictures", 4)
        assert run(["evaluate", str(folder), "--data", str(single)]) == 2
        wanted = "Ask for the task change" if writes else "`diptych evaluate --task change`"
        assert wanted in capsys.readouterr().err.splitlines()[-1]
