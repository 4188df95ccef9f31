"""Pictures with their class, for the tasks that ask which class a picture is of.

The class of a sample is its first caption: a column that `--text-column` names, or the folder of a
class folder. Identical pictures are one picture, which is of every class that any copy is of.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diptych.data.source import Source
from diptych.errors import DataError
from diptych.evaluate.judge import (
    Encoder,
    Progress,
    Settings,
    encode_pictures,
    no_progress,
    samples_to_take,
)
from diptych.evaluate.retrieval import merge


@dataclass(frozen=True)
class LabelledPictures:
    """Distinct pictures, each with its classes."""

    image: Float[np.ndarray, "pictures embed"]
    labels: list[tuple[str, ...]]
    """The classes of each picture, sorted; nearly always one."""

    ids: list[str]
    """Content hash of each picture."""

    names: list[str]
    """The classes of the whole source, sorted; some may have no picture here."""

    copies: int
    """Pictures left out as they were the same as another."""

    bad: dict[str, str]
    """Pictures that could not be read, with the reason."""

    def without(self, ids: set[str]) -> "LabelledPictures":
        """The pictures whose content hash is not among `ids`."""
        kept = [row for row, one in enumerate(self.ids) if one not in ids]
        return LabelledPictures(
            self.image[kept],
            [self.labels[row] for row in kept],
            [self.ids[row] for row in kept],
            self.names,
            self.copies,
            self.bad,
        )


def labelled_pictures(
    encoder: Encoder, source: Source, settings: Settings, progress: Progress = no_progress
) -> LabelledPictures:
    """Encode the pictures of a source and look up their classes.

    With a limit, samples are drawn, always the same ones, and the classes stay those of the whole
    source: a smaller sample then measures the same thing.

    Raises:
        RequestError: The limit is below 2.
        DataError: Fewer than two pictures can be read, or the source has fewer than two classes.
    """
    taken = samples_to_take(source, settings.limit, at_random=True)
    everything = range(source.size) if source.size is not None else taken
    label_of = {index: _label(source, index) for index in everything}
    names = sorted(set(label_of.values()))
    if len(names) < 2:
        raise DataError(
            f"{source.name} has one class only, {names[0]!r}. Use a source with two or more, or "
            "name the column of the class with --text-column."
        )
    pictures = encode_pictures(encoder, source, taken, progress=progress)
    first, place = merge("picture", pictures.ids, len(pictures.ids))
    labels: list[set[str]] = [set() for _ in first]
    for index, row in zip(pictures.indices, place, strict=True):
        labels[row].add(label_of[index])
    return LabelledPictures(
        pictures.image[first],
        [tuple(sorted(some)) for some in labels],
        [pictures.ids[row] for row in first],
        names,
        len(place) - len(first),
        pictures.bad,
    )


def _label(source: Source, index: int) -> str:
    """The class of a sample."""
    captions = source.captions(index)
    if not captions:
        raise DataError(
            f"{source.name}#{index} has no caption, so no class. "
            "Name the column of the class with --text-column."
        )
    return captions[0]
