"""Adapters as files, in the format of PEFT: adapter_config.json and adapter_model.safetensors.

PEFT reads what is written here (`peft.PeftModel.from_pretrained(model, folder)`, with our
`DualEncoder` as the model), and what PEFT wrote for such a model is read here.
The adapters themselves are in `nn/lora.py`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import CheckpointError
from diptych.nn.lora import adapted_layers, add_adapters, is_adapter
from diptych.tensors import load_tensors, save_tensors

ADAPTER = "adapter"
"""Folder of the adapters beside the merged weights of a checkpoint."""

PREFIX = "base_model.model."
"""What PEFT writes before the name of each tensor."""

PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "fan_in_fan_out": False,
}
"""Settings of PEFT under which its adapters compute what ours do."""


def save_adapter(folder: Path, model: nn.Module, base: str | None, *, share: float = 1.0) -> None:
    """Write a model's adapters.

    Args:
        folder: Where; made if it is not there.
        model: With adapters.
        base: The model they belong to, for the reader.
        share: Of what was learned, in [0, 1]: adapters of this strength.

    Raises:
        StorageError: The disk refused.
    """
    layers = adapted_layers(model)
    first = next(iter(layers.values()))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": len(first.lora_A),
        "lora_alpha": first.alpha * share,
        "lora_dropout": first.dropout,
        "target_modules": list(layers),
        **PLAIN,
    }
    folder.mkdir(exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    tensors = {f"{PREFIX}{name}.weight": value for name, value in adapter_tensors(model).items()}
    save_tensors(folder / "adapter_model.safetensors", tensors)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters of a model by their names in it."""
    return {name: value for name, value in model.state_dict().items() if is_adapter(name)}


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Give a model the adapters of a folder, in place; those it has already are overwritten.

    Args:
        model: The one they were trained on.
        folder: Written by `save_adapter` or by PEFT.

    Raises:
        CheckpointError: The files are missing or damaged, of another model, or of a kind of
            adapter that is not plain LoRA.
    """
    config = _read_config(folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    tensors = {
        name.removeprefix(PREFIX).removesuffix(".weight"): value
        for name, value in load_tensors(path, float32=True).items()
    }
    if not adapted_layers(model):
        learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
        places = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
        known = dict(model.named_modules())
        for place in places:
            if place not in known:
                raise CheckpointError(
                    f"{path} has an adapter of {place}, which the model has not. "
                    "Use the model that the adapters were trained on."
                )
        add_adapters(
            model,
            places,
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config.get("lora_dropout", 0.0)),
        )
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in learning or is_adapter(name))
    fill_adapters(model, tensors, path)


@torch.no_grad()
def fill_adapters(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put numbers into the adapters that a model has.

    Raises:
        CheckpointError: One is missing, too many, or of another shape; nothing is put in.
    """
    wanted = adapter_tensors(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        ours, theirs = wanted.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            found = "nothing" if theirs is None else f"shape {list(theirs.shape)}"
            wants = "nothing" if ours is None else f"shape {list(ours.shape)}"
            raise CheckpointError(
                f"{path} has {found} for {name}, and the model wants {wants}. "
                "Use the model and the settings that the adapters were trained with."
            )
    for name, ours in wanted.items():
        ours.copy_(tensors[name])


def _read_config(path: Path) -> dict[str, Any]:
    """What the adapters are.

    Raises:
        CheckpointError: The file is missing or damaged, or they are no plain LoRA.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = (config["peft_type"], int(config["r"]), float(config["lora_alpha"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error!r}. Copy the folder of the adapters again."
        ) from error
    if kind[0] != "LORA":
        raise CheckpointError(f"{path} has peft_type {kind[0]!r}. Only LORA is read.")
    for name, plain in PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise CheckpointError(
                f"{path} has {name}={config[name]!r}, and adapters with it are not read. "
                f"Train them with {name}={plain!r}, or merge them in PEFT first."
            )
    settings: dict[str, Any] = config
    return settings
