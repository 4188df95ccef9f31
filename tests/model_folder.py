"""Saved models, and ways to change or to forge them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.checkpoint import load_any_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError
from diptych.files import file_fingerprint, fingerprint
from diptych.models.kinds import build_model, reads_sequences
from diptych.recipes import RECIPES
from diptych.tensors import weights_mark

TEXTS = ["a red circle", "two dogs on the beach", ""]

DEEP = "[" * 100_000
"""More tables in tables than Python reads."""


def make(recipe="clip-tiny", **frozen):
    """A random model of a recipe with its tokenizer and transform."""
    torch.manual_seed(0)
    run = RECIPES[recipe]()
    values = run.model.model_dump()
    tokenizer = Tokenizer.learn(TEXTS * 9, vocabulary=300, context=run.model.text.context)
    values["text"]["vocabulary"] = tokenizer.vocabulary
    for tower, value in frozen.items():
        values[tower]["frozen"] = value
    return build_model(type(run.model)(**values)), tokenizer, run.data.transform


def copy_of(saved, folder):
    """A copy of a saved model, to be harmed."""
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refusal(folder):
    """Why a folder is not read."""
    with pytest.raises(CheckpointError) as caught:
        load_any_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outputs(model, tokenizer):
    """What a model says of three pictures, or pairs of them, and three texts."""
    ids, _ = tokenizer.encode(TEXTS)
    side = model.config.image.image_size
    shape = (3, 2, 3, side, side) if reads_sequences(model.config) else (3, 3, side, side)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.eval()(image, torch.from_numpy(ids))


def flip(path, place):
    """Change one bit, at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if place >= 0 else -1] ^= 1
    path.write_bytes(data)


def edit(folder, change):
    """Change the contract as an editor would."""
    contract = json.loads((folder / "contract.json").read_text())
    change(contract)
    (folder / "contract.json").write_text(json.dumps(contract))
    return contract


def seal(folder, change=lambda contract: None):
    """Make the contract agree with the files again, as someone would who forges a model."""
    contract = json.loads((folder / "contract.json").read_text())
    for name in contract["files"]:
        contract["files"][name] = file_fingerprint(folder / name)
    change(contract)
    del contract["fingerprint"]
    contract["fingerprint"] = fingerprint(json.dumps(contract, sort_keys=True))
    (folder / "contract.json").write_text(json.dumps(contract))


def to_format_1(folder):
    """Rewrite a folder as the first Diptych wrote it."""

    def change(contract):
        for name in ("made_by", "model", "weights"):
            contract.pop(name)
        contract["format"] = 1
        contract["text"] = {name: contract["text"][name] for name in ("context", "pad_token")}
        names = ("config.json", "model.safetensors", "tokenizer.json")
        contract["files"] = {name: file_fingerprint(folder / name) for name in names}

    seal(folder, change)


def change_weights(folder, change):
    """Replace the weights as someone would who forges a model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    seal(folder, lambda contract: contract.update(weights=weights_mark(tensors)))
