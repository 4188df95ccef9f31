"""Zero-shot classification: each picture to the class whose texts it is nearest to.

Classes are the distinct first captions of the source (`labels.py`), put into templates
(`data/prompts.py`) and judged in `classification.py`. `probe.py` learns its classes instead.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from diptych.data.prompts import TEMPLATES, check_templates, class_vectors
from diptych.data.source import Source
from diptych.evaluate.classification import Classification, classification
from diptych.evaluate.judge import Encoder, Judged, Progress, Settings, no_progress
from diptych.evaluate.labels import labelled_pictures


@dataclass(frozen=True)
class ZeroShotResult:
    """How well classes are recognised from their names alone."""

    task: ClassVar[str] = "zeroshot"

    measured: Classification
    templates: tuple[str, ...]
    copies: int
    """Pictures left out as they were the same as another."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares in 0 to 1."""
        return {
            **self.measured.to_dict(),
            "copies_left_out": self.copies,
            "templates": list(self.templates),
        }

    def summary(self) -> str:
        """A few aligned lines for a terminal."""
        measured = self.measured
        head = (
            f"{measured.pictures:,} distinct pictures, {len(measured.classes):,} classes, "
            f"{len(self.templates)} templates; 95 % intervals in brackets"
        )
        lines = [head, *measured.lines()]
        if len(measured.classes) > measured.pictures / 2:
            lines.append(
                "nearly every picture has a class of its own: are the captions class names? "
                "Name their column with --text-column"
            )
        return "\n".join(lines)


def judge_zeroshot(
    encoder: Encoder, source: Source, settings: Settings, progress: Progress = no_progress
) -> Judged:
    """Recognise the classes of a source from their names.

    Args:
        encoder: The model.
        source: Pictures whose first caption is their class.
        settings: Limit, seed, resamples, templates.
        progress: Called with pictures done and in all.

    Raises:
        RequestError: The limit is below 2, or a template has no place for the class.
        DataError: Fewer than two pictures or classes can be used.
    """
    given = TEMPLATES if settings.templates is None else settings.templates
    templates = check_templates(given)
    pictures = labelled_pictures(encoder, source, settings, progress)
    measured = classification(
        pictures.image,
        class_vectors(encoder.encode_text, pictures.names, templates),
        pictures.names,
        pictures.labels,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return Judged(ZeroShotResult(measured, templates, pictures.copies), pictures.bad)
