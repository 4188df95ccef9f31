"""The tasks a model can be judged on, and `evaluate`, which carries one out.

A new task is a file beside this one and a line in `TASKS`. It gets the model, a source and the
settings, and gives a result that can say itself to a terminal and to a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.data.opening import open_source
from diptych.data.source import Source
from diptych.errors import RequestError, nearest
from diptych.evaluate.calibration import judge_calibration
from diptych.evaluate.change import SequenceEncoder, SequenceReader, judge_change
from diptych.evaluate.judge import (
    Encoder,
    Judgeable,
    Judgement,
    Progress,
    Result,
    Settings,
    no_progress,
)
from diptych.evaluate.probe import judge_probe
from diptych.evaluate.retrieval import RetrievalJudged, judge_retrieval
from diptych.evaluate.zeroshot import judge_zeroshot


def _retrieval(
    encoder: Encoder, source: Source, settings: Settings, progress: Progress
) -> RetrievalJudged:
    """`judge_retrieval` with the settings of a task."""
    return judge_retrieval(
        encoder,
        source,
        limit=settings.limit,
        seed=settings.seed,
        resamples=settings.resamples,
        progress=progress,
    )


@dataclass(frozen=True)
class Task:
    """Something a model can be judged on."""

    judge: Callable[[Any, Source, Settings, Progress], Judgement]
    """The first argument is the model, of a kind that `check_model` lets through."""

    takes: tuple[str, ...] = ()
    """Settings it has beside limit, seed and resamples."""

    needs_captions: bool = True
    """Whether samples without a caption are left out."""


TASKS = {
    "retrieval": Task(_retrieval),
    "zeroshot": Task(judge_zeroshot, ("templates",)),
    "probe": Task(judge_probe, ("test",)),
    "calibration": Task(judge_calibration, ("precision", "false_per_true")),
    "change": Task(judge_change, needs_captions=False),
}
"""What a model can be judged on, by the name users write."""


def find_task(name: str, given: Sequence[str] = ()) -> Task:
    """A task by its name.

    Args:
        name: What the user wrote.
        given: Settings that the user gave beside limit, seed and resamples.

    Raises:
        RequestError: There is no such task, or it does not take one of the settings.
    """
    if name not in TASKS:
        raise RequestError(f"there is no task {name!r}. {nearest(name, TASKS)}")
    task = TASKS[name]
    for setting in given:
        if setting not in task.takes:
            owner = next(other for other, one in TASKS.items() if setting in one.takes)
            raise RequestError(
                f"{setting} belongs to the task {owner}, and the task is {name}. "
                f"Leave it out, or ask for {owner}."
            )
    return task


def check_model(model: object, task: str) -> None:
    """Refuse a model that has not what a task needs.

    Raises:
        RequestError: It writes texts of changes and has no vectors, and the task is another; or it
            is neither such a model nor one of sequences, and the task is change.
    """
    if task == "change" and not isinstance(model, SequenceReader | SequenceEncoder):
        raise RequestError(
            f"a {type(model).__name__} does not read sequences of pictures, and the task is "
            "change. Give what diptych.load or diptych.load_change gives, or ask for another task."
        )
    if task != "change" and not isinstance(model, Encoder):
        raise RequestError(
            f"this model writes what changed and has no vectors, and the task is {task}. "
            "Ask for the task change, or give another model."
        )


def evaluate(
    model: Judgeable,
    data: str | list[str] | Source,
    *,
    task: str = "retrieval",
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    templates: Sequence[str] | None = None,
    test: str | list[str] | Source | None = None,
    precision: float | None = None,
    false_per_true: int | None = None,
) -> Result:
    """Judge a model; `result.summary()` is for people, `result.to_dict()` for machines.

    Args:
        model: What `diptych.load` gives, or anything else that makes unit vectors.
        data: Pictures with captions: what a user writes (see `open_source`), or an open source.
        task: "retrieval": pictures by their captions, and captions by their pictures.
            "zeroshot": the class of a picture (its first caption) from the names of the classes.
            "probe": the same with a linear classifier learned on the vectors of `data`.
            "calibration": whether a text is true of a picture, and how probable it is.
            "change": what a picture changed, for sources with pictures before.
        limit: Most samples to take; None takes all. The first ones, or for classes (zeroshot,
            probe) some at random, always the same.
        seed: Of the bootstrap and of divisions.
        resamples: Of the bootstrap.
        templates: Zeroshot: texts with {} where the class goes, such as "a photo of a {}.".
        test: Probe: pictures to judge on; None keeps a fifth of each class of `data` for it.
        precision: Calibration: wanted share of true pairs among those called true (0.9).
        false_per_true: Calibration: false pairs for each true one (9).

    Raises:
        RequestError: There is no such task or source, `limit` is below 2, or a setting is out of
            range or of another task.
        DataError: Too few pictures, captions or classes can be used.
    """
    own = {
        "templates": templates,
        "test": test,
        "precision": precision,
        "false_per_true": false_per_true,
    }
    found = find_task(task, [name for name, value in own.items() if value is not None])
    check_model(model, task)
    settings = Settings(
        limit=limit,
        seed=seed,
        resamples=resamples,
        templates=templates,
        test=open_source(test) if isinstance(test, str | list) else test,
        precision=precision,
        false_per_true=false_per_true,
    )
    if isinstance(data, str | list):
        source = open_source(data, captions_needed=found.needs_captions)
    else:
        source = data
    return found.judge(model, source, settings, no_progress).result
