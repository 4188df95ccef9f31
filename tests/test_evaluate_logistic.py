"""Logistic regression against scikit-learn and against what can be worked out by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from diptych.errors import RequestError
from diptych.evaluate.logistic import choose_strength, fit_logistic, with_one


def softmax(logits):
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


@pytest.fixture(params=[2, 5])
def cone(request):
    """Unit vectors in a narrow cone, as a model's are, of 2 or 5 classes."""
    random = np.random.default_rng(0)
    classes = request.param
    label = random.integers(classes, size=150)
    image = random.normal(size=(150, 6)) * np.logspace(0, -1, 6)
    image += 0.5 * random.normal(size=(classes, 6))[label]
    image[:, 0] += 5
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    return image.astype(np.float32), label, classes


@pytest.mark.filterwarnings("ignore::UserWarning")  # its line search may stop at the last digit
@pytest.mark.parametrize("strength", [100.0, 1.0, 0.01])
def test_agrees_with_scikit_learn(cone, strength):
    image, label, classes = cone
    found = fit_logistic(image, label, classes, strength, tolerance=1e-15)
    theirs = LogisticRegression(C=1 / strength, solver="newton-cg", tol=1e-10, max_iter=2000)
    if classes == 2:  # there it fits one logit, which is the difference of ours
        theirs.set_params(C=2 / strength)
        theirs.fit(image.astype(np.float64), label)
        weight, bias = found.weight[1] - found.weight[0], found.bias[1] - found.bias[0]
        np.testing.assert_allclose(weight, theirs.coef_[0], rtol=1e-3, atol=1e-4)
        assert bias == pytest.approx(theirs.intercept_[0], rel=1e-3, abs=1e-4)
    else:
        theirs.fit(image.astype(np.float64), label)
        np.testing.assert_allclose(found.weight, theirs.coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        softmax(found.logits(image)), theirs.predict_proba(image.astype(np.float64)), atol=1e-5
    )
    assert found.converged


def test_two_opposite_points_by_hand():
    image, label = np.array([[1.0], [-1.0]]), np.array([0, 1])
    found = fit_logistic(image, label, 2, 0.5)
    low, high = 0.0, 10.0  # weights w and -w: 2 log(1 + exp(-2 w)) + 0.5 w * w is least
    for _ in range(60):
        middle = (low + high) / 2
        slope = -4 / (1 + np.exp(2 * middle)) + 2 * 0.5 * middle
        low, high = (middle, high) if slope < 0 else (low, middle)
    np.testing.assert_allclose(found.weight[:, 0], [low, -low], atol=1e-5)
    np.testing.assert_allclose(found.bias, [0, 0], atol=1e-5)


def test_held_down_hard_it_says_the_shares_of_the_classes(cone):
    image, label, classes = cone
    found = fit_logistic(image, label, classes, 1e9)
    shares = np.bincount(label, minlength=classes) / len(label)
    np.testing.assert_allclose(softmax(found.logits(image)), np.tile(shares, (150, 1)), atol=1e-5)


def test_where_it_begins_changes_nothing(cone):
    image, label, classes = cone
    cold = fit_logistic(image, label, classes, 0.1)
    start = fit_logistic(image, label, classes, 10.0)
    warm = fit_logistic(image, label, classes, 0.1, start=start)
    np.testing.assert_allclose(warm.logits(image), cold.logits(image), atol=1e-2)
    again = fit_logistic(image, label, classes, 0.1, start=cold, iterations=1)
    np.testing.assert_allclose(again.logits(image), cold.logits(image), atol=1e-2)


def test_a_fit_that_ran_out_of_iterations_says_so(cone):
    image, label, classes = cone
    assert not fit_logistic(image, label, classes, 0.01, iterations=2).converged


def test_a_direction_in_which_nothing_varies_gets_no_weight():
    random = np.random.default_rng(0)
    image = np.stack([random.normal(size=40), np.full(40, 0.7)], axis=1)
    label = (image[:, 0] + random.normal(size=40) > 0).astype(np.int64)
    found = fit_logistic(image, label, 2, 1.0)
    assert found.converged
    np.testing.assert_allclose(found.weight[:, 1], 0, atol=1e-6)


def test_rows_with_a_one_times_class_vectors_are_the_logits(cone):
    image, label, classes = cone
    found = fit_logistic(image, label, classes, 1.0)
    np.testing.assert_allclose(with_one(image) @ found.class_vectors().T, found.logits(image))


@pytest.mark.parametrize("cone", [2], indirect=True)
def test_the_chosen_strength_is_the_best_of_those_tried_and_the_strongest_of_equals(cone):
    image, label, classes = cone
    search = choose_strength(image[:100], label[:100], image[100:], label[100:], classes)
    best = max(search.tried.values())
    assert search.chosen == max(s for s, share in search.tried.items() if share == best)
    for strength in (1.0, 100.0):
        fitted = fit_logistic(image[:100], label[:100], classes, strength)
        right = (fitted.logits(image[100:]).argmax(axis=1) == label[100:]).mean()
        assert search.tried[strength] == pytest.approx(right, abs=0.021)  # one picture
    powers = np.log10(sorted(search.tried))
    assert {-6, -4, -2, 0, 2, 4, 6} <= set(np.round(powers, 9))
    near = np.abs(powers - np.log10(search.chosen))
    assert sorted(near)[1] == pytest.approx(0.125)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_no_strength_is_refused(strength):
    with pytest.raises(RequestError, match=r"strength is .* Use more than 0, such as 1"):
        fit_logistic(np.eye(2), np.array([0, 1]), 2, strength)
