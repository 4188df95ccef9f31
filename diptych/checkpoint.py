"""A model as a folder that says everything needed to use it.

    config.json         the shape of the model
    model.safetensors   its weights
    tokenizer.json      vocabulary, length and padding of texts
    contract.json       preprocessing and cleaning, the marks of the three, and a fingerprint
    trainer.json, trainer.safetensors   the state of the run, in a run's checkpoints

A folder without a contract is refused, and so is one in which any part was changed since: a
model fed otherwise than it was trained gives numbers that look right and are wrong.
Nothing here executes code from a file. `tensors.py` reads and writes the weights.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.files import file_fingerprint, fingerprint, read_json
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.timm_tower import TimmTowerConfig
from diptych.nn.shapes import shapes_only
from diptych.tensors import (
    load_tensors,
    not_finite,
    refuse_pickle,
    save_tensors,
    settled,
    weights_mark,
)

FORMAT, OLDEST = 2, 1
"""Version of the folder's layout that is written, and the oldest that is read. 2: the weights have
a mark of their own that no file format enters, and the contract states cleaning, activations and
pools."""

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What makes the model. The contract marks each of them: the weights by `weights_mark`, the others
(in format 1 all three) by the bytes of the file."""

WEIGHTS = "model.safetensors"

BLOCK = re.compile(r"(image|text)\.(blocks\.\d+|stages\.\d+\.\d+)\.")
"""How the names of a layer's weights begin."""

TOKENIZER_SAYS = ("context", "pad_token")
"""What the contract's table `text` repeats of tokenizer.json; the rest of it are `TextRules`."""

TABLES = {
    "image": "how to prepare pictures",
    "text": "how to prepare texts",
    "model": "how the model is built",
}
"""Tables of a contract (format 1 has no `model`), and what nobody knows without each."""

SETTINGS = {
    "image": tuple(ImageTransformConfig.model_fields),
    "text": (*TOKENIZER_SAYS, *TextRules.model_fields),
}
"""What these tables state without exception from format 2 on: a default that Diptych may change one
day must not change a model. In format 1 they stated less."""


@dataclass(frozen=True)
class Bundle:
    """A model with all that belongs to it."""

    model: DualEncoder
    tokenizer: Tokenizer
    transform: ImageTransformConfig
    fingerprint: str
    """Sixteen hexadecimal digits that change with the weights or with any part of the contract."""

    made_by: str = "diptych"
    """The library whose preprocessing and names the model had at first."""

    notes: tuple[str, ...] = ()
    """What was assumed where the files did not say it; for the user."""

    trained_on: str | None = None
    """Fingerprint of the training source, where the contract says it."""


def make_bundle(
    config: DualEncoderConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
    *,
    made_by: str,
    notes: tuple[str, ...],
    path: Path,
) -> Bundle:
    """A model of tensors in memory, which become its weights without being copied.

    Its fingerprint is the one it has after `save_bundle`.

    Args:
        config: Its shape.
        tensors: Its weights, by their names in `DualEncoder`.
        tokenizer: What its texts go through.
        transform: What its pictures go through.
        made_by: The library that saved it.
        notes: What was assumed.
        path: Where the tensors come from, for the message.

    Raises:
        CheckpointError: A tensor is missing, too many, or of another shape or kind.
    """
    model = _filled(config, tensors, path)
    contract = _contract(model, tokenizer, transform, trained_on=None, made_by=made_by)
    return Bundle(model, tokenizer, transform, contract["fingerprint"], made_by, notes)


def save_bundle(
    folder: Path,
    model: DualEncoder,
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
    *,
    trained_on: str | None = None,
    made_by: str = "diptych",
) -> str:
    """Write a model into an existing folder; gives its fingerprint.

    Args:
        folder: Where its files go.
        model: Shape and weights.
        tokenizer: What the model's texts went through.
        transform: What the model's pictures went through.
        trained_on: Fingerprint of the training source, kept in the contract; None leaves it out.
        made_by: The library whose preprocessing and names the model had at first.

    Raises:
        StorageError: The disk refused.
    """
    contract = _contract(model, tokenizer, transform, trained_on=trained_on, made_by=made_by)
    (folder / "config.json").write_bytes(_config_file(model.config))
    (folder / "tokenizer.json").write_bytes(_tokenizer_file(tokenizer))
    save_tensors(folder / WEIGHTS, model.state_dict())
    (folder / "contract.json").write_bytes(_pretty(contract))
    return str(contract["fingerprint"])


