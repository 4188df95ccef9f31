"""Pictures of every size become the square a model wants, as torchvision and open_clip do it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data import transforms
from diptych.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ImageTransformConfig,
    evaluation_transform,
    normalise,
)
from diptych.errors import ConfigError, DataError

SIZES = [(1, 1), (1, 500), (500, 1), (37, 53), (53, 37), (32, 32), (100, 33), (640, 480), (31, 500)]
SQUARE = ImageTransformConfig(image_size=32)


def noise(width, height):
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ramps(width=256, height=256):
    """Red counts columns and green counts rows, so a crop tells where it was taken."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([across, down, 0 * down]).astype(np.uint8))


def resample_oracle(values, size, kernel, support):
    """Antialiased resampling of the rows of `values`, one output row at a time."""
    scale = len(values) / size
    stretch = max(scale, 1.0)
    rows = []
    for i in range(size):
        centre = (i + 0.5) * scale
        reach = [j for j in range(len(values)) if abs(j + 0.5 - centre) < support * stretch]
        weights = np.array([kernel((j + 0.5 - centre) / stretch) for j in reach])
        rows.append(np.tensordot(weights / weights.sum(), values[reach], axes=1))
    return np.clip(np.rint(np.stack(rows)), 0, 255)


def bilinear(x):
    return max(0.0, 1 - abs(x))


def bicubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (20, 90), (90, 20)])
@pytest.mark.parametrize(
    ("name", "kernel", "support"), [("bicubic", bicubic, 2), ("bilinear", bilinear, 1)]
)
def test_squash_is_resampling_by_the_definition(size, name, kernel, support):
    picture = noise(*size)
    config = ImageTransformConfig(image_size=32, resize="squash", interpolation=name)
    values = np.asarray(picture).astype(float)

    def rows(image):
        return resample_oracle(image, 32, kernel, support)

    def columns(image):
        return rows(image.transpose(1, 0, 2)).transpose(1, 0, 2)

    # Pillow takes the cheaper order of the two, and rounds to bytes in between.
    found = evaluation_transform(picture, config).astype(float)
    errors = [np.abs(found - one).max() for one in (rows(columns(values)), columns(rows(values)))]
    assert min(errors) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [32, 33])
def test_shortest_is_resize_then_centre_crop(size, side):
    picture = noise(*size)
    width, height = picture.size
    if width <= height:
        width, height = side, int(side * height / width)
    else:
        width, height = int(side * width / height), side
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    expected = np.zeros((side, side, 3))
    for row in range(side):
        for column in range(side):
            expected[row, column] = resized[top + row, left + column]
    found = evaluation_transform(picture, ImageTransformConfig(image_size=side))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "left", "top"), [((35, 16), 10, 0), ((16, 35), 0, 10)])
def test_half_an_odd_margin_is_rounded_as_the_contract_says(size, left, top):
    """The margin is 19: half of it is 9.5, 10 as torchvision rounds and 9 in transformers."""
    picture = noise(*size)
    for crop, step in (("round", 0), ("floor", 1)):
        config = ImageTransformConfig(image_size=16, crop=crop)
        across, down = left - step * (left > 0), top - step * (top > 0)
        expected = np.asarray(picture)[down : down + 16, across : across + 16]
        np.testing.assert_array_equal(evaluation_transform(picture, config), expected)


@pytest.mark.parametrize("size", [(2, 2000), (2000, 2)])
def test_extreme_strips_are_cut_before_they_are_resized(size, monkeypatch):
    picture = ramps(*size)
    whole = evaluation_transform(picture, SQUARE).astype(float)
    monkeypatch.setattr(transforms, "MOST_RESIZED_PIXELS", 32 * 31_000)
    found = evaluation_transform(picture, SQUARE).astype(float)
    assert np.abs(found - whole).max() <= 1


@pytest.mark.parametrize("size", [*SIZES, (20_000, 2)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
def test_every_picture_becomes_a_square_of_bytes(size, resize):
    image = evaluation_transform(noise(*size), ImageTransformConfig(image_size=32, resize=resize))
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous


def test_a_picture_of_the_right_size_stays_as_it_is():
    picture = noise(32, 32)
    for resize in ("shortest", "squash", "pad"):
        config = ImageTransformConfig(image_size=32, resize=resize)
        np.testing.assert_array_equal(evaluation_transform(picture, config), np.asarray(picture))


def test_pad_shows_the_whole_picture_centred_on_white():
    picture = Image.new("RGB", (64, 32), (10, 20, 30))
    image = evaluation_transform(picture, ImageTransformConfig(image_size=32, resize="pad"))
    assert (image[:8] == 255).all()
    assert (image[8:24] == [10, 20, 30]).all()
    assert (image[24:] == 255).all()


def test_a_picture_that_is_not_rgb_is_refused():
    picture = Image.new("L", (8, 8))
    with pytest.raises(DataError, match=r"mode L, not RGB. Give it to to_rgb first"):
        evaluation_transform(picture, SQUARE)


def test_normalise_is_the_definition_pixel_by_pixel():
    image = torch.randint(0, 256, (2, 3, 5, 3), dtype=torch.uint8)
    found = normalise(image, CLIP_MEAN, CLIP_STD)
    assert found.shape == (2, 3, 3, 5)
    assert found.is_contiguous()
    for n, y, x, c in np.ndindex(2, 3, 5, 3):
        value = (float(image[n, y, x, c]) / 255 - CLIP_MEAN[c]) / CLIP_STD[c]
        assert found[n, c, y, x].item() == pytest.approx(value, abs=1e-6)


def test_normalise_is_the_same_alone_and_in_a_batch_and_in_every_type():
    image = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    whole = normalise(image, CLIP_MEAN, CLIP_STD)
    for i in range(4):
        torch.testing.assert_close(
            normalise(image[i : i + 1], CLIP_MEAN, CLIP_STD)[0], whole[i], atol=0, rtol=0
        )
    half = normalise(image, CLIP_MEAN, CLIP_STD, torch.bfloat16)
    torch.testing.assert_close(half, whole.to(torch.bfloat16), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size is 0. Use at least 1, such as 224"),
        ({"resize": "crop"}, "setting 'resize' is 'crop'"),
        ({"mean": (123.0, 117.0, 104.0)}, "leaves 0 to 1. Divide values of 0..255 by 255"),
        ({"std": (0.0, 0.5, 0.5)}, "leaves .0, 1.. Divide"),
    ],
)
def test_transform_config_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        ImageTransformConfig(**values)


def test_importing_transforms_needs_nothing_outside_the_core():
    code = "import sys, diptych.data.transforms; print('torchvision' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
