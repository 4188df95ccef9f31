"""Picture files told into labels; files that cannot be read are listed, not fatal.

`Model.classify` is the same for pictures that can all be read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diptych.data.folder import pictures_below
from diptych.data.prepared import prepared
from diptych.data.prompts import class_vectors
from diptych.errors import DataError, RequestError
from diptych.predict.model import Model, best_first


@dataclass
class ClassifyResult:
    """What was found."""

    labels: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """For each file every label with its probability, best first."""

    bad: dict[str, str] = field(default_factory=dict)
    """Files that could not be read, with the reason."""


def classify_files(
    model: Model,
    paths: Sequence[Path],
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
    *,
    chunk: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClassifyResult:
    """Which label each picture goes with best.

    Args:
        model: What encodes.
        paths: Picture files.
        labels: See `Model.classify`.
        templates: See `Model.classify`.
        chunk: Pictures encoded at a time.
        progress: Called with files done and in all.

    Raises:
        RequestError: As `Model.classify`, or `chunk` is below 1.
    """
    text = class_vectors(model.encode_text, labels, templates)
    result = ClassifyResult()
    done = 0
    for part in prepared(paths, model.prepare, chunk):
        files: list[str] = []
        pixels: list[np.ndarray] = []
        for path, ready in part:
            if isinstance(ready, DataError):
                result.bad[str(path)] = str(ready)
            else:
                files.append(str(path))
                pixels.append(ready)
        if pixels:
            probability = model.probabilities(model.encode_prepared(np.stack(pixels)), text)
            result.labels.update(zip(files, best_first(probability, labels), strict=True))
        done += len(part)
        progress(done, len(paths))
    return result


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the pictures below them; each once, in the order given.

    Raises:
        RequestError: A path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise RequestError(f"there is nothing at {path}. Check the path.")
        below = pictures_below(path) if path.is_dir() else [path]
        if not below:
            raise RequestError(f"{path} holds no picture. Give a folder of pictures, or files.")
        found += below
    return list(dict.fromkeys(found))
