"""A change for the eye: the two pictures side by side, and the second with the map over it.

One row for each change, a title over each panel, and below them what `change_words.py` says of it.
`compare.py` makes the changes.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from diptych.data.pictures import to_rgb
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.files import whole_file
from diptych.predict.change import Change
from diptych.predict.change_words import headline, scored
from diptych.predict.model import Picture

SIDE = 384
"""Side of a panel, in pixels."""

MARGIN, LINE = 20, 26
"""Around and between the panels, and the height of a line of text, in pixels."""

GROUND, INK, MUTED = (255, 255, 255), (22, 26, 34), (92, 101, 115)
WEAK, STRONG = (255, 196, 0), (214, 24, 24)
"""Colours of the map, over the picture: from amber at 0 to red at 1, in every map."""

FADED = 0.3
"""How much of its density the colour keeps where the model says that nothing changed."""

OUTLINED, LEAST_OUTLINED = 0.75, 0.2
"""A line goes around what has at least this share of the heat of the hottest place, unless that is
colder than the second number."""


def draw_changes(
    pictures: Sequence[Picture],
    names: Sequence[str],
    changes: Sequence[Change],
    transform: ImageTransformConfig,
    notes: Sequence[str] = (),
    *,
    seen_side: int | None = None,
) -> Image.Image:
    """One row for each change: before, after, and after with what changed.

    Args:
        pictures: In a row, oldest first.
        names: What each is called.
        changes: What each picture but the first changed.
        transform: Of the model: the part of a picture that it is given is shown.
        notes: Written below, one a line.
        seen_side: Of the model: the part of that, in its pixels, over which its maps lie; None
            is all of it.

    Raises:
        DataError: A picture cannot be read.
    """
    seen = [_seen(picture, transform) for picture in pictures]
    side = SIDE if seen_side is None else round(SIDE * seen_side / transform.image_size)
    rows = [
        _row(seen[place], seen[place + 1], names[place], names[place + 1], change, side)
        for place, change in enumerate(changes)
    ]
    width, top = rows[0].width, sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, top + LINE * len(notes) + (MARGIN if notes else 0)), GROUND)
    draw = ImageDraw.Draw(sheet)
    for line, note in enumerate(notes):
        at = (MARGIN, top + LINE * line)
        draw.text(at, _fitting(note, 13, width - 2 * MARGIN), STRONG, _font(13))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a whole PNG file, or nothing.

    Raises:
        StorageError: The disk refused.
    """
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _seen(picture: Picture, transform: ImageTransformConfig) -> Image.Image:
    """The part of a picture that the model sees, at the size of a panel."""
    square = transform.model_copy(update={"image_size": SIDE})
    return Image.fromarray(evaluation_transform(to_rgb(picture), square))


def _row(
    before: Image.Image,
    after: Image.Image,
    before_name: str,
    after_name: str,
    change: Change,
    side: int,
) -> Image.Image:
    """Three panels, their titles, and what is said of the change."""
    width, height = 3 * SIDE + 4 * MARGIN, SIDE + 2 * MARGIN + 3 * LINE
    row = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(row)
    panels = (
        (before, f"before: {before_name}"),
        (after, f"after: {after_name}"),
        (with_map(after, change, side), "what changed"),
    )
    for place, (panel, title) in enumerate(panels):
        left = MARGIN + place * (SIDE + MARGIN)
        draw.text((left, MARGIN), _fitting(title, 15, SIDE), MUTED, _font(15))
        row.paste(panel, (left, MARGIN + LINE))
        draw.rectangle(
            (left - 1, MARGIN + LINE - 1, left + SIDE, MARGIN + LINE + SIDE), None, MUTED
        )
    below = MARGIN + LINE + SIDE + 10
    said = _fitting(headline(change), 19, width - 2 * MARGIN)
    draw.text((MARGIN, below), said, INK, _font(19))
    draw.text((MARGIN, below + LINE), scored(change), MUTED, _font(15))
    return row


def with_map(picture: Image.Image, change: Change, side: int = SIDE) -> Image.Image:
    """The picture, paler, with a colour where it changed: the more, the redder and the denser.

    The colour is the same for the same number in every map. A line, dark between light ones, goes
    around the hottest place (`OUTLINED`). Where the model says that nothing changed, the colour is
    faint and there is no line.

    Args:
        picture: Of the size of a panel.
        change: Its map is drawn.
        side: Of the part that the map lies over, from the upper left corner, in pixels.
    """
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[:side, :side] = _enlarged(change.heatmap, side)
    same = change.score_is == "probability" and change.score < 0.5
    strength = heat[:, :, None]  # (SIDE, SIDE, 1)
    pixels = np.asarray(picture, np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pale = 255 - 0.75 * (255 - (0.35 * pixels + 0.65 * grey))
    colour = (1 - strength) * np.array(WEAK) + strength * np.array(STRONG)
    density = 0.65 * np.clip(1.6 * strength - 0.2, 0, 1) * (FADED if same else 1)
    shown = (1 - density) * pale + density * colour
    if not same and change.heatmap.max() >= LEAST_OUTLINED:
        inside = Image.fromarray(heat >= OUTLINED * heat.max()).convert("L")
        shown[_around(inside, 5)] = GROUND
        shown[_around(inside, 3)] = INK
    return Image.fromarray(np.rint(shown).astype(np.uint8))


def _around(inside: Image.Image, width: int) -> Bool[np.ndarray, "side side"]:
    """A line of `width` - 1 pixels along the edge of what is white; none along the panel's."""
    grown, shrunk = (
        np.asarray(inside.filter(kind(width)))
        for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    return grown > shrunk


def _enlarged(
    heatmap: Float[np.ndarray, "rows columns"], side: int
) -> Float[np.ndarray, "side side"]:
    """A map of this many pixels along each side, smooth, in 0 to 1."""
    image = Image.fromarray(heatmap.astype(np.float32), mode=None)
    large = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large), 0, 1)


def _fitting(text: str, size: int, width: int) -> str:
    """The text, its end cut off where it is wider than `width` pixels."""
    line = " ".join(text.split())
    if _font(size).getlength(line) <= width:
        return line
    while line and _font(size).getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: it has the letters of most languages."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
