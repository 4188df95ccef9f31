"""Whose layout a model's files have, told by their names: one order for folders and for the hub.

A repository often holds the same model for several libraries, and a folder may hold a stray config
of another one. A layout counts only with weights of its own, and our own goes first: its contract
says most.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a library names the files of a model."""

    mark: str
    """The file that tells it."""

    weights: tuple[str, ...]
    """Names of its weights, the preferred first."""


DIPTYCH = Layout("contract.json", ("model.safetensors",))
OPEN_CLIP = Layout(
    "open_clip_config.json",
    (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
    ),
)
TRANSFORMERS = Layout(
    "config.json",
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
)
LAYOUTS = (DIPTYCH, OPEN_CLIP, TRANSFORMERS)
"""All, in their order."""

OPEN_CLIP_TAKES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""What open_clip looks for where none of its own names is there, before any other file."""

ENDS = (".safetensors", ".bin", ".pth")
"""How files of weights end that open_clip takes under any name, the preferred first."""


def open_clip_weights(names: Iterable[str]) -> str | None:
    """The file of weights that open_clip would take out of a folder; None: there is none."""
    there = sorted(names)
    for name in (*OPEN_CLIP.weights, *OPEN_CLIP_TAKES):
        if name in there:
            return name
    others = [name for name in there if name.endswith(ENDS)]
    others.sort(key=lambda name: not name.endswith(ENDS[0]))
    return others[0] if others else None


def find_layout(names: Iterable[str]) -> tuple[Layout, str] | None:
    """The layout of a model and its file of weights; None: there is no whole model.

    Where no layout is there with weights of its own, open_clip's config makes weights of any name
    a model, as in open_clip.

    Args:
        names: Of the files, without those in folders inside.
    """
    there = set(names)
    for layout in LAYOUTS:
        own = [name for name in layout.weights if name in there]
        if layout.mark in there and own:
            return layout, own[0]
    weights = open_clip_weights(there) if OPEN_CLIP.mark in there else None
    return (OPEN_CLIP, weights) if weights else None


def marked_layout(names: Iterable[str]) -> Layout | None:
    """The layout of a folder, be it whole or not: then its reader says what is missing."""
    there = set(names)
    found = find_layout(there)
    if found:
        return found[0]
    return next((layout for layout in LAYOUTS if layout.mark in there), None)
