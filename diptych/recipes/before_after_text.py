"""What a fine-tuning run says in the end, in tables and in plain words.

`before_after.py` finds the numbers and writes them down; the two directions have one name each:

    text    captions find their pictures
    image   pictures find their captions
"""

from diptych.evaluate.retrieval import RetrievalResult
from diptych.evaluate.text import cell, line
from diptych.recipes.exam import Exam, Exams
from diptych.train.run import FinetuneConfig
from diptych.train.wise_ft import MIDDLE, choose_alpha

Recalls = dict[str, float]
"""text_to_image_recall@1 and so on."""

Sweep = dict[float, dict[str, Recalls]]
"""For each place between before and after, what was found in each task."""

Report = dict[str, dict[str, RetrievalResult]]
"""For before, after and chosen, what was found in each task."""

WAYS = {"text": "text_to_image", "image": "image_to_text"}
"""The directions, as people and as results name them."""

TASKS = {"held_out": "held out", "in_domain": "new task"}
"""The tasks, as finetune.json and as people name them."""


REPORTED = ("before", "chosen")
"""What the verdict compares."""


def choice(finetune: FinetuneConfig, exams: Exams, sweep: Sweep) -> tuple[float, str]:
    """The place between before and after, and why."""
    if finetune.alpha is not None:
        return finetune.alpha, f"alpha {finetune.alpha:g} was asked for"
    if exams.stand_in:
        return MIDDLE, (
            "half way between before and after, since nothing says what is not to be forgotten "
            "(--held-out SOURCE)"
        )
    found = {
        alpha: [row["held_out"][f"{way}_recall@10"] for way in WAYS.values()]
        for alpha, row in sweep.items()
    }
    alpha, lost = choose_alpha(found, finetune.most_lost), points(finetune.most_lost)
    if alpha == 0:
        return alpha, f"alpha 0, the model before: every other loses more than {lost} of R@10"
    return alpha, (
        f"alpha {alpha:g}, the furthest from before at which neither text nor image R@10 of what "
        f"is held out falls by more than {lost}"
    )


def report_text(alpha: float, rule: str, exams: Exams, sweep: Sweep, report: Report) -> str:
    """Tables for a terminal; recalls in percent."""
    lines = sweep_table(alpha, exams, sweep) if sweep else []
    for task, exam in exams.asked.items():
        lines.append(f"reported on {_pictures(task, exam)}; 95 % intervals in brackets")
        if task == "held_out" and exams.stand_in:
            lines.append("(generated scenes, which show whether something is forgotten, not what)")
        lines.append(line("R@k in percent", [f"{way} R@{k}" for way in WAYS for k in (1, 10)]))
        for name, results in report.items():
            ways = [getattr(results[task], way) for way in WAYS.values()]
            lines.append(line(name, [cell(way.recall[k]) for way in ways for k in (1, 10)]))
        lines.append("")
    return "\n".join([*lines, f"chosen: {rule}"])


def sweep_table(alpha: float, exams: Exams, sweep: Sweep) -> list[str]:
    """What was tried, and on which pictures."""
    lines = [f"chosen on {_pictures('held_out', exams.tried['held_out'])}"]
    if "in_domain" in exams.tried:
        lines.append(f"looked at {_pictures('in_domain', exams.tried['in_domain'])}")
    lines.append(
        "alpha: share of the way from before to after; text: captions find their pictures;"
    )
    lines.append("image: pictures find their captions")
    heads = [f"{TASKS[task]}, {way} R@10" for task in exams.tried for way in WAYS]
    lines.append(line("alpha, R@k in %", heads, 24))
    for place, found in sweep.items():
        shares = [found[task][f"{way}_recall@10"] for task in exams.tried for way in WAYS.values()]
        chosen = " *" if place == alpha else ""
        cells = [f"{100 * share:.1f}" for share in shares]
        lines.append(line(f"{place:.1f}{chosen}", cells, 24))
    return [*lines, ""]


def verdict(finetune: FinetuneConfig, exams: Exams, report: Report) -> list[str]:
    """What came of it by the reported numbers, in plain words."""
    said = []
    for task in exams.asked:
        if task == "held_out" and exams.stand_in:
            continue
        changes, falls = [], []
        for name, way in WAYS.items():
            recalls = [getattr(report[model][task], way).recall[10] for model in REPORTED]
            before, after = (recall.value for recall in recalls)
            falls.append(before - after)
            changes.append(
                f"{name} R@10 {100 * before:.1f} -> {100 * after:.1f} "
                f"({100 * (after - before):+.1f} points)"
            )
        words = ", ".join(changes)
        if task == "in_domain":
            said.append(f"new task: {words}")
        elif exams.choosing is None:
            said.append(f"held out: {words}")
        else:
            others = "pictures not used for choosing"
            same = "the pictures it was chosen on (too few to divide, or so asked for)"
            kept = max(falls) <= finetune.most_lost + 1e-9  # shares: no rounding decides
            said.append(
                f"held out, on {others if exams.divided else same}: {words}; the bound of "
                f"{points(finetune.most_lost)} was {'' if kept else 'not '}kept there"
            )
    return said


def points(share: float) -> str:
    """A share as points of percent."""
    number = f"{100 * share:g}"
    return f"{number} point{'' if number == '1' else 's'}"


def _pictures(task: str, exam: Exam) -> str:
    """Which pictures a table is about."""
    return f"{TASKS[task]}: {len(exam.ids):,} pictures of {exam.name}"
