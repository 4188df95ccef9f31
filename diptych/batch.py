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

    changed: Float[Tensor, " batch"] | None = None
    """Logit of "something changed in the last picture"; None where the model does not ask it."""


@dataclass(frozen=True)
class ImagePairBatch:
    """Sequences of pictures, oldest first, and a text that says what the last one changed."""

    image: UInt8[Tensor, "batch images height width 3"]
    """RGB, 0 to 255; all sequences of a batch have the same number of pictures."""

    text: Int64[Tensor, "batch length"]
    """Token ids of the text of the change, padded on the right."""

    changed: Float[Tensor, " batch"]
    """1 where something changed, 0 where nothing did, NaN where nobody knows."""

    mask: UInt8[Tensor, "batch height width"] | None
    """Where the last picture changed, 1 inside; None if the source does not say it."""

    groups: Int64[Tensor, " batch"]
    """Rows with the same number show the same pictures or the same change:
    they are no negatives of each other."""

    position: int
    """Number of the batch since the start of the run; with the seed it names the batch."""

    bad: tuple[tuple[str, str], ...] = ()
    """(key, reason) of samples that could not be read and were replaced."""

    cut: int = 0
    """How many texts were longer than the context and lost their end."""


@dataclass(frozen=True)
class ChangeOutput:
    """What a change model says of a batch of sequences."""

    text: Float[Tensor, "batch length vocabulary"]
    """Logits of each token of the text, given the pictures and the tokens before it."""

    changed: Float[Tensor, " batch"]
    """Logit of "something changed in the last picture"."""

    place: Float[Tensor, "batch rows columns"]
    """Logit of "something changed here", for each patch of the last picture."""
