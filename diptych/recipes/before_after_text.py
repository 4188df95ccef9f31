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

MEANING = {
    "text R@k": "captions of which the picture is among the first k found",
    "image R@k": "pictures of which a caption is among the first k found",
}
"""For people."""

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
    lines = [f"{name}: {what}" for name, what in MEANING.items()] + [""]
    lines += sweep_table(alpha, exams, sweep) if sweep else []
    for task, exam in exams.asked.items():
        name = TASKS[task]
        if task == "held_out" and exams.stand_in:
            name = "generated scenes, as nothing is held out"
        lines.append(f"reported on {name}: {_pictures(exam)}; 95 % intervals in brackets")
        lines.append(line("R@k in %", [f"{way} R@{k}" for way in WAYS for k in (1, 10)]))
        for name, results in report.items():
            ways = [getattr(results[task], way) for way in WAYS.values()]
            lines.append(line(name, [cell(way.recall[k]) for way in ways for k in (1, 10)]))
        lines.append("")
    return "\n".join([*lines, f"chosen: {rule}"])


def sweep_table(alpha: float, exams: Exams, sweep: Sweep) -> list[str]:
    """What was tried, and on which pictures."""
    lines = [f"chosen on held out: {_pictures(exams.tried['held_out'])}"]
    if "in_domain" in exams.tried:
        lines.append(f"looked at, without a say, new task: {_pictures(exams.tried['in_domain'])}")
    lines.append("alpha: share of the way from before to after; * is chosen")
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
            falls.append(recalls[0].value - recalls[1].value)
            before, after = (round(100 * recall.value, 1) for recall in recalls)  # as they are read
            change = f"{after - before:+.1f} points"
            changes.append(f"{name} R@10 {before:.1f} -> {after:.1f} ({change})")
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


def _pictures(exam: Exam) -> str:
    """Which pictures a table is about."""
    return f"{len(exam.ids):,} pictures of {exam.name}"
