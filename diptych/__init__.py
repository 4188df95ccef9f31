"""Diptych: models that look at two panels at once.

    import diptych
    model = diptych.load("runs/emoji")
    model.encode_image(["a.jpg"])          # unit vectors, float32 (1, embed)
    model.encode_text(["a red bicycle"])
    model.score(["a.jpg"], ["a cat", "a dog"])
    diptych.compare(model, "before.jpg", "after.jpg")  # text, score, heat map

Importing this module is quick and imports nothing heavy: each name loads its part when first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.data.opening import open_source
    from diptych.data.vectors import read_vectors
    from diptych.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DiptychError,
        RequestError,
        StorageError,
        TrainingError,
    )
    from diptych.evaluate.tasks import evaluate
    from diptych.predict.change import Change, load_change
    from diptych.predict.compare import compare
    from diptych.predict.embed import embed
    from diptych.predict.model import Model, load
    from diptych.recipes import find_recipe
    from diptych.search.exact import search
    from diptych.search.hit import Hit
    from diptych.search.library import Library
    from diptych.train.loop import train

_WHERE = {
    "load": "diptych.predict.model",
    "Model": "diptych.predict.model",
    "load_change": "diptych.predict.change",
    "Change": "diptych.predict.change",
    "compare": "diptych.predict.compare",
    "find_recipe": "diptych.recipes",
    "train": "diptych.train.loop",
    "open_source": "diptych.data.opening",
    "evaluate": "diptych.evaluate.tasks",
    "read_vectors": "diptych.data.vectors",
    "embed": "diptych.predict.embed",
    "search": "diptych.search.exact",
    "Hit": "diptych.search.hit",
    "Library": "diptych.search.library",
    "DiptychError": "diptych.errors",
    "RequestError": "diptych.errors",
    "ConfigError": "diptych.errors",
    "DataError": "diptych.errors",
    "StorageError": "diptych.errors",
    "CheckpointError": "diptych.errors",
    "TrainingError": "diptych.errors",
}

__all__ = [
    "Change",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiptychError",
    "Hit",
    "Library",
    "Model",
    "RequestError",
    "StorageError",
    "TrainingError",
    "compare",
    "embed",
    "evaluate",
    "find_recipe",
    "load",
    "load_change",
    "open_source",
    "read_vectors",
    "search",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the part that holds a public name, when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"diptych has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__doc__", "__name__"]


class _Public(ModuleType):
    """This module, in which `train`, `evaluate` and `search` stay functions.

    Python binds an imported part to its parent, and the parts `diptych/train/`, `diptych/evaluate/`
    and `diptych/search/` carry names that the public functions have.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Public
