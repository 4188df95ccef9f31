"""What crosses layers: the batches that data makes, and the outputs that models give.

Models, losses and data do not know each other; they meet in these dataclasses.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ImageTextBatch:
    """Pictures and one text each, with the place of the batch in the order of training."""

    image: UInt8[Tensor, "batch height width 3"]
    """RGB, 0 to 255; row i belongs with row i of `text`."""

    text: Int64[Tensor, "batch length"]
    """Token ids, padded on the right."""

    groups: Int64[Tensor, " batch"]
    """Rows with the same number show the same picture or carry the same text:
    they are no negatives of each other."""

    position: int
    """Number of the batch since the start of the run; with the seed it names the batch."""

    bad: tuple[tuple[str, str], ...] = ()
    """(key, reason) of samples that could not be read and were replaced."""

    cut: int = 0
    """How many texts were longer than the context and lost their end."""


@dataclass(frozen=True)
class ContrastiveOutput:
    """What a dual encoder says of a batch."""

    image: Float[Tensor, "batch embed"]
    """Unit norm."""

    text: Float[Tensor, "batch embed"]
    """Unit norm."""

    scale: Float[Tensor, ""]
    """Positive multiplier of the cosine similarity (the inverse temperature)."""

    bias: Float[Tensor, ""] | None
    """Added to every logit; None for models trained with the softmax loss."""
