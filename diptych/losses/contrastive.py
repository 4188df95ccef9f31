"""Contrastive losses over a batch of image-text pairs, on one device.

Every image is scored against every text; row i of both inputs is a true pair.
`tile` bounds memory: only (tile, tile) logits exist at once,
forward and backward, and the value and gradient stay the same.

`tiles.py` walks the tiles; it is written so that the texts may also come from another process.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.losses.tiles import (
    Block,
    LogSumExp,
    Products,
    add_products,
    exp_in_place,
    logit_tiles,
    softplus_sum,
    sum_dtype,
)

CPU_TILE = 1024
"""Products are at full speed, and two tiles of float32 (8 MiB) stay in the cache."""

CUDA_TILE = 4096
"""Large enough to fill a GPU; two tiles of float32 take 128 MiB."""


def softmax_contrastive(
    image: Float[Tensor, "batch embed"],
    text: Float[Tensor, "batch embed"],
    scale: Float[Tensor, ""],
    *,
    tile: int | None = None,
    groups: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Find each image's text among all texts, and each text's image among all images.

        logit[i, j] = scale * dot(image[i], text[j])
        for each pair i:
            loss += log(sum over j of exp(logit[i, j])) - logit[i, i]
            loss += log(sum over j of exp(logit[j, i])) - logit[i, i]
        return loss / (2 * number of pairs)

    With `groups`, both sums leave out every j != i with groups[j] == groups[i].

    Args:
        image: Unit-norm embeddings; row i belongs with row i of `text`.
        text: Unit-norm embeddings.
        scale: Positive multiplier of the cosine similarity (1 / 0.07 at initialisation).
        tile: Side of the square of logits held at a time; None chooses one.
        groups: Rows of one number are no negatives of each other; None: all rows differ.

    Returns:
        Loss per pair, in nats, in float32 or, for float64 embeddings, float64.

    Raises:
        ValueError: `tile` is below 1, or the shapes do not fit.

    Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    arXiv:2103.00020.
    """
    tile = chosen_tile(image, text, groups, tile)
    image, text = in_full_precision(image, text)
    scale = scale.to(image)
    learning = wants_gradient(image, text, scale)
    return SoftmaxContrastive.apply(image, text, scale, groups, tile, learning)


