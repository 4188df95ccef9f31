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
from torch import Tensor, nn

from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.files import file_fingerprint, fingerprint, refused
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig

FORMAT, OLDEST = 1, 1
"""Version of the folder's layout that is written, and the oldest that is read."""

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What makes the model; the contract has a fingerprint of each."""

PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files begin that hold a pickle: those of torch.save (a zip), and plain ones."""

PICKLE_NAMES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""How such files are called."""


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
        CheckpointError: Something is missing, damaged, changed, a pickle, or of another version
            of Diptych.
    """
    refuse_pickle(folder)
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
    path = folder / "model.safetensors"
    fill(model, load_tensors(path), path, assign=True)
    for tower in (model.image, model.text):
        tower.requires_grad_(not tower.config.frozen)
    return Bundle(model, tokenizer, transform, contract["fingerprint"])


def read_contract(folder: Path) -> dict[str, Any]:
    """The contract of a model folder, checked against its own fingerprint.

    Raises:
        CheckpointError: There is none, it was changed, or it is of another version of Diptych.
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
        newer, older = version > FORMAT, version < OLDEST
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}). Copy the folder again.") from error
    if newer:
        raise CheckpointError(
            f"{folder} has format {version}, and this Diptych reads up to {FORMAT}. Update diptych."
        )
    if older:
        raise CheckpointError(
            f"{folder} has format {version}, and this Diptych reads from {OLDEST} on. Use the "
            "Diptych that wrote it, or train again."
        )
    if _contract_mark(contract) != mark:
        raise CheckpointError(
            f"{path} was changed after the model was saved: its fingerprint is "
            f"{_contract_mark(contract)}, not {mark}. Restore it, or train again with the change."
        )
    _require_parts(contract, path)
    return contract


def _require_parts(contract: Mapping[str, Any], path: Path) -> None:
    """Refuse a contract that does not say what loading a model needs.

    Raises:
        CheckpointError: It has no table `image`, or another list of `files`.
    """
    image, files = contract.get("image"), contract.get("files")
    if not isinstance(image, dict):
        raise CheckpointError(
            f"{path} has image={image!r}, so how to prepare pictures is unknown. "
            "Use a folder that `diptych train` wrote."
        )
    if not isinstance(files, dict) or set(files) != set(MODEL_FILES):
        listed = sorted(files) if isinstance(files, dict) else files
        raise CheckpointError(
            f"{path} has the fingerprints of {listed!r}, and they should be those of "
            f"{', '.join(MODEL_FILES)}. Use a folder that `diptych train` wrote."
        )


def find_model(path: Path) -> Path:
    """The model folder a user means: the folder itself, or the last checkpoint of a run.

    Raises:
        RequestError: There is nothing at `path`.
        CheckpointError: There is no model in it.
    """
    if not path.exists():
        raise RequestError(f"there is no model in {path}: nothing is there. Check the path.")
    if (path / "contract.json").is_file() or (path / "model.safetensors").is_file():
        return path
    refuse_pickle(path)
    last = path / "checkpoints" / "last"
    if last.is_dir():
        return last.resolve()
    raise CheckpointError(
        f"there is no model in {path}: neither contract.json nor checkpoints/last. "
        "Give the folder of a run or of one of its checkpoints."
    )


def refuse_pickle(path: Path) -> None:
    """Refuse pickled weights, recognised by how the file begins; nothing in it is run.

    Args:
        path: A file, or a model folder: then its weights are looked at, and where there are none,
            the files beside them.

    Raises:
        CheckpointError: Names the file.
    """
    files = [path]
    if path.is_dir():
        weights = path / "model.safetensors"
        others = [file for file in path.iterdir() if file.suffix in PICKLE_NAMES]
        files = [weights] if weights.exists() else sorted(others)
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                begin = opened.read(9)
            # a safetensors file begins with a length, which may look the same, and then a brace
            if begin.startswith(PICKLED) and begin[8:] != b"{":
                raise CheckpointError(
                    f"{file} is a pickle, which can run any code when it is opened, so it was not "
                    "opened. Use weights saved as safetensors, in a folder that `diptych train` "
                    "wrote."
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
        # Copied out of the mapped file, where tensors begin at any multiple of 8 bytes: kernels
        # that look at the alignment of their input give other last bits there.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        refuse_pickle(path)
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Copy the file again."
        ) from error


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, assign: bool = False
) -> None:
    """Put tensors into the model, every one in its place.

    Args:
        model: Of the shape that the tensors are for.
        tensors: What was read.
        path: Where from, for the message.
        assign: Make them the model's own instead of copying their values.

    Raises:
        CheckpointError: One is missing, too many, or of another shape; nothing is put in.
    """
    wanted = model.state_dict()
    for name, ours in wanted.items():
        if name not in tensors:
            raise _misfit(path, f"{name} {list(ours.shape)} is missing")
        if tensors[name].shape != ours.shape:
            found = list(tensors[name].shape)
            raise _misfit(path, f"{name} has shape {found}, and the model wants {list(ours.shape)}")
    for name, theirs in tensors.items():
        if name not in wanted:
            raise _misfit(path, f"the model has no {name} {list(theirs.shape)}")
    model.load_state_dict(tensors, assign=assign)


def _misfit(path: Path, what: str) -> CheckpointError:
    """Weights of another model."""
    return CheckpointError(f"{path} does not fit config.json: {what}. Copy the whole folder again.")


def _file_marks(folder: Path) -> dict[str, str]:
    """Fingerprints of the three files that make the model."""
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} has no {missing[0]}. Copy the whole folder again.")
    return {name: file_fingerprint(folder / name) for name in MODEL_FILES}


def _contract_mark(contract: Mapping[str, Any]) -> str:
    """Fingerprint of a contract without its own fingerprint."""
    rest = {key: value for key, value in contract.items() if key != "fingerprint"}
    return fingerprint(json.dumps(rest, sort_keys=True))


def _pretty(values: Mapping[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(values, indent=2) + "\n"
