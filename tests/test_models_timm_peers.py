"""Models of timm as image towers: built, trained, saved, resumed, and frozen."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from small import picture_of, random_model, small_run
from torch import nn

from diptych.checkpoint import load_bundle, save_bundle
from diptych.errors import ConfigError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.timm_tower import TimmTower, TimmTowerConfig
from diptych.predict.model import Model, load
from diptych.recipes import find_recipe
from diptych.train.loop import train

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

SHORT = ("model.image=timm:resnet10t@32", "steps=2", "validate_every=2", "data.val_pairs=8")


def tower_of(**fields):
    torch.manual_seed(0)
    return TimmTower(TimmTowerConfig(**{"name": "resnet10t", "image_size": 32, **fields}))


@pytest.mark.parametrize(("text", "size"), [("timm:resnet18", 224), ("timm:resnet18@64", 64)])
def test_a_text_stands_for_a_tower(text, size):
    for setting in (f"model.image={text}", f'model.image="{text}"'):
        run = find_recipe("clip-tiny").override([setting, f"data.transform.image_size={size}"])
        assert run.model.image == TimmTowerConfig(name=text[5:].split("@")[0], image_size=size)


@pytest.mark.parametrize(
    ("name", "side", "fields"),
    [
        ("resnet10t", 64, {}),
        ("test_vit", 96, {"pool": "avg"}),
        ("test_vit", 160, {"classifier": 24}),
        ("test_convnext", 64, {"hidden": 40}),
        ("test_efficientnet", 64, {}),
        ("mobilenetv3_small_050", 64, {}),
    ],
)
def test_the_vector_has_the_width_that_the_config_says(name, side, fields):
    tower = tower_of(name=name, image_size=side, **fields).eval()
    vector = tower(torch.rand(2, 3, side, side))
    assert vector.shape == (2, tower.config.vector_width)
    norms = [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    assert tower.config.batch_norm == bool(norms)


def test_a_run_trains_it_and_its_tensors_keep_the_names_of_timm(tmp_path):
    import timm

    run = small_run(*SHORT)
    train(run, tmp_path)
    tensors = load_file(tmp_path / "checkpoints" / "last" / "model.safetensors")
    expected = {f"image.trunk.{name}" for name in timm.create_model("resnet10t").state_dict()}
    found = {name for name in tensors if name.startswith("image.")}
    assert found == {name for name in expected if ".fc." not in name}
    assert tensors["image.trunk.bn1.num_batches_tracked"] == 2
    model = load(tmp_path, device="cpu")
    pictures = [picture_of(number) for number in range(3)]
    together, alone = model.encode_image(pictures), model.encode_image(pictures[:1])
    torch.testing.assert_close(torch.tensor(together[:1]), torch.tensor(alone), rtol=0, atol=1e-5)


def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path):
    run = small_run(*SHORT, "save.every_steps=1", "save.keep_last=9")
    train(run, tmp_path / "whole")
    train(run, tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("step-00000001")
    train(run, tmp_path / "stopped", resume=True)
    first, second = (
        load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("whole", "stopped")
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_every_weight_learns_and_a_frozen_tower_keeps_weights_and_statistics():
    for frozen in (False, True):
        tower = tower_of(frozen=frozen).train()
        before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
        tower(torch.rand(3, 3, 32, 32))
        assert tower.training != frozen
        assert all(weight.requires_grad != frozen for weight in tower.parameters())
        changed = {n for n, tensor in tower.state_dict().items() if not tensor.equal(before[n])}
        assert bool(changed) != frozen


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224@56", "swin_tiny_patch4_window7_224@64"])
def test_what_timm_keeps_outside_of_the_tensors_is_there_after_loading(name, tmp_path):
    size = name.partition("@")[2]
    model = random_model(tmp_path, f"model.image=timm:{name}", f"data.transform.image_size={size}")
    state = torch.get_rng_state()
    folder = tmp_path / "saved"
    folder.mkdir()
    bundle = model._bundle
    save_bundle(folder, bundle.model, bundle.tokenizer, bundle.transform)
    again = load_bundle(folder)
    assert torch.equal(torch.get_rng_state(), state)
    pictures = [picture_of(number) for number in range(2)]
    found, expected = Model(again, folder).encode_image(pictures), model.encode_image(pictures)
    assert (found == expected).all()


def test_joined_statistics_keep_the_activations_of_timm():
    torch.manual_seed(0)
    image = TimmTowerConfig(name="test_efficientnet", image_size=64)
    shape = small_run().model
    model = DualEncoder(DualEncoderConfig(**{**shape.model_dump(), "image": image})).eval()
    pictures = torch.rand(2, 3, 64, 64)
    before = model.encode_image(pictures)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model.join_statistics()
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == norms > 0
    torch.testing.assert_close(model.eval().encode_image(pictures), before)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "resnet19"}, r"timm \S+ has no model 'resnet19'. Did you mean 'resnet18'\?"),
        ({"name": "test_vit", "pool": "mean"}, "timm's test_vit does not take pool 'mean'"),
        ({"classifier": 3, "hidden": 3}, "classifier 3 and hidden 3 both follow the pool"),
    ],
)
def test_what_timm_does_not_have_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        tower_of(**fields)


def test_batch_norms_of_timm_refuse_pieces_of_one_pair(tmp_path):
    with pytest.raises(ConfigError, match="batch norm needs two pairs at a time"):
        train(small_run(*SHORT, "batch=4", "chunk=1"), tmp_path)
    assert "timm" in sys.modules
