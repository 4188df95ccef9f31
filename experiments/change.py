"""What a stateful encoder gains where pictures change: `make real`. Writes docs/results/change.md.

Three seeds of each cell, twins trained alike but for the one thing that differs:

scenes   vectors of pairs that match the text of the change, on generated scenes. All begin with one
         model of single pictures; chosen on the validation scenes, judged on the test scenes.
boards   changed or not, on patches of circuit boards (DeepPCB). A group of boards is held out for
         the judgement, another one was looked at while the recipe was made.

    DIPTYCH_DATA=../shared/data .venv/bin/python experiments/change.py [CELL-SEED …]

The queue can be stopped at any time: what is finished is not done again, a run that was cut goes
on, and the tables are written after each cell, between the marks that the page has for them.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import SourceOptions
from diptych.evaluate.change_metrics import detection
from diptych.files import write_text

DATA = os.environ.get("DIPTYCH_DATA", "../shared/data")
RUNS = Path("runs/real/change")
START = RUNS / "start"
REPORT = Path("docs/results/change.md")
DIPTYCH = (sys.executable, "-m", "diptych")
SEEDS = (0, 1, 2)

BOARDS = f"{DATA}/changes/deeppcb_patches.parquet"
UNSEEN, LOOKED_AT = "group12300", "group12100"
LEFT_OUT = f"group not in ('{UNSEEN}', '{LOOKED_AT}', 'group12000')"  # the last is much like UNSEEN

WITHIN_T = 4.303
"""Student's t for a two-sided 95 % interval of three values."""


@dataclass(frozen=True)
class Cell:
    """One way to train; a row of a table."""

    name: str
    said: str
    """What the table calls it."""

    train: tuple[str, ...]
    """Recipe and options."""

    test: tuple[str, ...]
    """What it is judged on."""

    val: tuple[str, ...]
    """What was looked at while choosing."""


def of_scenes(name: str, said: str, *settings: str) -> Cell:
    """A cell that learns changes of scenes from the model of single pictures."""
    options = ("--batch", "128", "--steps", "300", "--set", "optimizer.lr=1e-3")
    return Cell(
        f"scenes-{name}",
        said,
        (
            *("change-clip-small", "--from", str(START), "--data", "scenes:changes-few"),
            *options,
            *settings,
        ),
        ("--data", "scenes:changes-few:test"),
        ("--data", "scenes:changes-few:val"),
    )


def of_boards(name: str, said: str, *state: str) -> Cell:
    """A cell that learns to tell changed patches of boards."""
    settings = [
        *state,
        *("model.image.image_size=96", "data.transform.image_size=96"),
        *("model.image.patch_size=12", "model.image.width=128", "model.image.layers=3"),
        *("model.image.heads=4", "model.image.mlp_width=512", "model.text.width=64"),
        *("model.text.layers=1", "model.text.heads=2", "model.text.mlp_width=256"),
        *("model.text.context=16", "data.augment.flip=0.5", "data.augment.quarter_turns=true"),
    ]
    return Cell(
        f"boards-{name}",
        said,
        (
            *("change-caption-small", "--data", BOARDS, "--where", LEFT_OUT),
            *("--batch", "64", "--steps", "600"),
            *(part for setting in settings for part in ("--set", setting)),
        ),
        ("--data", BOARDS, "--where", f"group = '{UNSEEN}'"),
        ("--data", BOARDS, "--where", f"group = '{LOOKED_AT}'"),
    )


STATELESS = ("--set", "model.image.state=none")
SCENES = (
    of_scenes("difference", "difference", *STATELESS, "--set", "model.pair=difference"),
    of_scenes("concatenation", "concatenation", *STATELESS, "--set", "model.pair=concatenation"),
    of_scenes("twin", "located, stateless", *STATELESS),
    of_scenes("stateful", "**located, stateful** (cross_ffn)"),
)
PCB = (
    of_boards("none", "stateless twin", "model.image.state=none"),
    of_boards("self_ffn", "control: self_ffn", "model.image.state=self_ffn"),
    of_boards("cross_ffn", "**stateful** (cross_ffn)", "model.image.state=cross_ffn"),
    of_boards(
        "open",
        "stateful, gradients through the picture before",
        "model.image.state.variant=cross_ffn",
        "model.image.state.stop_gradient=false",
    ),
)
CELLS = {cell.name: cell for cell in (*SCENES, *PCB)}


