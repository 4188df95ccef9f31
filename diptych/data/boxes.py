"""Masks of what changed in a picture: of the boxes that a table gives, and at a model's size.

`table.py` finds the column; the other sources of pairs give masks themselves.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from diptych.data.columns import element
from diptych.data.pictures import to_rgb
from diptych.errors import DataError

BOXES = "boxes"
"""The column: a list of [left, top, right, bottom] per row, in pixels of the picture."""


def holds_boxes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of lists of numbers."""
    box = element(kind)
    edge = element(box)
    return box != kind and edge != box and (pa.types.is_integer(edge) or pa.types.is_floating(edge))


def mask_of(
    boxes: Sequence[Sequence[int | float | None] | None],
    picture: bytes | Path | Image.Image,
    key: str,
) -> Image.Image:
    """White inside the boxes, black elsewhere: mode L, of the size of the picture.

    Args:
        boxes: [left, top, right, bottom] each; right and bottom are the first pixel outside.
        picture: What the boxes are about.
        key: Names the sample in errors.

    Raises:
        DataError: The picture cannot be read, a box has not four numbers in this order, or it
            covers no pixel of the picture.
    """
    width, height = to_rgb(picture, key=key).size
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        edges = [math.nan if edge is None else edge for edge in box or ()]
        if len(edges) != 4 or not (0 <= edges[0] < edges[2] and 0 <= edges[1] < edges[3]):
            raise DataError(
                f"a box of {key} is {box}. Write [left, top, right, bottom] in pixels, such "
                "as [0, 0, 16, 16]."
            )
        left, top = round(min(edges[0], width)), round(min(edges[1], height))
        right, bottom = round(min(edges[2], width)), round(min(edges[3], height))
        shares = max(edges) <= 1 and any(edge % 1 for edge in edges)
        if shares or left == right or top == bottom:
            raise DataError(
                f"a box of {key} is {box}, which covers no pixel of its picture of {width} x "
                f"{height}. Write pixels, not shares, such as [0, 0, {width}, {height}]."
            )
        mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def marked(level: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Which pixels are inside, of a mask that was resized and has greys now.

    Those that are at least half white. And of a spot that is fainter, since it is smaller than a
    pixel of the model, those that are as white as any pixel around them: a change is never lost.

    Args:
        level: 255 inside, 0 outside.
    """
    whitest_near = np.asarray(Image.fromarray(level).filter(ImageFilter.MaxFilter(3)))
    return (level >= 128) | ((level > 0) & (level == whitest_near))
