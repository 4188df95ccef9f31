"""Tiled losses against those of open_clip_torch, in time and in memory, forward and backward.

    .venv-peers/bin/python benchmarks/losses.py

Three things are timed in turn: our loss, open_clip's, and the bare matrix products that ours
cannot do without (same tiles, buffers made before, nothing else). Gradients of the embeddings,
the scale and the bias are part of it. Memory is the highest resident size during one call minus
that before it, each in a fresh process; it includes both gradients, 8 N d bytes, so that at small
N no loss can be far below its peer. The results go to results/losses.json.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Ratio, interleaved, machine, ratio_of_seconds, ratio_table, write_results
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from diptych.losses.contrastive import CPU_TILE, sigmoid_contrastive, softmax_contrastive

EMBED = 512
REPEATS = {4096: 9, 16384: 3}
"""Batch size: how often each job runs."""

AGAINST_PEER = {"softmax": 0.45, "sigmoid": 0.42}
AGAINST_PRODUCTS = 1.25
AGAINST_PEER_MEMORY = 1 / 40

PRODUCTS = {"softmax": (1, 3), "sigmoid": (3,)}
"""Products of a tile in each pass over the logits."""

LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "softmax": (softmax_contrastive, ClipLoss()),
    "sigmoid": (sigmoid_contrastive, SigLipLoss()),
}
"""Ours, and its peer."""


def inputs(loss: str, count: int) -> list[Tensor]:
    """Unit embeddings of pairs that agree somewhat, and the scale and bias of initialisation."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, EMBED, generator=generator)
    text = image + torch.randn(count, EMBED, generator=generator)
    scalars = [1 / 0.07] if loss == "softmax" else [10.0, -10.0]
    image, text = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (image, text))
    return [leaf.requires_grad_() for leaf in (image, text, *map(torch.tensor, scalars))]


def learn(function: Callable[..., Tensor], leaves: list[Tensor]) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    function(*leaves).backward()
    seconds = time.perf_counter() - start
    for leaf in leaves:
        leaf.grad = None
    return seconds


def bare_products(loss: str, leaves: list[Tensor]) -> float:
    """Seconds of the matrix products of our loss, without everything else."""
    image, text = (leaf.detach() for leaf in leaves[:2])
    image_sum, text_sum = torch.zeros_like(image), torch.zeros_like(text)
    logits = torch.empty(CPU_TILE, CPU_TILE)
    start = time.perf_counter()
    for products in PRODUCTS[loss]:
        for i in range(0, len(image), CPU_TILE):
            rows = slice(i, i + CPU_TILE)
            for j in range(0, len(text), CPU_TILE):
                columns = slice(j, j + CPU_TILE)
                torch.mm(image[rows], text[columns].T, out=logits)
                if products == 3:
                    image_sum[rows].addmm_(logits, text[columns])
                    text_sum[columns].addmm_(logits.T, image[rows])
    return time.perf_counter() - start


def extra_bytes(loss: str, which: int, count: int) -> int:
    """Peak resident size of one forward and backward above that before it; Linux only."""
    function, leaves = LOSSES[loss][which], inputs(loss, count)
    learn(function, inputs(loss, 128))  # threads and libraries make their buffers
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    function(*leaves).backward()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A size of this process in bytes, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}. Run this benchmark on Linux.")


def measured_in_fresh_process(loss: str, which: int, count: int) -> int:
    """`extra_bytes`, undisturbed by what ran before."""
    command = [sys.executable, __file__, "--memory", loss, str(which), str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(loss: str, count: int) -> tuple[list[Ratio], dict[str, Any]]:
    """Time and memory of one loss at one batch size."""
    leaves = inputs(loss, count)
    ours, peer = LOSSES[loss]
    jobs = {
        "ours": partial(learn, ours, leaves),
        "peer": partial(learn, peer, leaves),
        "products": partial(bare_products, loss, leaves),
    }
    load = os.getloadavg()[0]
    seconds = interleaved(jobs, REPEATS[count])
    del leaves
    memory = {
        name: measured_in_fresh_process(loss, which, count)
        for which, name in enumerate(["ours", "peer"])
    }
    gradients = 2 * count * EMBED * 4
    what = f"{loss} N={count}"
    ratios = [
        ratio_of_seconds(
            f"{what} time / {type(peer).__name__}",
            seconds["ours"],
            seconds["peer"],
            AGAINST_PEER[loss],
        ),
        ratio_of_seconds(
            f"{what} time / bare products", seconds["ours"], seconds["products"], AGAINST_PRODUCTS
        ),
        Ratio(
            f"{what} memory / {type(peer).__name__}",
            memory["ours"] / memory["peer"],
            AGAINST_PEER_MEMORY,
        ),
    ]
    floor = {
        "products_over_peer_time": ratio_of_seconds(
            "", seconds["products"], seconds["peer"], 1
        ).ratio,
        "gradients_over_peer_memory": gradients / memory["peer"],
    }
    return ratios, {
        "seconds": seconds,
        "extra_bytes": memory,
        "gradient_bytes": gradients,
        "load_before": load,
        "floor": floor,
    }


def main() -> None:
    """Measure everything, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs=3, metavar=("LOSS", "WHICH", "COUNT"), help="internal")
    memory = parser.parse_args().memory
    if memory:
        print(extra_bytes(memory[0], int(memory[1]), int(memory[2])))
        return
    ratios: list[Ratio] = []
    raw: dict[str, Any] = {}
    for count in REPEATS:
        for loss in LOSSES:
            print(f"measuring {loss} at N={count}", file=sys.stderr, flush=True)
            found, raw[f"{loss} {count}"] = compare(loss, count)
            ratios += found
    print(ratio_table(ratios))
    for name, row in raw.items():
        print(f"{name}: floor of any exact tiled loss {json.dumps(row['floor'])}")
    settings = {"embed": EMBED, "tile": CPU_TILE, "dtype": "float32"}
    details = machine(["torch", "open_clip_torch"]) | settings | {"measurements": raw}
    print("written:", write_results("losses", ratios, details))


if __name__ == "__main__":
    main()
