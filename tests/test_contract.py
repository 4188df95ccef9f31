"""A change to any part of a model folder is an error by text, and so is a forged contract."""

import hashlib
import json

import pytest
import torch
from model_folder import DEEP, copy_of, edit, flip, make, refusal, seal, to_format_1

from diptych.checkpoint import (
    load_bundle,
    save_bundle,
)
from diptych.contract import FORMAT, config_file, read_contract
from diptych.data.cleaning import TextRules
from diptych.data.transforms import ImageTransformConfig
from diptych.files import fingerprint
from diptych.models.dual_encoder import DualEncoder
from diptych.nn.state import StateConfig
from diptych.recipes import RECIPES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_bundle(folder, *make())
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return copy_of(saved, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_flipped_bit_is_named(folder, name, place):
    flip(folder / name, place)
    said = refusal(folder)
    assert said.startswith(f"{folder / name} is not the file this model was saved with ")
    assert said.endswith("Copy the whole folder again.")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder) == f"{folder} has no {name}. Copy the whole folder again."


@pytest.mark.parametrize(
    "change",
    [
        lambda contract: contract["image"].update(mean=[0.5, 0.5, 0.5]),
        lambda contract: contract["image"].update(resize="squash"),
        lambda contract: contract["text"].update(context=31),
        lambda contract: contract["text"].update(cleaning=["lower"]),
        lambda contract: contract["model"].update(text_activation="quick_gelu"),
        lambda contract: contract["files"].update({"config.json": "0" * 16}),
        lambda contract: contract.update(weights="0" * 16),
        lambda contract: contract.update(made_by="open_clip"),
        lambda contract: contract.update(objective="sigmoid"),
        lambda contract: contract.update(fingerprint="0" * 16),
        lambda contract: contract.update(extra=1),
        lambda contract: contract.pop("vectors"),
        lambda contract: contract.pop("fingerprint"),
    ],
)
def test_any_edit_of_the_contract_is_an_error(folder, change):
    contract = edit(folder, change)
    said = refusal(folder)
    assert said.startswith(f"{folder / 'contract.json'} was changed after the model was saved")
    assert f"not {contract.get('fingerprint')}. Restore it, or train again" in said


def test_an_edit_that_leaves_the_values_is_no_change(folder):
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps(contract, indent=7, sort_keys=True))
    load_bundle(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"format": "one"}', "\udcff", DEEP]
)
def test_a_damaged_contract_is_named(folder, text):
    (folder / "contract.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refusal(folder).startswith(f"{folder / 'contract.json'} is damaged (")


@pytest.mark.parametrize("depth", [300, 600, 900, 990, 999])
def test_a_contract_with_many_tables_in_tables_ends_in_a_named_error(folder, depth):
    deep = '{"a":' * depth + "1" + "}" * depth
    text = (folder / "contract.json").read_text().replace("{", '{"deep": ' + deep + ",", 1)
    (folder / "contract.json").write_text(text)
    said = refusal(folder)
    assert f"{folder / 'contract.json'} is damaged (" in said or "was changed after" in said


def test_weights_without_a_contract_are_refused(folder):
    (folder / "contract.json").unlink()
    assert refusal(folder) == (
        f"{folder} has no contract.json, so how to feed the model is unknown. "
        "Use a folder that `diptych train` wrote."
    )


def test_a_newer_format_asks_for_a_newer_diptych(folder):
    said = f"has format {FORMAT + 1}, and this Diptych reads up to {FORMAT}. Update diptych."
    edit(folder, lambda contract: contract.update(format=FORMAT + 1))
    assert said in refusal(folder)
    edit(folder, lambda contract: contract.pop("fingerprint"))
    assert said in refusal(folder)


@pytest.mark.parametrize("version", [0, -1, 0.5])
def test_an_older_format_asks_for_its_own_diptych(folder, version):
    edit(folder, lambda contract: contract.update(format=version))
    assert refusal(folder) == (
        f"{folder} has format {version}, and this Diptych reads from 1 on. "
        "Use the Diptych that wrote it, or train again."
    )


def test_a_folder_of_format_1_is_read_and_keeps_its_fingerprint(saved, folder):
    to_format_1(folder)
    contract = json.loads((folder / "contract.json").read_text())
    assert set(contract) == {
        *("format", "kind", "image", "text", "vectors", "objective", "files", "fingerprint")
    }
    bundle = load_bundle(folder)
    assert bundle.fingerprint == contract["fingerprint"]
    assert bundle.made_by == "diptych"
    expected = load_bundle(saved)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)
    assert bundle.tokenizer.rules == TextRules()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_flipped_bit_in_format_1_is_named(folder, name):
    to_format_1(folder)
    flip(folder / name, 0.5)
    assert refusal(folder).startswith(f"{folder / name} is not the file this model was saved with ")


@pytest.mark.parametrize(
    ("table", "name", "value", "words"),
    [
        ("text", "context", 31, "says context is 31, and tokenizer.json says 32."),
        ("text", "pad_token", 9, "says pad_token is 9, and tokenizer.json says 0."),
        ("model", "text_activation", "relu", "is 'relu', and config.json says 'gelu'."),
        ("model", "image_activation", "relu", "is 'relu', and config.json says 'gelu'."),
        ("model", "image_pool", "mean", "is 'mean', and config.json says 'class'."),
        ("model", "text_pool", "last", "is 'last', and config.json says 'end'."),
        ("text", "cleaning", ["polish"], "setting 'cleaning.0' is 'polish'"),
        ("text", "soap", 1, "there is no setting 'soap'."),
        ("image", "interpolation", "nearest", "setting 'interpolation' is 'nearest'"),
        ("image", "image_size", 65, "says image_size is 65, and config.json says 32."),
    ],
)
def test_a_forged_contract_that_contradicts_the_files_is_refused(folder, table, name, value, words):
    seal(folder, lambda contract: contract[table].update({name: value}))
    assert words in refusal(folder)


def test_a_forged_mark_of_the_weights_is_refused(folder):
    seal(folder, lambda contract: contract.pop("weights"))
    assert "does not hold the weights this model was saved with" in refusal(folder)
    assert "contract None)" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda contract: contract.pop("image"), "has image=None, so how to prepare pictures is"),
        (lambda contract: contract.update(image=[1]), "has image=[1], so how to prepare"),
        (lambda contract: contract.pop("text"), "has text=None, so how to prepare texts is"),
        (lambda contract: contract.pop("model"), "has model=None, so how the model is built is"),
        (lambda contract: contract.pop("files"), "has the fingerprints of None, and they should"),
        (lambda contract: contract.update(files={}), "has the fingerprints of [], and they should"),
        (
            lambda contract: contract["files"].pop("config.json"),
            "has the fingerprints of ['tokenizer.json'], and they should be those "
            "of config.json, tokenizer.json. Use a folder",
        ),
        (
            lambda contract: contract["files"].update(more="0"),
            "'more', 'tokenizer.json'], and they",
        ),
    ],
)
def test_a_sealed_contract_that_lacks_a_part_is_refused(folder, change, words):
    contract = edit(folder, change)
    contract.pop("fingerprint")
    contract["fingerprint"] = fingerprint(json.dumps(contract, sort_keys=True))
    (folder / "contract.json").write_text(json.dumps(contract))
    said = refusal(folder)
    assert said.startswith(f"{folder / 'contract.json'} has ")
    assert words in said
    assert said.endswith("Use a folder that `diptych train` or `diptych convert` wrote.")


