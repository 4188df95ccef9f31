"""A packed stateful vision transformer against the stateless one: time by multiply-adds.

    .venv/bin/python benchmarks/stateful.py

Each variant reads more than the plain tower and so costs more. Here its time as a multiple of the
plain tower's is divided by its multiply-adds as a multiple of the plain tower's: 1 says that what
is added runs as fast as what was there, and what is above 1 is lost in moving numbers about. The
multiply-adds are counted by the formula below, which torch's own counter must confirm.

ViT of 6 layers of 256 with patch 8 at 64 px, fp32, 16 random pictures in memory: 8 pairs, and for
the chosen variant also sequences of 1 to 4 pictures. One thread, whose own time on the processor is
taken: what else runs on the machine does not count. The results go to results/stateful.json.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from common import interleaved, machine, ratio_of_seconds, ratio_table, write_results
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diptych.models.image_tower import ImageTower, ImageTowerConfig
from diptych.models.stateful_encoder import make_stateful
from diptych.nn.state import StateConfig

SHAPE = ImageTowerConfig(
    image_size=64, patch_size=8, width=256, layers=6, heads=4, mlp_width=1024, pool="mean"
)
PICTURES = 16
PAIRS = [2] * (PICTURES // 2)
MIXED = [1, 2, 3, 4, 1, 2, 3]
REPEATS = 10
TARGET = 1.15

CASES: dict[str, tuple[StateConfig, list[int]]] = {
    "self_ext": (StateConfig(variant="self_ext"), PAIRS),
    "adaln_zero": (StateConfig(variant="adaln_zero"), PAIRS),
    "cross": (StateConfig(variant="cross"), PAIRS),
    "cross_ffn": (StateConfig(variant="cross_ffn"), PAIRS),
    "self_ffn": (StateConfig(variant="self_ffn"), PAIRS),
    "cross_ffn, mixed lengths": (StateConfig(variant="cross_ffn"), MIXED),
    "cross_ffn, window 2": (StateConfig(variant="cross_ffn", window=2), PAIRS),
}


def multiply_adds(state: StateConfig) -> int:
    """Of one picture, forward; K are the tokens that are read, N those of the picture."""
    width, hidden = SHAPE.width, SHAPE.mlp_width
    patches = SHAPE.side**2
    count = patches + SHAPE.class_token
    keys = count * state.window
    block = 4 * count * width**2 + 2 * count * count * width + 2 * count * width * hidden
    cross = 2 * (count + keys) * width**2 + 2 * count * keys * width
    added = {
        "none": 0,
        "self_ext": 3 * keys * width**2 + 2 * count * keys * width,
        "adaln_zero": 6 * width**2,
        "cross": cross,
        "cross_ffn": cross + 2 * count * width * hidden,
        "self_ffn": cross + 2 * count * width * hidden,
    }[state.variant]
    return patches * 3 * SHAPE.patch_size**2 * width + SHAPE.layers * (block + added)


def pixels() -> Tensor:
    """Random pictures, normalised."""
    side = SHAPE.image_size
    return torch.randn(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))


def tokens_of(name: str) -> Callable[[], Tensor]:
    """A forward pass of a case, or of the plain tower."""
    torch.manual_seed(0)
    tower, images = ImageTower(SHAPE, "clip"), pixels()
    if name == "stateless":
        return lambda: tower.tokens(images)
    state, counts = CASES[name]
    encoder = make_stateful(tower, state)
    return lambda: encoder.packed(images, counts)


def timed(run: Callable[[], Tensor], *, backward: bool) -> Callable[[], float]:
    """Processor seconds of a forward pass, or of a forward and a backward pass."""

    def job() -> float:
        start = time.process_time()
        with torch.set_grad_enabled(backward):
            tokens = run()
            if backward:
                tokens.square().mean().backward()
        return time.process_time() - start

    return job


def check_count(name: str, run: Callable[[], Tensor]) -> int:
    """Multiply-adds of a case by the formula.

    Raises:
        SystemExit: torch counts others.
    """
    state = StateConfig() if name == "stateless" else CASES[name][0]
    expected = PICTURES * multiply_adds(state)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    found = counter.get_total_flops() // 2
    if found != expected:
        sys.exit(f"{name}: the formula says {expected:,} multiply-adds, and torch {found:,}.")
    return expected


def main() -> None:
    """Measure everything, print the table, write the file."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    runs = {name: tokens_of(name) for name in ("stateless", *CASES)}
    counts = {name: check_count(name, run) for name, run in runs.items()}
    jobs = {
        f"{name}, {passes}": timed(run, backward=passes != "forward")
        for name, run in runs.items()
        for passes in ("forward", "forward and backward")
    }
    for name, job in jobs.items():
        print(f"warming up {name}", file=sys.stderr, flush=True)
        job()
    seconds = interleaved(jobs, REPEATS)
    ratios = []
    for passes in ("forward", "forward and backward"):
        for name in CASES:
            more = counts[name] / counts["stateless"]
            plain = [one * more for one in seconds[f"stateless, {passes}"]]
            what = f"seconds by multiply-adds ({more:.2f}x): {name}, {passes}"
            ratios.append(ratio_of_seconds(what, seconds[f"{name}, {passes}"], plain, TARGET))
    print(ratio_table(ratios))
    details = machine(["torch"]) | {
        "pictures": PICTURES,
        "multiply_adds": counts,
        "seconds": seconds,
    }
    print("written:", write_results("stateful", ratios, details))


if __name__ == "__main__":
    main()
