"""Generated scenes: coloured shapes that stand in relations, and true captions of them.

`scenes:shapes` has no end of training scenes; its validation and test scenes are finite and
never repeat. A scene is decided by its split and index alone: the same in every process and
order. Splits are disjoint by content: a hash of what a scene shows (not of where exactly)
says which split it belongs to.

`scenes_draw.py` paints the scenes described here.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, TypeVar

import numpy as np

from diptych.errors import RequestError, nearest

NAME = "shapes"
SEED = 20250
"""Changing NAME, SEED or any table below makes another data set."""

COUNTS: dict[str, int | None] = {"train": None, "val": 1000, "test": 1000}
"""Scenes per split; None has no end."""

Rgb = tuple[int, int, int]
Split = Literal["train", "val", "test"]
Item = TypeVar("Item")

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "hexagon": ("hexagon",),
    "ring": ("ring", "ring", "hoop"),
    "crescent": ("crescent", "crescent", "moon"),
    "flower": ("flower",),
    "drop": ("drop", "drop", "raindrop"),
}
"""Each shape and its names; a name listed twice is used twice as often. So below."""

COLOURS: dict[str, Rgb] = {
    "red": (224, 58, 62),
    "orange": (245, 138, 36),
    "yellow": (250, 205, 48),
    "green": (52, 160, 84),
    "blue": (48, 108, 222),
    "purple": (134, 76, 190),
    "pink": (248, 134, 182),
    "brown": (134, 88, 58),
    "black": (36, 38, 48),
    "white": (255, 255, 255),
}

COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {"purple": ("purple", "violet")}

SIZES: dict[str, float] = {"small": 0.13, "medium": 0.18, "large": 0.29}
"""Half the side of the box around a thing, as a share of the picture's side."""

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}

