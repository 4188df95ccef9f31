"""`diptych demo`."""

from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.common import Device, Json, Seed, answer, tell


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path(
        "demo"
    ),
    data: Annotated[
        str, typer.Option("--data", help="SOURCE to use instead of the generated scenes.")
    ] = "scenes:shapes",
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="Time for training.")] = 3.0,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train, judge, search and report, in five minutes.

    Example: diptych demo --out demo, then open demo/report.html
    """
    from diptych.demo import run_demo
    from diptych.predict.model import choose_device

    result = run_demo(out, data, minutes, seed, choose_device(device), tell)
    answer(as_json, result.values, result.text)
