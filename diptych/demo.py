"""The whole line once: train, judge, embed, search, report. `diptych demo` calls it.

On the generated scenes the split scenes:shapes:test is held out, whatever split is asked for. Of
another source one caption in ten is, with its pictures; the looks while training and the judgement
at the end are then at the same part, so the looks are no second opinion.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import Source, SourceOptions
from diptych.data.vectors import read_vectors
from diptych.errors import RequestError
from diptych.evaluate.judge import result_file
from diptych.evaluate.retrieval import RetrievalJudged, judge_retrieval
from diptych.files import write_text
from diptych.predict.embed import embed
from diptych.predict.model import Model, load
from diptych.recipes import find_recipe
from diptych.recipes.evaluators import recall_evaluator
from diptych.report.page import HitCell, QueryRow, SimilarityBlock, write_report
from diptych.search.exact import search
from diptych.train.log import read_log
from diptych.train.loop import TrainResult, train
from diptych.train.run import Run
from diptych.train.step import chance_loss

HELD_OUT = 0.1
"""Share of a source without splits that is judged and never trained on."""

QUERIES, HITS, PAIRS = 6, 6, 8
"""Size of the report's grid and of its similarity matrix."""

MARK = "demo.json"
"""File that says a folder is a demo's; what a demo wrote may be replaced by the next."""

WRITTEN = ("run", "vectors", "retrieval.json", "report.html")
"""What a demo writes beside `MARK`."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What the demo has to say."""

    values: dict[str, Any]
    text: str


def run_demo(out: Path, data: str, minutes: float, seed: int, device: str, say: Say) -> DemoResult:
    """Train for some minutes, judge on what was held out, search, write `out/report.html`.

    Args:
        out: Folder for run/, vectors/, retrieval.json, report.html and demo.json.
        data: SOURCE.
        minutes: Time for training.
        seed: Of everything random.
        device: "cpu" or "cuda".
        say: Called with each line of progress.

    Raises:
        RequestError: `out` holds something that no demo wrote.
    """
    run, held_out = demo_run(data, minutes, seed), _held_out(data)
    _clear(out)
    settings = {"data": data, "minutes": minutes, "seed": seed}
    write_text(out / MARK, json.dumps(settings, indent=2) + "\n")
    say(f"1/4 training {run.recipe} for {minutes:g} min on {run.data.source}")
    trained = train(run, out / "run", device=device, evaluators={"recall": recall_evaluator(run)})
    model = load(out / "run", device=device)
    say(f"2/4 judging on {held_out.name}, never trained on")
    judged = judge_retrieval(model, held_out, seed=seed)
    values = result_file(judged, model, held_out, model=str(out / "run"), options={})
    write_text(out / "retrieval.json", json.dumps(values, indent=2) + "\n")
    say("3/4 embedding the held-out pictures and searching them")
    embed(model, held_out, out / "vectors")
    say("4/4 writing the report")
    report = _report(out, run, trained, model, judged, held_out)
    summary = judged.result.summary()
    return DemoResult(
        {**values, "report": str(report), "steps": trained.steps},
        f"{summary}\n\nreport  {report}\nsearch  diptych search {out / 'vectors'} "
        f'"{judged.texts[0]}"',
    )


