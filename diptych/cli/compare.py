"""`diptych compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli.common import Device, Json, Model, Offline, Seed, answer, tell
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.predict.change import Change


def compare(
    model: Model,
    pictures: Annotated[
        list[Path], typer.Argument(help="BEFORE and AFTER, and MORE that came after them.")
    ],
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="What may be seen, or what may change, divided by commas."),
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="The same from a file, one a line.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG of both pictures and where they differ.")
    ] = None,
    beams: Annotated[
        int, typer.Option("--beams", min=1, help="Texts that a model which writes follows.")
    ] = 1,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Tell what changed between two pictures.

    Example: diptych compare runs/changes before.jpg after.jpg --out change.png

    Of more than two, what each of them but the first changed.

    A model that `diptych train change-caption-small` made says how probable it is that anything
    changed, "changed (97 %)" or "no change (12 %)", and in its own words what. One that
    change-clip-small or change-finetune made picks the best of --labels, texts of changes.

    Any other model, such as clip-b32, needs no training. It shows where the pictures differ, and
    which of two or more --labels, words for what may be seen, is seen more and less than before.
    The labels compete: where one is seen more, others are seen less, though they are as they were.

    Its distance is that of the hottest place, between 0 and 1. It does not grow with how much
    of the picture changed; the share of the picture above 0.5 does. In a trial with a model of
    Flickr8k: 0.03 to 0.07 for a picture saved again or brightened, above 0.6 for another object
    or another picture.

    Most models see the middle square of a picture; a note says so where that leaves something out.
    """
    from diptych.predict.change_picture import draw_changes, save_png
    from diptych.predict.change_words import headline, notes_on_shapes
    from diptych.predict.compare import compare_row, load_any

    if len(pictures) < 2:
        raise RequestError(
            f"one picture is given, {pictures[0]}, and a change takes two. Give BEFORE and AFTER."
        )
    names = _labels(labels, labels_file)
    if out is not None and out.suffix.lower() != ".png":
        raise RequestError(f"--out is {out}, and a PNG is written. Use {out.with_suffix('.png')}.")
    for path in pictures:
        if not path.is_file():
            raise RequestError(f"there is no picture file {path}. Check the path.")
    loaded = load_any(model, device=device, offline=offline)
    for note in loaded.notes:
        tell(note)
    changes = compare_row(loaded, pictures, labels=names, beams=beams)
    titles = [path.name for path in pictures]
    notes = notes_on_shapes(pictures, titles, loaded.transform)
    for note in notes:
        tell(note)
    if out is not None:
        side = loaded.seen_side
        sheet = draw_changes(pictures, titles, changes, loaded.transform, notes, seen_side=side)
        save_png(out, sheet)
        tell(f"written to {out}")
    steps = list(zip(pictures, pictures[1:], changes, strict=False))
    values = {
        "model": {"path": str(loaded.path), "fingerprint": loaded.fingerprint},
        "changes": [_values(before, after, change) for before, after, change in steps],
    }
    lines = [f"{before} -> {after}   {headline(change)}" for before, after, change in steps]
    answer(as_json, values, "\n".join(lines))


def _values(before: Path, after: Path, change: "Change") -> dict[str, Any]:
    """A change, JSON-ready."""
    return {
        "before": str(before),
        "after": str(after),
        "text": change.text,
        "score": change.score,
        "score_is": change.score_is,
        "labels": [{"label": label, "value": value} for label, value in change.labels],
        "heatmap": [[round(float(value), 4) for value in row] for row in change.heatmap],
    }


def _labels(labels: str | None, labels_file: Path | None) -> tuple[str, ...] | None:
    """The labels of either option; None if there is none."""
    from diptych.data.prompts import check_labels, read_labels, read_lines

    if labels is not None and labels_file is not None:
        raise RequestError("labels come from --labels or --labels-file, and both are given.")
    if labels_file is not None:
        if not read_lines(labels_file, "labels"):
            raise RequestError(f"{labels_file} has no label. Write one a line.")
        return read_labels(labels_file)
    if labels is None:
        return None
    given = [piece for piece in labels.split(",") if piece.strip()]
    if not given:
        raise RequestError(f'--labels {labels!r} has no label. Give some: --labels "cat,dog".')
    return check_labels(given)
