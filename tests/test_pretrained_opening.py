"""Opening and converting models of any kind, without the libraries that made them."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_server import serving
from safetensors.torch import save_file
from small import caption_of, picture_of, random_model
from small_compare import reader_of, saved

from diptych import cli
from diptych.checkpoint import load_bundle, save_bundle
from diptych.errors import CheckpointError, RequestError
from diptych.models.timm_tower import TimmTowerConfig
from diptych.predict.change import load_change
from diptych.predict.model import load
from diptych.pretrained import opening
from diptych.pretrained.architectures import ARCHITECTURES
from diptych.pretrained.convert import convert
from diptych.pretrained.open_clip import write_open_clip
from diptych.pretrained.opening import find, open_model

PICTURES = [picture_of(number, side=21 + 8 * number) for number in range(3)]
TEXTS = [caption_of(number) for number in range(4)]


@pytest.fixture(params=["clip", "siglip"])
def family(request):
    return request.param


@pytest.fixture
def folder(tmp_path, family):
    """A model that Diptych wrote."""
    model = random_model(tmp_path, family=family)
    made = tmp_path / "model"
    made.mkdir()
    bundle = model._bundle
    save_bundle(made, bundle.model, bundle.tokenizer, bundle.transform)
    return made


def vectors(path, **options):
    model = load(path, device="cpu", **options)
    return model.encode_image(PICTURES), model.encode_text(TEXTS)


def test_what_is_nowhere_is_refused_with_the_nearest_short_name(tmp_path):
    with pytest.raises(RequestError, match=r"nothing is there.*Did you mean 'clip-b32'\?"):
        open_model("clip-b3")
    with pytest.raises(RequestError, match=r"there is no model in .*nowhere: nothing is there"):
        load(tmp_path / "nowhere")


def test_a_folder_here_goes_before_a_short_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "default")
    assert find("default")[0].resolve() == tmp_path / "default"


def test_bare_weights_are_refused_with_the_list_of_known_architectures(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"logit_scale": torch.zeros(())}, path)
    with pytest.raises(CheckpointError) as caught:
        open_model(path)
    said = str(caught.value)
    assert said.startswith(f"{path} holds bare weights: how to feed the model")
    assert all(name in said for name in ARCHITECTURES)
    with pytest.raises(RequestError, match=r"ViT-B-23.*Did you mean 'ViT-B-32'"):
        open_model(path, architecture="ViT-B-23")


def test_an_architecture_beside_a_folder_that_says_what_it_is_is_refused(folder):
    with pytest.raises(RequestError, match=r"says itself what it is, and architecture 'RN50'"):
        open_model(folder, architecture="RN50")


@pytest.mark.parametrize("family", ["clip"], indirect=True)
def test_a_folder_of_several_libraries_is_opened_by_its_contract(folder):
    bundle = open_model(folder)
    write_open_clip(bundle, folder)
    save_bundle(folder, bundle.model, bundle.tokenizer, bundle.transform)
    assert open_model(folder).made_by == "diptych"
    (folder / "contract.json").unlink()
    assert open_model(folder).made_by == "open_clip"


@pytest.mark.parametrize("family", ["clip"], indirect=True)
def test_a_stray_configuration_of_open_clip_makes_no_folder_of_it(folder, tmp_path):
    convert(open_model(folder), tmp_path / "theirs", "transformers")
    (tmp_path / "theirs/open_clip_config.json").write_text("{}")
    assert open_model(tmp_path / "theirs").made_by == "transformers"


def test_a_name_too_long_for_a_path_and_a_size_that_is_none_are_refused(folder):
    with pytest.raises(RequestError, match=r"no model in x{100}: File name too long. Check the"):
        open_model("x" * 5000)
    with pytest.raises(RequestError, match=r"image_size is -3, .* Use a number such as 224"):
        open_model(folder, image_size=-3)


@pytest.mark.parametrize("made_by", ["diptych", "open_clip"])
def test_a_tower_of_timm_keeps_its_size_and_who_could_change_it_is_named(
    folder, made_by, monkeypatch
):
    """The tower is a stand-in: timm is not here."""
    bundle = open_model(folder)
    image = TimmTowerConfig.model_construct(name="a", image_size=32)
    config = SimpleNamespace(image=image)
    model = SimpleNamespace(config=config, state_dict=dict)
    stood = SimpleNamespace(model=model, transform=bundle.transform, made_by=made_by)
    monkeypatch.setattr(opening, "load_bundle", lambda path: stood)
    with pytest.raises(RequestError) as caught:
        open_model(folder, image_size=64)
    more = ", or open the model of open_clip that it was converted from with it"
    assert str(caught.value) == (
        f"{folder} has an image tower of timm for 32 px, and Diptych cannot resize such a tower to "
        f"64 px. Leave image_size out{more if made_by == 'open_clip' else ''}."
    )


def test_a_copy_in_our_own_layout_has_the_same_fingerprint_and_vectors(folder, tmp_path):
    bundle = open_model(folder)
    copy = tmp_path / "copy"
    assert convert(bundle, copy, "diptych") == ()
    assert load_bundle(copy).fingerprint == bundle.fingerprint
    for ours, theirs in zip(vectors(folder), vectors(copy), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("family", ["clip"], indirect=True)
def test_our_own_folder_needs_no_reader_of_others_nor_the_hub_nor_rare_pictures(folder, tmp_path):
    """In a process of its own: these imports took a third of the time that ours take."""
    PICTURES[0].save(tmp_path / "a.jpg")
    code = f"""
