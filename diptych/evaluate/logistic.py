"""Multinomial logistic regression on fixed vectors, solved to convergence in fp64.

The loss is convex, so there is one answer, whatever the solver. `probe.py` judges with it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch.nn import functional as F

from diptych.errors import RequestError
from diptych.evaluate.metrics import retrieval_ranks

COARSE = tuple(10.0**power for power in range(-6, 7, 2))
"""Strengths tried first, as CLIP (arXiv:2103.00020, appendix A.3) does."""

FINEST = 0.125
"""Where the search ends, in powers of ten between neighbouring strengths: 8 a decade, as CLIP."""

TOLERANCE = 1e-11
"""A fit has converged when a step lowers the loss per picture by less than this, in nats."""

SEARCH_TOLERANCE = 1e-7
"""The same while strengths are compared: their accuracies differ by more than the loss is off."""

ITERATIONS = 5000
"""Of L-BFGS, at most."""


@dataclass(frozen=True)
class LinearClassifier:
    """The class of greatest weight[class] . vector + bias[class]."""

    weight: Float64[np.ndarray, "classes embed"]
    bias: Float64[np.ndarray, " classes"]
    converged: bool
    """Whether the loss stopped falling before the iterations ran out."""

    def logits(
        self, image: Float[np.ndarray, "pictures embed"]
    ) -> Float64[np.ndarray, "pictures classes"]:
        """Scores whose softmax over the classes is the probability."""
        return image.astype(np.float64) @ self.weight.T + self.bias

    def class_vectors(self) -> Float64[np.ndarray, "classes weights"]:
        """Weight and bias in one row, for pictures that went through `with_one`."""
        return np.concatenate([self.weight, self.bias[:, None]], axis=1)


def with_one(
    image: Float[np.ndarray, "pictures embed"],
) -> Float64[np.ndarray, "pictures embed+1"]:
    """The vectors with a last number 1, so that a product with weight and bias is a score."""
    return np.concatenate([image.astype(np.float64), np.ones((len(image), 1))], axis=1)


def fit_logistic(
    image: Float[np.ndarray, "pictures embed"],
    label: Int64[np.ndarray, " pictures"],
    classes: int,
    strength: float,
    *,
    start: LinearClassifier | None = None,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> LinearClassifier:
    """Minimise, over weight and bias,

        sum over pictures of -log softmax(weight @ image + bias)[label]
            + strength / 2 * (sum of all squared weights)

    The bias is not held down. `strength` is 1 / C of scikit-learn's LogisticRegression. Solved by
    L-BFGS with a line search that meets the strong Wolfe conditions.

    Args:
        image: One vector a row.
        label: Number of the class of each row, below `classes`.
        classes: How many there are; one without a picture has an ever smaller bias.
        strength: Above 0: without it, classes that can be told apart have no best weight.
        start: Where to begin; None begins at zero. Changes the time, not the answer.
        tolerance: See `TOLERANCE`.
        iterations: See `ITERATIONS`.

    Raises:
        RequestError: `strength` is not above 0.
    """
    if not strength > 0:
        raise RequestError(f"strength is {strength:g}. Use more than 0, such as 1.")
    held = strength / len(image)
    inputs, middle, axes = _rounded(image.astype(np.float64), classes, held)
    seen, target, turned = (torch.from_numpy(array) for array in (inputs, label, axes))
    first = np.zeros((classes, inputs.shape[1] + 1))
    if start is not None:
        first[:, :-1] = np.linalg.solve(axes, start.weight.T).T
        first[:, -1] = start.bias + start.weight @ middle
    both = torch.from_numpy(first).requires_grad_()
    solver = torch.optim.LBFGS(
        [both],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=0,
        tolerance_change=tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        """Loss per picture, with its derivatives."""
        solver.zero_grad()
        logits = seen @ both[:, :-1].T + both[:, -1]  # (pictures, classes)
        weight = both[:, :-1] @ turned.T
        value = F.cross_entropy(logits, target) + held / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    converged = solver.state[both]["n_iter"] < iterations
    found = both.detach().numpy()
    weight = found[:, :-1] @ axes.T
    return LinearClassifier(weight, found[:, -1] - weight @ middle, converged)


def _rounded(
    image: Float64[np.ndarray, "pictures embed"], classes: int, held: float
) -> tuple[
    Float64[np.ndarray, "pictures embed"],
    Float64[np.ndarray, " embed"],
    Float64[np.ndarray, "embed embed"],
]:
    """The vectors in coordinates in which the loss is about equally curved in all directions.

    Unit vectors of a model fill a narrow cone, and L-BFGS would need thousands of steps there. The
    answer is not touched: centring is made up for by the bias, and the penalty is taken of the
    weights in the old coordinates.

    Returns:
        (image - middle) @ axes, with `middle` and `axes`.
    """
    middle = image.mean(axis=0)
    spread, directions = np.linalg.eigh(np.cov(image.T, bias=True).reshape(2 * image.shape[1:]))
    curvature = np.maximum(spread, 0) / classes + held
    axes = directions / np.sqrt(np.maximum(curvature, 1e-12 * curvature.max()))
    return (image - middle) @ axes, middle, axes


@dataclass(frozen=True)
class StrengthSearch:
    """What each strength reached on the pictures kept for choosing."""

    chosen: float
    tried: dict[float, float]
    """Strength -> share of the validation pictures that are right."""


def choose_strength(
    image: Float[np.ndarray, "pictures embed"],
    label: Int64[np.ndarray, " pictures"],
    validation_image: Float[np.ndarray, "others embed"],
    validation_label: Int64[np.ndarray, " others"],
    classes: int,
) -> StrengthSearch:
    """The strength whose classifier is right most often on the validation pictures.

    First 1e-6, 1e-4, ... 1e6; then, around the best, at half the distance and half again, until
    neighbours are an eighth of a power of ten apart. Of equal ones the strongest is chosen.
    """
    fits: dict[float, LinearClassifier] = {}
    tried: dict[float, float] = {}

    def attempt(power: float) -> None:
        """Fit and judge one strength, beginning at the nearest that is done."""
        near = min(fits, key=lambda done: abs(done - power), default=None)
        start = None if near is None else fits[near]
        fits[power] = fit_logistic(
            image, label, classes, 10.0**power, start=start, tolerance=SEARCH_TOLERANCE
        )
        ranks = retrieval_ranks(
            with_one(validation_image),
            fits[power].class_vectors(),
            list(validation_label[:, None]),
        )
        tried[power] = float(np.mean(ranks == 1))

    def best() -> float:
        """The power of ten of the best so far."""
        return max(tried, key=lambda power: (tried[power], power))

    for strength in reversed(COARSE):  # the strongest converges fastest and helps the next
        attempt(float(np.log10(strength)))
    step = 1.0
    while step >= FINEST:
        middle = best()
        for power in (middle + step, middle - step):
            if power not in tried and -6 <= power <= 6:
                attempt(power)
        step /= 2
    return StrengthSearch(10.0 ** best(), {10.0**power: tried[power] for power in sorted(tried)})
