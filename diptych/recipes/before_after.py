"""Fine-tuning as a whole: train, look for the place between before and after, judge all three.

    OUT/before/        the model the run began with
    OUT/checkpoints/   the ends of training, as of every run
    OUT/model/         the chosen model; `diptych.load(OUT)` takes it
    OUT/finetune.json  every judgement, and why the chosen one was chosen

What is asked: the pairs of --val (the new task), and those of --held-out (what the model could do
already). The interpolation is in `train/wise_ft.py`, the training in `train/loop.py`.
"""

import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diptych.checkpoint import Bundle, load_bundle, save_bundle
from diptych.comm import Comm
from diptych.data.opening import open_source
from diptych.data.source import SourceOptions
from diptych.errors import RequestError
from diptych.evaluate.retrieval import RetrievalResult
from diptych.evaluate.text import cell, line
from diptych.files import whole_folder, write_text
from diptych.recipes.evaluators import recall_evaluator
from diptych.recipes.exam import Exam, set_exam
from diptych.train.log import Live
from diptych.train.loop import TrainResult, train
from diptych.train.lora_files import ADAPTER, load_adapter, save_adapter
from diptych.train.run import FinetuneConfig, Run
from diptych.train.start import BEFORE
from diptych.train.state import load_progress
from diptych.train.wise_ft import ALPHAS, MIDDLE, between, choose_alpha

STAND_IN = "scenes:shapes:test"
"""What is asked where nothing is held out: it shows whether something was forgotten, not what."""

LEAST = 100
"""Pictures that each part of a divided held-out source has; a smaller source is not divided."""

RESAMPLES, QUICK = 1000, 2
"""Draws of the bootstrap: for what is reported, and for the search."""

Recalls = dict[str, float]
"""text_to_image_recall@1 and so on."""


