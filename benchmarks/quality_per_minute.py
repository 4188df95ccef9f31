"""What twelve minutes of training on the same two cores are worth, against open_clip_torch.

    .venv-peers/bin/python benchmarks/quality_per_minute.py

Both sides learn emoji of two vendors with their names and keywords, and are judged on a vendor
they never saw: openmoji without skin tone, one row per name, names that are in training; identical
drawings are hits. The peer is `peer_emoji.py` beside the data, run as it is; its vectors are taken
from it when it ends and judged by the same code as ours. Ours is the recipe `clip-resnet-small`
with three seeds. Everything was chosen with `--choose`: trained on noto, judged on twemoji.

The runs are a queue: what is finished is not done again (results/quality_per_minute/), so it can be
stopped at any time. Nothing else may run on the machine. The table goes to
results/quality_per_minute.json.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import Ratio, machine, ratio_table, write_results

from diptych.data.opening import open_source
from diptych.data.source import ChosenSamples, Source, SourceOptions
from diptych.evaluate.retrieval import RetrievalResult, judge_retrieval, retrieval
from diptych.files import fingerprint, write_text
from diptych.predict.model import load

DATA = Path(os.environ.get("DIPTYCH_DATA", "../shared/data")) / "emoji"
PEER = DATA.parent.parent / "peer_emoji.py"
RUNS = Path("runs/quality")
FOUND = Path(__file__).parent / "results" / "quality_per_minute"
"""What each finished run reached; committed, so that the queue goes on in another checkout."""

RECIPE = "clip-resnet-small"
MINUTES = 12.0
SEEDS = (0, 1, 2)
TARGETS = {"recall@1": 1 / 2.5, "recall@10": 1 / 1.8}
"""The peer's recall divided by ours may be this at most."""

UNTONED = SourceOptions(text_column="name", where="skin_tone = ''")


def judged_rows(vendor: str, training: list[str]) -> Source:
    """One picture per name, the last one, of the names that are in training."""
    known = {name for other in training for name in names(other)}
    source = open_source(str(DATA / f"{vendor}.parquet"), UNTONED)
    last = {source.captions(index)[0]: index for index in range(source.size or 0)}
    return ChosenSamples(source, sorted(last[name] for name in last if name in known), "judged")


def names(vendor: str) -> list[str]:
    """What a vendor's pictures are called."""
    source = open_source(str(DATA / f"{vendor}.parquet"), UNTONED)
    return [source.captions(index)[0] for index in range(source.size or 0)]


