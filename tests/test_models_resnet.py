"""CLIP's residual network equals a forward pass written with loops; its strides skip no pixel."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import caption_of, picture_folder, small_run
from torch import nn
from torch.nn import functional as F

from diptych.checkpoint import load_bundle, save_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import ConfigError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import (
    Basic,
    Bottleneck,
    ResNetTower,
    ResNetTowerConfig,
    convolve_few,
)
from diptych.models.text_tower import TextTowerConfig
from diptych.recipes import find_recipe
from diptych.train.loop import train
from diptych.train.run import Run
from diptych.train.step import has_fast_bf16

EPSILON = 1e-5
SMALL = {"image_size": 16, "width": 4, "layers": (1, 2), "heads": 4}


def pictures(count=3, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(tower):
    """The tower in evaluation, all weights and statistics drawn anew: none is zero or one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in tower.state_dict().items():
            if not value.is_floating_point():
                continue
            draw = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(draw.abs() + 0.5 if name.endswith("running_var") else draw)
    return tower.eval()


def tower_of(**changes):
    torch.manual_seed(0)
    return ResNetTower(ResNetTowerConfig(**(SMALL | changes)))


def convolution_norm(grid, weights, name, stride=1):
    """Convolution with zeros around the grid, one output place at a time, then the batch norm."""
    weight = weights[f"{name}.convolution.weight"]
    outputs, kernel = len(weight), weight.shape[-1]
    edge = kernel // 2
    padded = np.pad(grid, ((0, 0), (edge, edge), (edge, edge)))
    rows, columns = (side // stride for side in grid.shape[1:])
    result = np.zeros((outputs, rows, columns))
    for row, column in np.ndindex(rows, columns):
        top, left = row * stride, column * stride
        seen = padded[:, top : top + kernel, left : left + kernel]
        result[:, row, column] = [(seen * one).sum() for one in weight]
    mean, variance, gain, bias = (
        weights[f"{name}.norm.{end}"][:, None, None]
        for end in ("running_mean", "running_var", "weight", "bias")
    )
    return (result - mean) / np.sqrt(variance + EPSILON) * gain + bias


def average(grid):
    """The mean of each square of two by two."""
    result = np.zeros((len(grid), grid.shape[1] // 2, grid.shape[2] // 2))
    for row, column in np.ndindex(result.shape[1:]):
        square = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        result[:, row, column] = square.mean((1, 2))
    return result


def relu(grid):
    return np.maximum(grid, 0)


def bottleneck(grid, weights, name, stride):
    """One block; the shortcut is a convolution where there are weights for it."""
    branch = relu(convolution_norm(grid, weights, f"{name}.reduce"))
    branch = relu(convolution_norm(branch, weights, f"{name}.mix"))
    shortcut = grid
    if stride == 2:
        branch, shortcut = average(branch), average(grid)
    branch = convolution_norm(branch, weights, f"{name}.expand")
    if f"{name}.match.convolution.weight" in weights:
        shortcut = convolution_norm(shortcut, weights, f"{name}.match")
    return relu(branch + shortcut)


def basic(grid, weights, name, stride):
    """One block of two 3x3 convolutions."""
    grid = average(grid) if stride == 2 else grid
    branch = relu(convolution_norm(grid, weights, f"{name}.first"))
    branch = convolution_norm(branch, weights, f"{name}.second")
    if f"{name}.match.convolution.weight" in weights:
        grid = convolution_norm(grid, weights, f"{name}.match")
    return relu(branch + grid)


def pool_oracle(tokens, weights, heads):
    """The mean asks, itself and the tokens answer; one head at a time."""
    tokens = [np.mean(tokens, axis=0), *tokens]
    tokens = [x + place for x, place in zip(tokens, weights["pool.positions"], strict=True)]

    def linear(x, name):
        return weights[f"pool.{name}.weight"] @ x + weights[f"pool.{name}.bias"]

    query = linear(tokens[0], "query")
    keys, values = zip(*(np.split(linear(x, "key_value"), 2) for x in tokens), strict=True)
    side = len(query) // heads
    result = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * side, (head + 1) * side)
        scores = [np.exp(query[part] @ key[part] / np.sqrt(side)) for key in keys]
        for score, value in zip(scores, values, strict=True):
            result[part] += score / sum(scores) * value[part]
    return result


def oracle(image, weights, config):
    """The whole tower on one picture of shape (3, side, side)."""
    grid = image
    for number in range(3):
        stride = 2 if number == 0 else 1
        grid = relu(convolution_norm(grid, weights, f"stem.{number}", stride))
    if config.stem_pool:
        grid = average(grid)
    for stage, layers in enumerate(config.layers):
        for layer in range(layers):
            stride = 2 if stage > 0 and layer == 0 else 1
            block = bottleneck if config.block == "bottleneck" else basic
            grid = block(grid, weights, f"stages.{stage}.{layer}", stride)
    tokens = list(grid.reshape(len(grid), -1).T)
    if config.pool == "mean":
        return np.mean(tokens, axis=0)
    return pool_oracle(tokens, weights, config.heads)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem_pool": False},
        {"pool": "mean"},
        {"layers": (1,), "heads": 1},
        {"block": "basic"},
        {"block": "basic", "layers": (2, 1, 1), "stem_pool": False, "pool": "mean"},
        {"layers": (1, 1, 2), "width": 2, "stem_pool": False, "heads": 2},
    ],
    ids=str,
)
def test_a_tower_equals_the_explicit_forward_pass(changes):
    tower = drawn(tower_of(**changes).double())
    weights = {name: value.numpy() for name, value in tower.state_dict().items()}
    images = pictures(2).double()
    expected = [oracle(image.numpy(), weights, tower.config) for image in images]
    np.testing.assert_allclose(tower(images).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (3, 5)])
