"""What a run that begins with a trained model takes from it, what learns, and at which rate."""

import re
from dataclasses import replace

import pytest
import torch
from small import random_model, small_run
from torch import nn

from diptych.checkpoint import load_bundle, save_bundle
from diptych.errors import ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoder
from diptych.nn.lora import adapted_layers
from diptych.recipes import find_recipe
from diptych.train.depth import blocks_of, levels_below_top, lowest
from diptych.train.optimizer import make_optimizer
from diptych.train.run import FinetuneConfig, OptimizerConfig
from diptych.train.start import (
    begin,
    holds_statistics,
    inherit,
    open_start,
    require_inherited,
    start_notes,
    to_training,
)

RESNET = (
    'model.image={"kind":"resnet","image_size":32,"width":8,"layers":[2,1],"block":"basic",'
    '"stem_pool":false,"pool":"mean"}'
)
DEEP = ("model.image.layers=3", "model.text.layers=2")


@pytest.fixture
def start(tmp_path):
    """A trained model: three blocks for pictures, two for texts."""
    return random_model(tmp_path, *DEEP)._bundle


@pytest.fixture
def residual(tmp_path):
    """One with batch norms."""
    return random_model(tmp_path, RESNET, "model.text.layers=2")._bundle


def run_from(bundle, *settings, recipe="clip-small"):
    return inherit(find_recipe(recipe), "the/old", bundle).override(list(settings))


def learning(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("recipe", ["clip-small", "siglip-small", "clip-resnet-small", "finetune"])
def test_the_model_brings_its_shape_and_preparation_and_the_recipe_the_rest(start, recipe):
    own, run = find_recipe(recipe), run_from(start, recipe=recipe)
    assert run.model == start.model.config
    assert run.data.transform == start.transform
    assert (run.optimizer, run.batch, run.data.augment, run.ema) == (
        *(own.optimizer, own.batch, own.data.augment, own.ema),
    )
    assert (run.finetune.model, run.finetune.fingerprint) == ("the/old", start.fingerprint)


def test_frozen_towers_and_dropped_patches_are_the_recipe_s(tmp_path):
    bundle = random_model(tmp_path, "model.image.keep_patches=0.5", "model.image.frozen=true")
    recipe = find_recipe("clip-small").override(["model.text.frozen=true"])
    run = inherit(recipe, "the/old", bundle._bundle)
    assert run.model.image.keep_patches == 1
    assert (run.model.image.frozen, run.model.text.frozen) == (False, True)
    model = begin(run, bundle._bundle)
    assert not any(name.startswith("text.") for name in learning(model))
    assert all(weight.requires_grad for weight in model.image.parameters())
    require_inherited(run, bundle._bundle)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.image.width=64", r"model\.image\.width is 64, and the/old was trained with 32"),
        ("model.text.context=9", r"model\.text\.context is 9, and the/old was trained with 16"),
        ("model.image.activation=quick_gelu", r"model\.image\.activation is 'quick_gelu', and"),
        ("data.transform.resize=squash", r"data\.transform\.resize is 'squash', and the/old was"),
    ],
)
def test_what_the_model_brings_cannot_be_changed(start, setting, words):
    with pytest.raises(ConfigError, match=words):
        require_inherited(run_from(start, setting), start)


def test_another_model_at_the_same_place_is_refused(start):
    other = replace(start, stated="another")
    with pytest.raises(RequestError, match="the/old is the model another, and the run begins with"):
        require_inherited(run_from(start), other)


def test_the_weights_are_those_of_the_start_and_not_shared_with_it(start):
    model = begin(run_from(start), start)
    for name, value in start.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for weight in model.parameters():
        weight.data.add_(1)
    assert not torch.equal(model.log_scale, start.model.log_scale)
    assert learning(model) == {name for name, _ in model.named_parameters()}


