"""From a picture to patch tokens, and which of them training keeps.

Positions are learned tables added by the tower (`models/image_tower.py`).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut the picture into squares and project each: a convolution with stride = patch size.

    Written as a matrix product over the cut squares, which is the same sum and faster on CPU.
    """

    def __init__(self, patch_size: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Linear(3 * patch_size * patch_size, width, bias=bias)

    def forward(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches channels"]:
        """Tokens in reading order: left to right, then top to bottom."""
        batch, colours, height, width = image.shape
        side = self.patch_size
        rows, columns = height // side, width // side
        squares = image.reshape(batch, colours, rows, side, columns, side)
        squares = squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return self.project(squares)


def keep_random_patches(
    tokens: Float[Tensor, "batch patches width"], share: float
) -> Float[Tensor, "batch kept width"]:
    """Drop all but a random `share` of the patches of each picture (at least one).

    Each picture draws its own patches, from torch's global generator. Tokens must already
    carry their positions. Paper: Li et al., FLIP, arXiv:2212.00794.
    """
    batch, patches, width = tokens.shape
    kept = max(1, round(patches * share))
    draw = torch.rand(batch, patches, device=tokens.device)
    chosen = draw.topk(kept, dim=1).indices  # (batch, kept)
    return tokens.gather(1, chosen[:, :, None].expand(batch, kept, width))
