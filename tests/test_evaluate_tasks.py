"""The tasks over a source: classes, divisions, copies, limits, what each result says."""

import json

import numpy as np
import pytest
from PIL import Image
from small import Listed, picture_of

from diptych.data.opening import open_source
from diptych.data.prompts import TEMPLATES
from diptych.errors import DataError, RequestError
from diptych.evaluate import probe
from diptych.evaluate.clip_benchmark import clip_benchmark
from diptych.evaluate.judge import Judged, result_file, samples_to_take
from diptych.evaluate.probe import divide
from diptych.evaluate.tasks import TASKS, evaluate

CLASSES = ("red", "green", "blue")


class Colours:
    """Sees the mean colour of a picture, and of a text the colours it names, if `known`."""

    fingerprint = "colours"

    def __init__(self, known=CLASSES):
        self.known = known

    def prepare(self, picture):
        return np.asarray(picture.resize((8, 8)))

    def encode_prepared(self, pixels):
        return self._unit(pixels.astype(np.float32).mean(axis=(1, 2)) ** 2)

    def encode_text(self, texts):
        named = [[float(c in text and c in self.known) for c in CLASSES] for text in texts]
        return self._unit(np.array(named, dtype=np.float32) + np.float32(0.01))

    def _unit(self, vectors):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coloured(number):
    """A picture of class number % 3, different from every other."""
    pixels = np.asarray(picture_of(number)) // 8
    pixels = pixels.astype(np.uint8).copy()
    pixels[:, :, number % 3] += 200
    return pixels


def labelled(numbers, **options):
    return Listed(
        [(Image.fromarray(coloured(number)), (CLASSES[number % 3], "other")) for number in numbers],
        **options,
    )


def by_class(count):
    """As class folders come: all of the first class, then all of the second."""
    return [number for kind in range(3) for number in range(kind, count, 3)]


def test_zero_shot_recognises_what_the_model_knows_and_nothing_else():
    result = evaluate(Colours(), labelled(range(30)), task="zeroshot", resamples=100)
    assert result.measured.top[1].value == result.measured.mean_per_class.value == 1
    assert result.measured.chance[1] == pytest.approx(1 / 3)
    assert result.measured.majority_share == pytest.approx(1 / 3)
    assert result.templates == TEMPLATES
    blind = evaluate(Colours(known=()), labelled(range(30)), task="zeroshot", resamples=100)
    assert [one.recall for one in blind.measured.classes] == [0, 0, 0]


def test_templates_are_used_and_one_without_a_place_is_refused():
    source = labelled(range(12))
    result = evaluate(Colours(), source, task="zeroshot", templates=["all {c}"], resamples=100)
    assert result.to_dict()["templates"] == ["all {c}"]
    with pytest.raises(RequestError, match="the template 'a photo' has no place for the label"):
        evaluate(Colours(), source, task="zeroshot", templates=["a photo"])


def test_copies_of_a_picture_are_one_and_right_with_the_class_of_any():
    source = labelled([0, 1, 2, 3, 4, 5])
    source.samples += [(source.samples[0][0].copy(), ("green",)), source.samples[1]]
    source.size = 8
    result = evaluate(Colours(), source, task="zeroshot", resamples=100)
    assert (result.measured.pictures, result.copies) == (6, 2)
    assert result.measured.top[1].value == 1
    assert {one.name: one.pictures for one in result.measured.classes} == {
        "blue": 2,
        "green": 3,
        "red": 2,
    }


def test_a_limit_takes_pictures_of_every_class_and_keeps_the_classes():
    source = labelled(by_class(30))
    result = evaluate(Colours(), source, task="zeroshot", limit=15, resamples=100)
    assert result.measured.pictures == 15
    assert min(one.pictures for one in result.measured.classes) > 0
    assert samples_to_take(source, 4) == [0, 1, 2, 3]
    drawn = samples_to_take(source, 4, at_random=True)
    assert drawn == sorted(set(drawn)) == samples_to_take(source, 4, at_random=True)
    assert drawn != [0, 1, 2, 3]
    assert samples_to_take(source, None, at_random=True) == list(range(30))
    two = evaluate(Colours(), source, task="zeroshot", limit=2, resamples=100)
    assert len(two.measured.classes) == 3


def test_captions_that_are_no_classes_are_told():
    source = Listed([(picture_of(n), (f"text {n}",)) for n in range(6)])
    summary = evaluate(Colours(), source, task="zeroshot", resamples=100).summary()
    assert "are the captions class names? Name their column with --text-column" in summary


@pytest.mark.parametrize("task", ["zeroshot", "probe"])
def test_sources_without_classes_are_refused(task):
    alike = Listed([(picture_of(n), ("cat",)) for n in range(4)])
    with pytest.raises(DataError, match=r"listed has one class only, 'cat'. Use a source with two"):
        evaluate(Colours(), alike, task=task)
    without = Listed([(picture_of(n), ()) for n in range(4)])
    with pytest.raises(DataError, match="listed#0 has no caption, so no class"):
        evaluate(Colours(), without, task=task)


def test_a_probe_learns_what_the_texts_do_not_say():
    source = labelled(by_class(60))
    result = evaluate(Colours(()), source, task="probe", resamples=100)
    assert result.measured.top[1].value == 1
    assert (result.measured.pictures, result.trained_on) == (12, 48)
    assert result.converged
    values = result.to_dict()
    assert values == json.loads(json.dumps(values))
    assert values["strength"] == result.search.chosen
    assert "judged on a fifth of each class, kept out of training" in result.summary()


