"""`diptych evaluate`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli.common import (
    Data,
    Device,
    ImageColumn,
    Json,
    ModelFolder,
    Seed,
    TextColumn,
    Where,
    answer,
    counter,
    tell,
)
from diptych.errors import RequestError, nearest


def evaluate(
    model: ModelFolder,
    data: Data,
    task: Annotated[str, typer.Option("--task", help="What to judge: retrieval.")] = "retrieval",
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Most pictures to take.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Draws of the bootstrap.")
    ] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result file; without it, in results/ of the run.")
    ] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Judge a model on pictures and captions.

    Example: diptych evaluate runs/photos --data test-photos/

    Every number comes with its 95 % interval. Each caption looks for its picture and each picture
    for its captions, among all of the source. Ties count against the model; identical pictures,
    and identical captions, are one.
    """
    from diptych.data.opening import open_source
    from diptych.data.source import SourceOptions
    from diptych.evaluate.judge import TASKS, judge_retrieval, result_file
    from diptych.files import write_text
    from diptych.predict.model import load

    if task not in TASKS:
        raise RequestError(f"there is no task {task!r}. {nearest(task, TASKS)}")
    loaded = load(model, device=device)
    options = SourceOptions(image_column=image_column, text_column=text_column, where=where)
    source = open_source(data, options)
    for note in source.notes:
        tell(note)
    judged = judge_retrieval(
        loaded, source, limit=limit, seed=seed, resamples=resamples, progress=counter("judged")
    )
    for key, reason in judged.bad.items():
        tell(f"left out {key}: {reason}")
    values = result_file(
        judged,
        loaded,
        source,
        model=str(loaded.path),
        options={**options.model_dump(), "limit": limit},
    )
    path = out or _result_path(loaded.path, values)
    write_text(path, json.dumps(values, indent=2) + "\n")
    tell(f"written to {path}")
    answer(as_json, values, judged.result.summary())


def _result_path(model: Path, values: dict[str, Any]) -> Path:
    """A file for each model, source and options, in the run's folder: its checkpoints are pruned.

    A model that is no checkpoint of a run has results/ in its own folder.
    """
    from diptych.files import fingerprint

    model = model.resolve()
    run = model.parent.parent
    ours = model.parent.name == "checkpoints" and (run / "run.json").is_file()
    asked = {
        "model": values["model"]["fingerprint"],
        "data": values["data"],
        "seed": values["seed"],
        "resamples": values["metrics"]["resamples"],
    }
    mark = fingerprint(json.dumps(asked, sort_keys=True))
    name = f"{values['task']}-{values['data']['fingerprint']}-{mark}.json"
    return (run if ours else model) / "results" / name
