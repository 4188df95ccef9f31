"""Painting of generated pairs: the picture before, the picture after and where it changed.

`change_scenes.py` says what a pair shows; `scenes_draw.py` paints the single objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diptych.data.change_scenes import ChangeScene, ChangeSet, Shot
from diptych.data.scenes import Thing
from diptych.data.scenes_draw import background, paint, paint_mask


@dataclass(frozen=True)
class DrawnPair:
    """Two pictures of one size."""

    before: Image.Image
    """RGB."""

    after: Image.Image
    """RGB."""

    mask: Image.Image
    """Mode L: 255 where an object of the picture after is new or an old one is gone from, as that
    picture shows the place; 0 elsewhere. Shadows, camera, light and noise do not count."""


def draw_pair(scene: ChangeScene, kind: ChangeSet, side: int | None = None) -> DrawnPair:
    """Paint a pair of the set `kind`; `side` is in pixels, None takes the set's own."""
    side = side or kind.side
    before, after = (
        _draw(things, scene.background, kind, side) for things in (scene.before, scene.after)
    )
    mask = Image.new("L", (side, side))
    for change in scene.changes:
        if change.before is not None:
            thing = scene.before[change.before]
            paint_mask(mask, thing, kind.radii[thing.size])
        if change.after is not None:
            thing = scene.after[change.after]
            paint_mask(mask, thing, kind.radii[thing.size])
    moved = _move(mask, scene.shot).point(lambda value: 255 if value > 127 else 0)
    return DrawnPair(before, _relight(_move(after, scene.shot), scene.shot), moved)


def _draw(things: Mapping[int, Thing], name: str, kind: ChangeSet, side: int) -> Image.Image:
    """Paint one of the two scenes."""
    picture = background(name, side)
    for thing in things.values():
        paint(picture, thing, kind.radii[thing.size])
    return picture


def _move(picture: Image.Image, shot: Shot) -> Image.Image:
    """The picture as the camera sees it: a little nearer, and to a side."""
    if shot.zoom == 1:
        return picture
    side = picture.width
    lost = side * (1 - 1 / shot.zoom)
    left, top = shot.left * lost, shot.top * lost
    box = (left, top, left + side - lost, top + side - lost)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)


def _relight(picture: Image.Image, shot: Shot) -> Image.Image:
    """The picture in another light, with noise."""
    values = np.asarray(picture) * np.array(shot.gains, dtype=np.float32)
    if shot.noise:
        random = np.random.Generator(np.random.PCG64(shot.seed))
        noise = random.random(values.shape, dtype=np.float32)
        values += (noise - 0.5) * np.float32(2 * 255 * shot.noise)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
