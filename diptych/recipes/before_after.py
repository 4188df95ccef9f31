"""Fine-tuning as a whole: train, look for the place between before and after, judge all three.

    OUT/before/        the model the run began with
    OUT/checkpoints/   the ends of training, as of every run
    OUT/model/         the chosen model; `diptych.load(OUT)` takes it
    OUT/finetune.json  every judgement, and why the chosen one was chosen

A model of pictures in a row has no task of single pictures to keep: the end of training is chosen,
or the place that `alpha` names.

What is asked: the pairs of --val (the new task), and those of --held-out (what the model could do
already). What is said of it is in `before_after_text.py`, the interpolation in `train/wise_ft.py`,
the training in `train/loop.py`.
"""

import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diptych.checkpoint import Bundle, load_bundle, save_again
from diptych.comm import Comm
from diptych.errors import RequestError
from diptych.evaluate.retrieval import RetrievalResult
from diptych.files import whole_folder, write_text
from diptych.models.kinds import reads_sequences
from diptych.recipes.before_after_text import WAYS, Recalls, Sweep, choice, report_text, verdict
from diptych.recipes.evaluators import evaluators_of
from diptych.recipes.exam import Exams, set_exams
from diptych.train.log import Live
from diptych.train.loop import TrainResult, train
from diptych.train.lora_files import ADAPTER, load_adapter, save_adapter
from diptych.train.run import FinetuneConfig, Run
from diptych.train.start import BEFORE
from diptych.train.wise_ft import ALPHAS, between

RESAMPLES, QUICK = 1000, 2
"""Draws of the bootstrap: for what is reported, and for the search."""


@dataclass(frozen=True)
class FineTuned:
    """How a fine-tuning run ended."""

    training: TrainResult
    judged: dict[str, Any] | None
    """What finetune.json holds; None if the run is not finished."""

    text: str
    """The report for people; empty if the run is not finished."""


def fine_tune(
    run: Run,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    comm: Comm | None = None,
    live: Live | None = None,
    start: Bundle | None = None,
) -> FineTuned:
    """Carry out a run that begins with a trained model, and judge it before and after.

    Args:
        run: With `finetune`, made by `train.start.inherit`.
        folder: Of the run.
        resume: Go on with the run in `folder`.
        device: "cpu", "cuda" or "mps".
        comm: The processes that share the run; the first one judges.
        live: Where progress is shown.
        start: The model it begins with, if it is open already.

    Raises:
        RequestError: A source cannot be opened or has too few pictures, or something is held out
            that the model cannot be asked; nothing was trained.
    """
    comm, live, pairs = comm or Comm(), live or Live(), reads_sequences(run.model)
    if pairs:
        _require_nothing_held_out(run)
    exams = set_exams(run) if comm.first and not pairs else None
    for note in exams.notes if exams else ():
        live.say(note)
    trained = train(
        run,
        folder,
        resume=resume,
        device=device,
        comm=comm,
        evaluators=evaluators_of(run),
        live=live,
        start=start,
    )
    if pairs and comm.first and trained.finished:
        return FineTuned(trained, *conclude_pairs(run, folder, trained.checkpoint))
    if exams is None or not trained.finished:
        return FineTuned(trained, None, "")
    judged, text = conclude(run, folder, trained.checkpoint, exams, device, live)
    return FineTuned(trained, judged, text)


def conclude(
    run: Run, folder: Path, checkpoint: Path, exams: Exams, device: str, live: Live
) -> tuple[dict[str, Any], str]:
    """Choose between before and after, write model/ and finetune.json; what was found, as values
    and for people."""
    finetune = run.finetune
    assert finetune is not None
    before, after = load_bundle(folder / BEFORE), load_bundle(checkpoint)

    def at(alpha: float) -> Bundle:
        return replace(after, model=between(before.model, after.model, alpha))

    sweep: Sweep = {}
    tried = exams.tried if exams.choosing is not None else {}
    for alpha in ALPHAS if tried else ():
        live.show(f"judging between before and after: {alpha:.0%} of the way")
        bundle = at(alpha)
        sweep[alpha] = {
            name: recalls(exam.ask(bundle, device, seed=run.seed, resamples=QUICK))
            for name, exam in tried.items()
        }
    alpha, rule = choice(finetune, exams, sweep)
    models = {"before": before, "after": after, "chosen": at(alpha)}
    report = {
        name: {
            task: exam.ask(bundle, device, seed=run.seed, resamples=RESAMPLES)
            for task, exam in exams.asked.items()
        }
        for name, bundle in models.items()
    }
    said = verdict(finetune, exams, report)
    mark = keep_chosen(folder, checkpoint, models["chosen"], alpha, finetune)
    values = _conclusion(run, checkpoint, alpha, rule) | {
        "model_fingerprint": mark,
        "verdict": said,
        "asked": _asked(exams),
        "sweep": [{"alpha": place, **found} for place, found in sweep.items()],
        "report": {
            name: {task: result.to_dict() for task, result in results.items()}
            for name, results in report.items()
        },
    }
    write_text(folder / "finetune.json", json.dumps(values, indent=2) + "\n")
    return values, "\n".join([report_text(alpha, rule, exams, sweep, report), *said])


