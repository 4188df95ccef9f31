"""Position tables brought to another grid, as each library does it when it loads weights.

The three filters give different numbers, so a table must be resized the way of the library whose
numbers are to be met. Text positions have one axis: `resize_text_positions`.
"""

from math import isqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diptych.errors import CheckpointError

Method = Literal["open_clip", "transformers", "big_vision"]
"""`open_clip`: bicubic with antialiasing; timm's towers too. `transformers`: bicubic without.
`big_vision`: bilinear between corner points, which is scipy's `zoom` with order 1."""


def resize_positions(
    table: Float[Tensor, "old width"], grid: int, *, method: Method
) -> Float[Tensor, "new width"]:
    """The table for `grid` x `grid` patches; a leading class token keeps its position.

    Args:
        table: A square grid in reading order, with or without one position before it.
        grid: Patches along one side.
        method: Whose filter.

    Raises:
        CheckpointError: The table is no square grid.
    """
    old = isqrt(len(table))
    first = len(table) - old * old
    if first > 1 or old == 0:
        raise CheckpointError(
            f"a position table of {len(table)} rows is no square grid with at most one token "
            "before it, so it cannot be resized. Use the image size the weights were trained with."
        )
    if old == grid:
        return table
    square = table[first:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if method == "big_vision":
        square = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=True)
    else:
        square = F.interpolate(
            square,
            size=(grid, grid),
            mode="bicubic",
            align_corners=False,
            antialias=method == "open_clip",
        )
    rows = square.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(table.dtype)
    return torch.cat([table[:first], rows])


def resize_text_positions(
    table: Float[Tensor, "old width"], context: int
) -> Float[Tensor, "context width"]:
    """The table for texts of `context` tokens, as open_clip makes it: linear, no antialiasing."""
    if len(table) == context:
        return table
    line = F.interpolate(table.T[None], size=context, mode="linear", align_corners=False)
    return line[0].T.contiguous()
