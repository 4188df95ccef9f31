"""A whole training step against open_clip_torch: both towers, loss, gradients, AdamW, in pairs/s.

    .venv-peers/bin/python benchmarks/train_step.py

The same shapes on both sides: ViT of 6 layers of 256 with patch 8 at 64 px, text tower of 6 layers
of 256 with 32 tokens, batch 128; random pixels and ids, already in memory. Ours takes uint8 pixels
and normalises them in the step; the peer gets floats. Each side is timed in fp32, under bf16
autocast and compiled by torch.compile with autocast; the best of each side counts, and all are in
the file. The results go to results/train_step.json.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Ratio, interleaved, machine, ratio_of_seconds, ratio_table, write_results
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

from diptych.batch import ImageTextBatch
from diptych.comm import Comm
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.train.optimizer import make_optimizer
from diptych.train.run import OptimizerConfig
from diptych.train.step import Objective

BATCH, SIDE, WIDTH, LAYERS, TOKENS, WORDS = 128, 64, 256, 6, 32, 8192
REPEATS = 12
TARGET = 1 / 1.3
"""Ours must do at least 1.3 times the pairs a second."""

END = WORDS - 1


def texts() -> torch.Tensor:
    """Random ids that fill all positions, the end-of-text token last."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, END, (BATCH, TOKENS), generator=generator)
    ids[:, -1] = END
    return ids


def pixels() -> torch.Tensor:
    """Random pictures as bytes, (batch, side, side, 3)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def our_model() -> DualEncoder:
    """Diptych's towers."""
    image = ImageTowerConfig(
        image_size=SIDE, patch_size=8, width=WIDTH, layers=LAYERS, heads=4, mlp_width=4 * WIDTH
    )
    text = TextTowerConfig(
        vocabulary=WORDS,
        context=TOKENS,
        width=WIDTH,
        layers=LAYERS,
        heads=4,
        mlp_width=4 * WIDTH,
        end_token=END,
        pad_token=0,
    )
    return DualEncoder(DualEncoderConfig(image=image, text=text, embed=WIDTH))


def peer_model() -> CLIP:
    """open_clip's, of the same shapes."""
    vision = CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=64, patch_size=8, image_size=SIDE)
    text = CLIPTextCfg(context_length=TOKENS, vocab_size=WORDS, width=WIDTH, heads=4, layers=LAYERS)
    return CLIP(WIDTH, vision, text)


def our_step(*, bf16: bool, compiled: bool) -> Callable[[], float]:
    """Seconds of one step of ours, as `diptych train` does it."""
    model = our_model()
    optimizer = make_optimizer(model, OptimizerConfig())
    trained: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    objective = Objective(
        ImageTransformConfig(image_size=SIDE), Comm(), torch.device("cpu"), bf16=bf16, tile=None
    )
    batch = ImageTextBatch(
        image=pixels(), text=texts(), groups=torch.arange(BATCH), position=0, bad=(), cut=0
    )

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        objective(trained, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.limit_scale()
        return time.perf_counter() - start

    return step


def peer_step(*, bf16: bool, compiled: bool) -> Callable[[], float]:
    """Seconds of one step of open_clip's model and loss, as its trainer does it."""
    model = peer_model()
    kept = [weight for weight in model.parameters() if weight.ndim < 2]
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    trained = torch.compile(model) if compiled else model
    image, text, loss = torch.randn(BATCH, 3, SIDE, SIDE), texts(), ClipLoss()

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = trained(image, text)
            found = loss(*output)
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return time.perf_counter() - start

    return step


SETTINGS: dict[str, dict[str, bool]] = {
    "fp32": {"bf16": False, "compiled": False},
    "bf16 autocast": {"bf16": True, "compiled": False},
    "bf16 autocast, compiled": {"bf16": True, "compiled": True},
}


def same_size() -> int:
    """Numbers in both models, which must be as many.

    Raises:
        SystemExit: They are not, and nothing could be compared.
    """
    ours, theirs = (
        sum(weight.numel() for weight in model.parameters())
        for model in (our_model(), peer_model())
    )
    if ours != theirs:
        sys.exit(f"ours has {ours:,} numbers and the peer {theirs:,}: not the same towers.")
    return ours


def main() -> None:
    """Measure everything, print the table, write the file."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    numbers = same_size()
    jobs: dict[str, Callable[[], float]] = {}
    for name, setting in SETTINGS.items():
        jobs[f"ours, {name}"] = our_step(**setting)
        jobs[f"peer, {name}"] = peer_step(**setting)
    for name, job in jobs.items():
        print(f"warming up {name}", file=sys.stderr, flush=True)
        job()
        job()
    seconds = interleaved(jobs, REPEATS)
    best = {
        side: min((name for name in jobs if name.startswith(side)), key=lambda n: min(seconds[n]))
        for side in ("ours", "peer")
    }
    ratios = [
        ratio_of_seconds(
            f"seconds of a step: {best['ours']} / {best['peer']}",
            seconds[best["ours"]],
            seconds[best["peer"]],
            TARGET,
        )
    ]
    ratios += [
        Ratio(f"seconds of a step: both {name}", ratio, TARGET)
        for name in SETTINGS
        for ratio in [min(seconds[f"ours, {name}"]) / min(seconds[f"peer, {name}"])]
    ]
    print(ratio_table(ratios))
    for name, times in seconds.items():
        print(f"{name:<32}{BATCH / min(times):8.0f} pairs/s")
    details: dict[str, Any] = machine(["torch", "open_clip_torch"]) | {
        "batch": BATCH,
        "numbers": numbers,
        "seconds": seconds,
    }
    print("written:", write_results("train_step", ratios, details))


if __name__ == "__main__":
    main()
