"""A result in the shape of CLIP_benchmark's JSON, for tables that others already make.

The numbers stay ours: ties count against the model, identical pictures are one, and intervals are
left out as that shape has no place for them.
"""

from typing import Any

from diptych.errors import RequestError
from diptych.evaluate.retrieval import CUTOFFS

NAMES = {
    "zeroshot": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "probe": "linear_probe",
}
"""Our task -> theirs."""


def check_task(task: str) -> None:
    """Refuse a task that the shape has no place for.

    Raises:
        RequestError: It has none.
    """
    if task not in NAMES:
        raise RequestError(
            f"CLIP_benchmark has no task like {task}. Use --format diptych, or one of the tasks "
            f"{', '.join(NAMES)}."
        )


def clip_benchmark(values: dict[str, Any]) -> dict[str, Any]:
    """A result file in CLIP_benchmark's shape.

    Their image retrieval looks for the picture of a caption, text retrieval for a caption of a
    picture. Accuracy among the first five is null with fewer than five classes (theirs is NaN,
    which JSON does not have).

    Args:
        values: What `result_file` gave.

    Raises:
        RequestError: The task is none of theirs.
    """
    check_task(values["task"])
    metrics = values["metrics"]
    if values["task"] == "retrieval":
        found = _recalls(metrics)
    elif values["task"] == "zeroshot":
        found = _accuracies(metrics, "")
    else:
        extra = {"seed": values["seed"], "fewshot_k": -1, "normalized": True}
        found = {**_accuracies(metrics, "lp_"), **extra}
    return {
        "dataset": values["data"]["source"],
        "model": values["model"]["path"],
        "pretrained": values["model"]["fingerprint"],
        "task": NAMES[values["task"]],
        "metrics": found,
        "language": "en",
    }


def _recalls(metrics: dict[str, Any]) -> dict[str, Any]:
    """Recall both ways."""
    ways = {"image": "text_to_image", "text": "image_to_text"}
    return {
        f"{theirs}_retrieval_recall@{k}": metrics[ours][f"recall@{k}"]["value"]
        for k in CUTOFFS
        for theirs, ours in ways.items()
    }


def _accuracies(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Accuracies and the mean recall of the classes."""
    top5 = metrics.get("top5")
    return {
        f"{prefix}acc1": metrics["top1"]["value"],
        f"{prefix}acc5": None if top5 is None else top5["value"],
        f"{prefix}mean_per_class_recall": metrics["mean_per_class_recall"]["value"],
    }
