"""Several sources as one: one after the other, or mixed in given shares.

A `Concatenation` has all samples of its sources once. A `Mixture` has no end: its sources come in
the shares of their weights, written SPEC@WEIGHT, in the order that `order.py` gives.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from diptych.data.order import BLOCK, Mixed, Order, counts_per_block, order_of, parted
from diptych.data.source import Sample, Source
from diptych.errors import RequestError
from diptych.files import fingerprint


class Concatenation:
    """The samples of several finite sources, one source after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Join the sources.

        Raises:
            RequestError: A source has no end, so that nothing could come after it.
        """
        self._sources = tuple(sources)
        sizes: list[int] = []
        for source in sources:
            if source.size is None:
                raise RequestError(
                    f"{source.name} has no end, so that no other source can follow it. "
                    f"Give each source a weight, such as {source.name}@1."
                )
            sizes.append(source.size)
        self._starts = [0, *accumulate(sizes)]
        self.size: int | None = self._starts[-1]
        self.name = " + ".join(source.name for source in sources)
        self.fingerprint = fingerprint(*(source.fingerprint for source in sources))
        self.notes = tuple(note for source in sources for note in source.notes)

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        source, place = self._at(index)
        return source.captions(place)

    def sample(self, index: int) -> Sample:
        """The sample; its key begins with the name of its source."""
        source, place = self._at(index)
        return _from(source, place)

    def _at(self, index: int) -> tuple[Source, int]:
        """The source of a sample and its number there."""
        which = bisect_right(self._starts, index) - 1
        return self._sources[which], index - self._starts[which]


class Mixture:
    """Several sources in the shares of their weights, without end; some may have no end either.

    A sample's number stands for its source and its number there, as `order.joined` makes it. A
    number past the end of a finite source stands for a sample of it again, from the first on.
    """

    size: int | None = None

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """Mix the sources; weights are shares of the samples drawn, of any sum.

        Raises:
            RequestError: A weight is too small beside the others.
        """
        self._sources = tuple(sources)
        self._counts = counts_per_block(weights)
        sizes = [source.size for source in sources]
        self.samples = None if None in sizes else sum(size or 0 for size in sizes)
        """Of all sources together, each once; None where one of them has no end."""
        pairs = list(zip(sources, weights, strict=True))
        self.name = " + ".join(f"{source.name}@{weight:g}" for source, weight in pairs)
        self.fingerprint = fingerprint(
            *(f"{source.fingerprint}@{weight!r}" for source, weight in pairs)
        )
        shares = ", ".join(
            f"{count} from {source.name}"
            for source, count in zip(sources, self._counts, strict=True)
        )
        self.notes = (
            *(note for source in sources for note in source.notes),
            f"mixture: of every {BLOCK:,} pictures {shares}",
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        source, place = self._at(index)
        return source.captions(place)

    def sample(self, index: int) -> Sample:
        """The sample; its key begins with the name of its source."""
        source, place = self._at(index)
        return _from(source, place)

    def order(self, seed: int) -> Order:
        """Which sample comes when."""
        return Mixed([source.size for source in self._sources], self._counts, seed)

    def _at(self, index: int) -> tuple[Source, int]:
        """The source of a sample and its number there."""
        which, place = parted(index, len(self._sources))
        source = self._sources[which]
        return source, place if source.size is None else place % source.size


def training_order(source: Source, seed: int) -> Order:
    """Which sample of a source comes when, in training."""
    if isinstance(source, Mixture):
        return source.order(seed)
    return order_of(source.size, "order", seed)


def weights_of(specs: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """The specs without their weights, and the weights; None if no spec has one.

    A spec that is the path of something that exists has no weight, whatever it ends in.

    Raises:
        RequestError: Only some have a weight, a weight is not above 0, or there is one spec only.
    """
    parts = [_weighed(spec) for spec in specs]
    bare = [spec for spec, weight in parts if weight is None]
    weights = [weight for _, weight in parts if weight is not None]
    if not weights:
        return bare, None
    if len(specs) == 1:
        raise RequestError(
            f"{specs[0]} has a weight, and there is no other source to weigh it against. "
            f"Write {parts[0][0]}, or give --data more than once."
        )
    if bare:
        raise RequestError(
            f"{bare[0]} has no weight, and other sources have one. Write {bare[0]}@1, or "
            "leave all weights out."
        )
    for spec, weight in zip(specs, weights, strict=True):
        if not 0 < weight < math.inf:
            raise RequestError(f"the weight of {spec} is {weight:g}. Use more than 0, such as @1.")
    return [spec for spec, _ in parts], weights


def _weighed(spec: str) -> tuple[str, float | None]:
    """A spec and its weight, if it has one."""
    found = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?|\.\d+)", spec)
    with suppress(OSError):  # no path at all
        if Path(spec).exists():
            return spec, None
    return (spec, None) if found is None else (found[1], float(found[2]))


def _from(source: Source, place: int) -> Sample:
    """A sample with the name of its source in its key: others may have the same key."""
    sample = source.sample(place)
    return replace(sample, key=f"{source.name}:{sample.key}")
