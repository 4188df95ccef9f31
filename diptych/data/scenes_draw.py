"""Painting of generated scenes: flat shapes with a soft shadow on a quiet background.

A thing is painted by pasting a few colours through grey masks. Masks and backgrounds are made
once, much larger than needed, and scaled down, so edges are smooth and a scene costs little.

`scenes.py` says what a scene shows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from diptych.data.scenes import BACKGROUNDS, COLOURS, SIZES, Rgb, Scene, Thing

FINER = 6
"""How many times larger than needed masks and backgrounds are made."""

RIM, SHADOW_FALL, SHADOW_BLUR = 0.005, 0.018, 0.012
"""Width of the dark rim, and how far the shadow falls and spreads, as shares of the side."""

INK: Rgb = (24, 26, 44)
WHITE: Rgb = (255, 255, 255)
DEEPER: dict[str, Rgb] = {"yellow": (236, 158, 30), "white": (178, 192, 222)}
"""Second colours of those that cannot be made much lighter."""
PEARL: Rgb = (214, 222, 238)
"""White that can still shine."""

Point = tuple[float, float]
Polygon = list[Point]


@dataclass(frozen=True)
class Layers:
    """Masks of one thing, all of one size, from the bottom up."""

    shadow: Image.Image
    body: Image.Image
    rim: Image.Image
    pattern: Image.Image | None
    """Where the second colour goes."""

    shine: Image.Image | None
    """Where white goes."""


def draw_scene(scene: Scene, side: int = 96) -> Image.Image:
    """Paint a scene as an RGB picture of `side` by `side` pixels."""
    picture = background(scene.background, side)
    for thing in reversed(scene.things):  # the outer of two comes last, and lies below
        paint(picture, thing, SIZES[thing.size])
    return picture


def background(name: str, side: int) -> Image.Image:
    """A background of `side` by `side` pixels, to paint on."""
    return _background(name, side).copy()


def paint(picture: Image.Image, thing: Thing, radius: float) -> None:
    """Paint a thing onto a square picture; `radius` as in `scenes.SIZES`."""
    layers, box = _placed(thing, radius, picture.width)
    colour = COLOURS[thing.colour]
    if thing.colour == "white" and thing.material == "shiny":
        colour = PEARL
    picture.paste(INK, box, layers.shadow)
    picture.paste(colour, box, layers.body)
    if layers.pattern:
        picture.paste(second_colour(thing.colour), box, layers.pattern)
    if layers.shine:
        picture.paste(WHITE, box, layers.shine)
    picture.paste(mix(colour, INK, 0.45), box, layers.rim)


def paint_mask(mask: Image.Image, thing: Thing, radius: float) -> None:
    """Paint white onto a grey picture where `paint` would put the thing, without its shadow."""
    layers, box = _placed(thing, radius, mask.width)
    mask.paste(255, box, layers.body)


def _placed(thing: Thing, radius: float, side: int) -> tuple[Layers, tuple[int, int, int, int]]:
    """The layers of a thing, and the box they belong to in a picture of `side` pixels."""
    layers = _layers(thing.shape, radius, thing.material, thing.tilt, side)
    left = round(thing.x * side - layers.body.width / 2)
    top = round(thing.y * side - layers.body.height / 2)
    return layers, (left, top, left + layers.body.width, top + layers.body.height)


def mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    """A colour between two; `share` is how much of `other`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def second_colour(colour: str) -> Rgb:
    """The colour of stripes, dots and outlined inners: lighter, or darker for the light ones."""
    return DEEPER.get(colour) or mix(COLOURS[colour], WHITE, 0.62)


# Shapes, in a box from -1 to 1, y downwards. Tilted by 10 degrees they stay inside it.


def _arc(radius: float, x: float = 0.0, y: float = 0.0, corners: int = 72) -> Polygon:
    """A circle, or a polygon of few corners that points upwards."""
    turns = (2 * math.pi * i / corners for i in range(corners))
    return [(x + radius * math.sin(turn), y - radius * math.cos(turn)) for turn in turns]


def _star() -> Polygon:
    outer, inner = _arc(0.99, y=0.06, corners=10)[::2], _arc(0.46, y=0.06, corners=10)[1::2]
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _heart() -> Polygon:
    turns = [2 * math.pi * i / 120 for i in range(120)]
    return [
        (
            0.92 * math.sin(t) ** 3,
            0.02
            - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
            / 18.0,
        )
        for t in turns
    ]


def _drop() -> Polygon:
    turns = [2 * math.pi * i / 120 for i in range(120)]
    return [(0.88 * math.sin(t) * math.sin(t / 2) ** 1.3, -0.93 * math.cos(t)) for t in turns]


def _cross() -> Polygon:
    a, b = 0.31, 0.87
    return [
        *((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)),
        *((a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)),
    ]


