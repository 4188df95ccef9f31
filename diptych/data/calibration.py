"""What turns a cosine into the probability that a text is true of a picture.

`evaluate/calibration.py` fits and judges it and `diptych evaluate --task calibration` writes it
into its result file; `Model.is_true` reads it from there. It belongs to one model.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from diptych.config import Config
from diptych.errors import ConfigError, RequestError


class Calibration(Config):
    """probability = sigmoid(scale * cosine + bias)."""

    scale: float
    """Multiplier of the cosine; never below 0, so a higher cosine is never less likely true."""

    bias: float
    """Added to the scaled cosine."""

    false_per_true: int
    """False texts for each true one where it was fitted: the probability holds at this share.
    Where true texts are rarer or more frequent, add the difference in log odds to the bias."""

    model_fingerprint: str
    """The model it belongs to."""

    data_fingerprint: str
    """The source it was fitted on."""

    def probability(self, cosine: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Probability that the text is true of the picture, in 0 to 1."""
        return sigmoid(self.scale * cosine.astype(np.float64) + self.bias)


def sigmoid(logits: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """1 / (1 + exp(-logits)), without overflow."""
    power = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, power) / (1 + power)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a result file of `diptych evaluate --task calibration`.

    Raises:
        RequestError: There is no such file, or it holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(**values["metrics"]["calibration"])
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, KeyError, TypeError, ConfigError):
        reason = "it is no result of a calibration"
    raise RequestError(
        f"{path} holds no calibration: {reason}. "
        "Write one: diptych evaluate MODEL --task calibration --data SOURCE --out FILE."
    )
