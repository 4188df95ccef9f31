"""Train and judge on real data: `make real`. Its output is in docs/results.md.

Each experiment trains a model, judges it, and then uses it, by `diptych` commands that are printed
before they run. The queue can be stopped at any time: what is finished is not done again, and a run
that was cut goes on.

    DIPTYCH_DATA=../shared/data .venv/bin/python experiments/real.py [NAME …]
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DATA = os.environ.get("DIPTYCH_DATA", "../shared/data")
RUNS = Path("runs/real")
DIPTYCH = str(Path(sys.executable).with_name("diptych"))


@dataclass(frozen=True)
class Experiment:
    """One model, trained on one part of the data and judged on another."""

    name: str
    recipe: str
    train: tuple[str, ...]
    judge: tuple[str, ...]
    use: tuple[tuple[str, ...], ...] = ()
    """Commands that use the model; their output is shown. RUN stands for the model's folder."""


UNTONED = "skin_tone = ''"
"""About half of the emoji are skin-tone copies of others: left out (shared/data/README.md)."""

OPENMOJI = ("--data", f"{DATA}/emoji/openmoji.parquet", "--where", UNTONED)
FLICKR = f"{DATA}/photos/flickr8k.parquet"
STORED = f"{Path(FLICKR).resolve()}#flickr8k:7000"
"""Key of a picture in the library."""

EXPERIMENTS = (
    Experiment(
        "flickr8k",
        "clip-resnet-small",
        (
            *("--data", FLICKR, "--where", "split = 'train'"),
            *("--val", FLICKR, "--val-where", "split = 'val'"),
            *("--epochs", "20", "--set", "model.text.context=40"),
        ),
        ("--data", FLICKR, "--where", "split = 'test'"),
        (
            ("index", "RUN", FLICKR, "--where", "split = 'test'", "--library", "RUN/library"),
            ("search", "RUN/library", "a dog runs through the grass", "-k", "5"),
            ("search", "RUN/library", "a man on a bicycle", "-k", "5"),
            ("search", "RUN/library", "--image", STORED, "-k", "5"),
            ("search", "RUN/library", "in the snow", "--image", STORED, "-k", "5"),
        ),
    ),
    Experiment(
        "emoji",
        "clip-resnet-small",
        (
            *("--data", f"{DATA}/emoji/{{noto,twemoji}}.parquet", "--where", UNTONED),
            *("--text-column", "name,keywords", "--set", "data.caption=joined"),
            *("--minutes", "12"),
        ),
        (*OPENMOJI, "--text-column", "name"),
        (
            ("evaluate", "RUN", "--task", "zeroshot", *OPENMOJI, "--text-column", "group"),
            ("evaluate", "RUN", "--task", "probe", *OPENMOJI, "--text-column", "group"),
            ("evaluate", "RUN", "--task", "calibration", *OPENMOJI, "--text-column", "name"),
        ),
    ),
)


def diptych(*arguments: str) -> str:
    """Run a command of ours and show it; gives its standard output."""
    command = ["diptych", *arguments]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run([DIPTYCH, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def carry_out(experiment: Experiment) -> dict[str, object]:
    """Train and judge, or read what was found before."""
    found = RUNS / f"{experiment.name}.json"
    if not found.exists():
        folder = RUNS / experiment.name
        print(
            diptych(
                *("train", experiment.recipe, *experiment.train),
                *("--out", str(folder), "--resume"),
            )
        )
        diptych("evaluate", str(folder), *experiment.judge, "--out", str(found), "--json")
    shown = RUNS / f"{experiment.name}.txt"
    if not shown.exists():
        shown.write_text(use(experiment))
    print(shown.read_text(), flush=True)
    result: dict[str, object] = json.loads(found.read_text())
    return result


def use(experiment: Experiment) -> str:
    """What the model's use looks like: each command and what it printed."""
    said = []
    for command in experiment.use:
        arguments = [part.replace("RUN", str(RUNS / experiment.name)) for part in command]
        answer = diptych(*arguments)
        said.append(f"$ diptych {shlex.join(arguments)}\n{answer}")
    return "\n".join(said)


def table(results: dict[str, dict[str, object]]) -> str:
    """Markdown: recall in percent with its 95 % interval, both ways."""
    lines = [
        "| judged on | direction | R@1 | R@5 | R@10 | chance R@10 | median rank |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        metrics = result["metrics"]
        assert isinstance(metrics, dict)
        for way in ("text_to_image", "image_to_text"):
            found = metrics[way]
            cells = [
                f"{100 * found[key]['value']:.1f} "
                f"[{100 * found[key]['low']:.1f}, {100 * found[key]['high']:.1f}]"
                for key in ("recall@1", "recall@5", "recall@10")
            ]
            chance = 100 * metrics["chance"][way]["recall@10"]
            rank = f"{found['median_rank']['value']:.0f} of {found['candidates']:,}"
            cells += [f"{chance:.2g}", rank]
            lines.append(f"| {name} | {way.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Carry out the experiments named, or all."""
    wanted = sys.argv[1:] or [experiment.name for experiment in EXPERIMENTS]
    results = {}
    for experiment in EXPERIMENTS:
        if experiment.name in wanted:
            results[experiment.name] = carry_out(experiment)
            print(f"\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
