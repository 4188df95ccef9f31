"""What a library asks of a model. `diptych.load` gives one; anything with these names will do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8


@runtime_checkable  # beartype checks it in tests
class Embedder(Protocol):
    """Pictures and texts to unit vectors."""

    path: Path
    """Folder of the model, which the library remembers."""

    embed: int
    """Dimensions of the vectors."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes a vector."""
        ...

    def prepare(self, picture: Any) -> UInt8[np.ndarray, "size size 3"]:
        """What the model will see of a picture; called in several threads at a time.

        Raises:
            DataError: The picture cannot be read.
        """
        ...

    def encode_prepared(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures that went through `prepare`."""
        ...

    def encode_image(self, images: Iterable[Any]) -> Float[np.ndarray, "images embed"]:
        """Unit vectors of pictures."""
        ...

    def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, "texts embed"]:
        """Unit vectors of texts."""
        ...
