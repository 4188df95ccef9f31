"""Fine-tuning in the loop: what moves and what does not, checkpoints, and resuming to the bit."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from small import picture_folder, small_run

from diptych.checkpoint import load_bundle
from diptych.data.opening import open_source
from diptych.data.pipeline import OrderConfig, Pipeline
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.nn.lora import adapted_layers, merged
from diptych.recipes import find_recipe
from diptych.train.log import TIMES, Live, read_log
from diptych.train.loop import train
from diptych.train.lora_files import load_adapter
from diptych.train.start import inherit, open_start

RESNET = (
    'model.image={"kind":"resnet","image_size":32,"width":8,"layers":[2,1],"block":"basic",'
    '"stem_pool":false,"pool":"mean"}'
)
LORA = ("finetune.lora.rank=2", "finetune.lora.dropout=0.2", "ema=0.9")
LAYERS = ("finetune.layer_decay=0.5", "finetune.frozen_blocks=1", "chunk=3")
STATISTICS = ("finetune.keep_statistics=false",)


@pytest.fixture
def quiet():
    return Live(io.StringIO())


@pytest.fixture(scope="module")
def olds(tmp_path_factory):
    """Trained models: with two blocks a tower, and a residual network."""
    folder, live = tmp_path_factory.mktemp("old"), Live(io.StringIO())
    deep = ("model.image.layers=2", "model.text.layers=2")
    for name, settings in (("vit", deep), ("resnet", (RESNET,))):
        train(small_run("steps=2", "data.val=null", *settings), folder / name, live=live)
    return folder


@pytest.fixture
def old(olds, tmp_path):
    """A copy of one that a test may remove."""
    return shutil.copytree(olds / "vit", tmp_path / "old", symlinks=True)


def run_from(old, *settings, resume=False, out=None):
    """Six steps of eight pairs, from the model in `old`."""
    run = small_run("data.source=scenes:shapes:test", "data.val=scenes:shapes:val")
    start = open_start(str(old), out or old, resume)
    return inherit(run, str(old), start).override(list(settings))


def state_of(folder):
    return load_file(folder / "checkpoints/last/model.safetensors")


def log_of(folder):
    rows = read_log(folder / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_end(one, other):
    """Every file of the last checkpoint but the clock's, and the log."""
    assert log_of(one) == log_of(other)
    names = {
        path.relative_to(one / "checkpoints/last").as_posix()
        for path in (one / "checkpoints/last").rglob("*.safetensors")
    }
    assert "model.safetensors" in names
    for name in names:
        first, second = (load_file(out / "checkpoints/last" / name) for out in (one, other))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), (name, key)


def stopped_at_the_first_look(model, tokenizer):
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("vit", LAYERS, id="layers"),
        pytest.param("vit", LORA, id="lora and ema"),
        pytest.param(
            *("resnet", (*LORA, "ema=null")), id="lora in convolutions", marks=pytest.mark.slow
        ),
        pytest.param("resnet", (), id="norms held", marks=pytest.mark.slow),
        pytest.param(
            *("resnet", (*STATISTICS, "ema=0.9")), id="norms learn", marks=pytest.mark.slow
        ),
    ],
)
def test_a_stopped_run_ends_as_if_never_stopped_without_its_original(
    olds, tmp_path, quiet, kind, settings
):
    old = shutil.copytree(olds / kind, tmp_path / "old", symlinks=True)
    run = run_from(old, *settings)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(run, whole, live=quiet, evaluators={"look": lambda model, tokenizer: {}})
    look = {"look": stopped_at_the_first_look}
    assert not train(run, cut, live=quiet, evaluators=look).finished
    shutil.rmtree(old)
    again = run_from(old, *settings, resume=True, out=cut)
    assert again == run
    end = train(again, cut, resume=True, live=quiet, evaluators={"look": lambda *_: {}})
    assert end.finished
    assert_same_end(whole, cut)


KILLED = """
import os, signal, sys
from pathlib import Path
from diptych.train.loop import train
from diptych.train.run import Run
run = Run.read(Path(sys.argv[1]))
train(run, Path(sys.argv[2]), evaluators={"k": lambda *_: os.kill(os.getpid(), signal.SIGKILL)})
"""