def test_a_run_that_goes_on_opens_the_copy_in_its_folder_and_no_other(start, tmp_path):
    out = tmp_path / "out"
    (out / "before").mkdir(parents=True)
    save_bundle(out / "before", start.model, start.tokenizer, start.transform)
    run = run_from(start)
    (out / "run.json").write_text(run.model_dump_json())
    kept = open_start("the/old", out, True)
    assert kept.fingerprint == start.fingerprint  # by the name of the original
    assert torch.equal(kept.model.log_scale, load_bundle(out / "before").model.log_scale)
    for spec, resume in (("the/old", False), ("the/other", True)):
        with pytest.raises(RequestError, match=r"there is no model"):
            open_start(spec, out, resume)


def test_levels_count_from_the_top_of_each_tower(start):
    levels = levels_below_top(start.model)
    expected = {
        "image.patches.project.weight": 4,
        "image.positions": 4,
        "image.class_token": 4,
        "image.pre_norm.weight": 4,
        "image.blocks.0.mlp.up.weight": 3,
        "image.blocks.2.attention.out.bias": 1,
        "image.final_norm.weight": 0,
        "image_projection.weight": 0,
        "text.tokens.weight": 3,
        "text.positions": 3,
        "text.blocks.0.mlp_norm.weight": 2,
        "text.blocks.1.mlp_norm.weight": 1,
        "text.final_norm.bias": 0,
        "text_projection.weight": 0,
        "log_scale": 0,
    }
    assert {name: levels[name] for name in expected} == expected
    assert levels.keys() == dict(start.model.named_parameters()).keys()


def test_levels_of_a_residual_network_go_block_by_block(residual):
    assert blocks_of(residual.model, "image") == [
        *("image.stages.0.0", "image.stages.0.1", "image.stages.1.0"),
    ]
    levels = levels_below_top(residual.model)
    assert levels["image.stem.0.convolution.weight"] == 4
    assert levels["image.stages.0.0.first.norm.bias"] == 3
    assert levels["image.stages.1.0.match.convolution.weight"] == 1


def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(start):
    levels = levels_below_top(start.model)
    config = OptimizerConfig(lr=1.0, weight_decay=0.1)
    optimizer = make_optimizer(start.model, config, levels, 0.5)
    names = {id(weight): name for name, weight in start.model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            seen[names[id(weight)]] = (group["share"], group["weight_decay"])
    assert seen.keys() == levels.keys()
    assert seen["image.patches.project.weight"] == (0.0625, 0.1)
    assert seen["image.positions"] == (0.0625, 0)
    assert seen["text.blocks.1.mlp.up.weight"] == (0.5, 0.1)
    assert seen["log_scale"] == (1, 0)


@pytest.mark.parametrize(
    ("blocks", "learn", "held"),
    [
        (0, ("image.patches.project.weight", "text.tokens.weight"), ()),
        (1, ("image.blocks.1.mlp.up.bias", "text.blocks.1.mlp.up.bias"), ("image.blocks.0.mlp",)),
        (2, ("image.blocks.2.mlp.up.bias", "text.final_norm.bias"), ("text.blocks.1.mlp",)),
        (9, ("image.final_norm.bias", "text.final_norm.bias"), ("image.blocks.2.mlp.up",)),
    ],
)
def test_the_lowest_blocks_are_held_with_the_embeddings(start, blocks, learn, held):
    found = lowest(start.model, blocks)
    model = begin(run_from(start, f"finetune.frozen_blocks={blocks}"), start)
    assert learning(model) == {name for name, _ in model.named_parameters()} - found
    assert set(learn) <= learning(model)
    for place in held:
        assert not any(name.startswith(place) for name in learning(model))
    assert {"image_projection.weight", "log_scale"} <= learning(model)
    assert ("text.tokens.weight" in found) == (blocks > 0)


def test_adapters_stand_in_the_blocks_of_towers_that_are_not_frozen(start):
    settings = ("finetune.lora.rank=2", "finetune.frozen_blocks=1", "model.text.frozen=true")
    model = begin(run_from(start, *settings, 'finetune.lora.targets=["out","up"]'), start)
    expected = {
        f"image.blocks.{block}.{name}" for block in (1, 2) for name in ("attention.out", "mlp.up")
    }
    assert adapted_layers(model).keys() == expected
    assert learning(model) == {f"{name}.lora_{which}" for name in expected for which in "AB"}


def test_adapters_of_a_residual_network_are_in_its_convolutions(residual):
    model = begin(run_from(residual, "finetune.lora.rank=2"), residual).eval()
    assert "image.stages.1.0.second.convolution" in adapted_layers(model)
    pictures = torch.randn(2, 3, 32, 32)
    before = residual.model.eval().encode_image(pictures)
    torch.testing.assert_close(model.encode_image(pictures), before, atol=1e-6, rtol=0)
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_B)
    assert (model.encode_image(pictures) - before).abs().max() > 0.01


