"""`diptych evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli.common import (
    BeforeColumn,
    Data,
    Device,
    ImageColumn,
    Json,
    Model,
    Offline,
    Seed,
    SkipDamaged,
    TextColumn,
    Where,
    answer,
    counter,
    tell,
)
from diptych.errors import RequestError, nearest

if TYPE_CHECKING:
    from diptych.data.source import Source, SourceOptions

FORMATS = ("diptych", "clip_benchmark")


def evaluate(
    model: Model,
    data: Data,
    task: Annotated[
        str, typer.Option("--task", help="retrieval, zeroshot, probe, calibration or change.")
    ] = "retrieval",
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Most pictures to take.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Draws of the bootstrap.")
    ] = 1000,
    templates: Annotated[
        Path | None, typer.Option("--templates", help="zeroshot: a file, one text with {} a line.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", help="probe: SOURCE to judge on; else a fifth of --data."),
    ] = None,
    test_where: Annotated[
        str | None, typer.Option("--test-where", help="probe: the --where of --test.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option("--precision", help="calibration: wanted precision (0.9).")
    ] = None,
    false_per_true: Annotated[
        int | None, typer.Option("--false-per-true", help="calibration: false pairs per true (9).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result file; without it, in results/ of the run.")
    ] = None,
    shape: Annotated[
        str, typer.Option("--format", help="Of the result file and --json: " + " or ".join(FORMATS))
    ] = FORMATS[0],
    image_column: ImageColumn = None,
    before_column: BeforeColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    skip_damaged: SkipDamaged = False,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Judge a model on pictures and captions.

    Example: diptych evaluate runs/photos --data test-photos/

    Every number comes with its 95 % interval. Ties count against the model; identical pictures are
    one.

    retrieval: each caption looks for its picture and each picture for its captions.

    zeroshot: each picture to the class whose name in templates is nearest; its class is its first
    caption, so a folder of class folders, or a column named with --text-column.

    probe: the same with a linear classifier, learned on the vectors of --data.

    calibration: is a text true of a picture, and how probable; the result file is what
    Model.is_true needs.

    change: what a picture changed, on --data with pictures before: the text of a pair and the pair
    of a text, or the texts that the model writes; whether anything changed; where.
    """
    from diptych.data.prompts import read_templates
    from diptych.data.source import SourceOptions
    from diptych.evaluate.clip_benchmark import clip_benchmark
    from diptych.evaluate.judge import Settings, result_file
    from diptych.evaluate.tasks import check_model, find_task
    from diptych.files import write_text
    from diptych.predict.compare import load_any

    given: dict[str, Any] = {
        "templates": templates and read_templates(templates),
        "test": test,
        "precision": precision,
        "false_per_true": false_per_true,
    }
    given = {name: value for name, value in given.items() if value is not None}
    found = find_task(task, list(given))
    _check_format(shape, task)
    if test_where is not None and test is None:
        raise RequestError("--test-where is given and --test is not. Give --test SOURCE too.")
    loaded = load_any(model, device=device, offline=offline)
    check_model(loaded, task)
    for note in loaded.notes:
        tell(note)
    options = SourceOptions(
        image_column=image_column,
        before_column=before_column,
        text_column=text_column,
        where=where,
        skip_damaged=skip_damaged,
    )
    source = _open(data, options, captions=found.needs_captions)
    other = None
    if test is not None:
        other = _open(test, options.model_copy(update={"where": test_where}))
    settings = Settings(limit=limit, seed=seed, resamples=resamples, **given | {"test": other})
    if other is not None:
        about = {"source": other.name, "fingerprint": other.fingerprint, "where": test_where}
        given["test"] = about
    judged = found.judge(loaded, source, settings, counter("judged"))
    for key, reason in judged.bad.items():
        tell(f"left out {key}: {reason}")
    read = {**options.model_dump(), "limit": limit}
    path_of_model = str(loaded.path)
    values = result_file(judged, loaded, source, model=path_of_model, options=read, settings=given)
    path = out or _result_path(loaded.path, values, shape)
    shaped = clip_benchmark(values) if shape == "clip_benchmark" else values
    write_text(path, json.dumps(shaped, indent=2) + "\n")
    tell(f"written to {path}")
    answer(as_json, shaped, judged.result.summary())


def _open(data: list[str], options: "SourceOptions", *, captions: bool = True) -> "Source":
    """The source, and its notes told; `captions` says whether pictures need any."""
    from diptych.data.opening import open_source

    source = open_source(data, options, captions_needed=captions, weights_allowed=False)
    for note in source.notes:
        tell(note)
    return source


def _check_format(shape: str, task: str) -> None:
    """Refuse a format that there is not, or that has no place for the task."""
    from diptych.evaluate.clip_benchmark import check_task

    if shape not in FORMATS:
        raise RequestError(f"there is no format {shape!r}. {nearest(shape, FORMATS)}")
    if shape == "clip_benchmark":
        check_task(task)


def _result_path(model: Path, values: dict[str, Any], shape: str) -> Path:
    """A file for each model, source, options and format, in the run's folder: its checkpoints are
    pruned, and model/ of a fine-tuned run is written anew when the run goes on.

    A model that is no checkpoint of a run has results/ in its own folder; one that was fetched from
    the hub, here: its folder is a cache.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    from diptych.files import fingerprint

    model = model.resolve()
    run = model.parent if model.name == "model" else model.parent.parent
    ours = model.name == "model" or model.parent.name == "checkpoints"
    ours = ours and (run / "run.json").is_file()
    asked = {
        "model": values["model"]["fingerprint"],
        "data": values["data"],
        "settings": values["settings"],
        "seed": values["seed"],
        "resamples": values["metrics"]["resamples"],
        "format": shape,
    }
    mark = fingerprint(json.dumps(asked, sort_keys=True))
    name = f"{values['task']}-{values['data']['fingerprint']}-{mark}.json"
    folder = run if ours else model if model.is_dir() else model.parent
    if model.is_relative_to(Path(HF_HUB_CACHE).resolve()):
        folder = Path()
    return folder / "results" / name
