"""Classes as texts: each label put into several templates, and one vector for all of them.

A model trained on captions knows "a photo of a dog." better than "dog", and the mean over several
ways to say it better than any one (CLIP, arXiv:2103.00020, section 3.1.4). Judging
(`evaluate/zeroshot.py`) and use (`Model.classify`) share this file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diptych.errors import RequestError

TEMPLATES = (
    "{}",
    "{}.",
    "a picture of {}.",
    "a photo of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "this picture shows {}.",
)
"""What is used if no templates are given: short, and not only for photos."""

PLACES = ("{}", "{c}")
"""Where the label goes; the second is how CLIP_benchmark's files write it."""


def class_vectors(
    encode_text: Callable[[list[str]], Float[np.ndarray, "texts embed"]],
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
) -> Float[np.ndarray, "labels embed"]:
    """One unit vector for each label.

        for each label:
            for each template: vector of the filled template, unit norm
            mean over the templates, unit norm

    Args:
        encode_text: Unit vectors of texts.
        labels: Different from each other, none of them blank.
        templates: Texts with {} (or {c}) where the label goes; None takes `TEMPLATES`.

    Raises:
        RequestError: There is no label or no template, a label is blank or given twice, or a
            template has no place for the label.
    """
    labels = check_labels(labels)
    total: np.ndarray | float = 0.0
    for template in check_templates(TEMPLATES if templates is None else templates):
        total = total + _unit(encode_text([fill(template, label) for label in labels]))
    return _unit(np.asarray(total)).astype(np.float32)


def fill(template: str, label: str) -> str:
    """A template with the label in its place; nothing else in it is special."""
    for place in PLACES:
        template = template.replace(place, label)
    return template


def read_templates(path: Path) -> tuple[str, ...]:
    """One template a line; empty lines are left out.

    A `zeroshot_classification_templates.txt` of CLIP_benchmark is such a file.

    Raises:
        RequestError: The file cannot be read, is empty, or a line has no place for the label.
    """
    return check_templates(read_lines(path, "templates"), f"{path}: ")


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; empty lines are left out.

    Raises:
        RequestError: The file cannot be read, is empty, or names a label twice.
    """
    return check_labels(read_lines(path, "labels"), f"{path}: ")


def read_lines(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file that are not empty, without the blanks around them.

    Raises:
        RequestError: The file cannot be read as text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(
            f"the file of {what} {path} cannot be read: {reason}. Give a text file, one a line."
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def check_templates(templates: Sequence[str], where: str = "") -> tuple[str, ...]:
    """The templates, each with a place for the label.

    Raises:
        RequestError: There is none, or one has no place.
    """
    if isinstance(templates, str) or not len(templates):
        raise RequestError(
            f'{where}{templates!r} is no list of templates. Give one or more, such as ["a {{}}."].'
        )
    for template in templates:
        if not any(place in template for place in PLACES):
            raise RequestError(
                f"{where}the template {template!r} has no place for the label. "
                'Write {} where it goes, such as "a photo of a {}."'
            )
    return tuple(templates)


def check_labels(labels: Sequence[str], where: str = "") -> tuple[str, ...]:
    """The labels without the blanks around them, no two the same.

    Raises:
        RequestError: There is none, one is blank, or one is given twice.
    """
    if isinstance(labels, str) or not len(labels):
        raise RequestError(
            f'{where}{labels!r} is no list of labels. Give one or more, such as ["cat", "dog"].'
        )
    stripped = tuple(label.strip() for label in labels)
    if "" in stripped:
        raise RequestError(
            f"{where}label {stripped.index('') + 1} of {len(labels)} is blank. "
            "Leave it out, or write a word."
        )
    twice = [label for place, label in enumerate(stripped) if label in stripped[:place]]
    if twice:
        raise RequestError(f"{where}the label {twice[0]!r} is given twice. Give each label once.")
    return stripped


def _unit(vectors: Float[np.ndarray, "rows embed"]) -> Float[np.ndarray, "rows embed"]:
    """Rows of unit norm, in fp64; a row of zeros stays one."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
