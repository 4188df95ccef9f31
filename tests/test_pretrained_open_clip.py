"""open_clip's folders without open_clip: what is refused, and in which words.

The folders are written by our own writer; that it writes what open_clip reads, and that vectors are
open_clip's, is in `test_pretrained_open_clip_peers.py`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import random_model

from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoder
from diptych.pretrained.open_clip import (
    find_weights,
    read_open_clip,
    write_open_clip,
)

RESNET = (
    'model.image={"kind":"resnet","image_size":32,"width":8,"heads":8}',
    "model.image_projection_bias=true",
)


def written(tmp_path, *settings):
    """A small model in open_clip's layout."""
    bundle = random_model(tmp_path, *settings)._bundle
    folder = tmp_path / "folder"
    folder.mkdir()
    write_open_clip(bundle, folder)
    return folder, bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder to copy from."""
    return written(tmp_path_factory.mktemp("made"))[0]


@pytest.fixture
def folder(made, tmp_path):
    """A folder to change."""
    return Path(shutil.copytree(made, tmp_path / "folder"))


def edited(folder, place, **fields):
    """The configuration with some fields replaced; None takes a field away."""
    path = folder / "open_clip_config.json"
    values = json.loads(path.read_text())
    table = values
    for part in place.split(".") if place else []:
        table = table[part]
    for name, value in fields.items():
        table[name] = value
        if value is None:
            del table[name]
    path.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("settings", [(), RESNET])
def test_a_model_read_again_is_the_same_to_the_bit(settings, tmp_path):
    folder, bundle = written(tmp_path, *settings)
    foreign = read_open_clip(folder)
    assert foreign.config == bundle.model.config
    assert foreign.transform == bundle.transform
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(foreign.tensors[name], tensor), name
    assert {tensor.dtype for tensor in foreign.tensors.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("place", "fields", "words"),
    [
        ("", {"model_cfg": None}, "is no configuration of open_clip: it has no 'model_cfg'. Copy"),
        ("", {"model_cfg": [1]}, r"model_cfg is \[1\], and a table belongs there"),
        ("model_cfg", {"text_cfg": "x"}, "model_cfg.text_cfg is 'x', and a table belongs there"),
        ("model_cfg", {"embed_dim": -1}, "describes no model .*setting 'embed' is -1"),
        ("model_cfg", {"quick_gelu": "no"}, "model_cfg.quick_gelu is 'no', and true or false"),
        ("model_cfg", {"multimodal_cfg": {}}, r"multimodal_cfg is \{\}, which .*captioners"),
        ("model_cfg", {"rope": 3}, "open_clip's rope is 3, .*open_clip 3.3.0 has no such field"),
        ("vision", {"attentional_pool": True}, "vision_cfg.attentional_pool is True, which"),
        ("vision", {"ls_init_value": 0.1}, "vision_cfg.ls_init_value is 0.1, .*only None is read"),
        ("vision", {"block_type": "custom"}, "vision_cfg.block_type is 'custom'"),
        ("vision", {"qk_norm": True}, "vision_cfg.qk_norm is True"),
        ("vision", {"pos_embed_type": "sin_cos_2d"}, "vision_cfg.pos_embed_type is 'sin_cos_2d'"),
        ("vision", {"pool_type": "none"}, 'pool_type is \'none\', .*"tok" and "avg" are read'),
        (
            "vision",
            {"pool_type": "avg", "final_ln_after_pool": True},
            "final_ln_after_pool is True, .*our towers normalise, then average",
        ),
        ("vision", {"image_size": [32, 64]}, r"image_size is \[32, 64\], .*only squares are read"),
        ("vision", {"act_kwargs": {"inplace": 1}}, r"vision_cfg.act_kwargs is \{'inplace': 1\}"),
        ("vision", {"norm_kwargs": {"bias": False}}, 'norm_kwargs is .*only "eps" is read'),
        ("vision", {"heads": 3}, "vision_cfg.heads is 3, .*no such field"),
        ("vision", {"width": "wide"}, "model_cfg.vision_cfg.width is 'wide', and a whole number"),
        ("vision", {"mlp_ratio": "5"}, "model_cfg.vision_cfg.mlp_ratio is '5', and a number"),
        ("vision", {"layers": [1, "2"]}, r"vision_cfg.layers is \[1, '2'\], and a whole number"),
        ("text", {"context_length": True}, "text_cfg.context_length is True, and a whole number"),
        ("text", {"vocab_size": 3}, r"text_cfg.vocab_size is 3, and the tokenizer has \d+ tokens"),
        ("vision", {"layers": -1}, "a configuration that describes no model .*'layers' is -1"),
        ("vision", {"timm_model_name": "resnet18", "timm_pool": "rot_attn"}, "timm_pool is 'rot_a"),
        ("text", {"hf_model_name": "roberta-base"}, "text_cfg.hf_model_name is 'roberta-base'"),
        ("text", {"embed_cls": True}, "text_cfg.embed_cls is True"),
        ("text", {"proj_type": "none"}, "text_cfg.proj_type is 'none'"),
        ("text", {"pool_type": "first"}, "text_cfg.pool_type is 'first'"),
        ("text", {"no_causal_mask": True}, "text_cfg.no_causal_mask is True, .*padding would"),
        ("text", {"pool_type": "argmax"}, "it means the largest id, and the end token 2 of this"),
        ("preprocess_cfg", {"mode": "L"}, "preprocess_cfg.mode is 'L'"),
        ("preprocess_cfg", {"resize_mode": "fit"}, "preprocess_cfg.resize_mode is 'fit'"),
        ("preprocess_cfg", {"resize_mode": "longest", "fill_color": 256}, "setting 'fill' is 256"),
        ("preprocess_cfg", {"interpolation": "nearest"}, "preprocess_cfg.interpolation is 'near"),
        ("preprocess_cfg", {"mean": [1, 2]}, "a configuration that describes no model .not enough"),
    ],
)
def test_what_our_towers_cannot_do_is_refused_by_its_name(place, fields, words, folder):
    place = {"vision": "model_cfg.vision_cfg", "text": "model_cfg.text_cfg"}.get(place, place)
    with pytest.raises(CheckpointError, match=words):
        read_open_clip(edited(folder, place, **fields))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "open_clip_config.json is no configuration of open_clip: it is no JSON"),
        (b"\xff", "open_clip_config.json is no configuration of open_clip: it is not UTF-8"),
        (b"[" * 100_000, "is no configuration of open_clip: its tables are nested too deeply"),
        (b"[1]", "is no configuration of open_clip: it holds a list, not a table"),
    ],
)
def test_a_damaged_configuration_is_refused_in_a_line(content, words, folder):
    (folder / "open_clip_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_open_clip(folder)


def test_two_tensors_that_would_be_one_are_both_named(folder):
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "text.ln_final.bias": torch.zeros(32)}, path)
    with pytest.raises(
        CheckpointError, match=r"has the tensors ln_final.bias and text.ln_final.bias, and a model"
    ):
        read_open_clip(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("visual.proj"),
            r"has no tensor visual.proj \[32, 32\]. Check that weights and configuration belong",
        ),
        (
            lambda t: t.update({"visual.head.weight": torch.zeros(2, 3)}),
            r"has a tensor visual.head.weight \[2, 3\], which the model it describes does not",
        ),
        (
            lambda t: t.update({"ln_final.bias": torch.zeros(31)}),
            r"tensor ln_final.bias of shape \[31\], and the model it describes wants \[32\]",
        ),
        (
            lambda t: t.update({"ln_final.bias": torch.zeros(32, dtype=torch.int8)}),
            "tensor ln_final.bias of torch.int8, and the model it describes wants floats",
        ),
        (
            lambda t: t.update({"visual.positional_embedding": torch.zeros(23, 32)}),
            "a position table of 23 rows is no square grid",
        ),
        (
            lambda t: t.update({"visual.positional_embedding": torch.zeros(0, 32)}),
            "a position table of 0 rows is no square grid",
        ),
        (
            lambda t: t.update({"positional_embedding": torch.zeros(16, 31)}),
            r"tensor positional_embedding of shape \[16, 31\]",
        ),
        (
            lambda t: t.update({"positional_embedding": torch.zeros(0, 32)}),
            r"tensor positional_embedding of shape \[0, 32\]",
        ),
    ],
)
def test_tensors_of_another_model_are_named_as_in_the_file(change, words, folder):
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=words):
        read_open_clip(folder)


def test_weights_are_looked_for_in_the_order_of_open_clip(tmp_path):
    for name in ("z.pth", "b.safetensors", "a.bin"):
        (tmp_path / name).touch()
    assert find_weights(tmp_path).name == "b.safetensors"
    order = ("model.pth", "pytorch_model.bin", "model.safetensors", "open_clip_pytorch_model.bin")
    for name in (*order, "open_clip_model.safetensors"):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name


def test_a_folder_without_weights_is_refused(folder):
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no weights: neither open_clip_model.safetensor"
    ):
        read_open_clip(folder)


def test_an_image_size_that_does_not_fit_is_a_wrong_request(tmp_path):
    folder, _ = written(tmp_path, *RESNET)
    assert read_open_clip(folder, image_size=64).config.image.image_size == 64
    with pytest.raises(ConfigError, match="image_size 50 is not a multiple of the tower's stride"):
        read_open_clip(folder, image_size=50)
    with pytest.raises(ConfigError, match=r"'image\.image_size' is -3"):
        read_open_clip(folder, image_size=-3)


def test_residual_networks_take_pictures_of_another_size(tmp_path):
    folder, bundle = written(tmp_path, *RESNET)
    foreign = read_open_clip(folder, image_size=96)
    with torch.device("meta"):
        model = DualEncoder(foreign.config)
    model.load_state_dict(foreign.tensors, assign=True)
    table = bundle.model.image.pool.positions
    torch.testing.assert_close(foreign.tensors["image.pool.positions"][0], table[0])
    assert model.eval().encode_image(torch.rand(2, 3, 96, 96)).shape == (2, 32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.text.pool=mean",), 'its text tower has pool "mean" and causal=true'),
        (("model.text.causal=false",), 'its text tower has pool "end" and causal=false'),
        (("model.image.activation=quick_gelu",), "the activations gelu and quick_gelu"),
        (("model.image.patch_bias=true",), 'pool "class" and patch_bias true'),
        (("model.image_projection_bias=true",), "its image projection is True with bias True"),
        (("model.image_projection=false",), "its image projection is False with bias False"),
        (("model.text.layers=0",), "its text tower has 0 layers"),
        (("model.image.class_token=false", "model.image.pool=mean"), "none of timm's SigLIP tow"),
        ((*RESNET[:1],), "4 stages and an image projection with bias False. It takes"),
        (
            ('model.image={"kind":"resnet","image_size":32,"width":32,"block":"basic"}',),
            "its residual network has block 'basic'",
        ),
    ],
)
def test_what_open_clip_has_no_word_for_is_refused(settings, words, tmp_path):
    with pytest.raises(RequestError, match=f"open_clip cannot hold this model: .*{words}"):
        written(tmp_path, *settings)
