"""What every benchmark needs: the machine in words, ratios in a table, results in a file.

A benchmark measures Diptych and a peer in one run, interleaved, and judges the ratio of the
fastest repeats: what else runs on the machine only ever adds time. The ratio of medians stands
beside it; where the two differ much, the machine was busy. Seconds of different runs are not
compared, since machines and their load differ.
"""

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """Ours divided by the other's, and the most it may be."""

    what: str
    ratio: float
    target: float
    of_medians: float | None = None

    @property
    def met(self) -> bool:
        """Whether the target holds."""
        return self.ratio <= self.target


def interleaved(jobs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run all jobs in turn, `repeats` times, so that a noisy minute touches all of them.

    Each job returns its own seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            seconds[name].append(job())
    return seconds


def ratio_of_seconds(
    what: str, ours: Sequence[float], theirs: Sequence[float], target: float
) -> Ratio:
    """Judge ours against theirs by the fastest repeat of both."""
    return Ratio(what, min(ours) / min(theirs), target, median(ours) / median(theirs))


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """One line for each ratio: what, how much, the target, and whether it holds."""
    width = max(len(ratio.what) for ratio in ratios)
    lines = [f"{'ratio (ours / other)':<{width}}  measured    target          (of medians)"]
    for ratio in ratios:
        verdict = "pass" if ratio.met else "MISS"
        aside = "" if ratio.of_medians is None else f"  ({ratio.of_medians:.4f})"
        lines.append(
            f"{ratio.what:<{width}}  {ratio.ratio:8.4f}  <= {ratio.target:6.4f}  {verdict}{aside}"
        )
    return "\n".join(lines)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what a result was measured."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def cpu_model() -> str:
    """The processor's own name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_results(name: str, ratios: Sequence[Ratio], details: dict[str, Any]) -> Path:
    """Write results/NAME.json: the ratios first, then everything they come from."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    rows = [asdict(ratio) | {"met": ratio.met} for ratio in ratios]
    path.write_text(json.dumps({"ratios": rows} | details, indent=2) + "\n")
    return path
