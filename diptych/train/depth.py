"""How deep in its tower a weight lies: for rates by layer, for frozen blocks, for adapters.

A tower is its embeddings (patches, positions, token vectors, a residual network's stem), its blocks
from the bottom up, and its top (last norm, pool). Projections, scale and bias stand above both
towers. A tower of timm is not taken apart: it counts as a single block.
"""

from diptych.models.dual_encoder import DualEncoder
from diptych.models.image_tower import ImageTower
from diptych.models.resnet_tower import ResNetTower

TOWERS = ("image", "text")

EMBEDDINGS = ("patches", "class_token", "positions", "pre_norm", "tokens", "stem")
"""Parts of a tower that come before its first block."""


def blocks_of(model: DualEncoder, tower: str) -> list[str]:
    """The dotted names of a tower's blocks, from the bottom up."""
    part = getattr(model, tower)
    if isinstance(part, ResNetTower):
        layers = enumerate(part.config.layers)
        return [f"{tower}.stages.{stage}.{block}" for stage, n in layers for block in range(n)]
    if tower == "image" and not isinstance(part, ImageTower):
        return [f"{tower}.trunk"]
    return [f"{tower}.blocks.{number}" for number in range(len(part.blocks))]


def levels_below_top(model: DualEncoder) -> dict[str, int]:
    """For each weight how many layers lie above it in its tower, itself counted.

    0 for the top, projections, scale and bias; 1 for the uppermost block; 2 for the one below it;
    blocks + 1 for embeddings.
    """
    places: dict[str, int] = {}
    for tower in TOWERS:
        blocks = blocks_of(model, tower)
        places |= {f"{block}.": len(blocks) - number for number, block in enumerate(blocks)}
        places |= {f"{tower}.{part}": len(blocks) + 1 for part in EMBEDDINGS}
    return {
        name: next((level for place, level in places.items() if name.startswith(place)), 0)
        for name, _ in model.named_parameters()
    }


def lowest(model: DualEncoder, blocks: int) -> set[str]:
    """Names of the weights of the embeddings and the first `blocks` blocks of each tower; of none
    if `blocks` is 0."""
    if not blocks:
        return set()
    levels = levels_below_top(model)
    found = set()
    for tower in TOWERS:
        uppermost = max(1, len(blocks_of(model, tower)) + 1 - blocks)
        found |= {
            name
            for name, level in levels.items()
            if name.startswith(f"{tower}.") and level >= uppermost
        }
    return found
