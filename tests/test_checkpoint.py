"""A model folder comes back to the last bit; a change to any part of it is an error by text."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.checkpoint import (
    FORMAT,
    fill,
    find_model,
    load_bundle,
    make_bundle,
    read_contract,
    save_bundle,
)
from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, RequestError
from diptych.files import file_fingerprint, fingerprint
from diptych.models.dual_encoder import DualEncoder
from diptych.recipes import RECIPES
from diptych.tensors import load_tensors, not_finite, weights_mark

TINY = [name for name in RECIPES if name.endswith("-tiny")]
TEXTS = ["a red circle", "two dogs on the beach", ""]


def make(recipe="clip-tiny", **frozen):
    """A random model of a recipe with its tokenizer and transform."""
    torch.manual_seed(0)
    run = RECIPES[recipe]()
    values = run.model.model_dump()
    tokenizer = Tokenizer.learn(TEXTS * 9, vocabulary=300, context=run.model.text.context)
    values["text"]["vocabulary"] = tokenizer.vocabulary
    for tower, value in frozen.items():
        values[tower]["frozen"] = value
    return DualEncoder(type(run.model)(**values)), tokenizer, run.data.transform


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_bundle(folder, *make())
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a saved model, to be harmed."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outputs(model, tokenizer):
    ids, _ = tokenizer.encode(TEXTS)
    side = model.config.image.image_size
    image = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.eval()(image, torch.from_numpy(ids))


@pytest.mark.parametrize("recipe", TINY)
def test_a_saved_model_gives_bit_identical_outputs(tmp_path, recipe):
    model, tokenizer, transform = make(recipe)
    mark = save_bundle(tmp_path, model, tokenizer, transform)
    bundle = load_bundle(tmp_path)
    assert bundle.fingerprint == mark
    assert bundle.transform == transform
    assert bundle.model.config == model.config
    before, after = outputs(model, tokenizer), outputs(bundle.model, bundle.tokenizer)
    assert torch.equal(before.image, after.image)
    assert torch.equal(before.text, after.text)
    assert torch.equal(before.scale, after.scale)
    assert (before.bias is None) == (after.bias is None)


def test_loading_leaves_torchs_random_state_alone(saved):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_bundle(saved)
    assert torch.equal(torch.rand(3), expected)


def test_saved_again_the_folder_and_its_fingerprint_are_the_same(saved, tmp_path):
    bundle = load_bundle(saved)
    assert save_bundle(tmp_path, bundle.model, bundle.tokenizer, bundle.transform) == (
        bundle.fingerprint
    )
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_the_fingerprint_changes_with_each_part(tmp_path):
    model, tokenizer, transform = make()
    marks = [save_bundle(tmp_path, model, tokenizer, transform)]
    other = ImageTransformConfig(**(transform.model_dump() | {"interpolation": "bilinear"}))
    marks.append(save_bundle(tmp_path, model, tokenizer, other))
    longer = Tokenizer.learn([*TEXTS * 9, "more"], vocabulary=300, context=tokenizer.context)
    marks.append(save_bundle(tmp_path, model, longer, transform))
    with torch.no_grad():
        model.log_scale += 1e-6
    marks.append(save_bundle(tmp_path, model, tokenizer, transform))
    marks.append(save_bundle(tmp_path, make(text=True)[0], tokenizer, transform))
    cleaned = Tokenizer.from_json(tokenizer.to_json(), TextRules(cleaning=("ftfy",)))
    marks.append(save_bundle(tmp_path, model, cleaned, transform))
    marks.append(save_bundle(tmp_path, model, tokenizer, transform, made_by="open_clip"))
    marks.append(save_bundle(tmp_path, model, tokenizer, transform, trained_on="0" * 16))
    assert len(set(marks)) == 8


def test_rules_maker_and_source_come_back(tmp_path):
    model, tokenizer, transform = make()
    rules = TextRules(cleaning=("ftfy", "lower"), reads_special=True)
    cleaned = Tokenizer.from_json(tokenizer.to_json(), rules)
    save_bundle(tmp_path, model, cleaned, transform, made_by="open_clip", trained_on="0" * 16)
    bundle = load_bundle(tmp_path)
    assert bundle.tokenizer.rules == rules
    assert (bundle.made_by, bundle.trained_on, bundle.notes) == ("open_clip", "0" * 16, ())


def test_tensors_in_memory_make_the_bundle_that_saving_them_would(tmp_path):
    model, tokenizer, transform = make("siglip-tiny")
    tensors = {name: value.clone() for name, value in reversed(model.state_dict().items())}
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    wide = torch.stack([tensors[name], tensors[name]])  # half of it is neither aligned nor alone
    tensors[name] = wide.transpose(1, 2).contiguous()[1].T
    bundle = make_bundle(
        model.config,
        tensors,
        tokenizer,
        transform,
        made_by="open_clip",
        notes=("a guess",),
        path=tmp_path / "open_clip_model.safetensors",
    )
    assert bundle.notes == ("a guess",)
    assert bundle.fingerprint == save_bundle(
        tmp_path, bundle.model, tokenizer, transform, made_by=bundle.made_by
    )
    assert load_bundle(tmp_path).fingerprint == bundle.fingerprint
    before, after = outputs(model, tokenizer), outputs(bundle.model, bundle.tokenizer)
    assert torch.equal(before.image, after.image)
    assert torch.equal(before.text, after.text)
    for weight in bundle.model.parameters():
        assert weight.is_contiguous()
        assert weight.data_ptr() % 64 == 0


def test_tensors_in_memory_that_do_not_fit_are_named_with_their_file(tmp_path):
    model, tokenizer, transform = make()
    tensors = dict(model.state_dict())
    del tensors["text.final_norm.bias"]
    with pytest.raises(CheckpointError) as caught:
        make_bundle(
            model.config,
            tensors,
            tokenizer,
            transform,
            made_by="open_clip",
            notes=(),
            path=tmp_path / "theirs.pt",
        )
    assert str(caught.value).startswith(
        f"{tmp_path / 'theirs.pt'} does not fit config.json: text.final_norm.bias [64] is missing."
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_the_space_are_the_same_model(tmp_path, kind):
    model, tokenizer, transform = make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(kind))
    mark = save_bundle(tmp_path, model, tokenizer, transform)
    path = tmp_path / "model.safetensors"
    save_file({name: value.to(kind) for name, value in model.state_dict().items()}, path)
    bundle = load_bundle(tmp_path)
    assert bundle.fingerprint == mark
    for name, value in bundle.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("frozen", [{}, {"image": True}, {"text": True}])
def test_what_was_frozen_is_frozen_again_and_nothing_else(tmp_path, frozen):
    save_bundle(tmp_path, *make(**frozen))
    for name, weight in load_bundle(tmp_path).model.named_parameters():
        assert weight.requires_grad != any(name.startswith(f"{tower}.") for tower in frozen), name
        assert weight.is_leaf
        assert weight.device.type == "cpu"


def flip(path, place):
    """Change one bit, at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if place >= 0 else -1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_flipped_bit_is_named(folder, name, place):
    flip(folder / name, place)
    said = refusal(folder)
    assert said.startswith(f"{folder / name} is not the file this model was saved with ")
    assert said.endswith("Copy the whole folder again.")


