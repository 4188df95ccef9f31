"""Train and judge on real data: `make real`. Its output is in docs/results.md.

Each experiment is a pair of `diptych` commands, printed before they run. The queue can be stopped
at any time: what is finished is not done again, and a run that was cut goes on.

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


UNTONED = "skin_tone = ''"
"""About half of the emoji are skin-tone copies of others: left out (shared/data/README.md)."""

EXPERIMENTS = (
    Experiment(
        "emoji",
        "clip-mini",
        (
            *("--data", f"{DATA}/emoji/{{noto,twemoji}}.parquet", "--where", UNTONED),
            *("--text-column", "name,keywords", "--epochs", "60"),
        ),
        (
            *("--data", f"{DATA}/emoji/openmoji.parquet", "--where", UNTONED),
            *("--text-column", "name"),
        ),
    ),
    Experiment(
        "flickr8k",
        "clip-mini",
        (
            *("--data", f"{DATA}/photos/flickr8k.parquet", "--where", "split = 'train'"),
            *("--val", f"{DATA}/photos/flickr8k.parquet", "--val-where", "split = 'val'"),
            *("--epochs", "40"),
        ),
        ("--data", f"{DATA}/photos/flickr8k.parquet", "--where", "split = 'test'"),
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
    result: dict[str, object] = json.loads(found.read_text())
    return result


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