def load_bundle(folder: Path) -> Bundle:
    """Read a model, checking that every part is the one it was saved with.

    Raises:
        CheckpointError: Something is missing, damaged, changed, a pickle, or of another version
            of Diptych.
    """
    refuse_pickle(folder)
    contract = read_contract(folder)
    _check_files(folder, contract)
    try:
        config = DualEncoderConfig.read(folder / "config.json")
        transform = ImageTransformConfig(**contract["image"])
        text = contract["text"]
        rules = TextRules(**{key: text[key] for key in text if key not in TOKENIZER_SAYS})
    except ConfigError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    try:
        written = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is not UTF-8 from byte {error.start} on. "
            "Copy the whole folder again."
        ) from error
    tokenizer = Tokenizer.from_json(written, rules)
    _check_stated(folder, contract, config, tokenizer, transform)
    path = folder / WEIGHTS
    model = _filled(config, load_tensors(path, float32=True), path)
    if contract["format"] > 1:
        mark, stated = weights_mark(model.state_dict()), contract.get("weights")
        if mark != stated:
            raise CheckpointError(
                f"{path} does not hold the weights this model was saved with "
                f"(fingerprint {mark}, contract {stated}). Copy the whole folder again."
            )
    return Bundle(
        model,
        tokenizer,
        transform,
        contract["fingerprint"],
        made_by=contract.get("made_by", "diptych"),
        trained_on=contract.get("trained_on"),
    )


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
        contract = read_json(path)
        version, mark = contract["format"], contract.get("fingerprint")
        newer, older = version > FORMAT, version < OLDEST
        right = _contract_mark(contract)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}). Copy the folder again.") from error
    except (KeyError, TypeError, RecursionError) as error:
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
    if right != mark:
        raise CheckpointError(
            f"{path} was changed after the model was saved: its fingerprint is "
            f"{right}, not {mark}. Restore it, or train again with the change."
        )
    _require_parts(contract, path)
    return contract


def _require_parts(contract: Mapping[str, Any], path: Path) -> None:
    """Refuse a contract that does not say what loading a model needs.

    Raises:
        CheckpointError: A table or (format 2) a setting in one is not there, or another list of
            `files`.
    """
    remedy = "Use a folder that `diptych train` or `diptych convert` wrote."
    for name, unknown in TABLES.items():
        table = contract.get(name)
        if not isinstance(table, dict) and (name != "model" or contract["format"] > 1):
            raise CheckpointError(f"{path} has {name}={table!r}, so {unknown} is unknown. {remedy}")
        settings = SETTINGS.get(name, ()) if contract["format"] > 1 else ()
        for setting in settings:
            if setting not in contract[name]:
                raise CheckpointError(
                    f"{path} has no {setting} in {name!r}, so {unknown} is unknown. {remedy}"
                )
    files = contract.get("files")
    wanted = set(MODEL_FILES) - ({WEIGHTS} if contract["format"] > 1 else set())
    if not isinstance(files, dict) or set(files) != wanted:
        listed = sorted(files) if isinstance(files, dict) else files
        raise CheckpointError(
            f"{path} has the fingerprints of {listed!r}, and they should be those of "
            f"{', '.join(sorted(wanted))}. {remedy}"
        )


def find_model(path: Path) -> Path:
    """The model folder a user means: the folder itself, or of a run its last checkpoint; of one
    that changed a trained model what it ended with, in `model/`.

    Raises:
        RequestError: There is nothing at `path`.
        CheckpointError: There is no model in it, or the run has not chosen one yet.
    """
    if not path.exists():
        raise RequestError(f"there is no model in {path}: nothing is there. Check the path.")
    if (path / "contract.json").is_file() or (path / WEIGHTS).is_file():
        return path
    refuse_pickle(path)
    last = path / "checkpoints" / "last"
    if (path / "before").is_dir() and not _judged(path, last):
        other = last if last.is_dir() else path / "before"
        raise CheckpointError(
            f"{path} is a fine-tuning run that has not been judged yet, so it has chosen no model. "
            f"Run the same command with --resume, or name {other}."
        )
    if (path / "model" / "contract.json").is_file():
        return path / "model"
    if last.is_dir():
        return last.resolve()
    raise CheckpointError(
        f"there is no model in {path}: neither contract.json nor checkpoints/last. "
        "Give the folder of a run or of one of its checkpoints."
    )


def _judged(folder: Path, last: Path) -> bool:
    """Whether a fine-tuning run has chosen its model, and after its last checkpoint."""
    try:
        after = read_json(folder / "finetune.json").get("checkpoint")
    except ValueError:
        return False
    whole = (folder / "model" / "contract.json").is_file()
    return whole and (not last.is_dir() or after == last.resolve().name)


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
        CheckpointError: One is missing, too many, or of another shape or kind; nothing is put in.
    """
    wanted = model.state_dict()
    for name, ours in wanted.items():
        if name not in tensors:
            raise _misfit(path, f"{name} {list(ours.shape)} is missing")
        theirs = tensors[name]
        for what, found, right in (
            ("shape", list(theirs.shape), list(ours.shape)),
            ("kind", theirs.dtype, ours.dtype),
        ):
            if found != right:
                raise _misfit(path, f"{name} has {what} {found}, and the model wants {right}")
    for name, theirs in tensors.items():
        if name not in wanted:
            raise _misfit(path, f"the model has no {name} {list(theirs.shape)}")
    model.load_state_dict(tensors, assign=assign)


def _filled(config: DualEncoderConfig, tensors: Mapping[str, Tensor], path: Path) -> DualEncoder:
    """A model whose weights are these tensors; what the config calls frozen is frozen.

    Raises:
        CheckpointError: They do not fit, or hold infinity or what is no number.
    """
    _check_depth(config, tensors, path)
    with shapes_only():
        model = DualEncoder(config)
    spoiled = not_finite(tensors)
    if spoiled is not None:
        raise CheckpointError(
            f"{path} holds NaN or infinity in the weights that become {spoiled}, so every vector "
            "would be without meaning. Copy the file again, or use an earlier checkpoint."
        )
    fill(model, {name: settled(tensor) for name, tensor in tensors.items()}, path, assign=True)
    for tower in (model.image, model.text):
        tower.requires_grad_(not tower.config.frozen)
    return model


def _check_depth(config: DualEncoderConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse more layers than there are weights for, before any is built.

    Raises:
        CheckpointError: Names the tower, and what both say.
    """
    blocks = {match[0] for match in map(BLOCK.match, tensors) if match}
    for name, tower in (("image", config.image), ("text", config.text)):
        if isinstance(tower, TimmTowerConfig):
            continue  # timm knows how many
        layers = tower.layers if isinstance(tower.layers, int) else sum(tower.layers)
        found = sum(block.startswith(name) for block in blocks)
        if layers > found:
            raise _misfit(path, f"it has {found:,} {name} layers, and config.json says {layers:,}")