@pytest.mark.slow  # stopped runs are above, killed ones in test_train_kill.py
def test_a_killed_run_ends_as_if_never_killed(old, tmp_path, quiet):
    """Killed inside its validation after step 3, with a checkpoint of step 2 on the disk."""
    run = run_from(old, *LORA, "save.every_steps=2")
    (tmp_path / "settings.json").write_text(run.model_dump_json())
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(run, whole, live=quiet, evaluators={"k": lambda *_: {}})
    command = [sys.executable, "-c", KILLED, str(tmp_path / "settings.json"), str(cut)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in (cut / "checkpoints").glob("step-*")] == ["step-00000002"]
    shutil.rmtree(old)
    again = run_from(old, *LORA, "save.every_steps=2", resume=True, out=cut)
    train(again, cut, resume=True, live=quiet, evaluators={"k": lambda *_: {}})
    assert_same_end(whole, cut)


def test_the_folder_keeps_the_model_it_began_with(old, tmp_path, quiet):
    train(run_from(old), tmp_path / "out", live=quiet)
    kept, original = load_bundle(tmp_path / "out" / "before"), load_bundle(old / "checkpoints/last")
    assert kept.fingerprint == original.fingerprint
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["finetune"]["model"] == str(old)
    assert settings["finetune"]["fingerprint"] == original.fingerprint
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    last = load_bundle(tmp_path / "out" / "checkpoints" / "last")
    assert last.tokenizer.to_json() == original.tokenizer.to_json()
    assert last.transform == original.transform


def test_a_run_begins_where_its_start_is(old, tmp_path, quiet):
    train(run_from(old, "steps=1", "optimizer.lr=1e-12"), tmp_path / "out", live=quiet)
    after = state_of(tmp_path / "out")
    for name, value in state_of(old).items():
        torch.testing.assert_close(after[name], value, atol=1e-7, rtol=0)


def moved(old, out):
    """How far the number of each tensor that moved most has moved."""
    before = state_of(old)
    return {n: (v - before[n]).abs().max().item() for n, v in state_of(out).items()}


def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(old, tmp_path, quiet):
    train(
        run_from(old, "finetune.frozen_blocks=1", "model.text.frozen=true"),
        tmp_path / "out",
        live=quiet,
    )
    far = moved(old, tmp_path / "out")
    for name, distance in far.items():
        held = name.startswith(("text.", "image.blocks.0.", "image.patches", "image.positions"))
        held = held or name.startswith(("image.class_token", "image.pre_norm"))
        assert (distance == 0) is held, name


def test_the_first_step_of_each_layer_has_its_rate(old, tmp_path, quiet):
    """The first step of Adam is the rate, whatever the gradient (where it is not tiny)."""
    settings = ("steps=1", "finetune.layer_decay=0.1", "optimizer.lr=1e-2", "optimizer.warmup=0")
    settings += ("optimizer.weight_decay=0", "optimizer.epsilon=1e-12", "optimizer.clip_norm=1e9")
    train(run_from(old, *settings), tmp_path / "out", live=quiet)
    far = moved(old, tmp_path / "out")
    rate = 1e-2 * 0.5  # half a cosine, at its middle
    for name, level in {
        "image_projection.weight": 0,
        "text.final_norm.weight": 0,
        "image.blocks.1.mlp.up.weight": 1,
        "text.blocks.0.attention.out.weight": 2,
        "text.tokens.weight": 3,
        "image.patches.project.weight": 3,
    }.items():
        assert far[name] == pytest.approx(rate * 0.1**level, rel=0.02), name


def test_a_checkpoint_with_adapters_is_a_whole_model_and_the_base_is_untouched(
    old, tmp_path, quiet
):
    train(run_from(old, *LORA), tmp_path / "out", live=quiet)
    last = tmp_path / "out" / "checkpoints" / "last"
    whole = load_bundle(last)
    assert not adapted_layers(whole.model)
    adapted = load_bundle(tmp_path / "out" / "before").model
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    load_adapter(adapted, last / "adapter")
    places = adapted_layers(adapted)
    assert len(places) == 2 * 2 * 4  # towers, blocks, layers
    for name, value in merged(adapted).state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    for name, value in before.items():
        assert torch.equal(adapted.state_dict()[name], value), name
        changed = name.removesuffix(".weight") in places
        assert torch.equal(whole.model.state_dict()[name], value) is not changed, name
    change = whole.model.text.blocks[0].mlp.up.weight - before["text.blocks.0.mlp.up.weight"]
    assert torch.linalg.matrix_rank(change.detach(), rtol=1e-4) == 2


