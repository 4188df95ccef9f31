"""From a source to batches, in an order that depends on the seed and the position alone.

Batch `p` of a run is a pure function of (source, seed, p): which samples, which of their
captions, how each picture is cropped. Workers only change when it is computed. So a run can be
resumed at any batch, with any number of workers, and sees what it would have seen.

`order.py` says which sample comes when: every sample once per epoch, then again in another order.
A picture that cannot be read is replaced by another sample, and listed in the batch.

`Pipeline` gives single pictures with their texts; `pair_pipeline.py` gives pairs of pictures, on
the same base.
"""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.batch import ImageTextBatch
from diptych.config import Config
from diptych.data.augment import AugmentConfig, training_transform
from diptych.data.linking import linked
from diptych.data.pictures import to_rgb
from diptych.data.several import training_order
from diptych.data.source import Sample, Source
from diptych.data.tokenizer import Tokenizer, trim
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import DataError, DiptychError, RequestError

CaptionDraw = Literal["one", "joined"]
"""`one`: any one of the captions. `joined`: the first one, and half of the time up to four of the
others after it, divided by commas; for samples that have a name and keywords."""

Read = TypeVar("Read")
"""What a pipeline reads of one sample."""

Batch = TypeVar("Batch")
"""What a pipeline makes of the rows of a batch."""

REPLACEMENTS = 20
"""How many samples are tried in the place of one that cannot be read."""


MOST_JOINED = 4
"""Most captions that follow the first where captions are joined."""


class OrderConfig(Config):
    """Which batch is which."""

    batch: int
    """Pairs per batch, over all ranks."""

    seed: int = 0
    """Of the order, the captions drawn and the crops."""

    rank: int = 0
    """This process; it gets rows rank * batch / ranks and following of every batch."""

    ranks: int = 1
    """Processes that share each batch; divides `batch`."""

    caption: CaptionDraw = "one"
    """What is drawn of a sample's captions."""


@dataclass(frozen=True)
class Rows(Generic[Read]):
    """Our rank's share of a batch, read but not yet put together."""

    read: list[Read]
    text: Int64[Tensor, "batch length"]
    groups: Int64[Tensor, " batch"]
    position: int
    bad: tuple[tuple[str, str], ...]
    cut: int


class PositionedBatches(Dataset[Batch], ABC, Generic[Read, Batch]):
    """Batches by position. Item p is batch p.

    A subclass says what is read of a sample (`_read`) and what becomes of the rows (`_joined`).
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        transform: ImageTransformConfig,
        order: OrderConfig,
        *,
        augment: AugmentConfig | None,
        trims_text: bool,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            source: Where samples come from.
            tokenizer: Turns captions into ids.
            transform: Size of the picture, and how it gets there without augmentation.
            order: Batch size, seed and share of this rank.
            augment: Random crops for training; None gives the evaluation transform.
            trims_text: Drop columns that are padding in every row. Only for text towers that
                never read padding.

        Raises:
            RequestError: The ranks do not divide the batch, or a batch is larger than the source.
        """
        if order.batch < 1 or order.batch % order.ranks:
            more = max(order.ranks, order.batch - order.batch % order.ranks)
            raise RequestError(
                f"batch {order.batch} cannot be divided among {order.ranks} processes. "
                f"Use --batch {more}."
            )
        if source.size is not None and order.batch > source.size:
            fits = source.size - source.size % order.ranks
            raise RequestError(
                f"batch {order.batch} is larger than {source.name} with {source.size} samples. "
                + (f"Use --batch {fits} or less." if fits > 1 else "Offer more samples.")
            )
        self.source, self.tokenizer, self.transform = source, tokenizer, transform
        self.order, self.augment, self.trims_text = order, augment, trims_text
        self._indices = training_order(source, order.seed)

    def __getitem__(self, position: int) -> Batch:
        """Our rank's share of batch `position`.

        Raises:
            DataError: A sample and its replacements all cannot be read.
        """
        return self._joined(self._rows(position))

    @abstractmethod
    def _read(self, sample: Sample, number: int) -> Read:
        """What the batch needs of a sample that stands at this number of the order.

        Raises:
            DataError: It cannot be read; another sample takes its place.
        """

    @abstractmethod
    def _joined(self, rows: Rows[Read]) -> Batch:
        """The batch.

        Raises:
            DataError: The rows do not fit together.
        """

    def _rows(self, position: int) -> Rows[Read]:
        """What our rank reads for batch `position`."""
        order = self.order
        numbers = range(position * order.batch, (position + 1) * order.batch)
        indices = [self._index(number) for number in numbers]
        texts = [
            self._caption(index, number) for index, number in zip(indices, numbers, strict=True)
        ]
        groups = same_picture_or_text(indices, self._marks(indices, texts))
        share = order.batch // order.ranks
        mine = range(order.rank * share, (order.rank + 1) * share)
        read, bad = [], []
        for row in mine:
            number = numbers[row]
            one, replaced, troubles = self._read_one(indices[row], number)
            bad += troubles
            if replaced is not None:
                texts[row] = self._caption(replaced, number)
                groups[row] = order.batch + row  # known to this rank only: no longer shared
            read.append(one)
        ids, cut = self.tokenizer.encode([texts[row] for row in mine])
        if self.trims_text:
            ids = trim(ids, self.tokenizer.pad_token, self.tokenizer.end_token)
        return Rows(
            read=read,
            text=torch.from_numpy(ids),
            groups=torch.from_numpy(groups[mine.start : mine.stop]),
            position=position,
            bad=tuple(bad),
            cut=cut,
        )

    def batches(
        self, start: int, stop: int | None, *, workers: int, prefetch: int = 4
    ) -> Iterator[Batch]:
        """Batches start, start + 1, … up to but not including `stop` (None: without end).

        Args:
            start: First position.
            stop: Position after the last one.
            workers: Processes that prepare batches; 0 prepares them in this one.
            prefetch: Batches that each worker prepares ahead.
        """
        positions = range(start, stop) if stop is not None else _Endless(start)
        loader: DataLoader[Batch | DiptychError] = DataLoader(
            _Told(self),
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals,
        )
        with _sigterm_held():  # workers start here, and SIGTERM must not find them unprepared
            return map(_or_raise, loader)

    def _index(self, number: int) -> int:
        """Which sample stands at this number of the order."""
        return self._indices.at(number)

    def _replacement(self, number: int, tries: int) -> int:
        """Which sample is tried in the place of one that cannot be read."""
        random = self._random(number, 2, tries)
        if self.source.size is not None:
            return int(random.integers(self.source.size))
        return self._index(number + self.order.batch + int(random.integers(100)))  # soon to come

    def _random(self, *numbers: int) -> np.random.Generator:
        """Randomness that belongs to these numbers of this run."""
        return np.random.Generator(np.random.PCG64([self.order.seed, *numbers]))

    def _caption(self, index: int, number: int) -> str:
        """One of the sample's captions, drawn anew each time the sample comes by."""
        captions = self.source.captions(index)
        if not captions:
            raise DataError(
                f"sample {index} of {self.source.name} has no caption to learn from. "
                "Give it one or leave it out."
            )
        random = self._random(number, 1)
        if self.order.caption == "joined":
            return joined(captions, random)
        return captions[int(random.integers(len(captions)))]

    def _marks(self, indices: list[int], texts: list[str]) -> list[str]:
        """What rows must share to be no negatives of each other: the text, or the first caption
        where others are joined to it."""
        if self.order.caption == "one":
            return texts
        return [self.source.captions(index)[0] for index in indices]

    def _read_one(self, index: int, number: int) -> tuple[Read, int | None, list[tuple[str, str]]]:
        """What is read for this place, the sample that replaced a bad one, and what was bad."""
        bad: list[tuple[str, str]] = []
        replaced = None
        for _ in range(REPLACEMENTS):
            try:
                sample = self.source.sample(index)
                return self._read(sample, number), replaced, bad
            except DataError as error:
                bad.append((f"{self.source.name}#{index}", str(error)))
            index = replaced = self._replacement(number, len(bad))
        raise DataError(
            f"{REPLACEMENTS} samples in a row cannot be read, the last because {bad[-1][1]} "
            "Check that the source is what you think it is."
        )

    def _pixels(
        self, picture: bytes | Path | Image.Image, key: str, number: int
    ) -> UInt8[np.ndarray, "size size 3"]:
        """A picture as a square of RGB bytes; the same crop and colours for all of one number."""
        rgb = to_rgb(picture, key=key)
        if self.augment is None:
            return evaluation_transform(rgb, self.transform)
        return training_transform(rgb, self.transform, self.augment, self._random(number, 3))


