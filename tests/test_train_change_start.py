"""Beginning a run of pictures in a row with a trained model: what it sees at first, what learns."""

import io
import json
from dataclasses import replace

import pytest
import torch
from small import random_model
from small_change import DIFFERENCE, change_run

from diptych.checkpoint import find_model, load_bundle
from diptych.errors import ConfigError, RequestError
from diptych.models.kinds import build_model
from diptych.nn.lora import adapted_layers
from diptych.pretrained.convert import convert
from diptych.recipes import find_recipe
from diptych.recipes.before_after import fine_tune
from diptych.train.depth import blocks_of, layers_of, levels_below_top, lowest
from diptych.train.log import Live
from diptych.train.optimizer import decays
from diptych.train.start import begin, inherit, paired, reading_settings, require_inherited

DEEP = ("model.image.layers=3", "model.text.layers=2", "model.text.context=24")
STATES = ("self_ext", "adaln_zero", "cross", "cross_ffn", "self_ffn")


@pytest.fixture
def start(tmp_path):
    """A trained model of single pictures: three blocks for pictures, two for texts."""
    return random_model(tmp_path, *DEEP)._bundle


def run_from(bundle, *settings, recipe="change-finetune"):
    quick = ("batch=8", "epochs=null", "steps=3", "data.workers=0", "log_every=1", "precision=fp32")
    source = "data.source=scenes:changes-few:val"
    first, rest = reading_settings(settings, bundle)
    run = inherit(find_recipe(recipe).override(first), "the/old", bundle)
    return run.override([*quick, source, *rest])


