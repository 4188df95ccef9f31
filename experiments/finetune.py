"""Fine-tuning that does not forget, on real data: `make real`. Writes docs/results/finetune.md.

The model that `experiments/real.py` trained on Flickr8k learns the names of emoji (Noto and
Twemoji), in several ways. The new task is judged on OpenMoji, the old one on the test photos of
Flickr8k; where a place between before and after is chosen, it is chosen on the validation photos.
Rates, lengths and seeds were fixed beforehand; nothing was chosen on what is judged.

    DIPTYCH_DATA=../shared/data .venv/bin/python experiments/finetune.py [NAME …]

The queue can be stopped at any time: what is finished is not done again, a run that was cut goes
on, and the table is written after each.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import diptych
from diptych.data.opening import open_source
from diptych.data.source import SourceOptions
from diptych.evaluate.judge import encode_pictures
from diptych.evaluate.metrics import Interval, bootstrap, retrieval_ranks
from diptych.evaluate.retrieval import captions_of, group, merge
from diptych.files import write_text

DATA = os.environ.get("DIPTYCH_DATA", "../shared/data")
OLD = Path("runs/real/flickr8k")
RUNS = Path("runs/real/finetune")
REPORT = Path("docs/results/finetune.md")
DIPTYCH = str(Path(sys.executable).with_name("diptych"))

UNTONED = "skin_tone = ''"
FLICKR = f"{DATA}/photos/flickr8k.parquet"
EMOJI = f"{DATA}/emoji/{{noto,twemoji}}.parquet"
NEW_PAIRS = ("--data", EMOJI, "--where", UNTONED, "--text-column", "name")
MIXED = RUNS / "mixed-pairs"
MIXED_PAIRS = ("--data", f"{MIXED}/emoji.parquet@1", "--data", f"{MIXED}/photos.parquet@1")
JUDGED = (
    *("--val", f"{DATA}/emoji/openmoji.parquet", "--val-where", UNTONED),
    *("--set", "data.val_pairs=3000"),
    *("--set", "validate_every=1000000"),  # judged at the end alone
)
KEPT = (
    *("--held-out", FLICKR, "--held-out-where", "split = 'val'"),
    *("--set", "finetune.choose_on=1"),  # what is reported here is measured on the test split
)
EPOCHS = ("--epochs", "10")


@dataclass(frozen=True)
class Way:
    """One way to fine-tune: a run, and what it gives."""

    name: str
    recipe: str
    options: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    """Rows of the table: what it is, and which model of the run's folder."""

    pairs: tuple[str, ...] = NEW_PAIRS
    """What it trains on."""


PLAIN = ("--set", "finetune.keep_statistics=false")
LAST = "checkpoints/last"
WAYS = (
    Way(
        "plain",
        "clip-resnet-small",
        (*EPOCHS, *PLAIN, "--set", "finetune.alpha=1"),
        (("plain tuning: recipe and rate (2e-3) of the old training", LAST),),
    ),
    Way(
        "lower",
        "clip-resnet-small",
        (
            *(*EPOCHS, *PLAIN, "--set", "ema=null", "--set", "optimizer.weight_decay=0"),
            *("--set", "optimizer.lr=3.9e-4", "--set", "optimizer.warmup=0.1"),
        ),
        (
            ("plain tuning at the default's rate (3.9e-4), no decay", LAST),
            ("the same, with WiSE-FT", "model"),
        ),
    ),
    Way(
        "lora",
        "finetune",
        (*EPOCHS, "--set", "finetune.lora.rank=8", "--set", "optimizer.lr=3.9e-4"),
        (
            ("LoRA, rank 8, in every block, at the default's rate", LAST),
            ("the same, with WiSE-FT", "model"),
        ),
    ),
    Way(
        "default",
        "finetune",
        EPOCHS,
        (
            ("rates by layer (0.75), statistics held", LAST),
            ("**the default**: the same, with WiSE-FT", "model"),
        ),
    ),
    Way(
        "mixed",
        "finetune",
        ("--steps", "302", "--set", "finetune.keep_statistics=false"),
        (
            ("the default's rate, as many old pairs mixed in", LAST),
            ("the same, with WiSE-FT", "model"),
        ),
        MIXED_PAIRS,
    ),
)


def write_mixed_pairs() -> None:
    """The new pairs and the old ones as files of the same columns, so that one run takes both."""
    emoji = open_source(EMOJI, SourceOptions(where=UNTONED, text_column="name"))
    photos = open_source(FLICKR, SourceOptions(where="split = 'train'"))
    MIXED.mkdir(parents=True, exist_ok=True)
    for name, source in (("emoji", emoji), ("photos", photos)):
        samples = [source.sample(index) for index in range(source.size or 0)]
        columns = {
            "image": [sample.picture for sample in samples],
            "caption": [list(sample.captions) for sample in samples],
        }
        pq.write_table(pa.table(columns), MIXED / f"{name}.parquet")


def command(way: Way) -> tuple[str, ...]:
    """What trains it."""
    return ("train", way.recipe, "--from", str(OLD), *way.pairs, *JUDGED, *KEPT, *way.options)


def carry_out(way: Way) -> None:
    """Train, if it is not done."""
    folder = RUNS / way.name
    if (folder / "finetune.json").exists():
        return
    if way.pairs == MIXED_PAIRS:
        write_mixed_pairs()
    arguments = [*command(way), "--out", str(folder), "--resume"]
    print(f"$ diptych {shlex.join(arguments)}", flush=True)
    subprocess.run([DIPTYCH, *arguments], check=True)