def test_a_probe_judges_on_the_test_source_and_leaves_its_pictures_out_of_training():
    test = labelled(range(24, 36))
    result = evaluate(Colours(), labelled(range(30)), task="probe", test=test, resamples=100)
    assert (result.measured.pictures, result.trained_on, result.in_both) == (12, 24, 6)
    assert "6 training pictures are test pictures too and left out" in result.summary()


def test_a_test_class_that_was_never_seen_is_refused():
    train = labelled([number for number in range(30) if number % 3])
    with pytest.raises(DataError, match=r"1 classes of listed have no training picture.*'red'"):
        evaluate(Colours(), train, task="probe", test=labelled(range(30, 36)))


def test_classes_of_one_picture_each_cannot_be_divided():
    source = Listed([(picture_of(n), (f"text {n}",)) for n in range(6)])
    with pytest.raises(DataError, match="none of the 6 classes has two pictures"):
        evaluate(Colours(), source, task="probe")


def test_a_division_keeps_a_fifth_of_each_class_and_depends_on_the_seed_alone():
    labels = [(CLASSES[0],)] * 20 + [(CLASSES[1],)] * 3 + [(CLASSES[2],)]
    kept, held = divide(labels, seed=1)
    assert sorted([*kept, *held]) == list(range(24))
    assert [sum(labels[row] == (name,) for row in held) for name in CLASSES] == [4, 1, 0]
    np.testing.assert_array_equal(held, divide(labels, seed=1)[1])
    assert held.tolist() != divide(labels, seed=2)[1].tolist()


def test_a_picture_of_two_classes_is_not_both_fitted_and_chosen_on(monkeypatch):
    source = labelled(range(30))
    source.samples += [(picture_of(n), (CLASSES[n % 2],)) for n in range(40, 48)]
    source.samples += [(picture_of(n), ("blue",)) for n in range(40, 48)]  # copies: two classes
    source.size = len(source.samples)
    seen, choose = [], probe.choose_strength

    def noting(*parts):
        seen.extend({row.tobytes() for row in vectors} for vectors in (parts[0], parts[2]))
        return choose(*parts)

    monkeypatch.setattr(probe, "choose_strength", noting)
    test = labelled(range(60, 66))
    for seed in range(5):
        evaluate(Colours(), source, task="probe", test=test, seed=seed, resamples=100)
        fitted, chosen = seen[-2:]
        assert not fitted & chosen


def test_a_setting_of_another_task_is_refused():
    with pytest.raises(RequestError, match="templates belongs to the task zeroshot, and the task"):
        evaluate(Colours(), labelled(range(6)), templates=["{}"])
    with pytest.raises(RequestError, match="precision belongs to the task calibration, and the ta"):
        evaluate(Colours(), labelled(range(6)), task="probe", precision=0.5)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "change"])
def test_every_task_says_the_same_with_the_same_seed_and_takes_what_a_user_writes(task, tmp_path):
    for number in by_class(30):
        path = tmp_path / "folder" / CLASSES[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coloured(number)).save(path)
    (tmp_path / "folder/red/broken.png").write_bytes(b"no picture")
    folder = str(tmp_path / "folder")
    one, two = (evaluate(Colours(), folder, task=task, seed=3, resamples=100) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert one.task == task
    assert one.to_dict()["seed"] == 3
    assert "95 % intervals in brackets" in one.summary().splitlines()[0]
    assert max(map(len, one.summary().splitlines())) <= 120
    limited = evaluate(Colours(), [folder], task=task, limit=20, resamples=100).to_dict()
    assert limited["pictures"] < one.to_dict()["pictures"]


KEYS = {
    "zeroshot": ("zeroshot_classification", {"acc1", "acc5", "mean_per_class_recall"}),
    "retrieval": (
        "zeroshot_retrieval",
        {f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 5, 10)},
    ),
    "probe": (
        "linear_probe",
        {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall", "seed", "fewshot_k", "normalized"},
    ),
}


@pytest.mark.parametrize("task", KEYS)
def test_results_have_the_shape_of_clip_benchmark(task):
    source = labelled(range(30))
    result = evaluate(Colours(), source, task=task, resamples=100)
    values = result_file(Judged(result, {}), Colours(), source, model="runs/x", options={})
    shaped = clip_benchmark(values)
    name, keys = KEYS[task]
    assert set(shaped) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    assert (shaped["dataset"], shaped["model"], shaped["task"]) == ("listed", "runs/x", name)
    assert set(shaped["metrics"]) == keys
    if task == "retrieval":  # theirs names what is found, ours from what to what
        metrics = values["metrics"]
        found = shaped["metrics"]["text_retrieval_recall@5"]
        assert found == metrics["image_to_text"]["recall@5"]["value"]
    else:
        accuracy = next(value for key, value in shaped["metrics"].items() if key.endswith("acc1"))
        assert accuracy == 1
        assert next(v for key, v in shaped["metrics"].items() if key.endswith("acc5")) is None


def test_clip_benchmark_has_no_calibration():
    with pytest.raises(RequestError, match=r"no task like calibration. Use --format diptych"):
        clip_benchmark({"task": "calibration"})


def test_a_source_without_end_can_be_judged_on():
    source = open_source("scenes:shapes")
    result = evaluate(Colours(), source, task="calibration", limit=12, resamples=100)
    assert result.fitted_pictures + result.judged_pictures == 12
