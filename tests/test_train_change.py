"""Runs of pictures in a row: what they log, that they go on exactly, and what they refuse."""

import io
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small import small_run
from small_change import DIFFERENCE, change_run

from diptych.checkpoint import load_any_bundle, load_bundle, load_change_bundle
from diptych.comm import Comm
from diptych.data.opening import open_source
from diptych.data.pair_pipeline import PairPipeline
from diptych.data.pipeline import OrderConfig
from diptych.data.tokenizer import Tokenizer
from diptych.errors import ConfigError, DataError, RequestError
from diptych.recipes.evaluators import change_evaluator, evaluators_of
from diptych.train.log import TIMES, Live, read_log
from diptych.train.loop import train
from diptych.train.session import _objective, _watch
from diptych.train.step import chance_loss

RECIPES = ("change-tiny", "change-caption-tiny")


@pytest.fixture
def quiet():
    return Live(io.StringIO())


def rows_of(folder, kind="step"):
    return [row for row in read_log(folder / "log.jsonl") if row["kind"] == kind]


def assert_same_end(one, other):
    """Same weights, optimizer and log, bit for bit."""
    logs = [read_log(folder / "log.jsonl") for folder in (one, other)]
    for row, other_row in zip(*logs, strict=True):
        assert row.items() - other_row.items() <= {(name, row.get(name)) for name in TIMES}
    for name in ("model.safetensors", "trainer.safetensors"):
        files = [load_file(folder / "checkpoints/last" / name) for folder in (one, other)]
        assert files[0].keys() == files[1].keys()
        for tensor, value in files[0].items():
            assert torch.equal(value, files[1][tensor]), tensor


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_taken_up_at_an_earlier_checkpoint_ends_as_the_first_time(tmp_path, quiet, recipe):
    settings = ("ema=0.9", "chunk=3", "save.every_steps=2", "save.keep_last=9")
    run, whole, again = change_run(*settings, recipe=recipe), tmp_path / "whole", tmp_path / "again"
    train(run, whole, live=quiet)
    shutil.copytree(whole, again, symlinks=True)
    for checkpoint in (again / "checkpoints").glob("step-*"):
        if checkpoint.name > "step-00000002":  # as a kill during step 3 would leave it
            shutil.rmtree(checkpoint)
    result = train(run, again, resume=True, live=quiet)
    assert result.new_steps == 4
    assert_same_end(whole, again)


@pytest.mark.parametrize("recipe", RECIPES)
def test_by_pieces_a_run_learns_what_the_plain_run_learns(tmp_path, quiet, recipe):
    for name, settings in (("plain", ()), ("pieces", ("chunk=3",))):
        run = change_run("data.val=null", "steps=3", *settings, recipe=recipe)
        train(run, tmp_path / name, live=quiet)
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("plain", "pieces")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_validation_loss_is_the_training_objective_of_what_is_kept(tmp_path, quiet, recipe):
    run = change_run("steps=2", "ema=0.5", recipe=recipe)
    result = train(run, tmp_path / "run", live=quiet)
    bundle = load_any_bundle(result.checkpoint)
    source, order = open_source("scenes:changes-few:test"), OrderConfig(batch=8, seed=0)
    rest = {"augment": None, "trims_text": True}
    pipeline = PairPipeline(source, bundle.tokenizer, bundle.transform, order, **rest)
    finished = run.model_copy(update={"model": bundle.model.config})
    objective = _objective(finished, Comm(), torch.device("cpu"))
    with torch.no_grad():
        losses = [objective(bundle.model.eval(), pipeline[number]).item() for number in range(3)]
    assert result.validation_loss == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_the_scale_is_logged_of_models_that_have_one(tmp_path, quiet):
    for recipe in RECIPES:
        train(change_run("steps=1", "data.val=null", recipe=recipe), tmp_path / recipe, live=quiet)
    assert ["scale" in rows_of(tmp_path / recipe)[0] for recipe in RECIPES] == [True, False]


