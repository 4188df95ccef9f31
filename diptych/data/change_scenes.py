"""Generated pairs of scenes and what has changed between them: `scenes:changes`.

The scene before holds coloured shapes, each in a cell of its own; the scene after is the same
with some added, deleted, moved or replaced, or none, seen by a camera that has moved a little, in
another light, with noise. A pair is decided by its set, split and index alone. Splits are disjoint
by content: a hash of the objects before says which split a pair belongs to.

`change_scenes_draw.py` paints a pair, `change_texts.py` says what changed; `scenes.py` has the
shapes, colours and materials, and single pictures with captions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diptych.data.scenes import (
    BACKGROUNDS,
    TILTS,
    VISIBLE_ON,
    Dice,
    Split,
    Thing,
    count_of,
    split_of,
)
from diptych.errors import RequestError, nearest

Kind = Literal["add", "delete", "move", "replace"]
KINDS: tuple[Kind, ...] = ("add", "delete", "move", "replace")
"""In this order changes are listed."""

UNCHANGED = 0.25
"""Share of the pairs in which nothing has changed."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
MATERIALS = ("matte", "striped", "outlined")
"""Those of `scenes.py` that can be told apart when they are small."""

COLOURS = {
    background: tuple(colour for colour in colours if colour not in ("orange", "white"))
    for background, colours in VISIBLE_ON.items()
}
"""For each background, the colours of objects: outlined in yellow looks orange, in white blue."""

FRAME = 0.04
"""Width of the border without objects, as a share of the side: no camera move cuts an object."""

LIGHT = (0.8, 1.1)
"""Least and most brightness of the picture after, as shares of that before."""

ZOOM, TINT, NOISE = 0.038, 0.05, 0.03
"""The most that the picture after is enlarged, and its single colours and its pixels change, as
shares."""


@dataclass(frozen=True)
class ChangeSet:
    """How hard the pairs of a set are."""

    objects: tuple[int, int]
    """Fewest and most objects before the change."""

    changes: int
    """Most changes of a pair."""

    cells: int
    """Cells per row and per column; one object fits into each."""

    radii: Mapping[str, float]
    """Half the side of the box around an object by its size, as a share of the picture's side."""

    told: tuple[str, ...]
    """Attributes that texts name; no two objects of a pair have all of them in common."""

    side: int
    """Side of the drawn pictures, in pixels."""


SETS: dict[str, ChangeSet] = {
    "changes": ChangeSet(
        objects=(3, 40),
        changes=4,
        cells=7,
        radii={"small": 0.033, "medium": 0.045, "large": 0.061},
        told=("size", "material", "colour", "shape"),
        side=128,
    ),
    "changes-few": ChangeSet(
        objects=(3, 8),
        changes=1,
        cells=3,
        radii={"small": 0.075, "medium": 0.105, "large": 0.145},
        told=("colour", "shape"),
        side=96,
    ),
}


@dataclass(frozen=True)
class SceneChange:
    """One change, by the numbers of the objects it is about."""

    kind: Kind

    before: int | None
    """The object in the scene before; None where one is added."""

    after: int | None
    """The object in the scene after; None where one is deleted; the same number if it moved."""