def _misfit(path: Path, what: str) -> CheckpointError:
    """Weights of another model."""
    return CheckpointError(f"{path} does not fit config.json: {what}. Copy the whole folder again.")


def _contract(
    model: DualEncoder,
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
    *,
    trained_on: str | None,
    made_by: str,
) -> dict[str, Any]:
    """What the contract of a model says, its fingerprint last."""
    contract: dict[str, Any] = {
        "format": FORMAT,
        "kind": "dual_encoder",
        "made_by": made_by,
        "image": transform.model_dump(mode="json"),
        "text": {"context": tokenizer.context, "pad_token": tokenizer.pad_token}
        | tokenizer.rules.model_dump(mode="json"),
        "model": _stated(model.config),
        "vectors": "unit norm",
        "objective": model.config.objective,
        "files": {
            "config.json": _mark(_config_file(model.config)),
            "tokenizer.json": _mark(_tokenizer_file(tokenizer)),
        },
        "weights": weights_mark(model.state_dict()),
    }
    if trained_on is not None:
        contract["trained_on"] = trained_on
    contract["fingerprint"] = _contract_mark(contract)
    return contract


def _stated(config: DualEncoderConfig) -> dict[str, str]:
    """What readers of a contract look for first: the settings that change every vector and that
    no shape of a weight betrays."""
    image = config.image
    if isinstance(image, ImageTowerConfig):
        activation: str = image.activation
    else:
        activation = "relu" if isinstance(image, ResNetTowerConfig) else f"that of {image.name}"
    return {
        "image_activation": activation,
        "text_activation": config.text.activation,
        "image_pool": image.pool or activation,
        "text_pool": config.text.pool,
    }


def _check_files(folder: Path, contract: Mapping[str, Any]) -> None:
    """Refuse files other than those the model was saved with.

    Raises:
        CheckpointError: One is missing, or was changed.
    """
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}. Copy the whole folder again.")
    for name, stated in contract["files"].items():
        mark = file_fingerprint(folder / name)
        if mark != stated:
            raise CheckpointError(
                f"{folder / name} is not the file this model was saved with "
                f"(fingerprint {mark}, contract {stated}). Copy the whole folder again."
            )


def _check_stated(
    folder: Path,
    contract: Mapping[str, Any],
    config: DualEncoderConfig,
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
) -> None:
    """Refuse a contract that says of the model what its own files do not say.

    Raises:
        CheckpointError: Names the setting, and what both say.
    """
    text = {"context": tokenizer.context, "pad_token": tokenizer.pad_token}
    pixels = {"image_size": config.image.image_size}
    both: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("tokenizer.json", text, contract["text"]),
        ("config.json", pixels, {"image_size": transform.image_size}),
    ]
    if contract["format"] > 1:
        both.append(("config.json", _stated(config), contract["model"]))
    for file, found, stated in both:
        for name, value in found.items():
            if stated.get(name) != value:
                raise CheckpointError(
                    f"{folder / 'contract.json'} says {name} is {stated.get(name)!r}, and {file} "
                    f"says {value!r}. Copy the whole folder again."
                )


def _config_file(config: DualEncoderConfig) -> bytes:
    """What config.json holds."""
    return _pretty(config.model_dump(mode="json"))


def _tokenizer_file(tokenizer: Tokenizer) -> bytes:
    """What tokenizer.json holds."""
    return tokenizer.to_json().encode()


def _mark(content: bytes) -> str:
    """The `file_fingerprint` of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _contract_mark(contract: Mapping[str, Any]) -> str:
    """Fingerprint of a contract without its own fingerprint."""
    rest = {key: value for key, value in contract.items() if key != "fingerprint"}
    return fingerprint(json.dumps(rest, sort_keys=True))


def _pretty(values: Mapping[str, Any]) -> bytes:
    """JSON for people."""
    return (json.dumps(values, indent=2) + "\n").encode()