@pytest.mark.parametrize(
    ("table", "name"),
    [
        *(("image", name) for name in ImageTransformConfig.model_fields),
        *(("text", name) for name in ("context", "pad_token", *TextRules.model_fields)),
    ],
)
def test_a_contract_without_a_setting_is_refused(folder, table, name):
    seal(folder, lambda contract: contract[table].pop(name))
    what = "pictures" if table == "image" else "texts"
    assert refusal(folder) == (
        f"{folder / 'contract.json'} has no {name} in {table!r}, so how to prepare {what} is "
        "unknown. Use a folder that `diptych train` or `diptych convert` wrote."
    )


def test_a_contract_of_format_1_may_state_fewer_settings(folder):
    to_format_1(folder)
    seal(folder, lambda contract: contract["image"].pop("crop"))
    assert load_bundle(folder).transform.crop == "round"


def test_the_contract_keeps_what_the_model_was_trained_on(tmp_path):
    marks = [save_bundle(tmp_path, *make(), trained_on=data) for data in ("0" * 16, "1" * 16, None)]
    assert len(set(marks)) == 3
    assert "trained_on" not in read_contract(tmp_path)
    save_bundle(tmp_path, *make(), trained_on="2" * 16)
    assert read_contract(tmp_path)["trained_on"] == "2" * 16
    assert load_bundle(tmp_path).fingerprint == read_contract(tmp_path)["fingerprint"]


@pytest.mark.parametrize(
    ("recipe", "mark"),
    [
        ("clip-tiny", "7035aa82d3738eec"),
        ("siglip-tiny", "54113bc82c5304d9"),
        ("clip-resnet-small", "cd3fe1a1fd02a1c3"),
    ],
)
def test_models_of_single_pictures_have_the_config_they_had_before_there_were_others(recipe, mark):
    model = RECIPES[recipe]().model
    assert hashlib.sha256(config_file(model)).hexdigest()[:16] == mark


def test_a_contract_states_how_pictures_in_a_row_are_read_and_nothing_else_of_it(saved, tmp_path):
    plain = read_contract(saved)["model"]
    assert set(plain) == {"image_activation", "text_activation", "image_pool", "text_pool"}
    model, tokenizer, transform = make("change-tiny")
    state = {"variant": "cross_ffn", "window": 2, "first": "null", "positions": "place"}
    image = model.config.image.model_copy(update={"state": StateConfig(**state)})
    model = DualEncoder(model.config.model_copy(update={"image": image}))
    save_bundle(tmp_path, model, tokenizer, transform)
    added = {"pair": "located", "state": "cross_ffn", "state_window": 2, "state_first": "null"}
    stated = read_contract(tmp_path)["model"]
    assert {name: stated[name] for name in stated if name not in plain} == (
        added | {"state_positions": "place"}
    )
    assert load_bundle(tmp_path).model.config == model.config


@pytest.mark.parametrize(
    ("recipe", "name", "value", "words"),
    [
        ("clip-tiny", "pair", "difference", "pair is 'difference', and config.json says 'none'."),
        ("clip-tiny", "state", "cross", "state is 'cross', and config.json says 'none'."),
        ("change-tiny", "state", "cross", "state is 'cross', and config.json says 'cross_ffn'."),
        ("change-tiny", "state_window", 2, "state_window is 2, and config.json says 1."),
        ("change-caption-tiny", "pictures", 3, "pictures is 3, and config.json says 2."),
    ],
)
def test_a_forged_way_to_read_pictures_in_a_row_is_refused(tmp_path, recipe, name, value, words):
    save_bundle(tmp_path, *make(recipe))
    seal(tmp_path, lambda contract: contract["model"].update({name: value}))
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["oracle", None, ["dual_encoder"]])
def test_a_model_of_another_kind_asks_for_another_diptych(folder, kind):
    seal(folder, lambda contract: contract.update(kind=kind))
    assert refusal(folder) == (
        f"{folder} holds a model of kind {str(kind)!r}, and this Diptych knows dual_encoder and "
        "change_model. Update diptych."
    )
