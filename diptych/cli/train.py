"""`diptych train`."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli.common import (
    BeforeColumn,
    Data,
    Device,
    ImageColumn,
    Json,
    Offline,
    Seed,
    SkipDamaged,
    TextColumn,
    Where,
    answer,
)
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.checkpoint import Bundle
    from diptych.recipes.before_after import FineTuned
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
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Begin with this trained model: a run, a folder of open_clip or transformers, "
        "hf:org/name, or a short name such as clip-b32.",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option("--held-out", help="With --from: SOURCE of what the model is not to forget."),
]
HeldOutWhere = Annotated[
    str | None, typer.Option("--held-out-where", help="Like --where, for --held-out.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting of the run: --set optimizer.lr=3e-4.")
]


def train(
    recipe: Recipe,
    data: Data,
    out: Out,
    val: Val = None,
    start: From = None,
    held_out: HeldOut = None,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch: Batch = None,
    chunk: Chunk = None,
    workers: Workers = None,
    track: Track = None,
    resume: Resume = False,
    image_column: ImageColumn = None,
    before_column: BeforeColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    val_where: ValWhere = None,
    held_out_where: HeldOutWhere = None,
    skip_damaged: SkipDamaged = False,
    offline: Offline = False,
    settings: Settings = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a model on pairs of pictures and captions.

    Example: diptych train clip-small --data photos/ --epochs 30 --out runs/photos

    With --from the run changes a trained model instead of beginning with random weights. Its
    recall is judged before and after, on --val and on --held-out, and what the run keeps lies
    between the two: diptych train finetune --from runs/photos --data mine/ --held-out photos/ …

    Settings of fine-tuning, each with --set: finetune.lora.rank=8 (adapters), finetune.layer_decay
    (lower layers learn slower), finetune.frozen_blocks=4 and model.image.frozen=true (stay as they
    are), finetune.most_lost=0.01 (of recall on --held-out), finetune.alpha (0 keeps the model
    before, 1 the one after). Without --from, a tower of timm: --set model.image=timm:NAME@SIZE.

    On pictures that change, a table with the columns before, after, change_text and changed:
    diptych train change-caption-small --data pairs.csv --epochs 30 --out runs/changes

    On several GPUs: torchrun --nproc-per-node 8 -m diptych train …
    """
    _check_places(val, val_where, held_out, held_out_where, start)
    _check_lengths(epochs, minutes)
    columns: dict[str, Any] = {"image_column": image_column, "before_column": before_column}
    columns |= {"text_column": text_column, "skip_damaged": skip_damaged}
    sources = {
        "source": data[0] if len(data) == 1 else data,
        "options": columns | {"where": where},
        "val": val,
        "val_options": columns | {"where": val_where},
    }
    options = {"seed": seed, "batch": batch, "chunk": chunk, "trackers": track or None}
    run, opened = _run(recipe, sources, options, workers), None
    if start is not None:
        kept = {"held_out": held_out, "where": held_out_where, "skip_damaged": skip_damaged}
        opened = _open(start, out, resume, offline)
        reading, settings = _reading_settings(settings or [], opened)
        run = _begin_with(run.override(reading), start, opened, kept, settings, batch)
    run = run.with_length(steps, epochs, minutes).override(settings or [])
    tuned, first = _carry_out(run, out, resume, device, opened)
    result = tuned.training
    if first:
        values = {**vars(result), "checkpoint": str(result.checkpoint)}
        if tuned.judged is not None:
            values |= {"model": str(out / "model"), "finetune": tuned.judged}
        text = "\n".join((_summary(result), _places(out, run, tuned)))
        answer(as_json, values, "\n\n".join(filter(None, (tuned.text, text))))
    if not result.finished:
        raise typer.Exit(1)  # whoever started the run can tell that it is not done


def _check_places(
    val: str | None,
    val_where: str | None,
    held_out: str | None,
    held_out_where: str | None,
    start: str | None,
) -> None:
    """Refuse an option without the one it belongs to."""
    if val_where is not None and val is None:
        raise RequestError("--val-where is given and --val is not. Give --val SOURCE too.")
    if held_out_where is not None and held_out is None:
        raise RequestError(
            "--held-out-where is given and --held-out is not. Give --held-out SOURCE too."
        )
    if held_out is not None and start is None:
        raise RequestError(
            "--held-out is for a run that begins with a trained model, and --from is not given. "
            "Give --from MODEL too."
        )


