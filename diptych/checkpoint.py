"""A model as a folder that says everything needed to use it.

    config.json         the shape of the model
    model.safetensors   its weights
    tokenizer.json      vocabulary, cleaning, length and padding of texts
    contract.json       preprocessing, and a fingerprint over all four files
    trainer.json, trainer.safetensors   the state of the run, in a run's checkpoints

A folder without a contract is refused, and so is one in which any part was changed since: a
model fed otherwise than it was trained gives numbers that look right and are wrong.
Nothing here executes code from a file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError
from diptych.files import file_fingerprint, fingerprint, refused
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig

FORMAT = 1
"""Version of the folder's layout; a reader refuses what is newer."""


@dataclass(frozen=True)
class Bundle:
    """A model with all that belongs to it."""

    model: DualEncoder
    tokenizer: Tokenizer
    transform: ImageTransformConfig
    fingerprint: str
    """Sixteen hexadecimal digits that change with the weights or with any part of the contract."""


def save_bundle(
    folder: Path,
    model: DualEncoder,
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
    *,
    trained_on: str | None = None,
) -> str:
    """Write a model into an existing folder; gives its fingerprint.

    Args:
        folder: Where its files go.
        model: Shape and weights.
        tokenizer: What the model's texts went through.
        transform: What the model's pictures went through.
        trained_on: Fingerprint of the training source, kept in the contract; None leaves it out.

    Raises:
        StorageError: The disk refused.
    """
    (folder / "config.json").write_text(_pretty(model.config.model_dump(mode="json")))
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    save_tensors(folder / "model.safetensors", model.state_dict())
    contract: dict[str, Any] = {
        "format": FORMAT,
        "kind": "dual_encoder",
        "image": transform.model_dump(mode="json"),
        "text": {"context": tokenizer.context, "pad_token": tokenizer.pad_token},
        "vectors": "unit norm",
        "objective": model.config.objective,
        "files": _file_marks(folder),
    }
    if trained_on is not None:
        contract["trained_on"] = trained_on
    contract["fingerprint"] = _contract_mark(contract)
    (folder / "contract.json").write_text(_pretty(contract))
    return str(contract["fingerprint"])


def load_bundle(folder: Path) -> Bundle:
    """Read a model, checking that every part is the one it was saved with.

    Raises:
        CheckpointError: Something is missing, damaged, changed or newer than this Diptych.
    """
    contract = read_contract(folder)
    marks = _file_marks(folder)
    for name, mark in contract["files"].items():
        if marks.get(name) != mark:
            raise CheckpointError(
                f"{folder / name} is not the file this model was saved with "
                f"(fingerprint {marks.get(name)}, contract {mark}). Copy the whole folder again."
            )
    try:
        config = DualEncoderConfig.read(folder / "config.json")
        transform = ImageTransformConfig(**contract["image"])
    except ConfigError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    tokenizer = Tokenizer.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = DualEncoder(config)
    weights = load_tensors(folder / "model.safetensors")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{folder / 'model.safetensors'} does not fit config.json: {problem} "
            "Copy the whole folder again."
        ) from error
    for tower in (model.image, model.text):
        tower.requires_grad_(not tower.config.frozen)
    return Bundle(model, tokenizer, transform, contract["fingerprint"])


def read_contract(folder: Path) -> dict[str, Any]:
    """The contract of a model folder, checked against its own fingerprint.

    Raises:
        CheckpointError: There is none, it was changed, or it is newer than this Diptych.
    """
    path = folder / "contract.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no contract.json, so how to feed the model is unknown. "
            "Use a folder that `diptych train` wrote."
        )
    try:
        contract = json.loads(path.read_text(encoding="utf-8"))
        version, mark = contract["format"], contract.get("fingerprint")
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Copy the folder again.") from error
    if newer:
        raise CheckpointError(
            f"{folder} has format {version}, and this Diptych reads up to {FORMAT}. Update diptych."
        )
    if _contract_mark(contract) != mark:
        raise CheckpointError(
            f"{path} was changed after the model was saved: its fingerprint is "
            f"{_contract_mark(contract)}, not {mark}. Restore it, or train again with the change."
        )
    return contract


def find_model(path: Path) -> Path:
    """The model folder a user means: the folder itself, or the last checkpoint of a run.

    Raises:
        CheckpointError: There is no model.
    """
    if (path / "contract.json").is_file() or (path / "model.safetensors").is_file():
        return path
    last = path / "checkpoints" / "last"
    if last.is_dir():
        return last.resolve()
    raise CheckpointError(
        f"there is no model in {path}: neither contract.json nor checkpoints/last. "
        "Give the folder of a run or of one of its checkpoints."
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        StorageError: The disk refused.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except (SafetensorError, OSError) as error:
        raise refused(path, error) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: It is missing, cut or no safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Copy the file again."
        ) from error


def _file_marks(folder: Path) -> dict[str, str]:
    """Fingerprints of the three files that make the model."""
    names = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} has no {missing[0]}. Copy the whole folder again.")
    return {name: file_fingerprint(folder / name) for name in names}


def _contract_mark(contract: Mapping[str, Any]) -> str:
    """Fingerprint of a contract without its own fingerprint."""
    rest = {key: value for key, value in contract.items() if key != "fingerprint"}
    return fingerprint(json.dumps(rest, sort_keys=True))


def _pretty(values: Mapping[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(values, indent=2) + "\n"
