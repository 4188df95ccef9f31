"""Losses of the change model: of the text, of "did anything change?", and of "where?".

Each gives a sum and a count, so that many processes, or pieces of a batch, can divide the sum of
their sums by the sum of their counts: the mean over all tokens, rows or patches of the whole batch,
however it is shared out. `contrastive.py` has the losses of the dual encoder.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F


def answer_loss(
    logits: Float[Tensor, "batch length vocabulary"],
    text: Int64[Tensor, "batch length"],
    pad_token: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How badly the texts were foretold.

        for each row, for each token but the first that is no padding:
            sum -= log softmax(logits[row, token])[text[row, token]]
            count += 1

    Args:
        logits: Row i, place j is what was foretold of text[i, j].
        text: Token ids. The first is the start token, which is given; the end token counts.
        pad_token: Id of the padding.

    Returns:
        Sum in nats, and how many tokens it is of; both 0 where there is none.
    """
    asked = text[:, 1:]
    counted = asked != pad_token
    each = F.cross_entropy(logits[:, 1:].transpose(1, 2).float(), asked, reduction="none")
    return (each * counted).sum(), counted.sum().float()


def changed_loss(
    logits: Float[Tensor, " batch"], changed: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How badly "did anything change?" was answered.

        for each row whose label is not NaN:
            sum -= log sigmoid(logit) if it changed else log sigmoid(-logit)
            count += 1

    Args:
        logits: Of "something changed".
        changed: 1, 0, or NaN where nobody knows.

    Returns:
        Sum in nats, and how many rows it is of; both 0 where nobody knows any.
    """
    known = ~changed.isnan()
    each = F.binary_cross_entropy_with_logits(
        logits.float(), changed.nan_to_num(0.0).float(), reduction="none"
    )
    return (each * known).sum(), known.sum().float()


def place_loss(
    logits: Float[Tensor, "batch rows columns"],
    mask: UInt8[Tensor, "batch height width"],
    patch_size: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How badly "did something change here?" was answered, for each patch.

        for each row, for each patch:
            sum -= log sigmoid(logit) if any of its pixels changed else log sigmoid(-logit)
            count += 1

    Args:
        logits: Of "something changed in this patch".
        mask: 1 where something changed, in pixels of what the model was given.
        patch_size: Side of a patch, in pixels.

    Returns:
        Sum in nats, and how many patches it is of.
    """
    target = patches_of(mask, logits.shape[1], logits.shape[2], patch_size)
    each = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return each.sum(), torch.tensor(float(target.numel()), device=target.device)


def patches_of(
    mask: UInt8[Tensor, "batch height width"], rows: int, columns: int, patch_size: int
) -> Float[Tensor, "batch rows columns"]:
    """1 for each patch in which any pixel is marked.

    Patches begin at the upper left corner; pixels beyond the last fill none (`cut_edge` of the
    image tower), and are of none.
    """
    seen = mask[:, : rows * patch_size, : columns * patch_size]
    return F.max_pool2d((seen > 0).float(), patch_size)
