"""Which sample comes when: numbers only, from the seed and the place in the order.

A finite source is gone through again and again, each time in another order. A mixture of sources
is drawn in blocks of `BLOCK` samples, each of which holds every source in its exact share:

    block, place = divmod(number, BLOCK)
    source = shuffled(block)[place]
    nth = block * (samples of the source per block) + (those before `place` in this block)
    sample = order of the source at nth

So what comes at a number can be said without counting up to it, and each sample of a finite
source comes once before any comes again. `several.py` has the sources that are mixed.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64

from diptych.errors import RequestError

BLOCK = 1000
"""Samples in which the shares of a mixture are exact."""

Made = TypeVar("Made")


@runtime_checkable  # beartype checks it in tests
class Order(Protocol):
    """Which sample stands at which number."""

    def at(self, number: int) -> int:
        """The sample at this number, 0 or more."""
        ...


def order_of(size: int | None, *mark: object) -> Order:
    """The order of one source.

    Args:
        size: Number of its samples; None for a source without end, which comes as it is.
        mark: What the order depends on, such as the seed.
    """
    return AsItComes() if size is None else Passes(size, *mark)


class AsItComes:
    """A source without end, from its first sample on."""

    def at(self, number: int) -> int:
        """The number itself."""
        return number


class Passes:
    """A finite source, again and again; each pass is a permutation of its own."""

    def __init__(self, size: int, *mark: object) -> None:
        """See `order_of`."""
        self._size = size
        self._permutation = _LastTwo(_Shuffle(size, *mark))

    def at(self, number: int) -> int:
        """The sample at this number."""
        one_pass, place = divmod(number, self._size)
        return int(self._permutation(one_pass)[place])


class Mixed:
    """Several sources in fixed shares, without end.

    What stands at a number is one whole number for source and sample: see `joined`.
    """

    def __init__(self, sizes: Sequence[int | None], counts: Sequence[int], seed: int) -> None:
        """Prepare the order.

        Args:
            sizes: Of the sources.
            counts: Samples of each source per block; they add up to `BLOCK`.
            seed: Of the blocks and the passes.
        """
        self._counts = tuple(counts)
        self._orders = [order_of(size, "source", place, seed) for place, size in enumerate(sizes)]
        self._shuffle = _Shuffle(BLOCK, "block", seed)
        self._block = _LastTwo(self._drawn)

    def at(self, number: int) -> int:
        """Source and sample at this number, joined."""
        block, place = divmod(number, BLOCK)
        source, before = map(int, self._block(block)[:, place])
        nth = block * self._counts[source] + before
        return joined(source, self._orders[source].at(nth), len(self._counts))

    def _drawn(self, block: int) -> Int64[np.ndarray, "2 block"]:
        """For each place of a block its source, and how many before it are of that source."""
        sources = np.repeat(np.arange(len(self._counts)), self._counts)[self._shuffle(block)]
        before = np.zeros_like(sources)
        for source, count in enumerate(self._counts):
            before[sources == source] = np.arange(count)
        return np.stack([sources, before])


def joined(source: int, sample: int, sources: int) -> int:
    """One number for a source and a sample of it; `parted` gives both back."""
    return sample * sources + source


def parted(index: int, sources: int) -> tuple[int, int]:
    """The source and its sample from what `joined` made of them."""
    sample, source = divmod(index, sources)
    return source, sample


def counts_per_block(weights: Sequence[float]) -> tuple[int, ...]:
    """How many of `BLOCK` samples are of each source: its share, rounded by largest remainder.

    Raises:
        RequestError: A share is too small to be seen in a block.
    """
    whole = math.fsum(weights)
    exact = [weight / whole * BLOCK for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: BLOCK - sum(counts)]:
        counts[place] += 1
    if 0 in counts:
        small = weights[counts.index(0)]
        raise RequestError(
            f"weight {small:g} is less than one sample in {BLOCK:,} of the weights' sum "
            f"{whole:g}. Use weights that are closer together, such as {whole / BLOCK:g}."
        )
    return tuple(counts)


class _Shuffle:
    """Permutations of `size` numbers; each depends on the mark and its number alone."""

    def __init__(self, size: int, *mark: object) -> None:
        self._size, self._mark = size, mark

    def __call__(self, number: int) -> Int64[np.ndarray, " size"]:
        words = " ".join(map(str, (*self._mark, number)))
        generator = np.random.Generator(
            np.random.PCG64(int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little"))
        )
        return generator.permutation(self._size).astype(np.int64)


class _LastTwo(Generic[Made]):
    """A function of a number that keeps its last two results.

    A batch reaches over one boundary at most. Unlike functools.lru_cache it can be pickled.
    """

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make = make
        self._kept: tuple[tuple[int, Made], ...] = ()

    def __call__(self, number: int) -> Made:
        for kept, made in self._kept:
            if kept == number:
                return made
        made = self._make(number)
        self._kept = (*self._kept[-1:], (number, made))
        return made