@dataclass(frozen=True)
class Exams:
    """What a run's models are asked."""

    in_domain: Exam | None
    """Pairs of --val; None if there are none."""

    choosing: Exam | None
    """Part of what is held out on which alpha is chosen; None if nothing is held out."""

    reported: Exam
    """The other part, or a stand-in."""

    divided: bool
    """Whether the two share no pictures."""

    @property
    def asked(self) -> dict[str, Exam]:
        """What each model in the report is asked, by name."""
        both = {"in_domain": self.in_domain, "held_out": self.reported}
        return {name: exam for name, exam in both.items() if exam is not None}


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
        RequestError: A source cannot be opened or has too few pictures; nothing was trained.
    """
    comm, live = comm or Comm(), live or Live()
    exams = set_exams(run) if comm.first else None
    evaluators = {"recall": recall_evaluator(run)} if run.data.val else {}
    trained = train(
        run,
        folder,
        resume=resume,
        device=device,
        comm=comm,
        evaluators=evaluators,
        live=live,
        start=start,
    )
    if exams is None or not trained.finished:
        return FineTuned(trained, None, "")
    judged, text = conclude(run, folder, trained.checkpoint, exams, device, live)
    return FineTuned(trained, judged, text)


def set_exams(run: Run) -> Exams:
    """Read what the run's models will be asked.

    Raises:
        RequestError: A source cannot be opened or has too few pictures.
    """
    finetune, data = run.finetune, run.data
    assert finetune is not None

    def exam(spec: str, options: SourceOptions) -> Exam:
        return set_exam(open_source(spec, options), data.transform, data.val_pairs)

    in_domain = exam(data.val, data.val_options) if data.val else None
    if finetune.held_out is None:
        return Exams(in_domain, None, exam(STAND_IN, SourceOptions()), divided=False)
    spec, options = finetune.held_out, finetune.held_out_options
    size, share = open_source(spec, options).size, finetune.choose_on
    if size is None:
        raise RequestError(
            f"{spec} has no end, so no part of it can be held out. Give a source with an end, "
            f"such as {STAND_IN}."
        )
    if min(share, 1 - share) * size < LEAST:
        whole = exam(spec, options)
        return Exams(in_domain, whole, whole, divided=False)
    low, high = (options.model_copy(update={"part": part}) for part in ((0.0, share), (share, 1.0)))
    return Exams(in_domain, exam(spec, low), exam(spec, high), divided=True)


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

    sweep: dict[float, dict[str, Recalls]] = {}
    if finetune.alpha is None:
        asked = {"in_domain": exams.in_domain, "held_out": exams.choosing or exams.reported}
        for alpha in ALPHAS:
            live.show(f"judging between before and after: {alpha:.0%} of the way")
            sweep[alpha] = {
                name: recalls(exam.ask(at(alpha), device, seed=run.seed, resamples=QUICK))
                for name, exam in asked.items()
                if exam is not None
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
    mark = keep_chosen(folder, checkpoint, models["chosen"], alpha, finetune)
    values = {
        "start": {"model": finetune.model, "fingerprint": finetune.fingerprint},
        "checkpoint": checkpoint.name,
        "model_fingerprint": mark,
        "alpha": alpha,
        "rule": rule,
        "asked": _asked(run, exams),
        "sweep": [{"alpha": place, **found} for place, found in sweep.items()],
        "report": {
            name: {task: result.to_dict() for task, result in results.items()}
            for name, results in report.items()
        },
        "seed": run.seed,
        "made_by": {"diptych": version("diptych"), "python": platform.python_version()},
    }
    write_text(folder / "finetune.json", json.dumps(values, indent=2) + "\n")
    return values, report_text(alpha, rule, exams, sweep, report)


def choice(
    finetune: FinetuneConfig, exams: Exams, sweep: dict[float, dict[str, Recalls]]
) -> tuple[float, str]:
    """The place between before and after, and why."""
    if finetune.alpha is not None:
        return finetune.alpha, f"alpha {finetune.alpha:g} was asked for"
    if exams.choosing is None:
        return MIDDLE, (
            f"alpha {MIDDLE:g}: nothing is held out (--held-out SOURCE), so that what was lost "
            "is not known; half way is what WiSE-FT recommends then"
        )
    found = {alpha: row["held_out"]["text_to_image_recall@10"] for alpha, row in sweep.items()}
    alpha = choose_alpha(found, finetune.most_lost)
    on = "a part of it that is not reported on" if exams.divided else "the same pictures"
    return alpha, (
        f"alpha {alpha:g}: the furthest from the start at which captions of {exams.choosing.name} "
        f"lose at most {100 * finetune.most_lost:g} points of R@10, chosen on {on}"
    )


def keep_chosen(
    folder: Path, checkpoint: Path, chosen: Bundle, alpha: float, finetune: FinetuneConfig
) -> str:
    """Write the chosen model to model/, with its adapters if it has some; gives its fingerprint."""
    with whole_folder(folder / "model") as temporary:
        mark = save_bundle(
            temporary,
            chosen.model,
            chosen.tokenizer,
            chosen.transform,
            trained_on=load_progress(checkpoint).trained_on,
            made_by=chosen.made_by,
        )
        if finetune.lora.rank:
            adapted = load_bundle(folder / BEFORE).model
            load_adapter(adapted, checkpoint / ADAPTER)
            save_adapter(temporary / ADAPTER, adapted, finetune.model, share=alpha)
    return mark


def recalls(result: RetrievalResult) -> Recalls:
    """Recall at 1 and 10, both ways."""
    ways = {"text_to_image": result.text_to_image, "image_to_text": result.image_to_text}
    return {
        f"{name}_recall@{k}": way.recall[k].value for name, way in ways.items() for k in (1, 10)
    }


def _asked(run: Run, exams: Exams) -> dict[str, Any]:
    """What the numbers rest on."""
    finetune = run.finetune
    assert finetune is not None
    rows: dict[str, Any] = {
        name: {"source": exam.name, "fingerprint": exam.fingerprint, "pictures": len(exam.ids)}
        | ({"bad": exam.bad} if exam.bad else {})
        for name, exam in exams.asked.items()
    }
    rows["held_out"]["stand_in"] = finetune.held_out is None
    if exams.choosing is not None:
        rows["chosen_on"] = {"source": exams.choosing.name, "pictures": len(exams.choosing.ids)}
    return rows


def report_text(
    alpha: float,
    rule: str,
    exams: Exams,
    sweep: dict[float, dict[str, Recalls]],
    report: dict[str, dict[str, RetrievalResult]],
) -> str:
    """Tables for a terminal; recalls in percent with 95 % intervals."""
    lines = []
    if sweep:
        lines.append("recall % between before (alpha 0) and after (alpha 1), captions to pictures:")
        names = list(next(iter(sweep.values())))
        head = [f"{name.replace('_', ' ')} R@{k}" for name in names for k in (1, 10)]
        lines.append(line("alpha", head))
        for place, found in sweep.items():
            shares = [found[name][f"text_to_image_recall@{k}"] for name in names for k in (1, 10)]
            chosen = " *" if place == alpha else ""
            lines.append(line(f"{place:.1f}{chosen}", [f"{100 * share:.1f}" for share in shares]))
        lines.append("")
    for task, exam in exams.asked.items():
        stand_in = task == "held_out" and exams.choosing is None
        note = ", a stand-in for what is not to be forgotten: give --held-out" if stand_in else ""
        lines.append(
            f"{task.replace('_', ' ')}: {exam.name} ({len(exam.ids):,} pictures){note}; 95 % "
            "intervals in brackets"
        )
        lines.append(line("", ["text R@1", "text R@10", "image R@1", "image R@10"]))
        for name, results in report.items():
            ways = (results[task].text_to_image, results[task].image_to_text)
            cells = [cell(way.recall[k]) for way in ways for k in (1, 10)]
            lines.append(line(name, cells))
        lines.append("")
    return "\n".join([*lines, rule])