def _require_nothing_held_out(run: Run) -> None:
    """Refuse a question about single pictures to a model of pictures in a row.

    Raises:
        RequestError: Names what is held out.
    """
    finetune = run.finetune
    if finetune is not None and finetune.held_out is not None:
        raise RequestError(
            f"--held-out {finetune.held_out} asks for single pictures, and {run.recipe} makes a "
            "model of pictures in a row, which does not read them. Leave --held-out out."
        )


def conclude_pairs(run: Run, folder: Path, checkpoint: Path) -> tuple[dict[str, Any], str]:
    """Write model/ and finetune.json of a model of pictures in a row; as `conclude`."""
    finetune = run.finetune
    assert finetune is not None
    alpha, rule = 1.0, "the end of training: a model of pictures in a row has no old task to keep"
    after = load_bundle(checkpoint)
    if finetune.alpha is not None:
        alpha, rule = finetune.alpha, f"alpha {finetune.alpha:g} was asked for"
        before = load_bundle(folder / BEFORE).model
        after = replace(after, model=between(before, after.model, alpha))
    values = _conclusion(run, checkpoint, alpha, rule)
    values["model_fingerprint"] = keep_chosen(folder, checkpoint, after, alpha, finetune)
    write_text(folder / "finetune.json", json.dumps(values, indent=2) + "\n")
    return values, f"chosen: {rule}"


def _conclusion(run: Run, checkpoint: Path, alpha: float, rule: str) -> dict[str, Any]:
    """What finetune.json says of every run."""
    assert run.finetune is not None
    return {
        "start": {"model": run.finetune.model, "fingerprint": run.finetune.fingerprint},
        "checkpoint": checkpoint.name,
        "alpha": alpha,
        "rule": rule,
        "seed": run.seed,
        "made_by": {"diptych": version("diptych"), "python": platform.python_version()},
    }


def keep_chosen(
    folder: Path, checkpoint: Path, chosen: Bundle, alpha: float, finetune: FinetuneConfig
) -> str:
    """Write the chosen model to model/, with its adapters if it has some; gives its fingerprint."""
    with whole_folder(folder / "model") as temporary:
        mark = save_again(temporary, chosen)
        if finetune.lora.rank:
            adapted = load_bundle(folder / BEFORE).model
            load_adapter(adapted, checkpoint / ADAPTER)
            save_adapter(temporary / ADAPTER, adapted, finetune.model, share=alpha)
    return mark


def recalls(result: RetrievalResult) -> Recalls:
    """Recall at 1 and 10, both ways."""
    return {
        f"{way}_recall@{k}": getattr(result, way).recall[k].value
        for way in WAYS.values()
        for k in (1, 10)
    }


def _asked(exams: Exams) -> dict[str, Any]:
    """What the numbers rest on."""
    rows: dict[str, Any] = {
        name: {"source": exam.name, "fingerprint": exam.fingerprint, "pictures": len(exam.ids)}
        | ({"bad": exam.bad} if exam.bad else {})
        for name, exam in exams.asked.items()
    }
    rows["held_out"]["stand_in"] = exams.stand_in
    if exams.choosing is not None:
        rows["held_out"]["chosen_on_others"] = exams.divided
        chosen_on = exams.tried["held_out"]
        rows["chosen_on"] = {"source": chosen_on.name, "pictures": len(chosen_on.ids)}
    return rows
