"""Where two pictures differ, as an image tower sees it without having learned to point there.

Each place of a picture has a vector: a token of a vision transformer, or a cell of a residual
network's last grid. A place that looks as before keeps its vector, and one that does not changes
it. A stateful encoder tells by itself what the pictures before did to each token. `compare.py`
makes words and a score of it; a ChangeReader (`change.py`) learned a map of its own.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.errors import RequestError
from diptych.models.dual_encoder import AnyImageTowerConfig
from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.resnet_tower import ResNetTower
from diptych.models.stateful_encoder import StatefulEncoder


def change_map(
    tower: nn.Module, image: Float[Tensor, "sequences images 3 size size"]
) -> Float[Tensor, "sequences rows columns"]:
    """How much each place of the last picture changed, in 0 to 1.

    Of a stateful encoder u / (1 + u), where u is its `update` by the pictures before; of a tower
    that reads single pictures `place_distances` from the picture before.

    Raises:
        RequestError: The tower has no vectors of places, such as one of timm.
    """
    if isinstance(tower, StatefulEncoder):
        count, length = image.shape[:2]
        update = tower.update(image.flatten(0, 1), [length] * count)[length - 1 :: length]
        return (update / (1 + update)).unflatten(1, (tower.config.side, tower.config.side))
    before, after = (place_vectors(tower, image[:, place]) for place in (-2, -1))
    return place_distances(before, after)


def seen_side(tower: AnyImageTowerConfig) -> int:
    """Side of what an image tower sees of a picture, from its upper left corner, in pixels: less
    than `image_size` where it leaves out an edge that fills no patch. Maps lie over this part."""
    if isinstance(tower, ImageTowerConfig):
        return tower.side * tower.patch_size
    return tower.image_size


def place_vectors(
    tower: nn.Module, image: Float[Tensor, "images 3 size size"]
) -> Float[Tensor, "images rows columns width"]:
    """The vectors of all places of pictures, before they are pooled.

    Raises:
        RequestError: The tower has none, such as one of timm.
    """
    if isinstance(tower, ImageTower):
        tokens = tower.tokens(image)[:, int(tower.config.class_token) :]
        return tokens.unflatten(1, (tower.config.side, tower.config.side))
    if isinstance(tower, ResNetTower):
        return tower.grid(image).permute(0, 2, 3, 1)
    raise RequestError(
        f"a {type(tower).__name__} gives no vectors of places, so where two pictures differ is "
        "not known. Use a model with a vision transformer or a residual network."
    )


def place_distances(
    before: Float[Tensor, "pairs rows columns width"],
    after: Float[Tensor, "pairs rows columns width"],
) -> Float[Tensor, "pairs rows columns"]:
    """How far each place is from every place near it in the other picture, in 0 to 1.

        near(p) = p and the eight places around it
        for each place p:
            come = min over q in near(p) of 1 - cosine(after[p], before[q])
            gone = min over q in near(p) of 1 - cosine(before[p], after[q])
            distance[p] = max(come, gone), and 1 where it is more

    The nearest of nine, so that a camera that moved by less than a place changes nothing; both
    ways, so that what has gone counts as what has come does.
    """
    before, after = F.normalize(before.float(), dim=-1), F.normalize(after.float(), dim=-1)
    come, gone = _nearest(after, before), _nearest(before, after)
    return torch.maximum(come, gone).clamp(0, 1)


def _nearest(
    of: Float[Tensor, "pairs rows columns width"], among: Float[Tensor, "pairs rows columns width"]
) -> Float[Tensor, "pairs rows columns"]:
    """1 - cosine with the most alike of the places near each place; unit vectors."""
    rows, columns = of.shape[1:3]
    around = F.pad(among, (0, 0, 1, 1, 1, 1))
    inside = F.pad(among.new_ones(1, rows, columns), (1, 1, 1, 1))
    best = torch.full(of.shape[:3], -1.0, device=of.device)
    for down in range(3):
        for right in range(3):
            there = slice(down, down + rows), slice(right, right + columns)
            cosine = (of * around[:, there[0], there[1]]).sum(dim=-1)
            real = inside[:, there[0], there[1]] > 0
            best = torch.maximum(best, torch.where(real, cosine, -1.0))
    return 1 - best
