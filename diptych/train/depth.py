"""How deep in its tower a weight lies: for rates by layer, for frozen blocks, for adapters.

A tower is its embeddings (patches, positions, token vectors, a residual network's stem), its blocks
from the bottom up, and its top (last norm, pool). Projections, scale and bias stand above both
towers. A tower of timm is not taken apart: it counts as a single block. What a stateful encoder
adds to a block belongs to the same layer.
"""

from diptych.models.dual_encoder import DualEncoder
from diptych.models.image_tower import VisionTransformer
from diptych.models.resnet_tower import ResNetTower
from diptych.models.stateful_encoder import StatefulEncoder

TOWERS = ("image", "text")

EMBEDDINGS = ("patches", "class_token", "positions", "pre_norm", "tokens", "stem")
"""Parts of a tower that come before its first block."""


def blocks_of(model: DualEncoder, tower: str) -> list[str]:
    """The dotted names of a tower's blocks, from the bottom up."""
    part = getattr(model, tower)
    if isinstance(part, ResNetTower):
        layers = enumerate(part.config.layers)
        return [f"{tower}.stages.{stage}.{block}" for stage, n in layers for block in range(n)]
    if tower == "image" and not isinstance(part, VisionTransformer):
        return [f"{tower}.trunk"]
    return [f"{tower}.blocks.{number}" for number in range(len(part.blocks))]


def layers_of(model: DualEncoder, tower: str) -> list[list[str]]:
    """The dotted names of what makes each layer of a tower, from the bottom up: its block, and what
    a stateful encoder adds to it."""
    blocks = blocks_of(model, tower)
    if isinstance(getattr(model, tower), StatefulEncoder):
        return [[block, block.replace(".blocks.", ".state_blocks.")] for block in blocks]
    return [[block] for block in blocks]


def levels_below_top(model: DualEncoder) -> dict[str, int]:
    """For each weight how many layers lie above it in its tower, itself counted.

    0 for the top, projections, scale and bias; 1 for the uppermost block; 2 for the one below it;
    blocks + 1 for embeddings.
    """
    places: dict[str, int] = {}
    for tower in TOWERS:
        layers = layers_of(model, tower)
        for number, names in enumerate(layers):
            places |= {f"{name}.": len(layers) - number for name in names}
        places |= {f"{tower}.{part}": len(layers) + 1 for part in EMBEDDINGS}
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
