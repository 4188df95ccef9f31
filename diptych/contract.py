"""contract.json: what a model must be fed with, and the marks of all that belongs to it.

    image, text      how pictures and texts are prepared
    model            settings that change every result and that no shape of a weight betrays
    files, weights   the marks of config.json, tokenizer.json and the weights
    fingerprint      of all of this

`checkpoint.py` writes and reads the folder around it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError
from diptych.files import file_fingerprint, fingerprint, read_json
from diptych.models.change import ChangeModelConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.kinds import AnyModel
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.nn.state import StateConfig
from diptych.tensors import weights_mark

FORMAT, OLDEST = 2, 1
"""Version of the folder's layout that is written, and the oldest that is read. 2: the weights have
a mark of their own that no file format enters, and the contract states cleaning, activations and
pools."""

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What makes the model. The contract marks each of them: the weights by `weights_mark`, the others
(in format 1 all three) by the bytes of the file."""

WEIGHTS = "model.safetensors"

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


KINDS: dict[str, type[DualEncoderConfig | ChangeModelConfig]] = {
    "dual_encoder": DualEncoderConfig,
    "change_model": ChangeModelConfig,
}
"""What a contract calls a model, and what its config.json then is."""

ADDED = {"pair": "none", "state": "none", "state_window": 1, "state_first": "own"}
ADDED |= {"state_positions": "host"}
"""Settings of a model's table that came later, and what a contract means that does not state them:
it was the only way there was."""


def make_contract(
    model: AnyModel,
    tokenizer: Tokenizer,
    transform: ImageTransformConfig,
    *,
    trained_on: str | None,
    made_by: str,
) -> dict[str, Any]:
    """What the contract of a model says, its fingerprint last."""
    contract: dict[str, Any] = {
        "format": FORMAT,
        "kind": "dual_encoder" if isinstance(model, DualEncoder) else "change_model",
        "made_by": made_by,
        "image": transform.model_dump(mode="json"),
        "text": {"context": tokenizer.context, "pad_token": tokenizer.pad_token}
        | tokenizer.rules.model_dump(mode="json"),
        "model": _stated(model.config),
        **_judged_by(model),
        "files": {
            "config.json": _mark(config_file(model.config)),
            "tokenizer.json": _mark(tokenizer_file(tokenizer)),
        },
        "weights": weights_mark(model.state_dict()),
    }
    if trained_on is not None:
        contract["trained_on"] = trained_on
    contract["fingerprint"] = _contract_mark(contract)
    return contract


def _judged_by(model: AnyModel) -> dict[str, str]:
    """What a dual encoder gives, and what it was trained for."""
    if isinstance(model, DualEncoder):
        return {"vectors": "unit norm", "objective": model.config.objective}
    return {}


def _stated(config: DualEncoderConfig | ChangeModelConfig) -> dict[str, Any]:
    """What readers of a contract look for first: the settings that change every vector and that
    no shape of a weight betrays. What came later is stated where it is not as it always was."""
    if isinstance(config, ChangeModelConfig):
        image, text = config.image.activation, config.text.activation
        said = {"image_activation": image, "text_activation": text, "pictures": config.pictures}
        return said | _sequence(config)
    return _towers(config) | _sequence(config)


def _sequence(config: DualEncoderConfig | ChangeModelConfig) -> dict[str, Any]:
    """What a model of sequences does with the pictures before; nothing for single pictures."""
    found: dict[str, Any] = {}
    if isinstance(config, DualEncoderConfig):
        found["pair"] = config.pair
    if isinstance(config.image, ImageTowerConfig):
        state = config.image.state
        found |= {"state": state.variant, "state_window": state.window}
        found |= {"state_first": state.first, "state_positions": state.positions}
    return {name: value for name, value in found.items() if value != ADDED[name]}


def _towers(config: DualEncoderConfig) -> dict[str, Any]:
    """Activations and pools of a dual encoder."""
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


def is_change_model(folder: Path) -> bool:
    """Whether a folder holds a change model; False where it has no contract.

    Raises:
        CheckpointError: Its contract was changed, or is of another version of Diptych.
    """
    if not (folder / "contract.json").is_file():
        return False
    return read_contract(folder).get("kind") == "change_model"


def kind_of(
    folder: Path, contract: Mapping[str, Any]
) -> type[DualEncoderConfig | ChangeModelConfig]:
    """The config that a model's config.json is, by what its contract calls it.

    Raises:
        CheckpointError: It is a kind that this Diptych does not know.
    """
    kind = str(contract.get("kind", "dual_encoder"))
    if kind not in KINDS:
        raise CheckpointError(
            f"{folder} holds a model of kind {kind!r}, and this Diptych knows "
            f"{' and '.join(KINDS)}. Update diptych."
        )
    return KINDS[kind]


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


def check_files(folder: Path, contract: Mapping[str, Any]) -> None:
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


def check_stated(
    folder: Path,
    contract: Mapping[str, Any],
    config: DualEncoderConfig | ChangeModelConfig,
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
        both.append(("config.json", ADDED | _stated(config), ADDED | contract["model"]))
    for file, found, stated in both:
        for name, value in found.items():
            if stated.get(name) != value:
                raise CheckpointError(
                    f"{folder / 'contract.json'} says {name} is {stated.get(name)!r}, and {file} "
                    f"says {value!r}. Copy the whole folder again."
                )


def config_file(config: DualEncoderConfig | ChangeModelConfig) -> bytes:
    """What config.json holds. `pair` and `state` are left out where they add nothing, so that the
    file and its mark are what they were before there was either."""
    values = config.model_dump(mode="json")
    if values.get("pair") == "none":
        del values["pair"], values["changed_weight"]
    if values["image"].get("state") == StateConfig().model_dump(mode="json"):
        del values["image"]["state"]
    return pretty(values)


def tokenizer_file(tokenizer: Tokenizer) -> bytes:
    """What tokenizer.json holds."""
    return tokenizer.to_json().encode()


def _mark(content: bytes) -> str:
    """The `file_fingerprint` of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _contract_mark(contract: Mapping[str, Any]) -> str:
    """Fingerprint of a contract without its own fingerprint."""
    rest = {key: value for key, value in contract.items() if key != "fingerprint"}
    return fingerprint(json.dumps(rest, sort_keys=True))


def pretty(values: Mapping[str, Any]) -> bytes:
    """JSON for people."""
    return (json.dumps(values, indent=2) + "\n").encode()
