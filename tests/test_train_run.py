"""What a run may say, and what may change when it is resumed."""

import pytest
from small import small_run

from diptych.errors import ConfigError
from diptych.recipes import RECIPES, find_recipe
from diptych.train.run import Run, resumed


def test_a_run_without_length_is_refused():
    with pytest.raises(ConfigError, match="a run has one length and none is given"):
        small_run("steps=null")


def test_a_run_with_two_lengths_is_refused():
    with pytest.raises(ConfigError, match="one length and steps and minutes is given"):
        small_run("minutes=2")


@pytest.mark.parametrize(
    ("lengths", "field"), [((5, None, None), "steps"), ((None, 2.5, None), "epochs")]
)
def test_a_new_length_replaces_the_old_one(lengths, field):
    run = small_run().with_length(*lengths)
    assert {name for name in ("steps", "epochs", "minutes") if getattr(run, name)} == {field}


def test_no_new_length_leaves_the_run_as_it_is():
    run = small_run()
    assert run.with_length(None, None, None) is run


def test_two_new_lengths_are_refused():
    with pytest.raises(ConfigError, match="Give exactly one of --steps, --epochs and --minutes"):
        small_run().with_length(5, None, 1.0)


def test_sizes_of_model_and_preprocessing_must_agree():
    with pytest.raises(ConfigError, match=r"image_size is 64 and .* 32\. Set both to 64"):
        small_run("model.image.image_size=64")


TOWER = '{"kind":"vit","image_size":64,"patch_size":8,"width":32,"layers":1,"heads":2}'


def test_a_tower_that_is_replaced_brings_the_size_of_pictures():
    run = small_run(f"model.image={TOWER}")
    assert (run.model.image.image_size, run.data.transform.image_size) == (64, 64)
    assert run.data.transform.mean == small_run().data.transform.mean
    with pytest.raises(
        ConfigError, match=r"image_size is 64 and .* 48\. Set both to 64: --set mod"
    ):
        small_run(f"model.image={TOWER}", "data.transform.image_size=48")
    with pytest.raises(ConfigError, match=r"model\.image\.wdth"):
        small_run('model.image={"kind":"vit","wdth":64}')


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_is_read_back_from_its_file_as_it_was_written(name, tmp_path):
    run = find_recipe(name)
    path = tmp_path / "run.json"
    path.write_text(run.model_dump_json(indent=2))
    assert Run.read(path) == run


@pytest.mark.parametrize(
    "setting",
    [
        *("steps=99", "log_every=7", "save.every_steps=3", "save.keep_last=9"),
        *("data.workers=5", "data.prefetch=9"),
    ],
)
def test_what_decides_no_number_may_change(setting):
    resumed(small_run(), small_run(setting))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=3", "has seed=0, not 3"),
        ("batch=16", "has batch=8, not 16"),
        ("optimizer.lr=0.5", "has optimizer.lr=0.001, not 0.5"),
        ("model.image.width=64", "has model.image.width=32, not 64"),
        ("precision=bf16", "has precision='fp32', not 'bf16'"),
        ("data.augment.flip=0.5", "has data.augment.flip=0.0, not 0.5"),
        (
            "chunk=4",
            "has chunk=None, not 4. A resumed run repeats every bit, and another chunk rounds "
            "otherwise. Give the same settings, or another --out",
        ),
        (
            "tile=4",
            "has tile=None, not 4. A resumed run repeats every bit, and another tile rounds",
        ),
        ("ema=0.9", "has ema=None, not 0.9"),
        ("data.val=null", "has data.val='scenes:shapes:test', not None"),
    ],
)
def test_what_decides_the_numbers_may_not_change_and_is_named(setting, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        resumed(small_run(), small_run(setting))


def test_another_kind_of_tower_wants_its_settings_with_it():
    with pytest.raises(ConfigError) as caught:
        small_run("model.image.kind=resnet")
    assert str(caught.value) == (
        "model.image has other settings when its kind is 'resnet', and those of the old kind do "
        'not fit. Replace it whole (--set \'model.image={"kind":"resnet"}\', with what else '
        "differs from the defaults beside the kind), or begin with a recipe of that kind."
    )


def test_a_whole_tower_is_replaced_as_the_error_says():
    tower = small_run('model.image={"kind":"resnet","image_size":32,"width":16}').model.image
    assert (tower.kind, tower.width) == ("resnet", 16)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.image.kind=zebra", r"'model\.image\.kind' is 'zebra': known are 'vit', 'resnet'"),
        ("model.image.kind=vit", r"'model\.image\.width' is -3"),
    ],
)
def test_what_is_wrong_otherwise_is_said_as_ever(setting, words):
    with pytest.raises(ConfigError, match=words):
        small_run(setting, "model.image.width=-3")


def test_the_length_may_change_its_kind():
    resumed(small_run(), small_run().with_length(None, None, 3.0))
