"""What a source of pictures and captions is.

A source knows how many samples it has (None: without end), gives any of them by number, and has
a fingerprint that changes with its content. It decodes nothing: pictures come as bytes or paths.
`opening.py` turns what a user writes into one of the sources of this folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from diptych.config import Config
from diptych.data.linking import linked
from diptych.errors import DataError, RequestError
from diptych.files import fingerprint


@dataclass(frozen=True)
class Sample:
    """One picture and what people say of it."""

    key: str
    """Names the sample within its source: a path, or file and row."""

    picture: bytes | Path | Image.Image
    """Encoded bytes, a file, or an already drawn RGB picture."""

    captions: tuple[str, ...]
    """Never empty strings; may be an empty tuple where captions are optional."""

    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    """What else the source says of the sample, such as a table's other columns."""

    before: tuple[bytes | Path | Image.Image, ...] = ()
    """The pictures that came before `picture`, oldest first; the captions say what changed."""

    changed: bool | None = None
    """Whether something changed in `picture`; None where nobody knows, or nothing came before."""

    mask: Image.Image | None = None
    """Where `picture` changed: mode L, 255 inside, of its size; None where nobody knows."""


@runtime_checkable  # beartype checks it in tests
class Source(Protocol):
    """Samples by number."""

    name: str
    """What the user wrote."""

    size: int | None
    """Number of samples; None for a source without end."""

    fingerprint: str
    """Changes when the content changes."""

    notes: tuple[str, ...]
    """What the user should know: columns recognised, rows left out."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        ...

    def sample(self, index: int) -> Sample:
        """The sample; called in several threads at a time.

        Raises:
            DataError: The picture's bytes are not there.
        """
        ...


class SourceOptions(Config):
    """How to read a source that leaves something open."""

    image_column: str | None = None
    """Column of the picture; None finds it by the usual names."""

    before_column: str | None = None
    """Column of the picture before, or of a list of them, oldest first; None finds it by the usual
    names."""

    text_column: str | None = None
    """Column of the caption, or several divided by commas; None finds it by the usual names."""

    where: str | None = None
    """Rows to keep, as an SQL condition over the columns, such as `split = 'train'`."""

    part: tuple[float, float] = (0.0, 1.0)
    """Divide a source that has no splits: samples whose captions hash, in [0, 1), into this
    range. (0, 0.9) and (0.9, 1) share no caption: samples with a caption in common go together."""

    skip_damaged: bool = False
    """Of a tar that is cut or damaged, use what lies before the damage; False makes it an error."""


class ChosenSamples:
    """Some samples of another source, in a given order."""

    def __init__(self, source: Source, indices: list[int], note: str) -> None:
        self._source, self._indices = source, indices
        self.name = f"{source.name} ({note})"
        self.notes = (*source.notes, f"{len(indices):,} of {source.size:,} samples: {note}")
        self.size: int | None = len(indices)
        self.fingerprint = fingerprint(source.fingerprint, *map(str, indices))

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        return self._source.captions(self._indices[index])

    def sample(self, index: int) -> Sample:
        """The sample."""
        return self._source.sample(self._indices[index])


def take_parts(sources: Sequence[Source], part: tuple[float, float]) -> list[Source]:
    """Of each source, the samples whose captions hash into `part`, a range within [0, 1).

    Samples with a caption in common go together, whichever of the sources they are from.

    Raises:
        RequestError: The range is empty or a source has no end.
        DataError: No sample of a source falls into the range.
    """
    low, high = part
    if not 0 <= low < high <= 1:
        raise RequestError(f"part {low:g}..{high:g} is no range within 0..1. Use 0..0.9.")
    captions: list[list[tuple[str, ...]]] = []
    for source in sources:
        if source.size is None:
            raise RequestError(f"{source.name} has no end and no parts. Use its splits.")
        captions.append([source.captions(index) for index in range(source.size)])
    places = _places(captions)
    parts: list[Source] = []
    for source, of_source in zip(sources, places, strict=True):
        indices = [index for index, place in enumerate(of_source) if low <= place < high]
        if not indices:
            raise DataError(
                f"no sample of {source.name} falls into the part {low:g}..{high:g} "
                f"({source.size} in all). Use a larger source or a wider part."
            )
        parts.append(ChosenSamples(source, indices, f"part {low:g}..{high:g}"))
    return parts


def _places(captions: list[list[tuple[str, ...]]]) -> list[list[float]]:
    """A number in [0, 1) for each sample of each source, equal for those that go together."""
    texts = ["\n".join(said) or str(index) for one in captions for index, said in enumerate(one)]
    together = linked(said for one in captions for said in one)
    text_of: dict[int, str] = {}  # one for all that go together, whatever their order
    for group, text in zip(together, texts, strict=True):
        text_of[group] = min(text, text_of.get(group, text))
    found = iter([_place(text_of[group]) for group in together])
    return [[next(found) for _ in one] for one in captions]


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(fingerprint(text)[:13], 16) / 16**13
