"""One picture found: what every search gives."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hit:
    """One picture found."""

    key: str
    """Its name: the path of its file, or its place in the source."""

    path: str | None
    """Its file; None for pictures inside a table, or generated ones."""

    score: float
    """Cosine with the query, in [-1, 1]."""

    captions: list[str]
    row: int
    """Place in the folder of vectors, or number of the row in the library."""

    metadata: dict[str, str | int | float] = field(default_factory=dict)
    """What else is known: width, height, size_bytes, and date, latitude, longitude, camera and
    the source's own columns where there are any."""

    @property
    def caption(self) -> str:
        """The first caption, or nothing."""
        return self.captions[0] if self.captions else ""