@dataclass(frozen=True)
class Shot:
    """How the picture after is taken; nothing of it counts as a change."""

    zoom: float = 1.0
    """By how much it is enlarged, 1 or more."""

    left: float = 0.0
    top: float = 0.0
    """What the enlarged picture loses at the left and at the top, as shares of all it loses."""

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of red, green and blue."""

    noise: float = 0.0
    """Most that a value changes either way, as a share of white."""

    seed: int = 0
    """Of the noise."""


@dataclass(frozen=True)
class ChangeScene:
    """What a generated pair shows."""

    background: str
    """A key of `scenes.BACKGROUNDS`."""

    before: Mapping[int, Thing]
    """Objects by number."""

    after: Mapping[int, Thing]
    """Objects by number; what is in both with the same number is the same object."""

    changes: tuple[SceneChange, ...]
    """In the order of `KINDS`, then of the numbers."""

    shot: Shot = field(default_factory=Shot)

    def graph(self) -> dict[str, Any]:
        """The pair as lists and dictionaries, ready for JSON."""
        return {
            "background": self.background,
            "before": [_node(number, thing) for number, thing in self.before.items()],
            "after": [_node(number, thing) for number, thing in self.after.items()],
            "changes": [
                {"kind": change.kind, "before": change.before, "after": change.after}
                for change in self.changes
            ],
        }


def _node(number: int, thing: Thing) -> dict[str, str | int | float]:
    """An object of a scene graph; x and y are its centre, as shares of the side."""
    return {
        "id": number,
        "shape": thing.shape,
        "colour": thing.colour,
        "size": thing.size,
        "material": thing.material,
        "x": thing.x,
        "y": thing.y,
    }


def make_change_scene(index: int, split: Split, name: str = "changes") -> ChangeScene:
    """The pair with number `index` of a split, the same in every process.

    Args:
        index: From 0; train has no end, val and test have `scenes.COUNTS` pairs.
        split: train, val or test.
        name: A key of `SETS`.

    Raises:
        RequestError: There is no such set or split, or it ends before `index`.
    """
    if name not in SETS:
        raise RequestError(f"there are no scenes {name!r}. {nearest(name, SETS)}")
    count_of(name, index, split)  # refuses what is not there
    kind = SETS[name]
    dice = Dice(name, split, index)
    while True:
        background = dice.pick(tuple(BACKGROUNDS))
        looks = _pick_looks(dice, kind, background)
        if split_of(content(background, looks)) == split:
            return _draw_lots(dice, kind, background, looks)


def content(background: str, things: Sequence[Thing]) -> str:
    """What decides the split: the objects before the change, wherever they stand."""
    looks = (f"{thing.size} {thing.material} {thing.colour} {thing.shape}" for thing in things)
    return "; ".join((background, *sorted(looks)))


def _pick_looks(dice: Dice, kind: ChangeSet, background: str) -> list[Thing]:
    """The objects before the change, all different, still without a place."""
    fewest, most = kind.objects
    count = fewest + int(dice.roll() * (most - fewest + 1))
    names: set[tuple[str, ...]] = set()
    return [_pick_look(dice, kind, background, names) for _ in range(count)]


def _pick_look(
    dice: Dice,
    kind: ChangeSet,
    background: str,
    names: set[tuple[str, ...]],
    size: str | None = None,
) -> Thing:
    """An object, of a given size if so said, that no text can take for one of `names`.

    What names it is added to `names`.
    """
    while True:
        thing = Thing(
            shape=dice.pick(SHAPES),
            colour=dice.pick(COLOURS[background]),
            size=size or dice.pick(tuple(kind.radii)),
            material=dice.pick(MATERIALS),
            x=0.0,
            y=0.0,
            tilt=dice.pick(TILTS),
        )
        name = told(thing, kind)
        if name not in names:
            names.add(name)
            return thing


def told(thing: Thing, kind: ChangeSet) -> tuple[str, ...]:
    """The attributes that name an object in the texts of a set."""
    return tuple(getattr(thing, attribute) for attribute in kind.told)


def _draw_lots(dice: Dice, kind: ChangeSet, background: str, looks: Sequence[Thing]) -> ChangeScene:
    """Places for the objects, changes and the picture after."""
    cells = dice.shuffled(range(kind.cells**2))
    before = {number: _put(dice, kind, thing, cells.pop()) for number, thing in enumerate(looks)}
    count = 0 if dice.roll() < UNCHANGED else 1 + int(dice.roll() * kind.changes)
    untouched = dice.shuffled(list(before))
    names = {told(thing, kind) for thing in looks}
    after = dict(before)
    changes: list[SceneChange] = []
    for new in range(len(before), len(before) + count):
        wanted = dice.pick(KINDS) if untouched else "add"
        old = None if wanted == "add" else untouched.pop()
        if old is None:
            added = _pick_look(dice, kind, background, names)
            after[new] = _put(dice, kind, added, cells.pop())
            changes.append(SceneChange("add", None, new))
            continue
        thing = after.pop(old)
        if wanted == "move":
            after[old] = _put(dice, kind, thing, cells.pop())
            changes.append(SceneChange("move", old, old))
        elif wanted == "replace":
            other = _pick_look(dice, kind, background, names, thing.size)
            after[new] = _at(other, thing.x, thing.y)
            changes.append(SceneChange("replace", old, new))
        else:
            changes.append(SceneChange("delete", old, None))
    changes.sort(key=lambda one: (KINDS.index(one.kind), one.before or 0, one.after or 0))
    return ChangeScene(background, before, after, tuple(changes), _take(dice))


def _put(dice: Dice, kind: ChangeSet, thing: Thing, cell: int) -> Thing:
    """The object anywhere within a cell: it neither touches the next nor leaves the frame."""
    width = (1 - 2 * FRAME) / kind.cells
    slack = width / 2 - kind.radii[thing.size]
    down, across = divmod(cell, kind.cells)
    x = FRAME + (across + 0.5) * width + dice.between(-slack, slack)
    y = FRAME + (down + 0.5) * width + dice.between(-slack, slack)
    return _at(thing, x, y)


def _at(thing: Thing, x: float, y: float) -> Thing:
    """The object with its centre there."""
    return Thing(thing.shape, thing.colour, thing.size, thing.material, x, y, thing.tilt)


def _take(dice: Dice) -> Shot:
    """Camera, light and noise of a picture after."""
    gain = dice.between(*LIGHT)
    red, green, blue = (gain * dice.between(1 - TINT, 1 + TINT) for _ in range(3))
    return Shot(
        zoom=1 + ZOOM * dice.roll(),
        left=dice.roll(),
        top=dice.roll(),
        gains=(red, green, blue),
        noise=NOISE * dice.roll(),
        seed=int(dice.roll() * 2**32),
    )