def demo_run(data: str, minutes: float, seed: int) -> Run:
    """The run of the demo: clip-mini, on `data` without what is held out."""
    run = find_recipe("clip-mini").with_length(None, None, minutes)
    split = _splits(data)
    data_config = run.data.model_copy(
        update={
            "source": split.train,
            "val": split.val,
            "options": SourceOptions(part=split.train_part),
            "val_options": SourceOptions(part=split.held_part),
            "val_pairs": 512,
        }
    )
    batch = run.batch
    size = open_source(split.train, data_config.options).size
    if size is not None:
        batch = max(2, min(batch, size // 4))
    return run.model_copy(
        update={"data": data_config, "seed": seed, "batch": batch, "validate_every": 100}
    )


@dataclass(frozen=True)
class _Splits:
    """How a source is divided."""

    train: str
    val: str
    test: str
    train_part: tuple[float, float]
    held_part: tuple[float, float]


def _splits(data: str) -> _Splits:
    """Scenes have splits; another source is divided by the hash of its captions.

    Of scenes the split in `data` is ignored: what is judged on is never trained on. Of another
    source `val` and `test` are the same part.
    """
    whole = (0.0, 1.0)
    if data.startswith("scenes:"):
        open_source(data)  # refuses a split that there is not
        name = ":".join(data.split(":")[:2])
        return _Splits(name, f"{name}:val", f"{name}:test", whole, whole)
    return _Splits(data, data, data, (0.0, 1 - HELD_OUT), (1 - HELD_OUT, 1.0))


def _held_out(data: str) -> Source:
    """What the demo judges on."""
    split = _splits(data)
    return open_source(split.test, SourceOptions(part=split.held_part))


def _clear(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else."""
    there = [out / name for name in WRITTEN if (out / name).exists()]
    if there and not (out / MARK).is_file():
        raise RequestError(
            f"{there[0]} was not written by a demo: {out / MARK} is not there. "
            "Give another --out, such as demo-2."
        )
    for name in ("run", "vectors"):
        shutil.rmtree(out / name, ignore_errors=True)


def _report(
    out: Path, run: Run, trained: TrainResult, model: Model, judged: RetrievalJudged, source: Source
) -> Path:
    """The HTML page."""
    trained_on = str(run.data.source)
    facts = (
        ("Recipe", run.recipe),
        ("Parameters", f"{model.parameters / 1e6:.1f} million"),
        ("Trained on", trained_on),
        ("Judged on", f"{source.name}, {judged.result.pictures:,} pictures"),
        ("Training", f"{trained.steps:,} steps of {run.batch} pairs, {trained.pairs:,} pairs"),
        ("Time", f"{trained.elapsed_s / 60:.1f} minutes"),
        ("Seed", str(run.seed)),
        ("Model fingerprint", model.fingerprint),
        ("Data fingerprint", source.fingerprint),
    )
    return write_report(
        out / "report.html",
        title="Diptych demo" if trained_on.startswith("scenes:") else trained_on,
        facts=facts,
        log_rows=read_log(out / "run" / "log.jsonl"),
        retrieval=judged.result.to_dict(),
        queries=_queries(out / "vectors", model, judged, source),
        similarity=_similarity(judged, source),
        chance_loss=chance_loss(model.objective, run.batch),
    )


def _spread(judged: RetrievalJudged, count: int) -> list[int]:
    """Rows of captions spread over the held-out pictures, one of each picture."""
    rows = np.linspace(0, len(judged.texts) - 1, min(count, len(judged.indices))).astype(int)
    pictures = judged.picture_of_text[rows]
    return [int(np.flatnonzero(judged.picture_of_text == picture)[-1]) for picture in pictures]


def _queries(folder: Path, model: Model, judged: RetrievalJudged, source: Source) -> list[QueryRow]:
    """Some held-out captions with the pictures that the model finds for them."""
    stored = read_vectors(folder)
    rows = []
    for text_row in _spread(judged, QUERIES):
        text = judged.texts[text_row]
        hits = search(stored, model.encode_text([text])[0], HITS)
        cells = [
            HitCell(
                picture=to_rgb(source.sample(judged.indices[hit.row]).picture),
                score=hit.score,
                caption=hit.captions[-1] if hit.captions else "",
                correct=text in hit.captions,
            )
            for hit in hits
        ]
        rows.append(QueryRow(text=text, hits=cells))
    return rows


def _similarity(judged: RetrievalJudged, source: Source) -> SimilarityBlock:
    """Some held-out pictures against their own captions."""
    text_rows = _spread(judged, PAIRS)
    pictures = [int(judged.picture_of_text[row]) for row in text_rows]
    return SimilarityBlock(
        pictures=[to_rgb(source.sample(judged.indices[row]).picture) for row in pictures],
        captions=[judged.texts[row] for row in text_rows],
        matrix=judged.image[pictures] @ judged.text[text_rows].T,
    )
