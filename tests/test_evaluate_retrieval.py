"""The retrieval protocol against a slow definition: copies, shared captions, collapsed models."""

import json
from math import comb

import numpy as np
import pytest

from diptych.errors import DataError
from diptych.evaluate.metrics import TIE, bootstrap
from diptych.evaluate.retrieval import CUTOFFS, chance_recall, retrieval
from diptych.evaluate.text import plain


def ranks_oracle(image, text, picture_of_text, picture_ids, text_ids):
    """Ranks of every caption and of every distinct picture, by sets of ids and plain loops."""
    vector = {}
    for name, row in zip(picture_ids, image, strict=True):
        vector.setdefault(("picture", name), row)
    for name, row in zip(text_ids, text, strict=True):
        vector.setdefault(("text", name), row)
    right = {(picture_ids[p], text_ids[t]) for t, p in enumerate(picture_of_text)}

    def rank(query, others, is_right):
        scores = {o: float(np.dot(vector[query], vector[o])) for o in others}
        best = max(score for o, score in scores.items() if is_right(o))
        wrong = [score for o, score in scores.items() if not is_right(o)]
        return 1 + sum(score >= best - TIE for score in wrong)

    pictures = [key for key in vector if key[0] == "picture"]
    texts = [key for key in vector if key[0] == "text"]
    of_captions = [
        rank(("text", name), pictures, lambda o, name=name: (o[1], name) in right)
        for name in text_ids
    ]
    asked = [key for key in pictures if any(p == key[1] for p, _ in right)]
    of_pictures = [rank(key, texts, lambda o, key=key: (key[1], o[1]) in right) for key in asked]
    return np.array(of_captions), np.array(of_pictures)


def made_up_data(seed, *, whole_numbers):
    """30 rows of 22 distinct pictures with 1 to 5 captions each, out of 40 distinct captions.

    Some captions are shared between pictures, and the last picture has none.
    """
    random = np.random.default_rng(seed)
    picture_ids = [f"picture{i}" for i in random.permutation([*range(21), *range(8)])]
    picture_ids.append("picture without caption")
    picture_of_text = np.repeat(np.arange(29), random.integers(1, 6, size=29))
    text_ids = [f"text{i}" for i in random.integers(40, size=len(picture_of_text))]

    def vectors(ids):
        names = sorted(set(ids))
        if whole_numbers:
            some = random.integers(-1, 2, size=(len(names), 5)).astype(np.float32)
        else:
            some = random.normal(size=(len(names), 5)).astype(np.float32)
        return some[[names.index(name) for name in ids]]

    return vectors(picture_ids), vectors(text_ids), picture_of_text, picture_ids, text_ids


def judge(image, text, picture_of_text, picture_ids=None, text_ids=None, **options):
    return retrieval(
        image, text, picture_of_text, picture_ids=picture_ids, text_ids=text_ids, **options
    )


@pytest.mark.parametrize("whole_numbers", [True, False], ids=["ties", "no ties"])
@pytest.mark.parametrize("seed", range(4))
def test_matches_the_definition(seed, whole_numbers):
    data = made_up_data(seed, whole_numbers=whole_numbers)
    result = judge(*data, resamples=20)
    for direction, ranks in zip(
        (result.text_to_image, result.image_to_text), ranks_oracle(*data), strict=True
    ):
        for k in CUTOFFS:
            assert direction.recall[k].value == pytest.approx(np.mean(ranks <= k))
        assert direction.median_rank.value == np.median(ranks)
        assert direction.queries == len(ranks)


def test_intervals_draw_distinct_pictures_with_all_their_captions():
    data = made_up_data(0, whole_numbers=False)
    picture_of_text, picture_ids = data[2], data[3]
    ranks = ranks_oracle(*data)[0]
    clusters = np.array([int(picture_ids[p].removeprefix("picture")) for p in picture_of_text])
    # number the clusters by first appearance, as the order of drawing does
    order = {name: i for i, name in enumerate(dict.fromkeys(picture_ids))}
    clusters = np.array([order[f"picture{c}"] for c in clusters])
    expected = bootstrap((ranks <= 5).astype(float), clusters, resamples=100, seed=4)
    result = judge(*data, resamples=100, seed=4)
    assert result.text_to_image.recall[5] == expected


def test_counts_are_of_distinct_pictures_and_texts():
    data = made_up_data(1, whole_numbers=False)
    result = judge(*data, resamples=20)
    assert result.pictures == result.text_to_image.candidates == len(set(data[3])) == 22
    assert result.texts == result.image_to_text.candidates == len(set(data[4]))
    assert result.captions == result.text_to_image.queries == len(data[4])
    assert result.image_to_text.queries == 21  # the picture without a caption is not asked


def test_a_hit_on_a_copy_counts():
    one, other = np.eye(2, dtype=np.float32)
    image, text = np.stack([one, one, other]), np.stack([one, one, other])
    apart = judge(image, text, np.arange(3))
    assert apart.text_to_image.recall[1].value == pytest.approx(1 / 3)  # copies tie against us
    merged = judge(image, text, np.arange(3), ["a", "a", "b"], ["t", "t", "u"])
    assert merged.text_to_image.recall[1].value == 1.0
    assert merged.image_to_text.recall[1].value == 1.0
    assert (merged.pictures, merged.texts, merged.captions) == (2, 2, 3)