@pytest.mark.parametrize("place", [0.5, 0.9, -1])
def test_one_flipped_bit_of_the_weights_is_named(folder, place):
    flip(folder / "model.safetensors", place)
    said = refusal(folder)
    assert said.startswith(
        f"{folder / 'model.safetensors'} does not hold the weights this model was saved with "
    )
    assert said.endswith("Copy the whole folder again.")


def test_a_flipped_bit_of_the_list_of_weights_is_named(folder):
    flip(folder / "model.safetensors", 0)
    assert "model.safetensors cannot be read as safetensors: " in refusal(folder)


def test_two_weights_that_changed_places_are_noticed(folder):
    tensors = load_file(folder / "model.safetensors")
    one, other = "text.final_norm.weight", "image.final_norm.weight"
    tensors[one] += 1
    save_file(tensors, folder / "model.safetensors")
    moved = weights_mark(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    assert weights_mark(tensors) != moved
    save_file(tensors, folder / "model.safetensors")
    assert "does not hold the weights this model was saved with" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder) == f"{folder} has no {name}. Copy the whole folder again."


def edit(folder, change):
    """Change the contract as an editor would."""
    contract = json.loads((folder / "contract.json").read_text())
    change(contract)
    (folder / "contract.json").write_text(json.dumps(contract))
    return contract


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


DEEP = "[" * 100_000
"""More tables in tables than Python reads."""


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


def test_truncated_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors cannot be read as safetensors: " in refusal(folder)


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