def test_what_a_run_leaves_is_a_model_of_its_kind(tmp_path, quiet):
    for recipe, load in zip(RECIPES, (load_bundle, load_change_bundle), strict=True):
        run = change_run("steps=1", "data.val=null", recipe=recipe)
        bundle = load(train(run, tmp_path / recipe, live=quiet).checkpoint)
        text, tokenizer = bundle.model.config.text, bundle.tokenizer
        assert text.vocabulary == tokenizer.vocabulary
        assert (text.end_token, text.pad_token) == (tokenizer.end_token, tokenizer.pad_token)
        assert getattr(text, "start_token", 1) == tokenizer.encode(["any"])[0][0, 0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_falls(tmp_path, quiet, recipe):
    run = change_run("data.val=null", "steps=24", "optimizer.lr=5e-3", "log_every=4", recipe=recipe)
    train(run, tmp_path / "run", live=quiet)
    losses = [row["loss"] for row in rows_of(tmp_path / "run")]
    assert losses[-1] < losses[0], losses


def test_only_a_loss_that_is_of_telling_pairs_apart_alone_is_compared_with_chance():
    tokenizer = Tokenizer.learn(["nothing has changed."], vocabulary=300, context=12)
    chance = chance_loss("softmax", 8)
    for settings, expected in (
        ((), None),  # the loss of "did anything change?" is in it
        (("model.changed_weight=0",), chance),
        (DIFFERENCE, chance),
        (("model.pair=concatenation",), chance),
    ):
        assert _watch(change_run(*settings), tokenizer).chance == expected, settings
    assert _watch(change_run(recipe="change-caption-tiny"), tokenizer).chance is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_single_pictures_are_refused_by_a_run_of_pictures_in_a_row(tmp_path, quiet, recipe):
    run = change_run("data.source=scenes:shapes:val", "data.val=null", recipe=recipe)
    with pytest.raises(DataError, match=r"has no picture before it.*Use a source of pairs"):
        train(run, tmp_path / "run", live=quiet)
    run = change_run("data.val=scenes:shapes:test", recipe=recipe)
    with pytest.raises(RequestError, match=r"scenes:shapes:test has no pictures before others"):
        evaluators_of(run)


def test_a_run_of_single_pictures_learns_from_the_last_ones(tmp_path, quiet):
    run = small_run("data.source=scenes:changes-few:val", "data.val=null", "steps=2")
    assert train(run, tmp_path / "run", live=quiet).finished


def test_another_way_to_read_pictures_is_another_run(tmp_path, quiet):
    train(change_run("steps=1", "data.val=null"), tmp_path / "run", live=quiet)
    other = change_run("steps=2", "data.val=null", "model.image.state.window=2")
    with pytest.raises(ConfigError, match=r"has model\.image\.state\.window=1, not 2"):
        train(other, tmp_path / "run", resume=True, live=quiet)


@pytest.mark.parametrize("recipe", RECIPES)
def test_changes_are_judged_while_training(tmp_path, quiet, recipe):
    run = change_run("steps=1", recipe=recipe)
    train(run, tmp_path / "run", live=quiet, evaluators=evaluators_of(run))
    row = rows_of(tmp_path / "run", "validation")[0]
    both = {"changed_auc", "place_auc"}
    ways = {f"{way}_recall@{k}" for way in ("text_to_pair", "pair_to_text") for k in (1, 10)}
    expected = both | (ways if recipe == "change-tiny" else {"texts_all_right", "perplexity"})
    assert set(row) == {"kind", "step", "loss", "bad", "time_s"} | expected
    assert all(row[name] >= 0 for name in expected)


def test_changes_without_validation_pairs_are_not_judged():
    run = change_run("data.val=null")
    assert evaluators_of(run) == {}
    with pytest.raises(RequestError, match="changes need pairs to judge on"):
        change_evaluator(run)