def test_few_places_are_convolved_as_by_torch_in_value_and_gradient(size):
    torch.manual_seed(0)
    grid = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    found, expected = convolve_few(grid, weight), F.conv2d(grid, weight, padding=1)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, (grid, weight), direction),
        torch.autograd.grad(expected, (grid, weight), direction),
    )


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_a_gradient_reaches_every_weight_once_the_branches_are_awake(pool, block):
    tower = drawn(tower_of(pool=pool, block=block)).train()
    (tower(pictures()) ** 2).sum().backward()
    for name, weight in tower.named_parameters():
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def block_of(inputs=8, channels=4, stride=2):
    torch.manual_seed(0)
    return drawn(Bottleneck(inputs, channels, stride).double())


@pytest.mark.parametrize(("kind", "channels"), [(Bottleneck, 2), (Basic, 8)])
def test_a_block_starts_as_its_shortcut(kind, channels):
    torch.manual_seed(0)
    block = kind(8, channels, stride=1).eval()  # as many channels out as in
    grid = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(grid), grid.relu())


def test_a_stride_of_a_basic_block_sees_every_pixel_of_a_square_alike():
    torch.manual_seed(0)
    block = drawn(Basic(8, 16, stride=2).double())
    grid = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(shuffled_in_squares(grid)), block(grid))


def shuffled_in_squares(grid):
    """The pixels of every square of two by two in another order."""
    squares = grid.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (batch, channels, r, 2, c, 2)
    return squares.flip(3).transpose(3, 5).flatten(4).flatten(2, 3)


def test_the_shortcut_of_a_stride_sees_every_pixel_of_a_square_alike():
    block = block_of()
    nn.init.zeros_(block.expand.norm.weight)
    grid = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    assert not torch.equal(shuffled_in_squares(grid), grid)
    torch.testing.assert_close(block(shuffled_in_squares(grid)), block(grid))