def test_truncated_weights_under_a_forged_contract_are_no_safetensors(folder):
    data = (folder / "model.safetensors").read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:length])
        seal(folder)
        assert "model.safetensors cannot be read as safetensors" in refusal(folder)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def hostile(path, writer, mark):
    """A file that leaves a mark when it is opened as its writer would open it."""
    if writer == "torch":
        torch.save({"weight": Bomb(mark)}, path)
    elif writer == "old torch":
        torch.save({"weight": Bomb(mark)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=int(writer)))


def refused_pickle(path):
    return (
        f"{path} is a pickle, which can run any code when it is opened, so it was not opened. "
        "Use weights saved as safetensors, in a folder that `diptych train` wrote."
    )


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("writer", ["2", "3", "4", "5", "torch", "old torch"])
def test_a_pickle_that_calls_itself_safetensors_is_refused_and_not_run(folder, sealed, writer):
    path, mark = folder / "model.safetensors", folder / "mark"
    hostile(path, writer, mark)
    if sealed:
        seal(folder)
    assert refusal(folder) == refused_pickle(path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "epoch_3.pt", "model.ckpt"])
def test_a_pickle_in_the_place_of_safetensors_is_named_and_not_run(tmp_path, name):
    mark = tmp_path / "mark"
    hostile(tmp_path / name, "torch", mark)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError) as caught:
            find_model(path)
        assert str(caught.value) == refused_pickle(tmp_path / name)
    assert refusal(tmp_path) == refused_pickle(tmp_path / name)
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_left_alone(folder):
    hostile(folder / "notes.pt", "torch", folder / "mark")
    load_bundle(folder)
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x10280])
def test_safetensors_whose_header_length_looks_like_a_pickle_are_read(tmp_path, length):
    for size in range(length - 100, length):
        save_file({"x": torch.ones(2)}, tmp_path / "x", metadata={"pad": "p" * size})
        if int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") == length:
            break
    assert (tmp_path / "x").read_bytes()[0] == 0x80
    assert load_tensors(tmp_path / "x")["x"].tolist() == [1, 1]


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["embed"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'} does not fit config.json: image_projection.weight has "
        "shape [64, 64], and the model wants [65, 64]. Copy the whole folder again."
    )