OUTLINES: dict[str, tuple[list[Polygon], list[Polygon]]] = {
    "circle": ([_arc(0.93)], []),
    "square": ([[(-0.81, -0.81), (0.81, -0.81), (0.81, 0.81), (-0.81, 0.81)]], []),
    "triangle": ([[(0, -0.9), (0.87, 0.72), (-0.87, 0.72)]], []),
    "star": ([_star()], []),
    "heart": ([_heart()], []),
    "cross": ([_cross()], []),
    "diamond": ([[(0, -0.97), (0.76, 0), (0, 0.97), (-0.76, 0)]], []),
    "hexagon": ([[(y, x) for x, y in _arc(0.95, corners=6)]], []),
    "ring": ([_arc(0.93)], [_arc(0.5)]),
    "crescent": ([_arc(0.93)], [_arc(0.74, 0.42, -0.18)]),
    "flower": ([_arc(0.5), *(_arc(0.38, *centre) for centre in _arc(0.57, y=0.03, corners=5))], []),
    "drop": ([_drop()], []),
}
"""For each shape, polygons that are filled and polygons that are cut out of them."""


@lru_cache(maxsize=4096)
def _layers(shape: str, radius: float, material: str, tilt: int, side: int) -> Layers:
    """The masks of a thing for pictures of `side` pixels."""
    shadow, body, rim = _plain_layers(shape, radius, tilt, side)
    mask = _body(shape, tilt, _pixels(radius, side))
    pattern = shine = None
    if material == "striped":
        pattern = ImageChops.multiply(mask, _stripes(mask.width))
    elif material == "dotted":
        pattern = ImageChops.multiply(mask, _dots(mask.width))
    elif material == "outlined":
        pattern = _shrink(mask, 0.1 * mask.width)
    elif material == "shiny":
        shine = ImageChops.multiply(mask, _shine(mask))
    return Layers(shadow, body, rim, pattern and _fit(pattern, side), shine and _fit(shine, side))


