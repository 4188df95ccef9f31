"""Weights from a file that someone else wrote: names and tensors, and nothing ever executed.

    .safetensors, and its .index.json over several files
    .pt .pth .bin .ckpt by torch.save, and the .index.json of pytorch_model.bin
    TorchScript archives (`torchscript.py`)

Files of torch.save are pickles; `pickle_scan.py` looks at what they would cost, and torch's own
reader that knows tensors and nothing else (`weights_only`) opens them. What the names mean is the
business of the readers beside this file.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.errors import CheckpointError
from diptych.files import read_json
from diptych.pretrained.pickle_scan import Costly, refuse_costly
from diptych.pretrained.torchscript import (
    MOST_LETTERS,
    is_torchscript,
    is_zip,
    read_torchscript,
    refuse_bomb,
)
from diptych.tensors import PICKLE_NAMES, load_tensors, settled

INDEX = ".index.json"
"""How the list of several files ends."""

REPEATS = 4
"""Times that the numbers of a file may be named: tied weights have two names. A file of a few bytes
may name them without end."""

REMEDY = "Use its safetensors, or save its state_dict alone with the library that made it."
"""What to do with a file that is more than tensors."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the files that an index lists.

    Tables inside a file are joined with dots: `{"state_dict": {"logit_scale": ...}}` gives
    "state_dict.logit_scale".

    Args:
        path: The file, or the .index.json.

    Returns:
        Each with memory of its own; floats are float32 whatever was stored.

    Raises:
        CheckpointError: Something is missing, cut, no file of weights, or asks for more than
            tensors; nothing in it was run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file, so there are no weights. Copy the folder again.")
    if path.name.endswith(INDEX):
        return _read_several(path)
    if path.suffix == ".safetensors":
        return load_tensors(path, float32=True)
    if is_zip(path):
        refuse_bomb(path)
    read = read_torchscript if is_torchscript(path) else _read_torch
    return _settled(read(path), path)


def _read_several(index: Path) -> dict[str, Tensor]:
    """The tensors an index lists, each from its file.

    Raises:
        CheckpointError: The index is damaged or names files elsewhere, or a file or a tensor is
            missing.
    """
    try:
        files = {name: str(file) for name, file in read_json(index)["weight_map"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}). Copy the file again.") from error
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or not file.endswith((".safetensors", *PICKLE_NAMES)):
            raise CheckpointError(
                f"{index} names {file!r}, which is no file of weights beside it. "
                "Copy the folder again."
            )
        found = read_weights(index.parent / file)
        for name in (name for name, place in files.items() if place == file):
            if name not in found:
                raise CheckpointError(
                    f"{index.parent / file} has no {name}, which {index.name} says it has. "
                    "Copy the folder again."
                )
            tensors[name] = found.pop(name)
    return tensors


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save.

    Raises:
        CheckpointError: It is none, or holds more than tensors.
    """
    try:
        refuse_costly(path)
        with warnings.catch_warnings(action="ignore"):  # of what makes it refuse the file next
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Costly as error:
        raise CheckpointError(f"{path} was not opened: {error} {REMEDY}") from error
    except Exception as error:  # a damaged file ends in any exception
        raise CheckpointError(f"{path} was not opened: {_reason(str(error))} {REMEDY}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not tensors by name. {REMEDY}"
        )
    tensors = _flat(content, path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors. {REMEDY}")
    return tensors


def _flat(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Tensors of tables inside tables by their names joined with dots; the rest is left out.

    Raises:
        CheckpointError: The names are without end.
    """
    tensors: dict[str, Tensor] = {}
    tables = [("", content)]
    seen = {id(content)}
    letters = 0
    for prefix, table in tables:  # grows on the way
        for key, value in table.items():
            if not isinstance(key, str | int) or not isinstance(value, Tensor | Mapping):
                continue
            name = f"{prefix}{key}"
            letters += len(name)
            if letters > MOST_LETTERS:
                raise CheckpointError(
                    f"{path} has names of more than {MOST_LETTERS:,} letters. {REMEDY}"
                )
            if isinstance(value, Tensor):
                tensors[name] = value
            elif id(value) not in seen:
                seen.add(id(value))
                tables.append((f"{name}.", value))
    return tensors


def _settled(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors ready for use, made so one at a time.

    Raises:
        CheckpointError: One is no plain tensor, or all of them are much larger than the file.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = f"{tensor.layout}, {tensor.dtype}, on {tensor.device}"
            said = f"{path} holds {name} as {kind}; plain numbers are read."
            raise CheckpointError(f"{said} {REMEDY}")
    inside, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if inside > REPEATS * size:
        raise CheckpointError(
            f"{path} has {size:,} bytes, and its tensors would have {inside:,}, so they were not "
            f"made. {REMEDY}"
        )
    return {name: settled(tensors.pop(name)) for name in list(tensors)}


def _reason(said: str) -> str:
    """Why torch did not open a file, without its advice to open it unprotected."""
    asked = re.search(r"GLOBAL (\S+)", said)
    if asked:
        return f"it asks for {asked[1]}, which is no tensor."
    own = [line for line in said.splitlines() if line.strip() and "weights_only" not in line]
    words = own[0].strip().rstrip(".") if own else "torch does not say why"
    return f"it is damaged, or no file of tensors by torch.save ({words:.200})."