import sys
from diptych.predict.model import load
load({str(folder)!r}, device="cpu").encode_image([{str(tmp_path / "a.jpg")!r}])
readers = [name for name in sys.modules if name.startswith("diptych.pretrained.")]
others = {{"huggingface_hub", "pillow_heif", "PIL.TiffImagePlugin"}} & set(sys.modules)
print(*(name.removeprefix("diptych.pretrained.") for name in sorted(readers)), *others)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["foreign", "layouts", "opening", "positions"]


def test_a_folder_that_holds_something_is_not_written_over(folder, tmp_path):
    bundle = open_model(folder)
    with pytest.raises(RequestError, match=r"model holds something already"):
        convert(bundle, folder, "diptych")
    with pytest.raises(RequestError, match=r"no layout 'openclip'. Did you mean 'open_clip'\?"):
        convert(bundle, tmp_path / "new", "openclip")
    assert not (tmp_path / "new").exists()


def test_what_a_layout_cannot_express_is_refused_and_nothing_is_left(tmp_path):
    model = random_model(tmp_path, "model.text.pool=mean", "model.text.causal=false")
    target = tmp_path / "new"
    with pytest.raises(RequestError, match="transformers"):
        convert(model._bundle, target, "transformers")
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_change_model_is_written_as_ours_alone(tmp_path, capsys):
    folder = saved(reader_of(tmp_path), tmp_path / "change")
    assert cli.run(["convert", str(folder), str(tmp_path / "copy"), "--to", "diptych"]) == 0
    copied, original = load_change(tmp_path / "copy"), load_change(folder)
    assert copied.fingerprint == original.fingerprint
    for options, words in (
        (("--to", "open_clip"), "it is a change model, .* open_clip has no such model. Use --to"),
        (("--to", "diptych", "--image-size", "64"), "is a change model, .* --image-size out"),
    ):
        assert cli.run(["convert", str(folder), str(tmp_path / "new"), *options]) == 2
        assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_the_command_converts_and_says_what_it_wrote(folder, tmp_path, capsys):
    target = tmp_path / "copy"
    assert cli.run(["convert", str(folder), str(target), "--to", "diptych", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == str(target)
    assert said["fingerprint"] == load_bundle(target).fingerprint
    assert said["layout"] == said["made_by"] == "diptych"
    assert cli.run(["convert", str(folder), str(target), "--to", "diptych"]) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["clip"], indirect=True)
def test_a_model_of_the_hub_is_used_by_its_name(folder, tmp_path):
    with serving() as hub:
        hub.repositories["org/ours"] = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
        }
        PICTURES[0].save(tmp_path / "a.png")
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = ["-m", "diptych", "classify", "hf:org/ours", "a.png", "--labels", "red,blue"]
        answers = []
        for more in ([], ["--offline"]):
            done = subprocess.run(
                [sys.executable, *command, "--json", *more],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout))
        assert answers[0] == answers[1]
    here = load(folder, device="cpu").classify([tmp_path / "a.png"], ["red", "blue"])[0]
    found = answers[0]["pictures"]["a.png"]
    assert {row["label"]: row["probability"] for row in found} == pytest.approx(dict(here))
