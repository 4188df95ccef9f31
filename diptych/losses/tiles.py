"""The kernel of the contrastive losses: walk the logits in tiles, turn them into gradients.

A `Block` is images against texts with the true pairs on any of its diagonals: a whole batch, or
the images of one process and the texts of another. `logit_tiles` makes its logits one square at
a time in one buffer, `add_products` multiplies d loss / d logit into gradients of the embeddings,
and `LogSumExp` and `softplus_sum` reduce a tile. Nothing here is recorded by autograd.

The losses themselves are in `contrastive.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

FOLDS = 6
"""Halvings of `softplus_sum`: a product of 2**6 factors of at most 2 stays below 2**64."""


def sum_dtype(device: torch.device) -> torch.dtype:
    """What losses are summed in: float64, where the device has it (Apple's has none)."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Block:
    """Images against texts: a whole batch, or the images of one process and texts of another."""

    image: Float[Tensor, "rows embed"]
    text: Float[Tensor, "columns embed"]
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None
    image_groups: Int64[Tensor, " rows"] | None
    text_groups: Int64[Tensor, " columns"] | None

    offset: int
    """Image i belongs with text i + offset of the block, if there is one."""

    tile: int
    """Side of the square of logits held at a time."""

    def buffer(self, dtype: torch.dtype | None = None) -> Float[Tensor, " logits"] | Tensor:
        """Room for the logits of one tile."""
        side = min(self.tile, len(self.image)) * min(self.tile, len(self.text))
        return self.image.new_empty(side, dtype=dtype)


class LogitTile(NamedTuple):
    """A rectangle of the logits; the next one overwrites it."""

    rows: slice
    columns: slice
    logits: Tensor
    """(rows, columns); -inf where an image and a text are neither a pair nor negatives."""

    true: Tensor
    """View of the logits of true pairs; often empty."""

    def like(self, buffer: Tensor) -> Tensor:
        """The start of `buffer` in the shape of the logits."""
        return buffer[: self.logits.numel()].view(self.logits.shape)


def logit_tiles(block: Block) -> Iterator[LogitTile]:
    """Walk the logits of a block: for each span of images, for each span of texts."""
    buffer = block.buffer()
    equal = None if block.image_groups is None else block.buffer(torch.bool)
    for rows in spans(len(block.image), block.tile):
        scaled = block.image[rows] * block.scale
        for columns in spans(len(block.text), block.tile):
            text = block.text[columns]
            logits = buffer[: len(scaled) * len(text)].view(len(scaled), len(text))
            torch.mm(scaled, text.T, out=logits)
            if block.bias is not None:
                logits.add_(block.bias)
            diagonal = rows.start - columns.start + block.offset
            tile = LogitTile(rows, columns, logits, logits.diagonal(diagonal))
            if equal is not None:
                assert block.image_groups is not None
                assert block.text_groups is not None
                same = tile.like(equal)
                torch.eq(block.image_groups[rows, None], block.text_groups[None, columns], out=same)
                same.diagonal(diagonal).fill_(False)
                logits.masked_fill_(same, -torch.inf)
            yield tile


def spans(count: int, size: int) -> Iterator[slice]:
    """Cut range(count) into slices of `size`; the last may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@dataclass(frozen=True)
class Products:
    """Sums over the tiles of (d loss / d logit) times the embeddings of the other side."""

    image: Float[Tensor, "rows embed"] | None
    text: Float[Tensor, "columns embed"] | None

    @classmethod
    def wanted(cls, block: Block, needs: tuple[bool, ...]) -> "Products":
        """Zeros for what `needs` (image, text, scale, ...) calls for; scale needs one of both."""
        image, text, scale, *_ = needs
        return cls(
            torch.zeros_like(block.image) if image or (scale and not text) else None,
            torch.zeros_like(block.text) if text else None,
        )

    def gradients(self, block: Block, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of image, text and scale, times `factor`; this uses the sums up."""
        scale_grad = None
        for ours, theirs in ((self.image, block.image), (self.text, block.text)):
            if ours is not None:
                if scale_grad is None:
                    # sum over i, j of weight[i, j] * dot(image[i], text[j]), as dots of rows
                    dots = torch.bmm(ours[:, None, :], theirs[:, :, None])
                    scale_grad = (dots.sum(dtype=sum_dtype(dots.device)) * factor).to(ours.dtype)
                ours.mul_(block.scale * factor)
        return self.image, self.text, scale_grad


def add_products(block: Block, tile: LogitTile, products: Products) -> None:
    """Add the share of a tile whose logits have become d loss / d logit."""
    if products.image is not None:
        products.image[tile.rows].addmm_(tile.logits, block.text[tile.columns])
    if products.text is not None:
        products.text[tile.columns].addmm_(tile.logits.T, block.image[tile.rows])


@dataclass(frozen=True)
class LogSumExp:
    """log(sum(exp(logits))) of many rows, built from parts and safe at any size of logits."""

    peak: Float[Tensor, " rows"]
    total: Float[Tensor, " rows"]

    @classmethod
    def empty(cls, like: Float[Tensor, "rows embed"]) -> "LogSumExp":
        """The sum of nothing; its peak is finite so that rows of -inf give 0, not nan."""
        lowest = torch.finfo(like.dtype).min
        return cls(like.new_full((len(like),), lowest), like.new_zeros(len(like)))

    def add(self, span: slice, logits: Tensor, dim: int, spare: Tensor) -> None:
        """Add the logits of the rows `span`; `dim` is summed away, `spare` is overwritten."""
        peak, total = self.peak[span], self.total[span]
        higher = torch.maximum(peak, logits.amax(dim))
        exp_in_place(torch.sub(logits, higher.unsqueeze(dim), out=spare))
        total.mul_(peak.sub_(higher).exp_()).add_(spare.sum(dim))
        peak.copy_(higher)

    def value(self) -> Float[Tensor, " rows"]:
        """The logarithm of each row's sum so far."""
        return self.peak + self.total.log()


def exp_in_place(exponents: Tensor) -> Tensor:
    """The exponential, but where it would vanish about the smallest normal number (1e-38).

    Underflow makes torch's exponential 30 times slower on CPU (measured: 24 against 0.9 ns),
    and at a scale of 100 it is common.
    """
    lowest = math.log(torch.finfo(exponents.dtype).tiny) + 1
    return exponents.clamp_(min=lowest).exp_()


def softplus_sum(logits: Tensor, spare: Tensor) -> Tensor:
    """Sum of log(1 + exp(logit)) = max(logit, 0) + log(1 + exp(-|logit|)); overwrites `spare`.

    Logarithms are slow, so that of a product is taken: (1 + a) (1 + b) = 1 + (a + b + a b)
    joins two small terms without ever rounding them against 1.
    """
    above = torch.clamp(logits, min=0, out=spare).sum()
    rest = exp_in_place(torch.abs(logits, out=spare).neg_()).view(-1)
    for _ in range(FOLDS):
        half = len(rest) // 2
        a, b = rest[:half], rest[len(rest) - half :]
        a.addcmul_(a, b).add_(b)
        rest = rest[: len(rest) - half]
    return above + rest.log1p_().sum()