def train_ours(
    training: list[str], folder: Path, minutes: float, seed: int, more: list[str]
) -> None:
    """`diptych train` in a process of its own, as a user runs it."""
    pattern = (
        str(DATA / f"{{{','.join(training)}}}.parquet")
        if len(training) > 1
        else str(DATA / f"{training[0]}.parquet")
    )
    command = [
        *(str(Path(sys.executable).with_name("diptych")), "train", RECIPE),
        *("--data", pattern, "--where", "skin_tone = ''", "--text-column", "name,keywords"),
        *("--set", "data.caption=joined"),
        *("--minutes", f"{minutes:g}", "--seed", str(seed), "--out", str(folder), "--resume"),
        *more,
    ]
    print("$", *command, file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def numbers(result: RetrievalResult) -> dict[str, Any]:
    """What is kept of a judgement."""
    return {
        "text_to_image": result.text_to_image.to_dict(),
        "image_to_text": result.image_to_text.to_dict(),
        "pictures": result.pictures,
        "names": result.texts,
    }


def ours(
    name: str, training: list[str], vendor: str, minutes: float, seed: int, more: list[str]
) -> dict[str, Any]:
    """Train and judge, or read what was found before."""
    found = FOUND / f"{name}.json"
    if not found.exists():
        train_ours(training, RUNS / name, minutes, seed, more)
        model = load(RUNS / name)
        judged = judge_retrieval(model, judged_rows(vendor, training), seed=seed)
        log = (RUNS / name / "log.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, log) if row["kind"] == "step"]
        values = numbers(judged.result) | {
            "pairs": steps[-1]["pairs"],
            "parameters": model.parameters,
        }
        write_text(found, json.dumps(values, indent=2) + "\n")
    values = json.loads(found.read_text())
    show(name, values)
    return dict(values)


def peer(kind: str, minutes: float) -> dict[str, Any]:
    """Run the peer as it is and judge its vectors, or read what was found before."""
    found = FOUND / f"peer-{kind}.json"
    if not found.exists():
        command = [sys.executable, __file__, "--peer", kind, "--minutes", f"{minutes:g}"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        write_text(found, said.splitlines()[-1] + "\n")
    values = json.loads(found.read_text())
    show(f"peer {kind}", values)
    return dict(values)


def run_peer(kind: str, minutes: float) -> dict[str, Any]:
    """In this process: the peer's script, then its vectors under our judge."""
    sys.argv = [str(PEER), str(DATA), f"{minutes:g}", kind]
    left = runpy.run_path(str(PEER), run_name="__main__")
    pixels, texts = left["VX"].numpy(), left["VN"]
    result = retrieval(
        left["a"].numpy(),
        left["b"].numpy(),
        np.arange(len(texts)),  # text i belongs to picture i
        picture_ids=[fingerprint(picture.tobytes()) for picture in pixels],
        text_ids=texts,
    )
    own = {"recall@1": left["r"](left["s"], 1), "recall@10": left["r"](left["s"], 10)}
    return numbers(result) | {"pairs": left["seen"], "own text_to_image": own}


def show(name: str, values: dict[str, Any]) -> None:
    """One line for each finished run."""
    found = values["text_to_image"]
    cells = [
        f"{key} {100 * found[key]['value']:.1f} "
        f"[{100 * found[key]['low']:.1f}, {100 * found[key]['high']:.1f}]"
        for key in ("recall@1", "recall@10")
    ]
    print(f"{name:<24}{'  '.join(cells)}  of {values['pictures']:,} drawings", flush=True)


def choose(minutes: float, seed: int, settings: list[str]) -> None:
    """A run of the choosing split; its name says its settings."""
    more = [part for setting in settings for part in ("--set", setting)]
    mark = fingerprint(*settings, f"{minutes:g} {seed}")[:8] if settings else f"{minutes:g}-{seed}"
    print(mark, *settings)
    ours(f"choose-{mark}", ["noto"], "twemoji", minutes, seed, more)


def main() -> None:
    """Carry out the queue, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--choose", action="store_true", help="train on noto, judge on twemoji")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", choices=["clip", "siglip"], help="internal: run the peer here")
    asked = parser.parse_args()
    if asked.peer:
        print(json.dumps(run_peer(asked.peer, asked.minutes)))
        return
    if asked.choose:
        choose(asked.minutes, asked.seed, asked.settings)
        return
    theirs = peer("clip", asked.minutes)
    vendors = ["noto", "twemoji"]
    runs = [ours(f"ours-{seed}", vendors, "openmoji", asked.minutes, seed, []) for seed in SEEDS]
    ratios = []
    for key, target in TARGETS.items():
        recalls = [run["text_to_image"][key]["value"] for run in runs]
        mean, other = sum(recalls) / len(recalls), theirs["text_to_image"][key]["value"]
        ratios.append(
            Ratio(f"text->picture {key}: peer / ours (mean of seeds)", other / mean, target)
        )
    print(ratio_table(ratios))
    details = machine(["torch", "open_clip_torch"]) | {"minutes": asked.minutes}
    details |= {"peer": theirs, "ours": dict(zip(map(str, SEEDS), runs, strict=True))}
    print("written:", write_results("quality_per_minute", ratios, details))


if __name__ == "__main__":
    main()
