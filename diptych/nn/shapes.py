"""Models without numbers: to know their tensors, or to fill them with weights that were read.

`init.py` is how models start that are going to be trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RANDOM = ("normal_", "uniform_", "kaiming_uniform_", "erfinv_")
"""What torch's initialisations are made of, by name."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made in this block have no memory for numbers, and take none from torch's generator.

    `torch.device("meta")` alone would import torch's compiler to do nothing with such weights:
    1.1 s and 64 MB.
    """
    with torch.device("meta"), _Unstarted():
        yield


class _Unstarted(TorchFunctionMode):
    """Skips random initialisations."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if function.__name__ in RANDOM:
            return args[0] if args else named["tensor"]
        return function(*args, **named)