def _check_lengths(epochs: float | None, minutes: float | None) -> None:
    """Refuse a run without length, and one without end."""
    for name, length in (("--epochs", epochs), ("--minutes", minutes)):
        if length is not None and not 0 < length < math.inf:
            raise RequestError(
                f"{name} is {length:g}, and a run has a length. Give more than 0, such as {name} 5."
            )


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


def _open(start: str, out: Path, resume: bool, offline: bool) -> "Bundle":
    """The model to begin with."""
    from diptych.train.start import open_start

    return open_start(start, out, resume, offline=offline)


def _reading_settings(settings: list[str], opened: "Bundle") -> tuple[list[str], list[str]]:
    """The settings that come before the model it begins with, and those that come after."""
    from diptych.train.start import reading_settings

    return reading_settings(settings, opened)


def _begin_with(
    run: "Run",
    start: str,
    opened: "Bundle",
    kept: dict[str, Any],
    settings: list[str],
    batch: int | None,
) -> "Run":
    """The run with the model it begins with, and with what suits model and source; what is asked
    for by name still comes on top."""
    from diptych.data.opening import open_source
    from diptych.recipes.finetune import suited
    from diptych.train.start import inherit

    run = inherit(run, start, opened)
    asked = run.override(settings)
    source = asked.data.source
    pairs = open_source(source, asked.data.options).size
    assert run.finetune is not None
    assert asked.finetune is not None
    options = {"where": kept["where"], "skip_damaged": kept["skip_damaged"]}
    finetune = run.finetune.model_copy(
        update={
            "held_out": kept["held_out"],
            "held_out_options": run.finetune.held_out_options.model_copy(update=options),
            "lora": asked.finetune.lora,
        }
    )
    return suited(run.model_copy(update={"finetune": finetune}), pairs, batch)


def _carry_out(
    run: "Run", out: Path, resume: bool, device: str, start: "Bundle | None"
) -> tuple["FineTuned", bool]:
    """How the run ended, and whether this is the process that says so."""
    from diptych.comm import join_processes, leave_processes
    from diptych.predict.model import choose_device
    from diptych.recipes.before_after import FineTuned, fine_tune
    from diptych.recipes.evaluators import evaluators_of
    from diptych.train.log import Live
    from diptych.train.loop import train as carry_out

    where_to = choose_device(device)
    comm = join_processes(where_to)
    live = Live() if comm.first else Live(Path(os.devnull).open("w"))  # noqa: SIM115 - until exit
    try:
        if run.finetune is not None and run.finetune.model is not None:
            tuned = fine_tune(
                run, out, resume=resume, device=where_to, comm=comm, live=live, start=start
            )
            return tuned, comm.first
        result = carry_out(
            run,
            out,
            resume=resume,
            device=where_to,
            comm=comm,
            evaluators=evaluators_of(run),
            live=live,
        )
    finally:
        leave_processes()
    return FineTuned(result, None, ""), comm.first


def _summary(result: "TrainResult") -> str:
    """How the run ended, for people."""
    loss = "" if result.validation_loss is None else f", val loss {result.validation_loss:.3f}"
    done = "trained" if result.new_steps else "already done:"
    return (
        f"{done if result.finished else 'stopped after'} {result.steps:,} steps, "
        f"{result.pairs:,} pairs, {result.elapsed_s / 60:.1f} min{loss}"
        f"{'' if result.finished else '; go on with --resume'}"
    )


def _places(out: Path, run: "Run", tuned: "FineTuned") -> str:
    """Where the models of the run are, for people."""
    if tuned.judged is None:
        return str(tuned.training.checkpoint)
    said = [
        f"the chosen model: {out}/model (what diptych.load('{out}') gives); before: {out}/before; "
        f"after: {out}/checkpoints/last",
    ]
    if run.finetune is not None and run.finetune.lora.rank:
        said.append(
            f"its adapters: {out}/model/adapter (scaled to the chosen alpha); after: "
            f"{out}/checkpoints/last/adapter"
        )
    return "\n".join([*said, f"every number of it: {out}/finetune.json"])