def test_a_run_in_which_nothing_learns_is_refused(start):
    lora, text = "finetune.lora.rank=2", "model.text.frozen=true"
    for settings, words in (
        (
            (text, "model.image.frozen=true"),
            "nothing would learn: with model.image.frozen=true and model.text.frozen=true no layer "
            "is left that gets an adapter. Use --set model.image.frozen=false or --set model.text.",
        ),
        (
            (text, "finetune.frozen_blocks=9"),
            "with model.text.frozen=true and finetune.frozen_blocks=9 no layer is left that gets "
            "an adapter. Use --set model.text.frozen=false or --set finetune.frozen_blocks=0 or",
        ),
        (('finetune.lora.targets=["convolution"]',), 'finetune.lora.targets=["convolution"]'),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            begin(run_from(start, lora, *settings), start)


def test_a_tower_without_a_place_for_adapters_is_named(start):
    run = run_from(start, "finetune.lora.rank=2")
    model = begin(run, start)
    assert "gets an adapter" not in "\n".join(start_notes(run, start, model, 40))
    model.image = nn.Identity()  # as a tower of timm, none of whose layers has a name of ours
    notes = start_notes(run, start, model, 40)
    assert notes[-1].startswith("the image tower has no layer that gets an adapter, so it stays as")


def norms_in_training(model):
    return [m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_batch_norms_hold_their_statistics_unless_told_otherwise(residual):
    for settings, held in (
        ((), True),
        (("finetune.keep_statistics=false",), False),
        (("finetune.keep_statistics=false", "finetune.lora.rank=1"), True),
    ):
        run = run_from(residual, *settings)
        model = begin(run, residual)
        to_training(model, run)
        assert holds_statistics(run) is held
        assert model.training
        assert set(norms_in_training(model)) == {not held}


def test_batch_norms_of_held_blocks_hold_their_statistics(residual):
    run = run_from(residual, "finetune.keep_statistics=false", "finetune.frozen_blocks=2")
    model = begin(run, residual)
    to_training(model, run)
    assert set(norms_in_training(model.image.stem)) == {False}
    assert set(norms_in_training(model.image.stages[0])) == {False}
    assert set(norms_in_training(model.image.stages[1])) == {True}


def test_a_run_from_nothing_trains_its_batch_norms():
    run = small_run(RESNET)
    model = DualEncoder(run.model)
    to_training(model, run)
    assert set(norms_in_training(model)) == {True}


def test_what_is_replaced_and_what_decay_does_is_said(start):
    run = run_from(start)
    notes = "\n".join(start_notes(run, start, begin(run, start), 40))
    assert f"beginning with the/old ({start.fingerprint}): its model, vocabulary and prep" in notes
    assert "batch 256, rate 1.0e-3, 40 steps, layer_decay 1\n" in notes
    assert "weight_decay 0.2 pulls the weights of the start towards zero" in notes
    run = run_from(start, "optimizer.weight_decay=0", "finetune.lora.rank=1")
    run = run.with_length(None, 10.0, None)
    notes = "\n".join(start_notes(run, start, begin(run, start), 40))
    assert "towards zero" not in notes
    assert "10 epochs (40 steps), layer_decay 1, adapters of rank 1" in notes
    assert "numbers learn, beside" in notes


def test_the_defaults_change_nothing_but_where_the_run_begins():
    config = FinetuneConfig()
    assert (config.layer_decay, config.frozen_blocks, config.lora.rank) == (1, 0, 0)