def test_adapters_in_training_are_kept_beside_their_average(old, tmp_path, quiet):
    train(run_from(old, *LORA), tmp_path / "out", live=quiet)
    state = load_file(tmp_path / "out/checkpoints/last/trainer.safetensors")
    raw = {name for name in state if "@" not in name}
    assert raw
    assert all(name.endswith((".lora_A", ".lora_B")) for name in raw)
    assert {name.partition("@")[0] for name in state if "@" in name} == raw


@pytest.mark.parametrize("held", [True, False])
def test_running_statistics_stay_where_they_are_held(olds, tmp_path, quiet, held):
    run = run_from(olds / "resnet", f"finetune.keep_statistics={str(held).lower()}")
    train(run, tmp_path / "out", live=quiet)
    far = moved(olds / "resnet", tmp_path / "out")
    statistics = [name for name in far if "running" in name]
    assert statistics
    assert {far[name] == 0 for name in statistics} == {held}
    assert far["image.stem.0.norm.weight"] > 0


def test_pairs_with_one_caption_are_no_negatives_of_each_other(old, tmp_path, quiet):
    """Eight pictures of one product, one caption: nothing is false, so there is nothing to lose."""
    folder = picture_folder(tmp_path / "pictures", 8)
    rows = [f"{number:03}.png,a red shoe" for number in range(8)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    run = run_from(old, f"data.source={folder}", "data.val=null", "steps=3")
    train(run, tmp_path / "out", live=quiet)
    assert [row["loss"] for row in log_of(tmp_path / "out")] == [0, 0, 0]
    bundle = load_bundle(tmp_path / "out" / "before")
    pipeline = Pipeline(
        *(open_source(str(folder)), bundle.tokenizer, bundle.transform, OrderConfig(batch=8)),
        augment=None,
        trims_text=True,
    )
    assert len(set(pipeline[0].groups.tolist())) == 1


def test_a_run_that_changes_a_model_and_names_none_is_refused(tmp_path, quiet):
    with pytest.raises(RequestError, match="finetune changes a trained model and none is given"):
        train(find_recipe("finetune"), tmp_path / "out", live=quiet)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_gone_is_refused_where_no_copy_is_kept(old, tmp_path, quiet):
    run = run_from(old)
    shutil.rmtree(old)
    with pytest.raises(RequestError, match="nothing is there"):
        train(run, tmp_path / "out", live=quiet)


def test_a_run_that_holds_nothing_yet_begins_anew_from_another_model(olds, old, tmp_path, quiet):
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="batch 4096 is larger"):
        train(run_from(old, "batch=4096"), out, live=quiet)
    assert (out / "before").is_dir()
    train(run_from(olds / "resnet"), out, live=quiet)
    kept = load_bundle(out / "before").fingerprint
    assert kept == load_bundle(olds / "resnet/checkpoints/last").fingerprint


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("finetune.layer_decay=0.9", "has finetune.layer_decay=1.0, not 0.9"),
        ("finetune.lora.rank=3", "has finetune.lora.rank=0, not 3"),
    ],
)
def test_what_decides_the_weights_may_not_change_when_a_run_goes_on(
    old, tmp_path, quiet, setting, words
):
    train(run_from(old, "steps=2"), tmp_path / "out", live=quiet)
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        train(run_from(old, setting), tmp_path / "out", resume=True, live=quiet)


def test_what_is_judged_afterwards_may_change_when_a_run_goes_on(old, tmp_path, quiet):
    train(run_from(old, "steps=2"), tmp_path / "out", live=quiet)
    settings = ("steps=3", "finetune.alpha=0.25", "finetune.held_out=scenes:shapes:val")
    result = train(run_from(old, *settings), tmp_path / "out", resume=True, live=quiet)
    assert (result.steps, result.new_steps) == (3, 1)


def test_damaged_adapters_are_named(old, tmp_path, quiet):
    out = tmp_path / "out"
    train(run_from(old, *LORA, "steps=2"), out, live=quiet)
    config = (out / "checkpoints/last").resolve() / "adapter" / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        train(run_from(old, *LORA, "steps=4"), out, resume=True, live=quiet)