def judged(place: Path) -> dict[str, Any]:
    """Recall of a model on both tasks, and which captions of the old task it answers; read if it
    was found before."""
    found = RUNS / "judged" / f"{'-'.join(place.parts[-3:])}.json"
    mark = diptych.load(place, device="cpu").fingerprint
    if found.exists() and json.loads(found.read_text())["fingerprint"] == mark:
        values: dict[str, Any] = json.loads(found.read_text())
        return values
    new = ("--data", f"{DATA}/emoji/openmoji.parquet", "--where", UNTONED, "--text-column", "name")
    old = ("--data", FLICKR, "--where", "split = 'test'")
    values = {"fingerprint": mark, "new": recalls(place, new), "old": recalls(place, old)}
    values["hits"] = hits(place).tolist()
    write_text(found, json.dumps(values) + "\n")
    return values


def recalls(place: Path, source: tuple[str, ...]) -> dict[str, Any]:
    """What `diptych evaluate` measures."""
    arguments = ["evaluate", str(place), *source, "--json"]
    print(f"$ diptych {shlex.join(arguments)}", flush=True)
    done = subprocess.run([DIPTYCH, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    metrics: dict[str, Any] = json.loads(done.stdout)["metrics"]
    return metrics


def test_photos() -> Any:
    """The old task's test."""
    return open_source(FLICKR, SourceOptions(where="split = 'test'"))


def hits(place: Path) -> Any:
    """For each caption of the test photos whether its photo is among the first ten."""
    model, source = diptych.load(place, device="cpu"), test_photos()
    pictures = encode_pictures(model, source, range(source.size))
    texts, picture_of_text = captions_of(source, pictures.indices)
    rows, place_of = merge("picture", pictures.ids, len(pictures.ids))
    text_rows, text_of = merge("text", texts, len(texts))
    pairs = np.unique(np.stack([place_of[picture_of_text], text_of]), axis=1)
    right = group(pairs[1], pairs[0], len(text_rows))
    ranks = retrieval_ranks(model.encode_text(texts)[text_rows], pictures.image[rows], right)
    return (ranks[text_of] <= 10).astype(int)


def lost(before: dict[str, Any], after: dict[str, Any]) -> Interval:
    """How much less of the old task is answered, with the interval of the paired difference: the
    same photos are drawn for both."""
    source = test_photos()
    _, picture_of_text = captions_of(source, range(source.size))
    difference = np.array(before["hits"]) - np.array(after["hits"])
    return bootstrap(difference, picture_of_text)


def cell(metrics: dict[str, Any], way: str, k: int) -> str:
    """A recall in percent with its interval."""
    found = metrics[way][f"recall@{k}"]
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def row(name: str, alpha: str, before: dict[str, Any], values: dict[str, Any]) -> str:
    """A line of the table."""
    gone = lost(before, values)
    cells = [
        name,
        alpha,
        cell(values["new"], "text_to_image", 1),
        cell(values["new"], "text_to_image", 10),
        cell(values["new"], "image_to_text", 10),
        cell(values["old"], "text_to_image", 10),
        cell(values["old"], "image_to_text", 10),
        f"{100 * gone.value:.1f} [{100 * gone.low:.1f}, {100 * gone.high:.1f}]",
    ]
    return f"| {' | '.join(cells)} |"


def report(ways: list[Way]) -> str:
    """The whole page, of what is finished."""
    before = judged(OLD)
    heads = ["", "alpha", "emoji, text R@1", "emoji, text R@10", "emoji, image R@10"]
    heads += ["Flickr8k, text R@10", "Flickr8k, image R@10", "lost of Flickr8k's text R@10"]
    lines = [
        "# Fine-tuning that does not forget",
        "",
        "Made by `make real` (`experiments/finetune.py`). The model that `experiments/real.py` ",
        "trained on Flickr8k learns the names of 3,872 emoji of Noto and Twemoji (10 passes). ",
        "Emoji: recall on OpenMoji, of which no drawing was trained on. Flickr8k: recall on the ",
        "test photos, the old task. alpha: place between before (0) and after (1), chosen on the ",
        "validation photos of Flickr8k. Percent, 95 % bootstrap intervals over pictures; what is ",
        "lost is the paired difference in points, the same photos drawn for both. WiSE-FT keeps ",
        "the largest alpha at which neither direction loses more than a point on those photos.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        row("before", "0", before, before),
    ]
    for way in ways:
        finished = RUNS / way.name / "finetune.json"
        if finished.exists():
            chosen = json.loads(finished.read_text())["alpha"]
            for name, place in way.rows:
                alpha = f"{chosen:g}" if place == "model" else "1"
                values = judged((RUNS / way.name / place).resolve())
                lines.append(row(name, alpha, before, values))
    lines += ["", "## Commands", "", "```"]
    for way in ways:
        lines.append(f"$ diptych {shlex.join(command(way))} --out {RUNS / way.name}")
    return "\n".join(line.rstrip() for line in [*lines, "```"]) + "\n"


def main() -> None:
    """Carry out the ways named, or all."""
    if not (OLD / "checkpoints" / "last").is_dir():
        sys.exit(f"there is no {OLD}: run experiments/real.py flickr8k first")
    wanted = sys.argv[1:] or [way.name for way in WAYS]
    for way in WAYS:
        if way.name in wanted:
            carry_out(way)
            page = report(list(WAYS))
            write_text(REPORT, page)
            print(page, flush=True)


if __name__ == "__main__":
    main()
