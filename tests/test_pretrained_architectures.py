"""Bare weights open with a name and only with one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError, RequestError
from diptych.pretrained import architectures
from diptych.pretrained.architectures import (
    ARCHITECTURES,
    Architecture,
    find_architecture,
    read_named,
    refuse_bare,
)
from diptych.pretrained.big_vision import read_big_vision
from diptych.pretrained.clip_vocabulary import clip_tokenizer
from diptych.pretrained.open_clip_config import PREPROCESS, read_model, read_transform
from diptych.pretrained.open_clip_names import places

SMALL = Architecture(
    {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16},
        "text_cfg": {"context_length": 77, "width": 16, "heads": 2, "layers": 1},
    },
    PREPROCESS,
    clip_words=True,
)


WORDS = Tokenizer.learn(["a word"], vocabulary=300, context=64)
"""Stands for the vocabularies of SigLIP."""


@pytest.fixture(scope="module")
def clip_words():
    """CLIP's vocabulary."""
    return clip_tokenizer("open_clip")


@pytest.fixture
def small(monkeypatch, tmp_path, clip_words):
    """A named architecture in a size for tests, and weights of it."""
    monkeypatch.setitem(ARCHITECTURES, "ViT-small", SMALL)
    config = read_model(SMALL.model, clip_words)
    tensors = {name: torch.randn(p.shape) for p in places(config) for name in p.theirs}
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return path, tensors


def test_the_names_are_those_users_ask_for():
    wanted = {
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "RN50-quickgelu"),
        *("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
        *("ViT-L-14-336-quickgelu", "ViT-H-14-378-quickgelu"),
        *("ViT-B-16-SigLIP", "ViT-B-16-SigLIP-256", "ViT-B-16-SigLIP-384", "ViT-B-16-SigLIP-512"),
        *("ViT-L-16-SigLIP-256", "ViT-SO400M-14-SigLIP-384", "ViT-B-16-SigLIP2"),
        *("ViT-L-16-SigLIP2-256", "ViT-SO400M-16-SigLIP2-256"),
    }
    assert wanted <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_states_a_whole_contract(name, clip_words):
    known = ARCHITECTURES[name]
    tokenizer = clip_words if known.clip_words else WORDS
    config = read_model(known.model, tokenizer)
    transform, notes = read_transform(known.preprocess, config.image.image_size)
    assert notes == ()
    siglip = "SigLIP" in name
    assert config.objective == ("sigmoid" if siglip else "softmax")
    assert transform.resize == ("squash" if siglip or "378" in name else "shortest")
    assert (config.text.activation == "quick_gelu") == name.endswith("quickgelu")
    assert (config.text.activation == "gelu_tanh") == ("SigLIP2" in name)
    assert known.clip_words != siglip


def test_weights_with_a_name_are_a_model_and_the_user_is_told(small):
    path, tensors = small
    foreign = read_named(path, "ViT-small")
    assert foreign.notes == (
        "weights.safetensors says nothing but tensors: the contract is that of ViT-small",
    )
    assert foreign.config.text.activation == "quick_gelu"
    assert torch.equal(foreign.tensors["text.tokens.weight"], tensors["token_embedding.weight"])
    projection = foreign.tensors["image_projection.weight"]
    assert torch.equal(projection, tensors["visual.proj"].T)
    assert projection.is_contiguous()


@pytest.mark.parametrize("begin", ["module.", "module.text.", "_orig_mod.module.", "model."])
def test_what_trainers_wrap_around_names_is_taken_off(begin, small):
    path, tensors = small
    plain = read_named(path, "ViT-small").tensors
    inner = begin.endswith("text.")
    named = {
        begin.replace("text.", "" if name.startswith(("visual", "logit")) else "text.") + name: t
        for name, t in tensors.items()
    }
    assert inner == ("module.text.ln_final.weight" in named)
    save_file(named, path)
    for name, tensor in read_named(path, "ViT-small").tensors.items():
        assert torch.equal(tensor, plain[name])


def test_a_training_checkpoint_of_open_clip_is_read(small):
    path, tensors = small
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    content = {"epoch": 3, "name": "run", "state_dict": named, "optimizer": moments}
    torch.save(content, path.with_suffix(".pt"))
    foreign = read_named(path.with_suffix(".pt"), "ViT-small")
    assert torch.equal(foreign.tensors["text.tokens.weight"], tensors["token_embedding.weight"])


def test_weights_of_the_same_shape_that_want_other_pictures_are_named(small, monkeypatch):
    assert "laion2b_s32b_b82k has mean and std 0.5" in ARCHITECTURES["ViT-L-14"].others
    monkeypatch.setitem(ARCHITECTURES, "ViT-small", replace(SMALL, others="some have 0.5"))
    assert read_named(small[0], "ViT-small").notes[0].endswith("of ViT-small (some have 0.5)")


def test_weights_of_another_architecture_are_refused(small):
    with pytest.raises(CheckpointError, match=r"visual.\S+ of shape \[.*\], and the model it desc"):
        read_named(small[0], "ViT-B-32")
    with pytest.raises(
        CheckpointError, match=r"visual.conv1.weight of shape \[32, 3, 16, 16\], and"
    ):
        read_named(small[0], "RN50")


def test_an_unknown_name_offers_the_nearest_and_all():
    with pytest.raises(RequestError) as caught:
        find_architecture("ViT-B-23")
    said = str(caught.value)
    assert said.startswith("there is no architecture 'ViT-B-23'. Did you mean 'ViT-B-32'? Known: ")
    assert all(name in said for name in ARCHITECTURES)


def test_bare_weights_are_refused_with_all_names(tmp_path):
    said = str(refuse_bare(tmp_path / "weights.pt"))
    assert "weights.pt holds bare weights: how to feed the model" in said
    assert all(name in said for name in ARCHITECTURES)
    assert "weights.pt NEW --to diptych --architecture ViT-B-32. Known: " in said
    assert "tokenizer) is unknown. Make a model of them, with the name of the archite" in said


def test_a_vocabulary_that_is_not_there_is_refused_with_its_path(tmp_path):
    path = tmp_path / "nowhere"
    for read in (read_named, read_big_vision):
        with pytest.raises(RequestError, match=f"there is no tokenizer at {path}. Check the path."):
            read(tmp_path / "weights.pt", "ViT-B-16-SigLIP", tokenizer=path)


def test_a_siglip_wants_its_vocabulary(tmp_path):
    with pytest.raises(RequestError, match="ViT-B-16-SigLIP has a vocabulary that Diptych does no"):
        read_named(tmp_path / "weights.pt", "ViT-B-16-SigLIP")
    assert architectures.SIGLIP.keys() <= ARCHITECTURES.keys()