def sigmoid_contrastive(
    image: Float[Tensor, "batch embed"],
    text: Float[Tensor, "batch embed"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    tile: int | None = None,
    groups: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Judge each image-text pair on its own: true pairs up, all others down.

        for each image i, for each text j:
            sign = +1 if i == j else -1
            loss -= log sigmoid(sign * (scale * dot(image[i], text[j]) + bias))
        return loss / number of images

    With `groups`, the terms of i != j with groups[i] == groups[j] are left out.

    Args:
        image: Unit-norm embeddings; row i belongs with row i of `text`.
        text: Unit-norm embeddings.
        scale: Positive multiplier of the cosine similarity (10 at initialisation).
        bias: Added to every logit (-10 at initialisation: most pairs are false).
        tile: Side of the square of logits held at a time; None chooses one.
        groups: Rows of one number are no negatives of each other; None: all rows differ.

    Returns:
        Loss per image, in nats, in float32 or, for float64 embeddings, float64.

    Raises:
        ValueError: `tile` is below 1, or the shapes do not fit.

    Paper: Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
    """
    tile = chosen_tile(image, text, groups, tile)
    image, text = in_full_precision(image, text)
    scale, bias = scale.to(image), bias.to(image)
    learning = wants_gradient(image, text, scale, bias)
    return SigmoidContrastive.apply(image, text, scale, bias, groups, tile, learning)


def chosen_tile(image: Tensor, text: Tensor, groups: Tensor | None, tile: int | None) -> int:
    """Check what both losses are given, and settle the side of a tile."""
    if image.shape != text.shape or image.ndim != 2 or len(image) == 0:
        raise ValueError(
            f"image is {tuple(image.shape)} and text is {tuple(text.shape)}, but row i of both is "
            "a pair. Give at least one pair, and both as (pairs, dimensions) of the same size."
        )
    if groups is not None and groups.shape != image.shape[:1]:
        raise ValueError(
            f"groups is {tuple(groups.shape)} for {len(image)} pairs. "
            f"Give one number for each pair: shape ({len(image)},)."
        )
    if tile is not None and tile < 1:
        raise ValueError(
            f"tile is {tile}, below 1. Use tile=1 or more, or None to have one chosen."
        )
    default = CPU_TILE if image.device.type == "cpu" else CUDA_TILE
    return min(tile or default, len(image))


def in_full_precision(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision becomes float32, since exponents of up to 100 need more than 8 bits."""
    widest = torch.promote_types(image.dtype, text.dtype)
    dtype = torch.promote_types(widest, torch.float32)
    return image.to(dtype).contiguous(), text.to(dtype).contiguous()


def wants_gradient(*inputs: Tensor) -> bool:
    """Whether backward may follow; inside an autograd.Function this is no longer visible."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


class SoftmaxContrastive(torch.autograd.Function):
    """Four products of a tile: one for the normalisers, then one for the logits, two to learn."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        groups: Tensor | None,
        tile: int,
        learning: bool,
    ) -> Tensor:
        """Keep the log-sum-exp of every row and column: with them, any tile can be made again."""
        block = Block(image, text, scale, None, groups, groups, 0, tile)
        over_texts, over_images = LogSumExp.empty(image), LogSumExp.empty(text)
        with torch.autocast(image.device.type, enabled=False):
            true_logits = add_normalisers(block, over_texts, over_images)
            texts, images = over_texts.value(), over_images.value()
        if learning:
            ctx.save_for_backward(image, text, scale, groups, texts, images)
            ctx.tile = tile
        total = (texts.double() + images.double()).sum() - 2 * true_logits
        return (total / (2 * len(image))).to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Make each tile again; d loss / d logit is both probabilities, minus 2 on true pairs."""
        image, text, scale, groups, texts, images = ctx.saved_tensors
        block = Block(image, text, scale, None, groups, groups, 0, ctx.tile)
        with torch.autocast(image.device.type, enabled=False):
            products = Products.wanted(block, ctx.needs_input_grad)
            spare = block.buffer()
            for tile in logit_tiles(block):
                torch.sub(tile.logits, images[tile.columns], out=tile.like(spare))
                tile.logits.sub_(texts[tile.rows, None])
                exp_in_place(tile.logits).add_(exp_in_place(tile.like(spare)))
                tile.true.sub_(2)
                add_products(block, tile, products)
            grads = products.gradients(block, grad_loss / (2 * len(image)))
        return *grads, None, None, None


def add_normalisers(block: Block, over_texts: LogSumExp, over_images: LogSumExp) -> Tensor:
    """Add a block to the sums of its rows and columns; return the sum of true logits, float64."""
    true_logits = block.image.new_zeros((), dtype=sum_dtype(block.image.device))
    spare = block.buffer()
    for tile in logit_tiles(block):
        over_texts.add(tile.rows, tile.logits, 1, tile.like(spare))
        over_images.add(tile.columns, tile.logits, 0, tile.like(spare))
        true_logits += tile.true.sum(dtype=true_logits.dtype)
    return true_logits


class SigmoidContrastive(torch.autograd.Function):
    """Three products of a tile: the logits and both gradients, all while the tile is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        groups: Tensor | None,
        tile: int,
        learning: bool,
    ) -> Tensor:
        """Take the gradients on the way, but only where someone will ask for them."""
        block = Block(image, text, scale, bias, groups, groups, 0, tile)
        with torch.autocast(image.device.type, enabled=False):
            products = Products.wanted(block, ctx.needs_input_grad) if learning else None
            total, bias_grad = sigmoid_sums(block, products)
        if learning:
            ctx.save_for_backward(image, text, scale, bias, groups)
            ctx.tile, ctx.taken = tile, (products, bias_grad)
        return (total / len(image)).to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale in place what forward took; a second backward has to take it anew."""
        image, text, scale, bias, groups = ctx.saved_tensors
        block = Block(image, text, scale, bias, groups, groups, 0, ctx.tile)
        with torch.autocast(image.device.type, enabled=False):
            (products, bias_grad), ctx.taken = ctx.taken, (None, None)
            if products is None:
                products = Products.wanted(block, ctx.needs_input_grad)
                _, bias_grad = sigmoid_sums(block, products)
            factor = grad_loss / len(image)
            grads = products.gradients(block, factor)
        return *grads, (bias_grad * factor).to(image.dtype), None, None, None


def sigmoid_sums(block: Block, products: Products | None) -> tuple[Tensor, Tensor]:
    """Sum of the loss and of its gradient by the bias (float64); adds to `products` if given.

    A true pair costs as much as a false pair of the opposite logit, so its sign is flipped,
    and flipped back in the gradient: no difference of nearly equal numbers is taken.
    """
    loss, bias_grad = block.image.new_zeros((2,), dtype=sum_dtype(block.image.device))
    spare = block.buffer()
    for tile in logit_tiles(block):
        tile.true.neg_()
        loss += softplus_sum(tile.logits, tile.like(spare))
        if products is not None:
            tile.logits.sigmoid_()
            tile.true.neg_()
            bias_grad += tile.logits.sum()
            add_products(block, tile, products)
    return loss, bias_grad