class Pipeline(PositionedBatches[np.ndarray, ImageTextBatch]):
    """Batches of single pictures with one text each."""

    def _read(self, sample: Sample, number: int) -> np.ndarray:
        """The picture as a square of RGB bytes."""
        return self._pixels(sample.picture, sample.key, number)

    def _joined(self, rows: Rows[np.ndarray]) -> ImageTextBatch:
        """The batch."""
        return ImageTextBatch(
            image=torch.from_numpy(np.stack(rows.read)),
            text=rows.text,
            groups=rows.groups,
            position=rows.position,
            bad=rows.bad,
            cut=rows.cut,
        )


def joined(captions: Sequence[str], random: np.random.Generator) -> str:
    """The first caption; half of the time with up to `MOST_JOINED` of the others, in any order."""
    others = random.permutation(len(captions) - 1)[: int(random.integers(MOST_JOINED + 1))] + 1
    if random.random() < 0.5:
        others = others[:0]
    return ", ".join(captions[place] for place in [0, *others])


def same_picture_or_text(indices: list[int], texts: list[str]) -> Int64[np.ndarray, " rows"]:
    """A number per row; rows share it if they are linked by the same picture or the same text."""
    return np.array(linked(zip(indices, texts, strict=True)), dtype=np.int64)


class _Endless:
    """start, start + 1, … without end."""

    def __init__(self, start: int) -> None:
        """Begin at `start`."""
        self.start = start

    def __iter__(self) -> Iterator[int]:
        """Positions, one after the other."""
        return count(self.start)


class _Told(Dataset[Batch | DiptychError], Generic[Batch]):
    """A pipeline that gives its errors instead of raising them.

    What a worker raises reaches the main process with a traceback in its message.
    """

    def __init__(self, pipeline: Dataset[Batch]) -> None:
        """Wrap a pipeline."""
        self.pipeline = pipeline

    def __getitem__(self, position: int) -> Batch | DiptychError:
        """The batch, or why there is none."""
        try:
            return self.pipeline[position]
        except DiptychError as error:
            return error


def _or_raise(told: Batch | DiptychError) -> Batch:
    """The batch; the error if that is what was told."""
    if isinstance(told, DiptychError):
        raise told
    return told


def _leave_signals(_: int) -> None:
    """Ctrl-C and SIGTERM are for the main process; workers end when it tells them to.

    `timeout` and schedulers send SIGTERM to every process of a run. The main process then saves,
    and needs its workers until it has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """End this worker when SIGTERM comes from the main process, and only then."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def _sigterm_held() -> Iterator[None]:
    """SIGTERM waits until the block ends; processes started inside never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    """Workers hand over whole batches."""
    return batch
