"""Recipes: functions that return a `Run`, one file per family.

A new recipe is a function and one line in `RECIPES`.
"""

from collections.abc import Callable

from diptych.errors import RequestError, nearest
from diptych.recipes.change import (
    change_caption_small,
    change_caption_tiny,
    change_clip_small,
    change_finetune,
    change_tiny,
)
from diptych.recipes.clip import clip_mini, clip_resnet_small, clip_small, clip_tiny
from diptych.recipes.finetune import finetune
from diptych.recipes.published import (
    clip_rn50,
    clip_rn50x4,
    clip_rn50x16,
    clip_rn50x64,
    clip_rn101,
    clip_vit_b_16,
    clip_vit_b_32,
    clip_vit_l_14,
    clip_vit_l_14_336,
    siglip_b_16,
    siglip_l_16,
    siglip_so400m_14,
)
from diptych.recipes.siglip import siglip_small, siglip_tiny
from diptych.train.run import Run

RECIPES: dict[str, Callable[[], Run]] = {
    "clip-tiny": clip_tiny,
    "clip-mini": clip_mini,
    "clip-small": clip_small,
    "clip-resnet-small": clip_resnet_small,
    "finetune": finetune,
    "change-tiny": change_tiny,
    "change-clip-small": change_clip_small,
    "change-caption-tiny": change_caption_tiny,
    "change-caption-small": change_caption_small,
    "change-finetune": change_finetune,
    "siglip-tiny": siglip_tiny,
    "siglip-small": siglip_small,
    "clip-rn50": clip_rn50,
    "clip-rn101": clip_rn101,
    "clip-rn50x4": clip_rn50x4,
    "clip-rn50x16": clip_rn50x16,
    "clip-rn50x64": clip_rn50x64,
    "clip-vit-b-32": clip_vit_b_32,
    "clip-vit-b-16": clip_vit_b_16,
    "clip-vit-l-14": clip_vit_l_14,
    "clip-vit-l-14-336": clip_vit_l_14_336,
    "siglip-b-16": siglip_b_16,
    "siglip-l-16": siglip_l_16,
    "siglip-so400m-14": siglip_so400m_14,
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
