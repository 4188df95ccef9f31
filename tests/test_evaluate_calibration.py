"""True and false pairs, and probabilities: statistics against loops, fits against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from small import PICTURES, Constant, Listed, Perfect, listed

from diptych.data.calibration import Calibration, read_calibration, sigmoid
from diptych.errors import DataError, RequestError
from diptych.evaluate.calibration import fit_logistic_of_cosine, judge_calibration
from diptych.evaluate.judge import Settings
from diptych.evaluate.metrics import TIE
from diptych.evaluate.pairs import (
    BINS,
    Pairs,
    area_under_curve,
    average_precision,
    balanced_accuracy_at,
    best_balanced_threshold,
    brier_score,
    calibration_error,
    draw_pairs,
    interval,
    precision_at,
    precision_threshold,
    recall_at,
    reliability,
)


@pytest.fixture
def pairs():
    """Twelve pictures with different numbers of pairs, and many equal cosines."""
    random = np.random.default_rng(4)
    picture = np.sort(np.append(np.arange(12), random.integers(12, size=68)))
    true = random.random(80) < 0.3
    cosine = np.round(random.normal(size=80) * 0.2 + 0.2 * true, 1)
    return Pairs(cosine, true, picture)


def auc_oracle(cosine, true):
    """The share of (true, false) in which the true one is above by more than a tie."""
    above = [c > d + TIE for c in cosine[true] for d in cosine[~true]]
    return np.mean(above)


def precision_oracle(cosine, true):
    """Precision at each true pair, with false ones of equal cosine before it."""
    return np.mean([true[cosine >= c].sum() / (cosine >= c).sum() for c in cosine[true]])


def error_oracle(probability, true):
    """Expected calibration error, a bin at a time."""
    total = 0.0
    for number in range(BINS):
        inside = [p > number / BINS and p <= (number + 1) / BINS for p in probability]
        if any(inside):
            total += sum(inside) * abs(np.mean(probability[inside]) - np.mean(true[inside]))
    return total / len(true)


def statistics(pairs):
    """Each statistic as (ours, by the definition over rows)."""
    chance = np.random.default_rng(0).random(len(pairs.cosine))

    def balanced(rows):
        said, so = pairs.cosine[rows] >= 0.1, pairs.true[rows]
        return (said[so].mean() + (~said[~so]).mean()) / 2

    return {
        "auc": (area_under_curve(pairs), lambda r: auc_oracle(pairs.cosine[r], pairs.true[r])),
        "average precision": (
            average_precision(pairs),
            lambda r: precision_oracle(pairs.cosine[r], pairs.true[r]),
        ),
        "brier": (
            brier_score(pairs, chance),
            lambda r: np.mean([(chance[row] - pairs.true[row]) ** 2 for row in r]),
        ),
        "precision": (
            precision_at(pairs, 0.1),
            lambda r: pairs.true[r][pairs.cosine[r] >= 0.1].mean(),
        ),
        "recall": (recall_at(pairs, 0.1), lambda r: (pairs.cosine[r][pairs.true[r]] >= 0.1).mean()),
        "balanced": (balanced_accuracy_at(pairs, 0.1), balanced),
    }


NAMES = ("auc", "average precision", "brier", "precision", "recall", "balanced")


@pytest.mark.parametrize("name", NAMES)
def test_statistics_and_their_intervals_are_those_of_the_definition(pairs, name):
    ours, definition = statistics(pairs)[name]
    found = interval(pairs, ours, resamples=100, seed=5)
    assert found.value == pytest.approx(definition(np.arange(80)))
    random, noted = np.random.default_rng(5), []
    for _ in range(100):
        drawn = random.integers(12, size=12)
        noted.append(
            definition(np.concatenate([np.flatnonzero(pairs.picture == p) for p in drawn]))
        )
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(noted, [2.5, 97.5])))


def test_without_ties_area_and_precision_are_those_of_scikit_learn(pairs):
    cosine = pairs.cosine + np.random.default_rng(0).normal(size=80) * 0.01
    apart = Pairs(cosine, pairs.true, pairs.picture)
    once = np.ones((1, 12), np.int64)
    assert area_under_curve(apart)(once)[0] == pytest.approx(roc_auc_score(apart.true, cosine))
    theirs = average_precision_score(apart.true, cosine)
    assert average_precision(apart)(once)[0] == pytest.approx(theirs)


def test_calibration_error_by_hand():
    pairs = Pairs(np.zeros(5), np.array([1, 0, 0, 1, 1], bool), np.arange(5))
    probability = np.array([0.30, 0.32, 0.0, 1.0, 0.99])  # bins 4, 4, 0, 14, 14
    by_hand = (abs(0.62 - 1) + abs(0.0 - 0) + abs(1.99 - 2)) / 5
    assert calibration_error(pairs, probability).value == pytest.approx(by_hand)
    table = reliability(pairs, probability)
    assert [(round(one.low * BINS), one.pairs) for one in table] == [(0, 1), (4, 2), (14, 2)]
    assert (table[1].said, table[1].true) == (pytest.approx(0.31), 0.5)


def test_the_calibration_error_and_its_chance_are_those_of_the_definition(pairs):
    said = np.random.default_rng(0).random(80)
    found = calibration_error(pairs, said, draws=50, seed=5)
    assert found.value == pytest.approx(error_oracle(said, pairs.true))
    random = np.random.default_rng(5)
    noted = [error_oracle(said, random.random(80) < said) for _ in range(50)]
    assert found.by_chance.mean == pytest.approx(np.mean(noted))
    assert found.by_chance.high == pytest.approx(np.percentile(noted, 97.5))
    assert found == calibration_error(pairs, said, draws=50, seed=5)
    assert found != calibration_error(pairs, said, draws=50, seed=6)


def test_perfect_probabilities_seldom_exceed_what_chance_allows_and_wrong_ones_do():
    random = np.random.default_rng(3)
    inside, values, means = 0, [], []
    for seed in range(40):
        said = random.beta(0.5, 3, size=500)
        drawn = Pairs(np.zeros(500), random.random(500) < said, np.arange(500) // 10)
        found = calibration_error(drawn, said, draws=100, seed=seed)
        values.append(found.value)
        means.append(found.by_chance.mean)
        inside += found.value <= found.by_chance.high
        wrong = calibration_error(drawn, np.sqrt(said), draws=100, seed=seed)
        assert wrong.value > wrong.by_chance.high
    assert inside >= 36
    assert np.mean(values) == pytest.approx(np.mean(means), rel=0.1)
    assert np.mean(means) > 0.015  # far from 0, although every probability is right


def test_a_share_of_none_or_all_has_the_exact_interval():
    pairs = Pairs(
        np.array([0.9, 0.1, 0.8, 0.2]), np.array([1, 0, 1, 0], bool), np.array([0, 0, 1, 1])
    )
    assert interval(pairs, area_under_curve(pairs)).low == pytest.approx(0.025**0.5)
    nothing = interval(pairs, precision_at(pairs, 2.0), trials=0)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 1)


def test_the_threshold_of_best_balance_is_better_than_any_other(pairs):
    def accuracy(threshold):
        said = pairs.cosine >= threshold
        return said[pairs.true].mean() + (~said)[~pairs.true].mean()

    found = best_balanced_threshold(pairs)
    assert accuracy(found) == pytest.approx(max(accuracy(t) for t in np.linspace(-2, 2, 4001)))
    assert abs(found - pairs.cosine).min() > 0.04  # midway between two cosines


@pytest.mark.parametrize("wanted", [0.3, 0.4, 0.5])
def test_the_threshold_for_a_precision_is_the_lowest_that_has_it(pairs, wanted):
    possible = [
        threshold
        for threshold in np.linspace(-2, 2, 401) + 0.005
        if (pairs.cosine >= threshold).sum() >= 10
        and pairs.true[pairs.cosine >= threshold].mean() >= wanted
    ]
    found = precision_threshold(pairs, wanted)
    accepted = pairs.cosine >= found
    assert accepted.sum() == max((pairs.cosine >= threshold).sum() for threshold in possible)
    assert pairs.true[accepted].mean() >= wanted


def test_a_precision_that_is_not_reached_has_no_threshold(pairs):
    assert precision_threshold(pairs, 0.99) is None


def test_false_texts_are_none_of_the_pictures_own_and_as_frequent_as_in_the_data():
    text = np.eye(4, dtype=np.float32)
    texts_of = [np.array([0, 1]), np.array([0]), np.array([0]), np.array([2]), np.array([3])]
    image = np.arange(5)[:, None] * 10 + np.arange(4)[None].astype(np.float32)  # 10 picture + text
    found = draw_pairs(image, text, texts_of, 500, np.random.default_rng(0))
    assert found.picture.tolist() == sorted(found.picture.tolist())
    pair = np.round(found.cosine).astype(int)
    for row, own in enumerate(texts_of):
        mine = found.picture == row
        assert (pair[mine] // 10 == row).all()
        assert sorted(pair[mine & found.true] % 10) == own.tolist()
        false = pair[mine & ~found.true] % 10
        assert len(false) == 500 * len(own)
        assert not set(false.tolist()) & set(own.tolist())
    false = pair[(found.picture == 4) & ~found.true] % 10
    assert (false == 0).mean() == pytest.approx(3 / 5, abs=0.07)  # three of the five other captions


def test_captions_that_are_all_alike_have_no_false_pairs():
    with pytest.raises(DataError, match="0 of 3 pictures have a text that is false of them"):
        draw_pairs(np.eye(3), np.eye(3)[:1], [np.array([0])] * 3, 9, np.random.default_rng(0))


@pytest.mark.filterwarnings("ignore::UserWarning")  # its line search may stop at the last digit
def test_the_fit_is_platts_as_scikit_learn_solves_it(pairs):
    count = pairs.true.sum()
    target = np.where(pairs.true, (count + 1) / (count + 2), 1 / (80 - count + 2))
    both, said = np.tile(pairs.cosine, 2)[:, None], np.repeat([1, 0], 80)
    theirs = LogisticRegression(C=1e12, tol=1e-10, solver="newton-cholesky")
    theirs.fit(both, said, sample_weight=np.append(target, 1 - target))
    scale, bias = fit_logistic_of_cosine(pairs.cosine, pairs.true)
    assert scale == pytest.approx(theirs.coef_[0, 0], rel=1e-5)
    assert bias == pytest.approx(theirs.intercept_[0], rel=1e-5)


def test_cosines_that_tell_everything_or_nothing_have_a_finite_fit():
    true = np.arange(40) % 4 == 0
    scale, bias = fit_logistic_of_cosine(np.where(true, 0.9, 0.1), true)
    assert sigmoid(np.array([0.9 * scale + bias]))[0] == pytest.approx(11 / 12)
    assert sigmoid(np.array([0.1 * scale + bias]))[0] == pytest.approx(1 / 32)
    share = (10 * 11 / 12 + 30 / 32) / 40
    for useless in (np.full(40, 0.3), np.where(true, 0.1, 0.9)):
        scale, bias = fit_logistic_of_cosine(useless, true)
        assert (scale, sigmoid(np.array([bias]))[0]) == (0, pytest.approx(share))


class Sure(Perfect):
    """A model that has a probability of its own."""

    scale, bias = 4.0, -2.0


def test_a_perfect_model_tells_all_pairs_and_the_result_is_plain_json():
    judged = judge_calibration(Sure(PICTURES), listed(), Settings(resamples=100))
    result = judged.result
    assert result.auc.value == result.average_precision.value == 1
    assert result.balanced.balanced_accuracy.value == result.balanced.recall.value == 1
    assert result.precise.precision.value == 1
    assert (result.fitted_pictures, result.judged_pictures) == (12, 12)
    assert result.judged_pairs == 12 * 2 * 10
    own = np.array([1 / (1 + np.exp(-2))] * 24 + [1 / (1 + np.exp(2))] * 216)
    true = np.arange(240) < 24
    assert result.as_trained.brier_score.value == pytest.approx(np.mean((own - true) ** 2))
    values = result.to_dict()
    assert values == json.loads(json.dumps(values))
    assert values["calibration"]["model_fingerprint"] == "perfect"
    assert "calibrated probability = sigmoid(" in result.summary()
    chance = values["calibrated"]["calibration_error"]["by_chance"]
    shown = f"a perfect one shows {chance['mean']:.3f}, up to {chance['high']:.3f}"
    assert shown in result.summary()


def test_a_softmax_model_has_no_probability_of_its_own():
    result = judge_calibration(Constant(), listed(), Settings(resamples=100)).result
    assert result.as_trained is None
    assert result.auc.value == 0  # ties count against the model
    assert result.calibration.scale == 0
    assert result.precise is None
    assert "none (softmax)" in result.summary()
    assert "no cosine reaches it on 10 pairs or more" in result.summary()


def test_identical_pictures_are_one_and_their_captions_true_of_it():
    samples = [(PICTURES[n], (f"this is {n}",)) for n in range(12)]
    samples += [(PICTURES[n].copy(), (f"copy of {n}",)) for n in range(12)]
    result = judge_calibration(Perfect(PICTURES), Listed(samples), Settings(resamples=100)).result
    assert result.fitted_pictures + result.judged_pictures == 12
    assert result.judged_pairs == 6 * 2 * 10
    assert result.auc.value == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": 1.0}, "precision is 1. Use a share between 0 and 1, such as 0.9"),
        ({"false_per_true": 0}, "false_per_true is 0. Use 1 or more, such as 9"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RequestError, match=words):
        judge_calibration(Constant(), listed(), Settings(**settings))


def test_sources_that_cannot_be_calibrated_on_are_refused():
    with pytest.raises(DataError, match=r"has 3 distinct pictures. Calibration needs 4"):
        judge_calibration(Constant(), listed(3), Settings())
    alike = Listed([(picture, ("this is 1",)) for picture in PICTURES])
    with pytest.raises(DataError, match=r"captions are all alike. Use a source with different"):
        judge_calibration(Constant(), alike, Settings())

    class Broken(Constant):
        def encode_text(self, texts):
            return super().encode_text(texts) * np.float32("nan")

    with pytest.raises(DataError, match="text embedding 0 holds NaN or infinity"):
        judge_calibration(Broken(), listed(), Settings())


def test_probabilities_do_not_overflow():
    found = sigmoid(np.array([-1e4, 0.0, 1e4]))
    np.testing.assert_array_equal(found, [0, 0.5, 1])


def test_a_calibration_is_read_back_and_anything_else_is_refused(tmp_path):
    path = tmp_path / "result.json"
    calibration = Calibration(
        scale=2.5, bias=-1.0, false_per_true=9, model_fingerprint="m", data_fingerprint="d"
    )
    path.write_text(json.dumps({"metrics": {"calibration": calibration.model_dump()}}))
    assert read_calibration(path) == calibration
    for text in ("{", "[]", '{"metrics": {}}', '{"metrics": {"calibration": {"scale": 1}}}'):
        path.write_text(text)
        with pytest.raises(
            RequestError, match=r"it is no result of a calibration\. Write one: dip"
        ):
            read_calibration(path)
    with pytest.raises(RequestError, match="No such file"):
        read_calibration(tmp_path / "nowhere.json")
