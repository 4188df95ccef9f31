"""A model over a source: what takes part, what is left out, what the result says."""

import json
import threading

import numpy as np
import pytest
from PIL import Image
from small import (
    PICTURES,
    Constant,
    Listed,
    Perfect,
    caption_of,
    listed,
    number_in,
    picture_folder,
)

from diptych.data.opening import open_source
from diptych.data.prepared import DECODERS
from diptych.errors import DataError, RequestError
from diptych.evaluate.judge import ENDLESS_LIMIT, result_file
from diptych.evaluate.retrieval import judge_retrieval
from diptych.evaluate.tasks import evaluate


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_a_perfect_model_finds_everything_first(chunk):
    judged = judge_retrieval(Perfect(PICTURES), listed(), chunk=chunk, resamples=100)
    for direction in (judged.result.text_to_image, judged.result.image_to_text):
        assert direction.recall[1].value == 1
        assert direction.median_rank.value == 1
    assert (judged.result.pictures, judged.result.captions) == (24, 48)
    assert judged.bad == {}


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    judged = judge_retrieval(Constant(), listed(), resamples=100)
    for direction in (judged.result.text_to_image, judged.result.image_to_text):
        assert [direction.recall[k].value for k in (1, 5, 10)] == [0, 0, 0]


def test_rows_of_vectors_belong_to_pictures_and_captions():
    seen = []
    judged = judge_retrieval(
        Perfect(PICTURES), listed(), chunk=7, progress=lambda *now: seen.append(now)
    )
    assert judged.image.argmax(axis=1).tolist() == list(range(24))
    assert judged.text.argmax(axis=1).tolist() == [number_in(text) for text in judged.texts]
    assert judged.picture_of_text.tolist() == [number for number in range(24) for _ in range(2)]
    assert seen == [(done, 24) for done in range(1, 25)]


def test_bad_pictures_are_left_out_and_listed(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 12, bad=(0, 5, 11))))
    judged = judge_retrieval(Perfect(PICTURES), source, resamples=100, chunk=4)
    assert sorted(judged.bad) == sorted(f"{source.name}#{number}" for number in (0, 5, 11))
    assert all("picture" in reason for reason in judged.bad.values())
    assert judged.indices == [number for number in range(12) if number not in (0, 5, 11)]
    assert judged.texts == [caption_of(number) for number in judged.indices]
    assert judged.result.text_to_image.recall[1].value == 1


def test_progress_comes_to_the_end_when_the_last_picture_is_bad(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 6, bad=(5,))))
    seen = []
    judge_retrieval(Perfect(PICTURES), source, progress=lambda *now: seen.append(now))
    assert seen[-1] == (6, 6)


def test_pictures_are_decoded_in_several_threads():
    together = threading.Barrier(DECODERS, timeout=60)  # broken unless all are inside at once

    class Waiting(Perfect):
        def prepare(self, picture):
            together.wait()
            return super().prepare(picture)

    assert judge_retrieval(Waiting(PICTURES), listed(DECODERS), resamples=2).bad == {}


def test_a_chunk_below_one_is_refused():
    with pytest.raises(RequestError, match=r"chunk is 0: .* Use 1 or more"):
        judge_retrieval(Perfect(PICTURES), listed(), chunk=0)


def test_a_limit_takes_the_first_samples():
    judged = judge_retrieval(Perfect(PICTURES), listed(), limit=5)
    assert judged.indices == [0, 1, 2, 3, 4]
    assert judge_retrieval(Perfect(PICTURES), listed(5), limit=99).indices == [0, 1, 2, 3, 4]


def test_a_source_without_end_is_taken_up_to_the_limit_however_large():
    source = listed(endless=True)
    assert len(judge_retrieval(Constant(), source, resamples=2).indices) == ENDLESS_LIMIT
    more = judge_retrieval(Constant(), source, limit=ENDLESS_LIMIT + 24, resamples=2)
    assert len(more.indices) == ENDLESS_LIMIT + 24


def test_a_limit_below_two_is_refused():
    with pytest.raises(RequestError, match="Use 2 or more"):
        judge_retrieval(Perfect(PICTURES), listed(), limit=1)


def test_one_readable_picture_is_too_few(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 3, bad=(0, 2))))
    with pytest.raises(DataError, match="has 1 picture that can be read, of 3"):
        judge_retrieval(Perfect(PICTURES), source)


def test_identical_pictures_are_one_picture_with_all_captions():
    samples = [(PICTURES[n], (f"this is {n}",)) for n in range(20)]
    samples += [(PICTURES[n].copy(), (f"copy of {n}",)) for n in range(4)]
    judged = judge_retrieval(Perfect(PICTURES), Listed(samples), resamples=100)
    assert judged.result.pictures == 20
    assert judged.result.captions == 24
    assert judged.result.text_to_image.recall[1].value == 1
    assert judged.result.image_to_text.recall[1].value == 1


def test_pictures_of_the_same_pixels_in_another_shape_are_not_identical():
    stripe = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8)
    pictures = [Image.fromarray(stripe.reshape(*shape, 3)) for shape in ((64, 64), (32, 128))]
    samples = [(picture, (f"this is {n}",)) for n, picture in enumerate(pictures)]
    assert judge_retrieval(Constant(), Listed(samples), resamples=2).result.pictures == 2


def test_the_result_file_says_what_was_measured_on_what_by_which_seed(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pictures", 12, bad=(3,))))
    model = Perfect(PICTURES)
    judged = judge_retrieval(model, source, seed=7, resamples=100)
    values = result_file(judged, model, source, model="runs/x", options={"limit": None})
    assert values == json.loads(json.dumps(values))
    assert values["model"] == {"path": "runs/x", "fingerprint": "perfect"}
    assert values["data"] == {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "limit": None,
    }
    assert values["seed"] == 7
    assert values["metrics"] == judged.result.to_dict()
    assert list(values["bad"]) == [f"{source.name}#3"]
    assert values["made_by"].keys() == {"diptych", "torch", "python"}


def test_the_same_seed_gives_the_same_intervals():
    one, two = (judge_retrieval(Constant(), listed(), seed=3, resamples=100) for _ in range(2))
    assert one.result == two.result


def test_evaluate_judges_what_a_user_writes():
    result = evaluate(Constant(), "scenes:shapes:val", limit=12)
    assert (result.pictures, result.seed) == (12, 0)
    assert result.to_dict() == evaluate(Constant(), "scenes:shapes:val", limit=12).to_dict()


def test_evaluate_offers_the_nearest_task():
    with pytest.raises(RequestError, match=r"no task 'retreival'.*Did you mean 'retrieval'"):
        evaluate(Constant(), listed(), task="retreival")
