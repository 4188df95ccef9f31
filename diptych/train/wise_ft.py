"""Between the weights before and after fine-tuning: what keeps the old and has the new.

    weights(alpha) = (1 - alpha) * before + alpha * after        for every tensor, scale included

Models on this line are often better than either end on what was learned, and lose far less of what
the start could do. Which alpha to take is chosen on held-out data by `choose_alpha`; who judges the
models is the caller's (`recipes/before_after.py`), since judging is another part.
Paper: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), arXiv:2109.01903.
"""

import copy
from collections.abc import Mapping, Sequence

import torch

from diptych.models.dual_encoder import DualEncoder

ALPHAS = tuple(step / 10 for step in range(11))
"""Places on the line that are tried."""

MIDDLE = 0.5
"""Where nothing is held out to choose by: what the paper recommends then."""


@torch.no_grad()
def between(before: DualEncoder, after: DualEncoder, alpha: float) -> DualEncoder:
    """A model at `alpha` on the line from `before` (0) to `after` (1); its settings are those of
    `after`.

    The ends are those models to the bit. Whole numbers (counts of batch norms) are those of `after`
    unless alpha is 0.
    """
    model = copy.deepcopy(after)
    start = before.state_dict()
    for name, tensor in model.state_dict().items():
        if alpha == 0:
            tensor.copy_(start[name])
        elif tensor.is_floating_point() and alpha < 1:
            tensor.copy_(torch.lerp(start[name].to(tensor.device), tensor, alpha))
    return model


def choose_alpha(recalls: Mapping[float, Sequence[float]], most_lost: float) -> float:
    """The largest alpha at which no direction of the old task has lost more than `most_lost`.

    Args:
        recalls: alpha -> recalls on the old task, one per direction, in [0, 1]; with 0, the start.
        most_lost: In [0, 1].
    """
    enough = [recall - most_lost - 1e-9 for recall in recalls[0.0]]  # shares: no rounding decides
    return max(
        alpha
        for alpha, found in recalls.items()
        if all(recall >= least for recall, least in zip(found, enough, strict=True))
    )
