"""A model folder comes back to the last bit, and weights that do not fit are named."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from model_folder import DEEP, TEXTS, change_weights, copy_of, make, outputs, refusal, seal
from safetensors.torch import save_file

from diptych import contract
from diptych.checkpoint import (
    fill,
    find_model,
    load_any_bundle,
    load_bundle,
    load_change_bundle,
    make_bundle,
    save_again,
    save_bundle,
)
from diptych.contract import read_contract
from diptych.data.cleaning import TextRules
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, RequestError
from diptych.predict.model import Model
from diptych.recipes import RECIPES
from diptych.tensors import not_finite

TINY = [name for name in RECIPES if name.endswith("-tiny")]

MISFIT = (
    "It was made by another version of this model, or a file was changed. Use the Diptych that "
    "made it, or copy the whole folder again."
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_bundle(folder, *make())
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return copy_of(saved, tmp_path)


@pytest.mark.parametrize("recipe", TINY)
def test_a_saved_model_gives_bit_identical_outputs(tmp_path, recipe):
    model, tokenizer, transform = make(recipe)
    mark = save_bundle(tmp_path, model, tokenizer, transform)
    bundle = load_any_bundle(tmp_path)
    assert bundle.fingerprint == mark
    assert bundle.transform == transform
    assert bundle.model.config == model.config
    before, after = outputs(model, tokenizer), outputs(bundle.model, bundle.tokenizer)
    for name, value in vars(before).items():
        found = getattr(after, name)
        assert found is None if value is None else torch.equal(found, value), name


def test_loading_leaves_torchs_random_state_alone(saved):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_bundle(saved)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("recipe", TINY)
def test_saved_again_the_folder_and_its_fingerprint_are_the_same(tmp_path, recipe):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    mark = save_bundle(first, *make(recipe), made_by="open_clip", trained_on="0" * 16)
    assert save_again(second, load_any_bundle(first)) == mark
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_a_change_model_and_a_dual_encoder_are_not_taken_for_each_other(saved, tmp_path):
    with pytest.raises(RequestError) as caught:
        load_change_bundle(saved)
    assert str(caught.value) == (
        f"{saved} is a model of vectors and not a change model, so it writes no text of a change. "
        "Use diptych.load, or train one: diptych train change-caption-small."
    )
    save_bundle(tmp_path, *make("change-caption-tiny"))
    with pytest.raises(RequestError) as caught:
        load_bundle(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is a change model: it reads pictures in a row and has no vectors to compare "
        "with texts. Use `diptych compare` or diptych.load_change."
    )
    assert load_change_bundle(tmp_path).model.config == load_any_bundle(tmp_path).model.config


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


def test_weights_of_others_are_marked_once_and_not_before_it_is_asked(tmp_path, monkeypatch):
    model, tokenizer, transform = make()
    marked = []
    monkeypatch.setattr(contract, "weights_mark", lambda tensors: marked.append(1) or "0" * 16)
    bundle = make_bundle(
        model.config,
        model.state_dict(),
        tokenizer,
        transform,
        made_by="open_clip",
        notes=(),
        path=tmp_path,
    )
    used = Model(replace(bundle, notes=("said",)), tmp_path)
    used.encode_text(["a red circle"])
    assert marked == []
    assert used.fingerprint == used.fingerprint
    assert marked == [1]


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


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["embed"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'} does not fit config.json: image_projection.weight has "
        f"shape [64, 64], and the model wants [65, 64]. {MISFIT}"
    )


def test_a_weight_of_another_kind_is_named(folder):
    name = "text.final_norm.bias"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].long()}))
    assert f"{name} has kind torch.int64, and the model wants torch.float32." in refusal(folder)


def test_large_weights_whose_sum_is_infinite_are_numbers():
    large = torch.full((4,), 3e38)
    assert not_finite({"a": large, "count": torch.tensor(3), "none": torch.zeros(0)}) is None
    assert not_finite({"a": large, "b": torch.tensor([1.0, float("nan")])}) == "b"
    assert not_finite({"b": torch.tensor([float("inf"), -float("inf")]), "a": large}) == "b"


@pytest.mark.parametrize("recipe", ["clip-tiny", "clip-resnet-small", "change-caption-tiny"])
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
        f"layers, and config.json says {stated:,}. {MISFIT}"
    )
    config[tower]["layers"] = 10**6 if isinstance(layers, int) else [10**6, *layers[1:]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    seal(tmp_path)
    assert "is 1000000: Input should be less than or equal to 1000" in refusal(tmp_path)


def test_a_missing_weight_is_named_with_its_shape(folder):
    change_weights(folder, lambda tensors: tensors.pop("text.final_norm.bias"))
    assert "text.final_norm.bias [64] is missing. It was made by" in refusal(folder)


def test_a_weight_too_many_is_named_with_its_shape(folder):
    change_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(2, 3)))
    assert "does not fit config.json: the model has no extra [2, 3]. It was made by" in refusal(
        folder
    )


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
