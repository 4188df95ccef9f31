"""The published sizes have the published counts, shapes and settings."""

from itertools import pairwise

import pytest
import torch

from diptych.models.dual_encoder import DualEncoder
from diptych.recipes import find_recipe

PARAMETERS = {
    "clip-rn50": 102_007_137,
    "clip-rn101": 119_688_033,
    "clip-rn50x4": 178_300_601,
    "clip-rn50x16": 290_979_217,
    "clip-rn50x64": 623_258_305,
    "clip-vit-b-32": 151_277_313,
    "clip-vit-b-16": 149_620_737,
    "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193,
    "siglip-b-16": 203_155_970,
    "siglip-l-16": 652_150_786,
    "siglip-so400m-14": 877_960_498,
}

OPEN_CLIP = {
    "clip-rn50": "RN50",
    "clip-rn101": "RN101",
    "clip-rn50x4": "RN50x4",
    "clip-rn50x16": "RN50x16",
    "clip-rn50x64": "RN50x64",
    "clip-vit-b-32": "ViT-B-32",
    "clip-vit-b-16": "ViT-B-16",
    "clip-vit-l-14": "ViT-L-14",
    "clip-vit-l-14-336": "ViT-L-14-336",
    "siglip-b-16": "ViT-B-16-SigLIP",
    "siglip-l-16": "ViT-L-16-SigLIP-256",
    "siglip-so400m-14": "ViT-SO400M-14-SigLIP-378",
}

RATES = {
    "clip-rn50": 5e-4,
    "clip-rn101": 5e-4,
    "clip-rn50x4": 5e-4,
    "clip-rn50x16": 4e-4,
    "clip-rn50x64": 3.6e-4,
    "clip-vit-b-32": 5e-4,
    "clip-vit-b-16": 5e-4,
    "clip-vit-l-14": 4e-4,
    "clip-vit-l-14-336": 2e-5,
    "siglip-b-16": 1e-3,
    "siglip-l-16": 1e-3,
    "siglip-so400m-14": 1e-3,
}
"""CLIP, tables 19 and 20; SigLIP 2, section 2."""


def counted(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name):
    with torch.device("meta"):
        model = DualEncoder(find_recipe(name).model)
    assert counted(model) == PARAMETERS[name]


@pytest.mark.peers
@pytest.mark.parametrize("name", PARAMETERS)
def test_open_clip_builds_a_model_of_this_size(name, caplog):
    import open_clip

    with torch.device("meta"):
        theirs = open_clip.create_model(OPEN_CLIP[name], device="meta")
    assert counted(theirs) == PARAMETERS[name]
    settings = open_clip.get_model_config(OPEN_CLIP[name])
    ours = find_recipe(name).model
    assert settings["embed_dim"] == ours.embed
    assert settings["vision_cfg"]["image_size"] == ours.image.image_size
    for theirs_name, value in (
        ("context_length", ours.text.context),
        ("vocab_size", ours.text.vocabulary),
        ("width", ours.text.width),
        ("heads", ours.text.heads),
        ("layers", ours.text.layers),
    ):
        assert settings["text_cfg"][theirs_name] == value, theirs_name


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_optimizer_has_the_published_settings(name):
    run = find_recipe(name)
    found = run.optimizer
    assert (found.lr, run.batch) == (RATES[name], 32_768)
    if run.model.objective == "sigmoid":
        assert (found.betas, found.weight_decay) == ((0.9, 0.95), 0.1)
    elif run.model.image.kind == "resnet":
        assert (found.betas, found.epsilon, found.weight_decay) == ((0.9, 0.999), 1e-8, 0.2)
    else:
        assert (found.betas, found.epsilon, found.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)


@pytest.mark.parametrize("name", PARAMETERS)
def test_pictures_and_texts_are_prepared_as_published(name):
    run = find_recipe(name)
    transform, model = run.data.transform, run.model
    if name.startswith("siglip"):
        assert (transform.resize, transform.mean, transform.std) == (
            "squash",
            (0.5,) * 3,
            (0.5,) * 3,
        )
        assert model.text.activation == model.image.activation == "gelu_tanh"
        assert (model.start_bias, model.text.pool, model.text.causal) == (-10, "last", False)
    else:
        assert transform.resize == "shortest"
        assert transform.mean == (0.48145466, 0.4578275, 0.40821073)
        assert transform.std == (0.26862954, 0.26130258, 0.27577711)
        assert model.text.activation == "quick_gelu"
        assert (model.text.pool, model.text.causal) == ("end", True)


def test_text_towers_of_clip_grow_in_width_only():
    texts = [find_recipe(name).model.text for name in PARAMETERS if name.startswith("clip")]
    assert {text.layers for text in texts} == {12}
    assert sorted({text.width for text in texts}) == [512, 640, 768, 1024]
    assert all(text.mlp_width == 4 * text.width == 256 * text.heads for text in texts)


def test_image_towers_of_clip_grow_in_width_depth_and_resolution():
    images = [find_recipe(f"clip-rn50{size}").model.image for size in ("", "x4", "x16", "x64")]
    for smaller, larger in pairwise(images):
        assert larger.width > smaller.width
        assert sum(larger.layers) > sum(smaller.layers)
        assert larger.image_size > smaller.image_size