def run(*arguments: str) -> str:
    """What a diptych command prints."""
    print(f"$ diptych {shlex.join(arguments)}", flush=True)
    done = subprocess.run([*DIPTYCH, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def make_start() -> None:
    """Train the model of single pictures that the scenes begin with."""
    settings = ("model.image.class_token=false", "model.image.pool=mean")
    run(
        *("train", "clip-mini", "--data", "scenes:shapes", "--out", str(START), "--resume"),
        *("--steps", "500", "--set", "data.augment.crop_scale=[1,1]"),
        *(part for setting in settings for part in ("--set", setting)),
    )


def carry_out(cell: Cell, seed: int) -> None:
    """Train and judge, where it is not done."""
    folder = RUNS / f"{cell.name}-{seed}"
    if not result_of(cell, seed, "test").exists():
        run("train", *cell.train, "--seed", str(seed), "--out", str(folder), "--resume")
        for split, source in (("val", cell.val), ("test", cell.test)):
            judge(folder, source, result_of(cell, seed, split))


def judge(model: Path, source: Sequence[str], result: Path) -> None:
    """`diptych evaluate`, its answer kept."""
    if not result.exists():
        write_text(result, run("evaluate", str(model), "--task", "change", *source, "--json"))


def result_of(cell: Cell, seed: int, split: str) -> Path:
    """Where the judgement of a run is."""
    return RUNS / "results" / f"{cell.name}-{seed}-{split}.json"


def number(result: Path, *names: str) -> float:
    """One metric of a judgement."""
    value = json.loads(result.read_text())["metrics"]
    for name in names:
        value = value[name]
    return float(value["value"] if isinstance(value, dict) else value)


def values(cell: Cell, split: str, *names: str) -> dict[int, float]:
    """A metric of each seed that is finished."""
    found = {seed: result_of(cell, seed, split) for seed in SEEDS}
    return {seed: number(path, *names) for seed, path in found.items() if path.exists()}


def mean_cell(found: dict[int, float], factor: float = 100, digits: int = 1) -> str:
    """Mean over the seeds, and each of them."""
    if not found:
        return ""
    each = " ".join(f"{factor * value:.{digits}f}" for value in found.values())
    return f"{factor * np.mean(list(found.values())):.{digits}f} ({each})"


def gain(cell: Cell, base: Cell, names: Sequence[str], factor: float, digits: int) -> str:
    """Mean difference of the same seeds of two cells, with its 95 % interval where there are
    three; nothing of a cell from itself."""
    of, over = values(cell, "test", *names), values(base, "test", *names)
    both = sorted(set(of) & set(over))
    if not both or cell is base:
        return ""
    each = np.array([factor * (of[seed] - over[seed]) for seed in both])
    said = f"{each.mean():+.{digits}f}"
    if len(both) < len(SEEDS):
        return said
    half = WITHIN_T * each.std(ddof=1) / np.sqrt(len(each))
    return f"{said} [{each.mean() - half:+.{digits}f}, {each.mean() + half:+.{digits}f}]"


RECALL = {
    "text R@1": ("retrieval", "text_to_pair", "recall@1"),
    "text R@10": ("retrieval", "text_to_pair", "recall@10"),
    "pair R@1": ("retrieval", "pair_to_text", "recall@1"),
    "pair R@10": ("retrieval", "pair_to_text", "recall@10"),
}
AUC = ("detection", "auc")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def scenes_table() -> list[str]:
    """Retrieval and detection on the test scenes, of the cells that have results."""
    base, twin, rows = CELLS["scenes-difference"], CELLS["scenes-twin"], []
    for cell in filter(begun, SCENES):
        found = [values(cell, "test", *names) for names in RECALL.values()]
        row = [cell.said, *map(mean_cell, found), mean_cell(values(cell, "test", *AUC), 1, 3)]
        row += [gain(cell, base, RECALL[name], 100, 1) for name in ("text R@1", "pair R@1")]
        row.append(gain(cell, twin, AUC, 1, 3) if cell is not base else "")
        rows.append(row)
    heads = ["", *RECALL, "AUC, no change", "text R@1 over difference", "pair R@1 over difference"]
    heads.append("AUC over the stateless")
    return table(heads, rows)


def boards_table() -> list[str]:
    """Detection on the unseen group of boards, of the cells that have results."""
    base, rows = (
        CELLS["boards-none"],
        [["counting pixels that differ", f"{counted():.3f}", *[""] * 3]],
    )
    for cell in filter(begun, PCB):
        rows.append(
            [
                cell.said,
                mean_cell(values(cell, "test", *AUC), 1, 4),
                gain(cell, base, AUC, 1, 4),
                mean_cell(values(cell, "val", *AUC), 1, 4),
                mean_cell(values(cell, "test", "texts", "all_right_if_changed")),
            ]
        )
    heads = ["", f"AUC, {UNSEEN}", "over the twin, paired", f"AUC, {LOOKED_AT}", "kind named"]
    return table(heads, rows)


def begun(cell: Cell) -> bool:
    """Whether any seed of a cell is finished."""
    return any(result_of(cell, seed, "test").exists() for seed in SEEDS)


def counted() -> float:
    """AUC of the share of pixels that differ, on the unseen group."""
    source = open_source(BOARDS, SourceOptions(where=f"group = '{UNSEEN}'"))
    scores, changed = [], []
    for index in range(source.size or 0):
        sample = source.sample(index)
        before, after = (pixels(picture) for picture in (sample.before[0], sample.picture))
        scores.append(float((before != after).mean()))
        changed.append(bool(sample.changed))
    return detection(np.array(scores), np.array(changed), seed=0, resamples=2).value


def pixels(picture: Any) -> Any:
    """A picture as an array of true and false."""
    return np.asarray(to_rgb(picture).convert("L")) > 127


def commands() -> list[str]:
    """What trains the stateful cell of each table; the others differ by what their name says."""
    lines = ["```"]
    for cell in (CELLS["scenes-stateful"], CELLS["boards-cross_ffn"]):
        place = RUNS / f"{cell.name}-0"
        lines.append(f"$ diptych train {shlex.join(cell.train)} --seed 0 --out {place}")
    return [*lines, "```"]


def put(name: str, lines: Sequence[str]) -> None:
    """Write lines between the marks of that name, and show them."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, _, rest = REPORT.read_text(encoding="utf-8").partition(start)
    _, _, tail = rest.partition(end)
    text = "\n".join(lines)
    write_text(REPORT, f"{head}{start}\n{text}\n{end}{tail}")
    print(text, flush=True)


def main() -> None:
    """Carry out the cells named, or all."""
    names = sys.argv[1:] or [f"{name}-{seed}" for seed in SEEDS for name in CELLS]
    for name in names:
        cell, seed = name.rsplit("-", 1)
        if cell.startswith("scenes") and not (START / "checkpoints" / "last").is_dir():
            make_start()
        carry_out(CELLS[cell], int(seed))
        put("scenes", scenes_table())
        put("boards", boards_table())
        put("commands", commands())


if __name__ == "__main__":
    main()
