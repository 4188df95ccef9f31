"""`diptych classify`."""

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.common import Device, Json, Model, Offline, Seed, answer, counter, load_model, tell
from diptych.errors import DataError, RequestError


def classify(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Picture files, and folders of them.")],
    labels: Annotated[
        str | None, typer.Option("--labels", help="What to tell apart, divided by commas.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="The same from a file, one a line.")
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option("--templates", help="A file, one text a line with {} where the label goes."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels to show of each picture.")] = 3,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Tell which label each picture goes with best.

    Example: diptych classify runs/photos a.jpg holiday/ --labels "cat,dog,guinea pig"

    Probabilities are over all the labels for a softmax model, and of each label on its own for a
    sigmoid model. Files that cannot be read are told and left out.
    """
    from diptych.data.prompts import check_labels, read_labels, read_templates
    from diptych.predict.classify import classify_files, picture_files

    if (labels is None) == (labels_file is None):
        given = "both are" if labels is not None else "neither is"
        raise RequestError(
            f"labels come from --labels or --labels-file, and {given} given. "
            "Write: --labels cat,dog."
        )
    pieces = [piece for piece in (labels or "").split(",") if piece.strip()]
    if labels_file is None and not pieces:
        raise RequestError(f"--labels is {labels!r} and holds no label. Write: --labels cat,dog.")
    names = read_labels(labels_file) if labels_file else check_labels(pieces)
    texts = read_templates(templates) if templates else None
    paths = picture_files(images)
    loaded = load_model(model, device, offline)
    if len(names) == 1 and loaded.objective == "softmax":
        tell(
            f"only one label: this model compares labels, so {names[0]!r} gets 1.0 for any "
            "picture. Give another one to compare with."
        )
    result = classify_files(loaded, paths, names, texts, progress=counter("classified"))
    for path, reason in result.bad.items():
        tell(f"left out {path}: {reason}")
    shown = {path: found[:top] for path, found in result.labels.items()}
    values = {
        "pictures": {
            path: [{"label": label, "probability": share} for label, share in found]
            for path, found in shown.items()
        },
        "bad": result.bad,
    }
    if not shown:
        raise DataError(f"none of the {len(paths):,} files could be read. Give pictures.")
    answer(as_json, values, "\n".join(_lines(shown)))


def _lines(shown: dict[str, list[tuple[str, float]]]) -> list[str]:
    """A line for each picture, labels below each other."""
    width = max((len(path) for path in shown), default=0)
    label_width = max((len(label) for found in shown.values() for label, _ in found), default=0)
    return [
        f"{path:<{width}}  "
        + "  ".join(f"{label:<{label_width}} {share:.3f}" for label, share in found)
        for path, found in shown.items()
    ]
