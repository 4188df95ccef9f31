"""`diptych train`."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli.common import (
    Data,
    Device,
    ImageColumn,
    Json,
    Seed,
    SkipDamaged,
    TextColumn,
    Where,
    answer,
)
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.train.loop import TrainResult
    from diptych.train.run import Run

Recipe = Annotated[str, typer.Argument(help="Name of a recipe; see `diptych recipes`.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
Val = Annotated[str | None, typer.Option("--val", help="SOURCE to judge on.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Length in steps.")]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Length in passes over the data.")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Length in minutes.")]
Batch = Annotated[
    int | None, typer.Option("--batch", min=2, help="Pairs per step, over all processes.")
]
Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk", min=1, help="Pairs the towers take at a time, per process: saves memory."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Also show the run in tensorboard, trackio or wandb; repeatable."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes that prepare batches.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
ValWhere = Annotated[str | None, typer.Option("--val-where", help="Like --where, for --val.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting of the run: --set optimizer.lr=3e-4.")
]


def train(
    recipe: Recipe,
    data: Data,
    out: Out,
    val: Val = None,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch: Batch = None,
    chunk: Chunk = None,
    workers: Workers = None,
    track: Track = None,
    resume: Resume = False,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    val_where: ValWhere = None,
    skip_damaged: SkipDamaged = False,
    settings: Settings = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a model on pairs of pictures and captions.

    Example: diptych train clip-small --data photos/ --epochs 30 --out runs/photos

    On several GPUs: torchrun --nproc-per-node 8 -m diptych train …
    """
    if val_where is not None and val is None:
        raise RequestError("--val-where is given and --val is not. Give --val SOURCE too.")
    for name, length in (("--epochs", epochs), ("--minutes", minutes)):
        if length is not None and not 0 < length < math.inf:
            raise RequestError(
                f"{name} is {length:g}, and a run has a length. Give more than 0, such as {name} 5."
            )
    columns: dict[str, Any] = {"image_column": image_column, "text_column": text_column}
    columns["skip_damaged"] = skip_damaged
    sources = {
        "source": data[0] if len(data) == 1 else data,
        "options": columns | {"where": where},
        "val": val,
        "val_options": columns | {"where": val_where},
    }
    options = {"seed": seed, "batch": batch, "chunk": chunk, "trackers": track or None}
    run = _run(recipe, sources, options, workers)
    run = run.with_length(steps, epochs, minutes).override(settings or [])
    result, first = _carry_out(run, out, resume, device)
    if first:
        answer(as_json, {**vars(result), "checkpoint": str(result.checkpoint)}, _summary(result))
    if not result.finished:
        raise typer.Exit(1)  # whoever started the run can tell that it is not done


def _run(
    recipe: str, sources: dict[str, Any], options: dict[str, Any], workers: int | None
) -> "Run":
    """The recipe's run with what the options say; its length is still the recipe's."""
    from diptych.recipes import find_recipe

    base = find_recipe(recipe)
    values = base.model_dump()
    values |= {name: value for name, value in options.items() if value is not None}
    values["data"] |= sources
    if workers is not None:
        values["data"]["workers"] = workers
    return type(base)(**values)


def _carry_out(run: "Run", out: Path, resume: bool, device: str) -> tuple["TrainResult", bool]:
    """How the run ended, and whether this is the process that says so."""
    from diptych.comm import join_processes, leave_processes
    from diptych.predict.model import choose_device
    from diptych.recipes.evaluators import recall_evaluator
    from diptych.train.log import Live
    from diptych.train.loop import train as carry_out

    where_to = choose_device(device)
    comm = join_processes(where_to)
    live = Live() if comm.first else Live(Path(os.devnull).open("w"))  # noqa: SIM115 - until exit
    try:
        result = carry_out(
            run,
            out,
            resume=resume,
            device=where_to,
            comm=comm,
            evaluators={"recall": recall_evaluator(run)} if run.data.val else {},
            live=live,
        )
    finally:
        leave_processes()
    return result, comm.first


def _summary(result: "TrainResult") -> str:
    """How the run ended, for people."""
    loss = "" if result.validation_loss is None else f", val loss {result.validation_loss:.3f}"
    done = "trained" if result.new_steps else "already done:"
    return (
        f"{done if result.finished else 'stopped after'} {result.steps:,} steps, "
        f"{result.pairs:,} pairs, {result.elapsed_s / 60:.1f} min{loss}"
        f"{'' if result.finished else '; go on with --resume'}\n{result.checkpoint}"
    )