@lru_cache(maxsize=1024)
def _plain_layers(
    shape: str, radius: float, tilt: int, side: int
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Shadow, body and rim, which are the same for all materials."""
    mask = _body(shape, tilt, _pixels(radius, side))
    rim = ImageChops.subtract(mask, _shrink(mask, FINER * side * RIM))
    padded = _pad(mask, FINER * _edge(side))
    fallen = ImageChops.offset(padded, 0, round(FINER * side * SHADOW_FALL))
    shadow = fallen.filter(ImageFilter.GaussianBlur(FINER * side * SHADOW_BLUR))
    return (
        shadow.reduce(FINER).point(lambda value: value * 0.3),
        _fit(mask, side),
        _fit(rim, side).point(lambda value: value * 0.8),
    )


def _pixels(radius: float, side: int) -> int:
    """Side of the box around a thing before it is scaled down."""
    return FINER * max(1, round(2 * radius * side))


def _edge(side: int) -> int:
    """Pixels around a thing that its shadow may need."""
    return math.ceil(0.05 * side)


def _fit(mask: Image.Image, side: int) -> Image.Image:
    """The mask with room for the shadow, scaled down."""
    return _pad(mask, FINER * _edge(side)).reduce(FINER)


def _body(shape: str, tilt: int, pixels: int) -> Image.Image:
    """The filled shape with slightly rounded corners."""
    mask = Image.new("L", (pixels, pixels))
    draw = ImageDraw.Draw(mask)
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    for fill, polygons in zip((255, 0), OUTLINES[shape], strict=True):
        for polygon in polygons:
            turned = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in polygon]
            draw.polygon([((x + 1) * pixels / 2, (y + 1) * pixels / 2) for x, y in turned], fill)
    blurred = mask.filter(ImageFilter.GaussianBlur(0.022 * pixels))
    return blurred.point(lambda v: 255 if v > 127 else 0)


def _shrink(mask: Image.Image, by: float) -> Image.Image:
    """The shape without a border of `by` pixels: what stays covered however it is moved by them."""
    edge = math.ceil(by)
    padded = _pad(mask, edge)
    shrunk = padded
    for x, y in _arc(by, corners=24):
        shrunk = ImageChops.darker(shrunk, ImageChops.offset(padded, round(x), round(y)))
    return shrunk.crop((edge, edge, edge + mask.width, edge + mask.height))


def _stripes(pixels: int) -> Image.Image:
    """Stripes that fall to the left."""
    down, right = np.mgrid[0:pixels, 0:pixels] * (2 / pixels)
    return Image.fromarray((((right + down) % 0.5 < 0.22) * 255).astype(np.uint8))


def _dots(pixels: int) -> Image.Image:
    """Dots in a hexagonal grid, one of them at the centre."""
    down, right = np.mgrid[0:pixels, 0:pixels] * (2 / pixels) - 1
    near = np.full((pixels, pixels), np.inf)
    for shift in (0.0, 0.24):
        x = (right - shift + 0.24) % 0.48 - 0.24
        y = (down - shift * 1.7 + 0.41) % 0.82 - 0.41
        near = np.minimum(near, x**2 + y**2)
    return Image.fromarray(((near < 0.125**2) * 255).astype(np.uint8))


def _shine(body: Image.Image) -> Image.Image:
    """Light from the upper left: a soft glow and a bright streak along the edge."""
    pixels = body.width
    down, right = np.mgrid[0:pixels, 0:pixels] * (2 / pixels) - 1
    glow = 120 * np.clip(1 - np.hypot(right + 0.35, down + 0.4) / 1.1, 0, 1)
    inner = np.asarray(_shrink(body, 0.07 * pixels)) > 0
    moved = np.roll(inner, (round(0.09 * pixels), round(0.09 * pixels)), axis=(0, 1))
    streak = 215 * (inner & ~moved & (right + down < 0.1))
    return Image.fromarray(np.maximum(glow, streak).astype(np.uint8))


def _pad(mask: Image.Image, edge: int) -> Image.Image:
    """The mask with an empty border."""
    padded = Image.new("L", (mask.width + 2 * edge, mask.height + 2 * edge))
    padded.paste(mask, (edge, edge))
    return padded


# Backgrounds, painted on a canvas of n by n pixels.


@lru_cache(maxsize=256)
def _background(name: str, side: int) -> Image.Image:
    """A background for pictures of `side` pixels; the caller copies it."""
    n = 3 * side
    colours = BACKGROUNDS[name].colours
    canvas = PAINTERS.get(name, _paint_fade)(n, colours)
    return canvas.resize((side, side), Image.Resampling.BOX)


def _paint_fade(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    """From the first colour at the top to the last at the bottom; plain if there is one."""
    stops = np.linspace(0, 1, len(colours))
    place = np.linspace(0, 1, n)
    column = np.stack([np.interp(place, stops, c) for c in zip(*colours, strict=True)], axis=-1)
    rows = np.repeat(column[:, None], n, axis=1)  # (n, n, 3)
    return Image.fromarray(np.rint(rows).astype(np.uint8))


def _paint_stripes(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    canvas = Image.new("RGB", (n, n), colours[0])
    draw = ImageDraw.Draw(canvas)
    for i in range(0, 12, 2):
        draw.rectangle((i * n / 12, 0, (i + 1) * n / 12, n), colours[1])
    return canvas


def _paint_checks(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    canvas = Image.new("RGB", (n, n), colours[0])
    draw = ImageDraw.Draw(canvas)
    for i in range(8):
        for j in range(i % 2, 8, 2):
            draw.rectangle((i * n / 8, j * n / 8, (i + 1) * n / 8, (j + 1) * n / 8), colours[1])
    return canvas


def _paint_polka_dots(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    canvas = Image.new("RGB", (n, n), colours[0])
    draw = ImageDraw.Draw(canvas)
    for i in range(9):
        for j in range(i % 2, 9, 2):
            draw.circle((i * n / 8, j * n / 8), n * 0.032, colours[1])
    return canvas


def _hill(n: int, height: float, bow: float, phase: float) -> list[Point]:
    """The outline of a hill that fills the bottom of the canvas."""
    line = [(n * i / 48, n * (height - bow * math.sin(i / 12 + phase))) for i in range(49)]
    return [*line, (float(n), float(n)), (0.0, float(n))]


def _paint_meadow(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    sky, far, near = colours
    canvas = _paint_fade(n, (sky, mix(sky, WHITE, 0.3)))
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_hill(n, 0.66, 0.06, 0.2), far)
    draw.polygon(_hill(n, 0.82, 0.05, 2.6), near)
    return canvas


def _paint_beach(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    sky, sea, sand = colours
    canvas = _paint_fade(n, (sky, mix(sky, WHITE, 0.3)))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0.46 * n, n, n), sea)
    draw.polygon(_hill(n, 0.70, 0.025, 0.4), mix(sea, WHITE, 0.75))
    draw.polygon(_hill(n, 0.725, 0.025, 0.4), sand)
    return canvas


def _paint_night(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    canvas = _paint_fade(n, colours)
    draw = ImageDraw.Draw(canvas)
    for i in range(34):  # specks spread evenly: the R2 sequence
        x, y = i * 0.7548776662 % 1, i * 0.5698402910 % 1
        draw.circle((x * n, y * n), n * (0.005 + 0.002 * (i % 3)), (214, 218, 246))
    return canvas


def _paint_snow(n: int, colours: tuple[Rgb, ...]) -> Image.Image:
    sky, near, far = colours
    canvas = _paint_fade(n, (sky, mix(sky, WHITE, 0.3)))
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_hill(n, 0.60, 0.07, 1.9), far)
    draw.polygon(_hill(n, 0.78, 0.06, -0.6), near)
    return canvas


PAINTERS: dict[str, Callable[[int, tuple[Rgb, ...]], Image.Image]] = {
    "stripes": _paint_stripes,
    "checks": _paint_checks,
    "polka dots": _paint_polka_dots,
    "meadow": _paint_meadow,
    "beach": _paint_beach,
    "night": _paint_night,
    "snow": _paint_snow,
}
"""Backgrounds that are more than a colour or a fade."""