def change_weights(folder, change):
    """Replace the weights as someone would who forges a model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    seal(folder, lambda contract: contract.update(weights=weights_mark(tensors)))


def test_a_weight_of_another_kind_is_named(folder):
    name = "text.final_norm.bias"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].long()}))
    assert f"{name} has kind torch.int64, and the model wants torch.float32." in refusal(folder)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["log_scale", "text.blocks.1.mlp.up.weight"])
def test_weights_that_are_no_numbers_are_refused(folder, name, value):
    def spoil(tensors):
        tensors[name].view(-1)[-1] = float(value)

    change_weights(folder, spoil)
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'} holds NaN or infinity in the weights that become {name}, "
        "so every vector would be without meaning. Copy the file again, or use an earlier "
        "checkpoint."
    )


def test_large_weights_whose_sum_is_infinite_are_numbers():
    large = torch.full((4,), 3e38)
    assert not_finite({"a": large, "count": torch.tensor(3), "none": torch.zeros(0)}) is None
    assert not_finite({"a": large, "b": torch.tensor([1.0, float("nan")])}) == "b"
    assert not_finite({"b": torch.tensor([float("inf"), -float("inf")]), "a": large}) == "b"


@pytest.mark.parametrize("recipe", ["clip-tiny", "clip-resnet-small"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_more_layers_than_the_file_has_are_refused_before_they_are_built(tmp_path, recipe, tower):
    save_bundle(tmp_path, *make(recipe))
    config = json.loads((tmp_path / "config.json").read_text())
    layers = config[tower]["layers"]
    many = 1000 if isinstance(layers, int) else [1000, *layers[1:]]
    found = layers if isinstance(layers, int) else sum(layers)
    config[tower]["layers"] = many
    (tmp_path / "config.json").write_text(json.dumps(config))
    seal(tmp_path)
    stated = many if isinstance(many, int) else sum(many)
    assert refusal(tmp_path) == (
        f"{tmp_path / 'model.safetensors'} does not fit config.json: it has {found} {tower} "
        f"layers, and config.json says {stated:,}. Copy the whole folder again."
    )
    config[tower]["layers"] = 10**6 if isinstance(layers, int) else [10**6, *layers[1:]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    seal(tmp_path)
    assert "is 1000000: Input should be less than or equal to 1000" in refusal(tmp_path)


def test_a_missing_weight_is_named_with_its_shape(folder):
    change_weights(folder, lambda tensors: tensors.pop("text.final_norm.bias"))
    assert "text.final_norm.bias [64] is missing. Copy" in refusal(folder)


def test_a_weight_too_many_is_named_with_its_shape(folder):
    change_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(2, 3)))
    assert "does not fit config.json: the model has no extra [2, 3]. Copy" in refusal(folder)


def test_a_model_is_not_half_filled(saved):
    model = load_bundle(saved).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 1 for name, value in before.items()}
    with pytest.raises(CheckpointError, match="the model has no zebra"):
        fill(model, other | {"zebra": torch.zeros(1)}, saved / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embd": 3}, "there is no setting 'embd'. Did you mean 'embed'?"),
        ({"embed": "wide"}, "setting 'embed' is 'wide'"),
    ],
)
def test_a_config_that_cannot_be_read_is_a_checkpoint_error(folder, change, words):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    seal(folder)
    said = refusal(folder)
    assert said.startswith(f"{folder} cannot be read: ")
    assert words in said


def test_a_tokenizer_that_cannot_be_read_is_a_checkpoint_error(folder):
    (folder / "tokenizer.json").write_text("{}")
    seal(folder)
    assert "tokenizer.json cannot be read" in refusal(folder)


def test_files_that_are_no_text_or_nested_too_deeply_are_named(folder):
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[:9] + b"\xff" + whole[9:])
    seal(folder)
    assert refusal(folder) == (
        f"{folder / 'tokenizer.json'} is not UTF-8 from byte 9 on. Copy the whole folder again."
    )
    (folder / "config.json").write_text(DEEP)
    seal(folder)
    said = refusal(folder)
    assert f"{folder / 'config.json'} cannot be read: maximum recursion depth" in said


def test_a_model_is_found_in_its_folder_and_in_its_run(saved, tmp_path):
    assert find_model(saved) == saved
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in ("step-1", "step-2"):
        (checkpoints / step).mkdir(parents=True)
        (checkpoints / "last").unlink(missing_ok=True)
        (checkpoints / "last").symlink_to(step)
    assert find_model(tmp_path / "run") == (checkpoints / "step-2").resolve()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        find_model(tmp_path)
    assert str(caught.value) == (
        f"there is no model in {tmp_path}: neither contract.json nor checkpoints/last. "
        "Give the folder of a run or of one of its checkpoints."
    )


def test_a_path_that_does_not_exist_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match=r"nothing is there\. Check the path\."):
        find_model(tmp_path / "missing")


def test_a_folder_that_lost_its_contract_is_found_so_that_the_loss_is_named(folder):
    (folder / "contract.json").unlink()
    assert find_model(folder) == folder
    with pytest.raises(CheckpointError, match=r"has no contract\.json"):
        read_contract(folder)


FULL = """
import resource, sys, torch
from pathlib import Path
from diptych.tensors import save_tensors
from diptych.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_tensors(Path(sys.argv[1]), {"x": torch.zeros(100_000)})
except StorageError as error:
    print(error)
"""


def test_weights_that_the_disk_refuses_are_a_storage_error(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'x'} cannot be written: ")
    assert "File too large" in done.stdout
    assert "Free some space or choose another folder" in done.stdout


UNCOMPILED = """
import sys
from pathlib import Path
from diptych.checkpoint import load_bundle
for folder in sys.argv[1:]:
    load_bundle(Path(folder))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_loading_does_not_import_torchs_compiler(tmp_path):
    folders = [tmp_path / recipe for recipe in ("clip-tiny", "siglip-tiny")]
    for folder in folders:
        folder.mkdir()
        save_bundle(folder, *make(folder.name))
    command = [sys.executable, "-c", UNCOMPILED, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_contract_keeps_what_the_model_was_trained_on(tmp_path):
    marks = [save_bundle(tmp_path, *make(), trained_on=data) for data in ("0" * 16, "1" * 16, None)]
    assert len(set(marks)) == 3
    assert "trained_on" not in read_contract(tmp_path)
    save_bundle(tmp_path, *make(), trained_on="2" * 16)
    assert read_contract(tmp_path)["trained_on"] == "2" * 16
    assert load_bundle(tmp_path).fingerprint == read_contract(tmp_path)["fingerprint"]
