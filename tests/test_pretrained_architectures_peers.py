"""Our table of named architectures against open_clip's own, on the meta device: configuration,
names and shapes of every tensor, and activations."""

import copy

import pytest
import torch
from torch import nn

from diptych.data.tokenizer import Tokenizer
from diptych.models.image_tower import ImageTowerConfig
from diptych.pretrained.architectures import ARCHITECTURES
from diptych.pretrained.clip_vocabulary import clip_tokenizer
from diptych.pretrained.open_clip_config import read_model
from diptych.pretrained.open_clip_names import places

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ELSEWHERE = {"timm_model_pretrained", "hf_tokenizer_name"}
"""Where open_clip downloads from: not ours."""


def comparable(model):
    tables = {name: dict(model[name]) for name in ("vision_cfg", "text_cfg")}
    for table in tables.values():
        for name in ELSEWHERE:
            table.pop(name, None)
    return {**model, **tables}


WORDS = Tokenizer.learn(["a word"], vocabulary=300, context=64)
"""Stands for the vocabularies of SigLIP."""


@pytest.fixture(scope="module")
def clip_words():
    """CLIP's vocabulary."""
    return clip_tokenizer("open_clip")


QUICK = [name for name in ARCHITECTURES if name.endswith("-quickgelu")]
BUILT = [name for name in ARCHITECTURES if name not in QUICK[1:]]
"""Of those that differ from another in their activation alone, one is enough."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_named_architecture_has_the_configuration_of_open_clip(name):
    import open_clip

    known = ARCHITECTURES[name].model
    assert comparable(known) == comparable(open_clip.get_model_config(name))
    if name in QUICK:
        assert known == {**ARCHITECTURES[name.removesuffix("-quickgelu")].model, "quick_gelu": True}


@pytest.mark.parametrize("name", BUILT)
def test_a_named_architecture_has_the_tensors_and_activations_of_open_clip(name, clip_words):
    import open_clip

    known = ARCHITECTURES[name]
    values = copy.deepcopy(known.model)
    custom = values.pop("custom_text", False)
    with torch.device("meta"):
        theirs = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**values)
    expected = {
        name.removeprefix("text."): tuple(tensor.shape)
        for name, tensor in theirs.state_dict().items()
    }
    tokenizer = clip_words if known.clip_words else WORDS
    config = read_model(known.model, tokenizer)
    found = {name: place.shape for place in places(config) for name in place.theirs}
    assert found == expected
    blocks = (theirs.text if custom else theirs).transformer.resblocks
    assert config.text.activation == activation(blocks[0].mlp.gelu)
    assert config.text.norm_epsilon == blocks[0].ln_1.eps
    assert config.text.heads == blocks[0].attn.num_heads
    if isinstance(config.image, ImageTowerConfig):
        image = config.image
        if image.class_token:
            block = theirs.visual.transformer.resblocks[0]
            assert image.activation == activation(block.mlp.gelu)
            assert image.norm_epsilon == block.ln_1.eps
        else:
            block, pool = theirs.visual.trunk.blocks[0], theirs.visual.trunk.attn_pool
            assert image.activation == activation(block.mlp.act) == activation(pool.mlp.act)
            assert image.norm_epsilon == block.norm1.eps == pool.norm.eps
            assert image.heads == pool.num_heads
        assert image.heads == block.attn.num_heads


def activation(layer):
    """Our name of a layer's activation."""
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else "gelu_tanh"
    return {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GELU": "gelu"}[
        type(layer).__name__
    ]


def test_the_preprocessing_is_that_of_open_clips_tags():
    """But for those that an architecture names as others."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    different = set()
    for name, known in ARCHITECTURES.items():
        for tag in list_pretrained_tags_by_model(name):
            theirs = merge_preprocess_dict(PreprocessCfg(), get_pretrained_cfg(name, tag))
            for field in ("mean", "std", "interpolation", "resize_mode", "fill_color"):
                quick = get_pretrained_cfg(name, tag).get("quick_gelu", False)
                if known.preprocess[field] != theirs[field] and quick == ("quickgelu" in name):
                    different.add((name, tag))
    assert different == {("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-H-14-quickgelu", "dfn5b")}
    assert all(tag in ARCHITECTURES[name].others for name, tag in different)
