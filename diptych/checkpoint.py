"""A model as a folder that says everything needed to use it.

    config.json         the shape of the model
    model.safetensors   its weights
    tokenizer.json      vocabulary, length and padding of texts
    contract.json       preprocessing and cleaning, the marks of the three, and a fingerprint
    trainer.json, trainer.safetensors   the state of the run, in a run's checkpoints

A folder without a contract is refused, and so is one in which any part was changed since: a
model fed otherwise than it was trained gives numbers that look right and are wrong.
Nothing here executes code from a file. `contract.py` says what the contract states, `tensors.py`
reads and writes the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, cast

from torch import Tensor, nn
from typing_extensions import TypeVar

from diptych.contract import (
    TOKENIZER_SAYS,
    WEIGHTS,
    check_files,
    check_stated,
    config_file,
    kind_of,
    make_contract,
    pretty,
    read_contract,
    tokenizer_file,
)
from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.files import read_json
from diptych.models.change import ChangeModel, ChangeModelConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.kinds import AnyModel, build_model
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

BLOCK = re.compile(r"(image|text)\.(blocks\.\d+|stages\.\d+\.\d+)\.")
"""How the names of a layer's weights begin."""


AModel = TypeVar("AModel", bound=AnyModel, default=DualEncoder, covariant=True)


@dataclass(frozen=True)
class Bundle(Generic[AModel]):
    """A model with all that belongs to it; a dual encoder where nothing else is said."""

    model: AModel
    tokenizer: Tokenizer
    transform: ImageTransformConfig
    stated: str | None = None
    """The fingerprint that its contract states; None for a model that has no contract yet."""

    made_by: str = "diptych"
    """The library whose preprocessing and names the model had at first."""

    notes: tuple[str, ...] = ()
    """What was assumed where the files did not say it; for the user."""

    trained_on: str | None = None
    """Fingerprint of the training source, where the contract says it."""

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the weights or with any part of the contract.

        Where none is stated, the weights are marked when it is first asked for (0.9 s of processor
        time for 1.7 GB), which a vector does not need: ask before training changes them.
        """
        if self.stated is not None:
            return self.stated
        contract = make_contract(
            self.model,
            self.tokenizer,
            self.transform,
            trained_on=self.trained_on,
            made_by=self.made_by,
        )
        return str(contract["fingerprint"])


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
    assert isinstance(model, DualEncoder)
    return Bundle(model, tokenizer, transform, None, made_by, notes)


def save_bundle(
    folder: Path,
    model: AnyModel,
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
    contract = make_contract(model, tokenizer, transform, trained_on=trained_on, made_by=made_by)
    (folder / "config.json").write_bytes(config_file(model.config))
    (folder / "tokenizer.json").write_bytes(tokenizer_file(tokenizer))
    save_tensors(folder / WEIGHTS, model.state_dict())
    (folder / "contract.json").write_bytes(pretty(contract))
    return str(contract["fingerprint"])


def save_again(folder: Path, bundle: Bundle[AnyModel]) -> str:
    """Write a model with all that belongs to it into an existing folder; gives its fingerprint.

    Raises:
        StorageError: The disk refused.
    """
    return save_bundle(
        folder,
        bundle.model,
        bundle.tokenizer,
        bundle.transform,
        trained_on=bundle.trained_on,
        made_by=bundle.made_by,
    )


def load_bundle(folder: Path) -> Bundle:
    """Read a dual encoder, checking that every part is the one it was saved with.

    Raises:
        CheckpointError: Something is missing, damaged, changed, a pickle, or of another version
            of Diptych.
        RequestError: It is a change model.
    """
    bundle = load_any_bundle(folder)
    if isinstance(bundle.model, ChangeModel):
        raise RequestError(
            f"{folder} is a change model: it reads pictures in a row and has no vectors to compare "
            "with texts. Use `diptych compare` or diptych.load_change."
        )
    return cast(Bundle, bundle)


def load_change_bundle(folder: Path) -> Bundle[ChangeModel]:
    """Read a change model, checking that every part is the one it was saved with.

    Raises:
        CheckpointError: As of `load_bundle`.
        RequestError: It is a dual encoder.
    """
    bundle = load_any_bundle(folder)
    if isinstance(bundle.model, DualEncoder):
        raise RequestError(
            f"{folder} is a model of vectors and not a change model, so it writes no text of a "
            "change. Use diptych.load, or train one: diptych train change-caption-small."
        )
    return cast(Bundle[ChangeModel], bundle)


def load_any_bundle(folder: Path) -> Bundle[AnyModel]:
    """Read a model of either kind, checking that every part is the one it was saved with.

    Raises:
        CheckpointError: As of `load_bundle`.
    """
    refuse_pickle(folder)
    contract = read_contract(folder)
    check_files(folder, contract)
    try:
        config = kind_of(folder, contract).read(folder / "config.json")
        transform = ImageTransformConfig(**contract["image"])
        text = contract["text"]
        rules = TextRules(**{key: text[key] for key in text if key not in TOKENIZER_SAYS})
    except ConfigError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    tokenizer = _read_tokenizer(folder / "tokenizer.json", rules)
    check_stated(folder, contract, config, tokenizer, transform)
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


def _read_tokenizer(path: Path, rules: TextRules) -> Tokenizer:
    """The tokenizer of a model folder. Its text, some MB, is gone before the weights are read.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        written = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 from byte {error.start} on. Copy the whole folder again."
        ) from error
    return Tokenizer.from_json(written, rules)


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


def _filled(
    config: DualEncoderConfig | ChangeModelConfig, tensors: Mapping[str, Tensor], path: Path
) -> AnyModel:
    """A model whose weights are these tensors; what the config calls frozen is frozen.

    Raises:
        CheckpointError: They do not fit, or hold infinity or what is no number.
    """
    _check_depth(config, tensors, path)
    with shapes_only():
        model = build_model(config)
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


def _check_depth(
    config: DualEncoderConfig | ChangeModelConfig, tensors: Mapping[str, Tensor], path: Path
) -> None:
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
    return CheckpointError(
        f"{path} does not fit config.json: {what}. It was made by another version of this "
        "model, or a file was changed. Use the Diptych that made it, or copy the whole folder "
        "again."
    )
