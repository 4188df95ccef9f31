"""From a source of pairs to batches: pictures in a row, and a text of what the last one changed.

All pictures of a sample and its mask are cropped, turned and coloured alike. Everything else is as
in `pipeline.py`, the sibling for single pictures: the order, workers, replacements and resuming.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps

from diptych.batch import ImagePairBatch
from diptych.data.augment import training_transform
from diptych.data.boxes import marked
from diptych.data.pipeline import PositionedBatches, Rows
from diptych.data.source import Sample
from diptych.data.transforms import evaluation_transform
from diptych.errors import DataError


@dataclass(frozen=True)
class PairRow:
    """What is read of one sample."""

    key: str
    image: UInt8[np.ndarray, "images size size 3"]
    changed: bool | None
    mask: UInt8[np.ndarray, "size size"] | None


class PairPipeline(PositionedBatches[PairRow, ImagePairBatch]):
    """Batches of pictures in a row, oldest first, with one text each."""

    def _marks(self, indices: list[int], texts: list[str]) -> list[str]:
        """The first captions: samples that have the same one show the same change."""
        return [self.source.captions(index)[0] for index in indices]

    def _read(self, sample: Sample, number: int) -> PairRow:
        """The pictures as squares of RGB bytes, and their mask.

        Raises:
            DataError: One cannot be read, or there is none before; another sample takes its place.
        """
        if not sample.before:
            raise DataError(
                f"{sample.key} of {self.source.name} has no picture before it, and a pair is to "
                "be learned. Use a source of pairs: scenes:changes, or a table with the "
                "columns before, after and change_text (or --before-column)."
            )
        pictures = (*sample.before, sample.picture)
        pixels = [self._pixels(picture, sample.key, number) for picture in pictures]
        mask = None if sample.mask is None else self._mask(sample.mask, number)
        return PairRow(sample.key, np.stack(pixels), sample.changed, mask)

    def _joined(self, rows: Rows[PairRow]) -> ImagePairBatch:
        """The batch.

        Raises:
            DataError: Two samples have different numbers of pictures.
        """
        self._check(rows.read)
        unknown = float("nan")
        changed = [unknown if one.changed is None else float(one.changed) for one in rows.read]
        masks = [one.mask for one in rows.read if one.mask is not None]
        whole = len(masks) == len(rows.read)
        return ImagePairBatch(
            image=torch.from_numpy(np.stack([one.image for one in rows.read])),
            text=rows.text,
            changed=torch.tensor(changed),
            mask=torch.from_numpy(np.stack(masks)) if whole else None,
            groups=rows.groups,
            position=rows.position,
            bad=rows.bad,
            cut=rows.cut,
        )

    def _check(self, sequences: list[PairRow]) -> None:
        """Refuse sequences of different lengths."""
        first = sequences[0]
        for one in sequences:
            if len(one.image) != len(first.image):
                raise DataError(
                    f"{first.key} of {self.source.name} has {len(first.image)} pictures and "
                    f"{one.key} has {len(one.image)}. Give all samples the same number of "
                    "pictures before the last."
                )

    def _mask(self, mask: Image.Image, number: int) -> UInt8[np.ndarray, "size size"]:
        """The mask as a square of 0 and 1, cropped and turned as the pictures are.

        It goes as a negative: what a turn or a margin leaves free is white, and outside.
        """
        negative = ImageOps.invert(mask).convert("RGB")
        transform = self.transform.model_copy(update={"fill": 255})
        if self.augment is None:
            square = evaluation_transform(negative, transform)
        else:
            uncoloured = {"color": 0.0, "hue": 0.0, "grey": 0.0}
            augment = self.augment.model_copy(update=uncoloured)
            square = training_transform(negative, transform, augment, self._random(number, 3))
        return marked(255 - square[..., 0]).astype(np.uint8)