def test_the_branch_of_a_stride_skips_no_pixel():
    block = block_of()
    nn.init.zeros_(block.match.norm.weight)
    grid = torch.randn(1, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    before = block.expand(block.average(block.mix(block.reduce(grid).relu()).relu()))
    before[0, :, 1, 1].sum().backward()
    assert (grid.grad[0].abs().sum(0) > 0).sum() == 4 * 4  # the square and a pixel around it


def test_moving_the_input_by_the_stride_moves_the_output_by_one():
    block = block_of()
    grid = torch.randn(1, 8, 16, 16, dtype=torch.float64)
    before = block(grid[:, :, :14, 2:])  # the same pixels, seen from two places
    after = block(grid[:, :, 2:, :14])
    inside = (slice(None), slice(None))
    torch.testing.assert_close(before[*inside, 2:6, 1:5], after[*inside, 1:5, 2:6])
    assert (before[*inside, 1:5, 1:5] - after[*inside, 1:5, 1:5]).abs().max() > 0.1


def test_a_vector_does_not_depend_on_the_rest_of_the_batch():
    tower, images = drawn(tower_of().double()), pictures(5).double()
    together = tower(images)
    for row in range(5):
        torch.testing.assert_close(tower(images[row : row + 1])[0], together[row])


def test_training_moves_the_running_statistics_and_evaluation_does_not():
    tower = tower_of()
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower.eval()(pictures())
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    tower.train()(pictures())
    assert not any(torch.equal(value, before[name]) for name, value in tower.named_buffers())


def test_a_frozen_tower_keeps_its_weights_and_statistics_in_training():
    tower = tower_of(frozen=True)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    assert not tower.training
    vectors = tower(pictures())
    nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert torch.equal(tower(pictures()), vectors)
    assert not vectors.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grids_keep_their_channels_side_by_side_in_memory(dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        grid = tower_of().grid(pictures())
    assert grid.dtype == dtype
    if dtype == torch.bfloat16 and not has_fast_bf16(torch.device("cpu")):
        return  # there the order is that of torch's own way out
    assert grid.is_contiguous(memory_format=torch.channels_last)
    assert not grid.is_contiguous()


@pytest.mark.parametrize("stem_pool", [True, False])
def test_a_small_picture_has_a_tower_of_its_own(stem_pool):
    config = ResNetTowerConfig(
        image_size=64, width=8, layers=(2, 2, 2, 2), heads=8, stem_pool=stem_pool
    )
    tower = ResNetTower(config).eval()
    side = 2 if stem_pool else 4
    assert config.stride == 64 // side
    assert tower.grid(pictures(2, 64)).shape == (2, config.vector_width, side, side)
    assert tower(pictures(2, 64)).shape == (2, 256)


def test_the_tower_starts_as_published():
    torch.manual_seed(0)
    tower = ResNetTower(ResNetTowerConfig(image_size=64, width=16, layers=(1, 1, 2), heads=4))
    wide = tower.config.vector_width
    for weight in (tower.pool.query.weight, tower.pool.key_value.weight, tower.pool.positions):
        assert float(weight.detach().std()) == pytest.approx(wide**-0.5, rel=0.03)
    for name, weight in tower.named_parameters():
        if name.endswith(("expand.norm.weight", "bias")):
            assert not weight.any(), name
        elif name.endswith("norm.weight"):
            assert (weight == 1).all(), name


RESNET = {"kind": "resnet", "image_size": 32, "width": 4, "layers": [1, 1, 1], "heads": 2}
AS_SETTING = f"model.image={json.dumps(RESNET)}"


def encoder_config(image=RESNET, **changes):
    text = TextTowerConfig(
        vocabulary=300, context=12, width=16, layers=1, heads=2, end_token=2, pad_token=0
    )
    return DualEncoderConfig(image=image, text=text, embed=8, **changes)


def test_the_kind_decides_which_tower_is_built():
    resnet = DualEncoder(encoder_config(image_projection_bias=True))
    assert isinstance(resnet.image, ResNetTower)
    assert tuple(resnet.image_projection.weight.shape) == (8, 64)
    assert resnet.image_projection.bias.shape == (8,)
    assert not resnet.image_projection.bias.any()
    spread = float(resnet.image_projection.weight.detach().std())
    assert spread == pytest.approx(64**-0.5, rel=0.1)


def test_a_config_without_kind_is_a_vision_transformer_as_before():
    run = find_recipe("clip-tiny")
    written = run.model_dump(mode="json")
    assert written["model"]["image"].pop("kind") == "vit"
    assert Run(**written) == run
    assert isinstance(Run(**written).model.image, ImageTowerConfig)


def test_a_run_with_a_resnet_is_read_back_as_it_was_written(tmp_path):
    run = find_recipe("clip-tiny").override([AS_SETTING, "model.image.layers=[1,2]"])
    assert run.model.image == ResNetTowerConfig(**(RESNET | {"layers": (1, 2)}))
    (tmp_path / "run.json").write_text(run.model_dump_json())
    assert Run.read(tmp_path / "run.json") == run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 33}, "image_size 33 is not a multiple of the tower's stride 16. Use image"),
        ({"image_size": 8}, "stride 16. Use image_size 16."),
        ({"width": 5}, "width 5 is not a multiple of the stem's 2. Use width 4 or 6."),
        ({"heads": 7}, "heads 7 do not divide the 64 numbers of the vector. Use heads 64."),
        ({"layers": []}, "setting 'image.layers' is []"),
        ({"layers": [1, 0]}, "setting 'image.layers.1' is 0: Input should be greater than or eq"),
        ({"stempool": True}, "no setting 'image.stempool'. Did you mean 'stem_pool'?"),
        ({"keep_patches": 0.5}, "no setting 'image.keep_patches'. Known: block, frozen, heads, i"),
        (
            {"kind": "rsnet"},
            "setting 'image.kind' is 'rsnet': known are 'vit', 'resnet', 'timm'. Give one",
        ),
        ({"pool": "class"}, "setting 'image.pool' is 'class': Input should be 'attention' or"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused_by_text(changes, words):
    with pytest.raises(ConfigError) as caught:
        encoder_config(RESNET | changes)
    assert words in str(caught.value)


def test_wrong_settings_of_a_run_are_named_as_the_user_wrote_them():
    run = find_recipe("clip-tiny").override([AS_SETTING])
    for setting, words in (
        ("model.image.widht=3", "no setting 'model.image.widht'. Did you mean 'width'?"),
        ("model.image.frozen=7", "setting 'model.image.frozen' is 7"),
        ("model.image=3", "setting 'model.image' is 3"),
    ):
        with pytest.raises(ConfigError) as caught:
            run.override([setting])
        assert words in str(caught.value)


def test_a_resnet_whose_vector_does_not_fit_needs_a_projection():
    with pytest.raises(ConfigError, match=r"vector of 64 numbers must have embed 8\. Use embed=64"):
        encoder_config(image_projection=False)


def test_a_bias_without_projection_is_refused():
    image = {"image_size": 8, "patch_size": 4, "width": 8, "heads": 2}
    with pytest.raises(ConfigError, match=r"there is no image_projection\. Use image_proj"):
        encoder_config(image, image_projection=False, image_projection_bias=True)


def test_a_saved_model_keeps_its_running_statistics_to_the_bit(tmp_path):
    torch.manual_seed(0)
    model = DualEncoder(encoder_config(image_projection_bias=True))
    model.train()(pictures(4, 32), torch.ones(4, 12, dtype=torch.int64))
    tokenizer = Tokenizer.learn(map(caption_of, range(9)), vocabulary=300, context=12)
    save_bundle(tmp_path, model, tokenizer, ImageTransformConfig(image_size=32))
    loaded = load_bundle(tmp_path).model
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype, name
        assert torch.equal(theirs[name], value), name
    counted = theirs["image.stem.0.norm.num_batches_tracked"]
    assert (counted.dtype, int(counted)) == (torch.int64, 1)
    images = pictures(2, 32)
    assert torch.equal(model.eval().encode_image(images), loaded.eval().encode_image(images))
    assert loaded.double().image.stem[0].norm.num_batches_tracked.dtype == torch.int64


def test_a_run_resumes_exactly_with_its_running_statistics(tmp_path):
    source = picture_folder(tmp_path / "pictures", 24)
    settings = ("steps=3", "save.every_steps=1", "data.val=null", f"data.source={source}")
    run = small_run(AS_SETTING, "model.image_projection_bias=true", *settings)
    train(run, tmp_path / "whole")
    train(run, tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    for name in ("step-00000003", "last"):
        (checkpoints / name).rename(tmp_path / f"away-{name}")
    assert train(run, tmp_path / "stopped", resume=True).new_steps == 1
    for file in ("model.safetensors", "trainer.safetensors"):
        ours, theirs = (
            load_file(tmp_path / folder / "checkpoints/step-00000003" / file)
            for folder in ("whole", "stopped")
        )
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
        if file == "model.safetensors":
            assert int(ours["image.stages.2.0.mix.norm.num_batches_tracked"]) == 3


def test_joining_the_statistics_of_processes_changes_neither_names_nor_vectors():
    tower = drawn(tower_of())
    names, vectors = list(tower.state_dict()), tower(pictures())
    weights = list(map(id, tower.parameters()))
    joined = nn.SyncBatchNorm.convert_sync_batchnorm(tower)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in joined.modules()) == 14
    assert list(joined.state_dict()) == names
    assert list(map(id, joined.parameters())) == weights
    assert torch.equal(joined(pictures()), vectors)