def pictures(images=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((3, images, 3, 32, 32), generator=generator)


@pytest.mark.parametrize("variant", [v for v in STATES if v != "self_ext"])
def test_a_model_of_single_pictures_sees_at_first_what_it_saw_in_each(start, variant):
    state = f'model.image.state={{"variant":"{variant}","output_std":0}}'
    run = run_from(start, state)
    model = begin(run, paired(start, run)).eval()
    assert (model.config.pair, model.config.image.state.variant) == ("located", variant)
    images = pictures().flatten(0, 1)
    with torch.no_grad():
        expected = start.model.eval().image.tokens(images)
        assert torch.equal(model.image.packed(images, [2] * 3), expected)
    require_inherited(run, paired(start, run))
    foreign = replace(start, stated=None)  # whose mark is found from its weights
    assert paired(foreign, run).fingerprint == foreign.fingerprint


def test_the_recipe_says_how_pictures_are_read_and_the_model_everything_else(start):
    own, run = find_recipe("change-finetune"), run_from(start)
    assert run.model.image.state == own.model.image.state
    assert run.model.pair == "located"
    theirs = start.model.config
    assert run.model.image.model_copy(update={"state": theirs.image.state}) == theirs.image
    assert run.model.text == theirs.text


def test_a_trained_pair_model_is_inherited_as_it_is(start):
    first = run_from(start, "model.image.state.window=2")
    trained = paired(start, first)
    for recipe in ("change-finetune", "finetune", "change-tiny"):
        run = run_from(trained, recipe=recipe)
        assert run.model == trained.model.config
        assert paired(trained, run) is trained


def test_the_difference_of_two_vectors_has_the_weights_of_the_trained_model(start):
    run = run_from(start, *DIFFERENCE)
    model = begin(run, paired(start, run)).eval()
    for name, value in start.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.encode_image(pictures()).shape == (3, model.config.embed)


@pytest.mark.parametrize("state", ["none", "cross_ffn"])
@pytest.mark.parametrize("pair", ["located", "difference", "concatenation"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_every_way_to_read_pairs_begins_with_every_model_of_places(tmp_path, family, pair, state):
    """SigLIP has no projection, and a pool that "located" does not read."""
    bundle = random_model(tmp_path, *DEEP, family=family)._bundle
    run = run_from(bundle, f"model.pair={pair}", f"model.image.state={state}")
    started = paired(bundle, run)
    require_inherited(run, started)
    model = begin(run, started).eval()
    assert (model.config.pair, model.config.image.state.variant) == (pair, state)
    loss = model(pictures(), torch.ones((3, 24), dtype=torch.long))
    loss.image.sum().backward()
    assert all(weight.requires_grad for weight in model.parameters())
    assert loss.image.isfinite().all()


def test_what_reads_pairs_already_is_not_asked_to_read_them_otherwise(start):
    trained = paired(start, run_from(start))
    run = run_from(trained, "model.pair=difference")
    with pytest.raises(ConfigError, match=r"model\.pair is 'difference', and the/old was trained"):
        require_inherited(run, trained)


def test_a_model_trained_on_some_of_the_patches_becomes_one_that_sees_all(tmp_path):
    bundle = random_model(tmp_path, *DEEP, "model.image.keep_patches=0.5")._bundle
    run = run_from(bundle, "model.image.state.output_std=0")
    started = paired(bundle, run)
    require_inherited(run, started)
    assert started.model.config.image.keep_patches == run.model.image.keep_patches == 1
    assert bundle.model.config.image.keep_patches == 0.5
    images = pictures().flatten(0, 1)
    with torch.no_grad():
        single = bundle.model.eval().image.tokens(images)
        found = begin(run, started).eval().image.packed(images, [2] * 3)
    torch.testing.assert_close(found, single)


def test_a_residual_network_has_no_places_and_no_state_and_gives_a_difference(tmp_path):
    resnet = (
        'model.image={"kind":"resnet","image_size":32,"width":8,"layers":[1],"block":"basic",'
        '"stem_pool":false,"pool":"mean"}'
    )
    bundle = random_model(tmp_path, resnet)._bundle
    with pytest.raises(RequestError, match=r"the/old sees with a resnet tower, and only a vision"):
        run_from(bundle)
    run = run_from(bundle, *DIFFERENCE)  # as that error says
    model = begin(run, paired(bundle, run)).eval()
    assert model.encode_image(pictures()).shape == (3, model.config.embed)


def test_a_change_model_does_not_begin_with_a_trained_one(start):
    with pytest.raises(RequestError, match=r"change-caption-tiny trains a change model from the"):
        run_from(start, recipe="change-caption-tiny")


@pytest.mark.parametrize("variant", STATES)
def test_what_a_stateful_encoder_adds_to_a_block_belongs_to_its_layer(start, variant):
    run = run_from(start, f"model.image.state={variant}")
    model = begin(run, paired(start, run))
    blocks = blocks_of(model, "image")
    added = [f"image.state_blocks.{number}" for number in range(3)]
    assert layers_of(model, "image") == [list(names) for names in zip(blocks, added, strict=True)]
    assert layers_of(model, "text") == [[name] for name in blocks_of(model, "text")]
    levels = levels_below_top(model)
    for number, place in enumerate(added):
        for name, _ in model.get_submodule(place).named_parameters():
            assert levels[f"{place}.{name}"] == 3 - number
    held = lowest(model, 2)
    assert {name for name in held if "state_blocks" in name} == {
        name for name in levels if name.startswith((added[0], added[1]))
    }


def test_adapters_stand_in_all_that_is_added_to_the_blocks_that_are_not_frozen(start):
    lora = ("finetune.lora.rank=2", 'finetune.lora.targets=["up"]', "finetune.frozen_blocks=1")
    for variant, inside in (
        ("cross_ffn", {"attention.query", "attention.key_value", "attention.out"}),
        ("adaln_zero", {"modulation"}),
    ):
        trained = paired(start, run_from(start, f"model.image.state={variant}"))
        run = run_from(trained, *lora)
        found = adapted_layers(begin(run, paired(trained, run)))
        added = {name for name in found if "state_blocks" in name}
        mlp = {"mlp.up", "mlp.down"} if variant == "cross_ffn" else set()
        assert added == {f"image.state_blocks.{n}.{one}" for n in (1, 2) for one in inside | mlp}
        assert {name for name in found if name.startswith("head")} == {"head.up", "head.down"}


def test_adapters_do_not_stand_for_what_begins_anew(start, tmp_path):
    for settings in ((), DIFFERENCE):
        run = run_from(start, "finetune.lora.rank=2", *settings)
        with pytest.raises(ConfigError) as caught:
            fine_tuned(run, tmp_path / "run", start)
        assert str(caught.value) == (
            "finetune.lora.rank is 2, and the/old reads single pictures: what it gets to compare "
            "them begins anew, and adapters would leave it so. Use --set finetune.lora.rank=0, or "
            "begin with a model that was trained on pictures in a row."
        )
    assert not (tmp_path / "run").exists()


def test_a_frozen_tower_compares_pictures_and_gets_no_state(start):
    with pytest.raises(ConfigError, match=r"frozen is true, which also .*Use frozen=false or stat"):
        run_from(start, "model.image.frozen=true")
    run = run_from(start, "model.image.state=none", "model.image.frozen=true")
    model = begin(run, paired(start, run))
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert not any(name.startswith("image.") for name in learning)
    assert {"head.up.weight", "image_projection.weight"} < learning


def test_a_tower_that_was_frozen_once_becomes_a_stateful_one_that_learns(tmp_path):
    bundle = random_model(tmp_path, *DEEP, "model.image.frozen=true")._bundle
    assert bundle.model.config.image.frozen
    run = run_from(bundle)
    started = paired(bundle, run)
    require_inherited(run, started)
    model = begin(run, started)
    assert all(weight.requires_grad for weight in model.parameters())
    assert bundle.model.config.image.frozen


def test_numbers_of_places_and_ages_do_not_decay():
    run = change_run('model.image.state={"variant":"cross","positions":"place","first":"null"}')
    caption = change_run(recipe="change-caption-tiny")
    free = {
        name
        for run in (run, caption)
        for name, weight in build_model(run.model).named_parameters()
        if weight.ndim >= 2 and not decays(name, weight)
    }
    assert free == {
        *("image.positions", "text.positions", "ages", "image.state_blocks.0.attention.place")
    }


def fine_tuned(run, folder, bundle, **options):
    return fine_tune(run, folder, live=Live(io.StringIO()), start=bundle, **options)


def test_a_pair_run_keeps_its_end_and_goes_on_without_the_model_it_began_with(start, tmp_path):
    run, folder = run_from(start, "save.every_steps=1"), tmp_path / "run"
    judged = fine_tuned(run.override(["steps=2"]), folder, start).judged
    assert (judged["alpha"], judged["checkpoint"]) == (1.0, "step-00000002")
    assert json.loads((folder / "finetune.json").read_text()) == judged
    before = load_bundle(folder / "before")
    assert before.model.config.pair == "located"
    assert find_model(folder) == folder / "model"
    assert fine_tuned(run, folder, replace(before, stated=start.fingerprint), resume=True)
    after = load_bundle(folder / "model")
    last = load_bundle(folder / "checkpoints" / "last").model.state_dict()
    for name, value in after.model.state_dict().items():
        assert torch.equal(value, last[name]), name
    assert not torch.equal(after.model.log_scale, before.model.log_scale)


def test_an_alpha_that_is_asked_for_is_the_place_between(start, tmp_path):
    run, folder = run_from(start, "finetune.alpha=0.25", "steps=1"), tmp_path / "run"
    assert fine_tuned(run, folder, start).judged["alpha"] == 0.25
    names = ("before", "model", "checkpoints/last")
    before, chosen, after = (load_bundle(folder / name).model.text.positions for name in names)
    torch.testing.assert_close(chosen, torch.lerp(before, after, 0.25))


def test_single_pictures_are_not_held_out_from_a_model_of_pictures_in_a_row(start, tmp_path):
    run = run_from(start, "finetune.held_out=scenes:shapes:test")
    with pytest.raises(RequestError, match=r"--held-out scenes:shapes:test asks for single pict"):
        fine_tuned(run, tmp_path / "run", start)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_no_other_library_has_such_a_model(start, tmp_path, layout):
    bundle = paired(start, run_from(start))
    with pytest.raises(RequestError) as caught:
        convert(bundle, tmp_path / "theirs", layout)
    assert str(caught.value) == (
        f"the model reads pictures in a row (pair 'located'), and {layout} has no such model. "
        "Use --to diptych."
    )
    assert not (tmp_path / "theirs").exists()
    assert convert(bundle, tmp_path / "ours", "diptych") == ()
    assert load_bundle(tmp_path / "ours").model.config == bundle.model.config


def test_how_much_yes_or_no_counts_is_the_runs_own_setting(start):
    run = run_from(start, "model.changed_weight=0.25")
    require_inherited(run, paired(start, run))
    assert run.model.changed_weight == 0.25
    trained = paired(start, run)
    assert run_from(trained, "model.changed_weight=2").model.changed_weight == 2
