"""Adapters on disk: what is written is read back, and what is no plain LoRA is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import random_model
from torch import nn

from diptych.errors import CheckpointError
from diptych.nn.lora import adapted_layers, add_adapters, merged
from diptych.train.lora_files import load_adapter, save_adapter

PLACES = ("image.blocks.0.attention.query_key_value", "text.blocks.0.mlp.down")


@pytest.fixture
def model(tmp_path):
    """A model with adapters that have learned something."""
    model = random_model(tmp_path)._net
    add_adapters(model, PLACES, rank=3, alpha=6.0, dropout=0.1)
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model


@pytest.fixture
def folder(model, tmp_path):
    save_adapter(tmp_path / "adapter", model, "the/old")
    return tmp_path / "adapter"


def change(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_adapters_are_written_as_peft_writes_them(model, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "r": 3, "lora_alpha": 6.0, "lora_dropout": 0.1, "bias": "none"}
    assert {name: config[name] for name in expected} == expected
    assert config["target_modules"] == list(PLACES)
    assert config["base_model_name_or_path"] == "the/old"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.keys() == {
        f"base_model.model.{place}.lora_{which}.weight" for place in PLACES for which in "AB"
    }
    width = model.config.image.width
    assert tensors[f"base_model.model.{PLACES[0]}.lora_A.weight"].shape == (3, width)
    assert tensors[f"base_model.model.{PLACES[0]}.lora_B.weight"].shape == (3 * width, 3)


def test_adapters_are_read_back_to_the_bit_into_a_model_without(model, folder, tmp_path):
    other = random_model(tmp_path)._net
    other.text.requires_grad_(False)
    load_adapter(other, folder)
    assert other.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    layer = adapted_layers(other)[PLACES[0]]
    assert (layer.alpha, layer.dropout) == (6.0, 0.1)
    assert not other.text.tokens.weight.requires_grad
    assert other.image.positions.requires_grad


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_share_of_what_was_learned_is_the_place_between(model, tmp_path, share):
    save_adapter(tmp_path / "some", model, None, share=share)
    before, other = random_model(tmp_path)._net, random_model(tmp_path)._net
    load_adapter(other, tmp_path / "some")
    after, found = merged(model).state_dict(), merged(other).state_dict()
    for name, value in before.state_dict().items():
        torch.testing.assert_close(found[name], torch.lerp(value, after[name], share))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'. Only LORA is read"),
        ({"use_dora": True}, "use_dora=True, and adapters with it are not read"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"rank_pattern": {"text": 4}}, "rank_pattern="),
        ({"bias": "all"}, "bias='all'"),
        ({"r": "many"}, "cannot be read: ValueError"),
        ({"r": 4}, r"has shape \[3, 32\] for .*lora_A, and the model wants shape \[4, 32\]"),
    ],
)
def test_what_is_no_plain_lora_is_refused(folder, tmp_path, settings, words):
    change(folder, **settings)
    with pytest.raises(CheckpointError, match=words):
        load_adapter(random_model(tmp_path)._net, folder)


def test_adapters_of_another_model_are_refused(folder, tmp_path):
    tensors = load_file(folder / "adapter_model.safetensors")
    moved = {name.replace("image.blocks.0", "image.blocks.7"): v for name, v in tensors.items()}
    save_file(moved, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"has an adapter of image\.blocks\.7\.attention\.q"):
        load_adapter(random_model(tmp_path)._net, folder)


def test_half_an_adapter_is_refused_and_nothing_is_put_in(model, folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = f"base_model.model.{PLACES[1]}.lora_B.weight"
    del tensors[name]
    save_file(tensors, folder / "adapter_model.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"has nothing for text\.blocks\.0\.mlp\.down\.lora_B"
    ):
        load_adapter(model, folder)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_without_adapters_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        load_adapter(model, tmp_path)