def test_a_caption_shared_by_two_pictures_is_right_for_both():
    image = np.eye(3, dtype=np.float32)
    text = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    result = judge(image, text, np.arange(3), None, ["dog", "dog", "cat"])
    assert result.text_to_image.recall[1].value == 1.0
    assert result.text_to_image.chance[1] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    assert result.image_to_text.chance[1] == pytest.approx(1 / 2)
    # picture 0 is nothing like "dog": it scores 0, as does "cat", and ties count against us
    assert result.image_to_text.recall[1].value == pytest.approx(2 / 3)


def test_a_perfect_model_scores_everything_and_a_collapsed_one_nothing():
    perfect = np.eye(40, dtype=np.float32)
    picture_of_text = np.repeat(np.arange(40), 3)
    best = judge(perfect, perfect[picture_of_text], picture_of_text)
    collapsed = np.ones_like(perfect)
    worst = judge(collapsed, collapsed[picture_of_text], picture_of_text)
    for good, bad in (
        (best.text_to_image, worst.text_to_image),
        (best.image_to_text, worst.image_to_text),
    ):
        assert [good.recall[k].value for k in CUTOFFS] == [1.0, 1.0, 1.0]
        assert [bad.recall[k].value for k in CUTOFFS] == [0.0, 0.0, 0.0]
        assert good.median_rank.value == 1
    assert worst.text_to_image.median_rank.value == 40
    assert worst.image_to_text.median_rank.value == 118  # 3 of 120 captions are right


def test_a_model_that_guesses_scores_what_chance_says():
    random = np.random.default_rng(0)
    picture_of_text = np.repeat(np.arange(300), random.integers(1, 6, size=300))
    found = [
        judge(
            random.normal(size=(300, 16)),
            random.normal(size=(len(picture_of_text), 16)),
            picture_of_text,
            resamples=1,
        )
        for _ in range(5)
    ]
    for name in ("text_to_image", "image_to_text"):
        directions = [getattr(result, name) for result in found]
        for k in CUTOFFS:
            share = np.mean([direction.recall[k].value for direction in directions])
            chance = directions[0].chance[k]
            queries = 5 * 300
            assert abs(share - chance) < 4 * np.sqrt(chance / queries)


@pytest.mark.parametrize(("candidates", "k"), [(1, 1), (4, 1), (9, 5), (9, 10), (50, 10)])
def test_chance_matches_counting_the_orders(candidates, k):
    positives = np.arange(1, candidates + 1)
    looked = min(k, candidates)
    expected = np.mean(
        [1 - comb(candidates - p, looked) / comb(candidates, looked) for p in positives.tolist()]
    )
    assert chance_recall(positives, candidates, k) == pytest.approx(expected)


def test_one_pair_is_judged():
    one = np.ones((1, 4), dtype=np.float32)
    result = judge(one, one, np.array([0]))
    assert result.text_to_image.recall[1].value == result.text_to_image.chance[1] == 1.0


def test_result_is_json_and_repeats_with_its_seed():
    data = made_up_data(2, whole_numbers=False)
    first, again, other = (judge(*data, resamples=50, seed=seed) for seed in (1, 1, 2))
    written = first.to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written == again.to_dict()
    assert written != other.to_dict()
    assert set(written) == {
        *("text_to_image", "image_to_text", "chance"),
        *("pictures", "texts", "captions", "resamples", "seed"),
    }
    assert set(written["text_to_image"]["recall@1"]) == {"value", "low", "high"}
    assert set(written["chance"]["image_to_text"]) == {"recall@1", "recall@5", "recall@10"}


def test_summary_shows_both_directions_aligned():
    image = np.eye(12, dtype=np.float32)
    lines = judge(image, image, np.arange(12)).summary().splitlines()
    assert lines[0].startswith("12 pictures, 12 distinct captions, 12 caption queries")
    assert lines[2].split()[:5] == ["caption", "->", "picture", "100.0", "[73.5,"]
    assert lines[3].split() == ["by", "chance", "8.33", "41.7", "83.3"]
    assert lines[1].index("R@5") == lines[3].index("41.7")
    assert max(len(line) for line in lines) <= 110


@pytest.mark.parametrize(
    ("number", "text"),
    [(100.0, "100"), (99.96, "100"), (8.3333, "8.33"), (0.0, "0"), (1.2345e-7, "0.000000123")],
)
def test_a_share_is_written_without_an_exponent(number, text):
    assert plain(number) == text


def test_the_chance_of_few_candidates_is_100_percent():
    image = np.eye(5, dtype=np.float32)
    assert judge(image, image, np.arange(5)).summary().splitlines()[3].split()[-2:] == [
        *("100", "100"),
    ]


def test_arguments_that_do_not_fit_are_refused():
    two = np.eye(2, dtype=np.float32)
    with pytest.raises(
        DataError, match=r"text 1 belongs to picture 2, but there are 2\. Use .* to 1"
    ):
        judge(two, two, np.array([0, 2]))
    with pytest.raises(DataError, match="2 picture embeddings and 1 picture_ids"):
        judge(two, two, np.arange(2), ["a"])
    with pytest.raises(DataError, match="2 text embeddings and 3 text_ids"):
        judge(two, two, np.arange(2), None, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"2 pictures and 0 captions\. Give at least one pair"):
        judge(two, two[:0], np.arange(0))
    with pytest.raises(DataError, match="embedding 1 holds NaN"):
        judge(two * np.array([[1], [np.nan]], dtype=np.float32), two, np.arange(2))