MATERIALS: dict[str, tuple[str, ...]] = {
    "matte": ("matte", "plain"),
    "shiny": ("shiny", "glossy"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "outlined": ("outlined",),
}

RELATIONS: dict[str, float] = {
    "alone": 0.36,
    "left": 0.22,
    "above": 0.22,
    "inside": 0.08,
    "row": 0.07,
    "column": 0.05,
}
"""How things stand, and how often. Things are listed from left to right, from top to bottom,
or the inner before the outer."""


@dataclass(frozen=True)
class Background:
    """What is behind the things."""

    colours: tuple[Rgb, ...]
    """What it is painted with; things of a like colour are not put there."""

    phrases: tuple[str, ...]
    """Ends of a caption."""


def _plain(word: str, colour: Rgb) -> Background:
    """A background of one colour."""
    return Background((colour,), (f"on a {word} background", f"against a {word} backdrop"))


BACKGROUNDS: dict[str, Background] = {
    "white": _plain("white", (251, 251, 249)),
    "grey": _plain("grey", (196, 202, 212)),
    "cream": _plain("cream", (252, 239, 212)),
    "light blue": _plain("light blue", (193, 226, 249)),
    "mint": _plain("mint", (201, 238, 218)),
    "lavender": _plain("lavender", (222, 213, 247)),
    "navy": _plain("navy", (31, 42, 86)),
    "fade": Background(
        ((236, 246, 254), (158, 200, 240)), ("on a blue gradient", "on a background fading to blue")
    ),
    "sunset": Background(
        ((255, 226, 160), (255, 178, 150), (226, 128, 152)),
        ("at sunset", "against a sunset sky"),
    ),
    "stripes": Background(
        ((250, 241, 228), (240, 222, 200)), ("on a striped background", "in front of beige stripes")
    ),
    "checks": Background(
        ((246, 247, 250), (222, 227, 236)), ("on a checkered background", "in front of grey checks")
    ),
    "polka dots": Background(
        ((186, 230, 226), (236, 250, 248)),
        ("on a polka-dot background", "in front of polka dots"),
    ),
    "meadow": Background(
        ((190, 228, 252), (150, 210, 120), (118, 190, 100)),
        ("on a green meadow", "over grass under a blue sky"),
    ),
    "beach": Background(
        ((206, 236, 250), (96, 186, 214), (244, 220, 168)),
        ("on a beach", "on the sand by the sea"),
    ),
    "night": Background(
        ((22, 28, 66), (52, 56, 112)), ("in the night sky", "against a dark starry sky")
    ),
    "snow": Background(
        ((176, 208, 238), (244, 249, 255), (222, 234, 247)),
        ("in the snow", "on snowy hills"),
    ),
}

LEAST_CONTRAST = 120.0
"""Smallest distance (see `contrast`) of a thing's colour from what is behind it."""

OUTER_SHAPES = ("circle", "square", "diamond", "hexagon", "heart", "flower")
OUTER_MATERIALS = ("matte", "shiny")
"""Shapes and materials with room for a small thing inside."""

MARGIN = 0.015
"""Least distance of a thing from the frame and from its neighbour, as a share of the side."""

SWAY = 0.1
"""How far things in a row leave the line, as a share of the side."""

TILTS = (-10, -5, 0, 5, 10)
"""Rotations of a thing, in degrees anticlockwise."""


@dataclass(frozen=True)
class Thing:
    """One shape in a scene."""

    shape: str
    colour: str
    size: str
    material: str

    x: float
    """Centre, as a share of the picture's side from the left."""

    y: float
    """Centre, as a share of the picture's side from the top."""

    tilt: int = 0
    """Rotation in degrees anticlockwise; small, and never spoken of."""


@dataclass(frozen=True)
class Scene:
    """What a generated picture shows."""

    things: tuple[Thing, ...]
    """In the order that `relation` gives them."""

    relation: str
    """A key of `RELATIONS`."""

    background: str
    """A key of `BACKGROUNDS`."""

    @cached_property
    def key(self) -> str:
        """The content: everything that captions can speak of. Scenes with one key look alike."""
        things = (
            f"{thing.size} {thing.material} {thing.colour} {thing.shape}" for thing in self.things
        )
        return "; ".join((self.relation, self.background, *things))


class Dice:
    """Random choices that depend on the given words alone; also for the generator of pairs."""

    def __init__(self, *words: str | int) -> None:
        name = "/".join((NAME, str(SEED), *map(str, words)))
        seed = hashlib.blake2b(name.encode(), digest_size=16).digest()
        self._rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
        self._rolls: Iterator[float] = iter(())

    def roll(self) -> float:
        """A number in [0, 1); drawn by the dozen, because single draws are slow."""
        for value in self._rolls:
            return value
        self._rolls = iter(self._rng.random(36).tolist())
        return next(self._rolls)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, each as likely."""
        return items[int(self.roll() * len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in any order."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = int(self.roll() * (last + 1))
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed

    def between(self, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self.roll()


def contrast(one: Rgb, other: Rgb) -> float:
    """How different two colours look: 0 to about 765, weighted by redness ("redmean")."""
    red = (one[0] + other[0]) / 2
    weights = (2 + red / 256, 4.0, 2 + (255 - red) / 256)
    return math.sqrt(sum(w * (a - b) ** 2 for w, a, b in zip(weights, one, other, strict=True)))


def _visible_on(colours: Sequence[Rgb]) -> tuple[str, ...]:
    """Names of the colours that stand out from all of `colours`."""
    return tuple(
        name
        for name, colour in COLOURS.items()
        if all(contrast(colour, behind) >= LEAST_CONTRAST for behind in colours)
    )


VISIBLE_ON = {name: _visible_on(background.colours) for name, background in BACKGROUNDS.items()}
"""For each background, the colours that it does not hide."""

VISIBLE_INSIDE = {name: _visible_on((colour,)) for name, colour in COLOURS.items()}
"""For each colour of a thing, the colours that can lie inside it."""


def make_scene(index: int, split: Split) -> Scene:
    """The scene with number `index` of a split, the same in every process.

    Raises:
        RequestError: There is no such split, or it ends before `index`.
    """
    count = count_of(NAME, index, split)
    if count is not None:
        return _finite_split(split, count)[index]
    dice = Dice(split, index)
    while True:
        scene = _draw_lots(dice)
        if split_of(scene.key) == split:
            return scene


def count_of(name: str, index: int, split: Split) -> int | None:
    """Scenes in a split of the set `name`; None has no end.

    Raises:
        RequestError: There is no such split, or it ends before `index`.
    """
    if split not in COUNTS:
        raise RequestError(f"there is no split {split!r}. {nearest(split, COUNTS)}")
    count = COUNTS[split]
    if index < 0 or (count is not None and index >= count):
        last = "on" if count is None else f"to {count - 1:,}"
        raise RequestError(f"scenes:{name}:{split} has no scene {index:,}. Use 0 {last}.")
    return count


@cache
def _finite_split(split: Split, count: int) -> tuple[Scene, ...]:
    """All scenes of a finite split; about a quarter of a second, once in a process."""
    dice = Dice(split)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = _draw_lots(dice)
        if split_of(scene.key) == split:
            scenes.setdefault(scene.key, scene)
    return tuple(scenes.values())


def split_of(key: str) -> Split:
    """The split that content belongs to: 80 % train, 10 % val, 10 % test."""
    share = hashlib.blake2b(f"{NAME}/{SEED}/{key}".encode(), digest_size=8).digest()
    tenth = int.from_bytes(share, "little") % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def _draw_lots(dice: Dice) -> Scene:
    """A scene of any split."""
    relation = _pick_relation(dice)
    background = dice.pick(tuple(BACKGROUNDS))
    if relation == "inside":
        return Scene(_one_inside_another(dice, background), relation, background)
    sizes = _pick_sizes(dice, relation)
    radii = [SIZES[size] for size in sizes]
    line = _stand_in_line(dice, radii) if len(radii) > 1 else [_stand_alone(dice, radii[0])]
    if relation in ("above", "column"):
        line = [(across, along) for along, across in line]
    things: list[Thing] = []
    for size, (x, y) in zip(sizes, line, strict=True):
        others = [(thing.shape, thing.colour) for thing in things]
        look = _pick_look(dice, VISIBLE_ON[background], others)
        material = dice.pick(tuple(MATERIALS))
        things.append(Thing(*look, size, material, x, y, dice.pick(TILTS)))
    return Scene(tuple(things), relation, background)


def _pick_relation(dice: Dice) -> str:
    """A relation, as often as `RELATIONS` says."""
    roll = dice.roll()
    for relation, share in RELATIONS.items():
        roll -= share
        if roll < 0:
            return relation
    return "alone"


def _pick_sizes(dice: Dice, relation: str) -> list[str]:
    """Sizes that fit beside each other: at most one large of two, and one medium of three."""
    if relation == "alone":
        return [dice.pick(("small", "medium", "large", "large"))]
    if relation in ("row", "column"):
        sizes = ["small", "small", "small"]
        sizes[dice.pick((0, 1, 2))] = dice.pick(("small", "medium"))
        return sizes
    first = dice.pick(tuple(SIZES))
    second = dice.pick(tuple(SIZES) if first != "large" else ("small", "medium"))
    return [first, second] if dice.roll() < 0.5 else [second, first]


def _pick_look(
    dice: Dice, colours: Sequence[str], others: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """A shape and a colour that no other thing of the scene has together."""
    while True:
        look = dice.pick(tuple(SHAPES)), dice.pick(colours)
        if look not in others:
            return look


def _stand_alone(dice: Dice, radius: float) -> tuple[float, float]:
    """A place anywhere in the frame."""
    low = MARGIN + radius
    return dice.between(low, 1 - low), dice.between(low, 1 - low)


def _stand_in_line(dice: Dice, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Places one after the other: (along, across) the line, boxes apart by MARGIN or more."""
    room = 1 - 2 * sum(radii) - MARGIN * (len(radii) + 1)
    shares = [dice.roll() + 0.1 for _ in range(len(radii) + 1)]
    level = dice.between(MARGIN + max(radii), 1 - MARGIN - max(radii))
    end = 0.0
    places = []
    for radius, share in zip(radii, shares, strict=False):
        along = end + MARGIN + room * share / sum(shares) + radius
        low = MARGIN + radius
        across = min(max(level + dice.between(-SWAY, SWAY) / 2, low), 1 - low)
        places.append((along, across))
        end = along + radius
    return places


def _one_inside_another(dice: Dice, background: str) -> tuple[Thing, Thing]:
    """A small thing at the centre of a large one."""
    x, y = _stand_alone(dice, SIZES["large"])
    look = dice.pick(OUTER_SHAPES), dice.pick(VISIBLE_ON[background])
    outer = Thing(*look, "large", dice.pick(OUTER_MATERIALS), x, y, dice.pick(TILTS))
    look = _pick_look(dice, VISIBLE_INSIDE[outer.colour], [look])
    inner = Thing(*look, "small", dice.pick(tuple(MATERIALS)), x, y, dice.pick(TILTS))
    return inner, outer


# Captions


def captions(scene: Scene) -> tuple[str, ...]:
    """Five true captions, from terse to full; the same for every scene with this content.

    Each names shape and colour of every thing. The full ones add sizes, materials, the
    relation and the background.
    """
    dice = Dice("captions", scene.key)
    background = dice.pick(BACKGROUNDS[scene.background].phrases)
    other = dice.pick(BACKGROUNDS[scene.background].phrases)
    bare = _relate(dice, scene, [_name(dice, thing) for thing in scene.things])
    part = dice.pick(("size", "material"))
    parts = _relate(dice, scene, [_name(dice, thing, part) for thing in scene.things])
    whole = [_name(dice, thing, "size", "material") for thing in scene.things]
    full = f"{_relate(dice, scene, whole)} {background}"
    listed = [_name(dice, thing) for thing in scene.things]
    return (
        _list(dice, listed),
        f"{dice.pick(OPENINGS)}{bare} {other}",
        parts,
        full,
        _sentence(dice.pick(SENTENCES).format(_relate(dice, scene, whole), background)),
    )


OPENINGS = ("", "", "a picture of ", "an illustration of ")
SENTENCES = ("{} {}.", "this picture shows {} {}.", "{1}, there is {0}.", "we see {} {}.")

RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "alone": ("{0}",),
    "left": (
        "{0} to the left of {1}",
        "{0} left of {1}",
        "{1} to the right of {0}",
        "{1} right of {0}",
    ),
    "above": ("{0} above {1}", "{1} below {0}", "{1} under {0}", "{1} beneath {0}"),
    "inside": ("{0} inside {1}", "{0} within {1}", "{1} with {0} inside it"),
    "row": (
        "{1} between {0} on the left and {2} on the right",
        "from left to right {0}, {1} and {2}",
        "{0}, {1} and {2} from left to right",
    ),
    "column": (
        "{1} between {0} above and {2} below",
        "from top to bottom {0}, {1} and {2}",
        "{0}, {1} and {2} from top to bottom",
    ),
}


def _relate(dice: Dice, scene: Scene, names: Sequence[str]) -> str:
    """The things and how they stand."""
    return dice.pick(RELATION_PHRASES[scene.relation]).format(*names)


def _list(dice: Dice, names: list[str]) -> str:
    """The things in any order, with nothing about how they stand."""
    if dice.roll() < 0.5:
        names = names[::-1]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _name(dice: Dice, thing: Thing, *parts: str) -> str:
    """A thing with its article; `parts` are the attributes told besides shape and colour."""
    words = [dice.pick(COLOUR_WORDS[thing.colour]), dice.pick(SHAPES[thing.shape])]
    if "material" in parts:
        words.insert(0, dice.pick(MATERIALS[thing.material]))
    if "size" in parts:
        words.insert(0, dice.pick(SIZE_WORDS[thing.size]))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _sentence(text: str) -> str:
    """With a capital letter."""
    return text[0].upper() + text[1:]
