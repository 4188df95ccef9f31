"""Recipes: functions that return a `Run`, one file per family.

A new recipe is a function and one line in `RECIPES`.
"""

from collections.abc import Callable

from diptych.errors import RequestError, nearest
from diptych.recipes.clip import clip_mini, clip_small, clip_tiny
from diptych.recipes.siglip import siglip_small, siglip_tiny
from diptych.train.run import Run

RECIPES: dict[str, Callable[[], Run]] = {
    "clip-tiny": clip_tiny,
    "clip-mini": clip_mini,
    "clip-small": clip_small,
    "siglip-tiny": siglip_tiny,
    "siglip-small": siglip_small,
}


def find_recipe(name: str) -> Run:
    """The run of a recipe.

    Raises:
        RequestError: There is no such recipe; the nearest name is offered.
    """
    if name not in RECIPES:
        raise RequestError(f"there is no recipe {name!r}. {nearest(name, RECIPES)}")
    return RECIPES[name]()


def about(name: str) -> str:
    """The first line of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]
