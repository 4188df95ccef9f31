"""What a reader of another library's files gives: our shapes and names, the original's contract.

One reader per library (`open_clip.py`, `transformers.py`, `openai.py`, `big_vision.py`, and
`architectures.py` for bare weights), each a function from files to a `Foreign`; `opening.py` says
which reader a folder or file needs and makes a model of the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoderConfig


@dataclass(frozen=True)
class Foreign:
    """A model as another library saved it, in our words."""

    config: DualEncoderConfig
    """Its shape."""

    tensors: Mapping[str, Tensor]
    """Its weights under the names and in the layout of `DualEncoder`, float32."""

    tokenizer: Tokenizer
    """Gives the ids that the original library gives."""

    transform: ImageTransformConfig
    """Gives the pixels that the original library gives."""

    made_by: str
    """The library: "open_clip", "transformers", "openai" or "big_vision"."""

    notes: tuple[str, ...] = ()
    """What was completed, left out or is done otherwise than in the library; said to the user."""
