"""Pictures become the same float32 bits as in open_clip and in transformers' Pillow processors."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ImageTransformConfig,
    evaluation_transform,
    normalise,
)

pytestmark = pytest.mark.peers

COLOURS = {
    "clip": (CLIP_MEAN, CLIP_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
FIXED = [
    *((1, 1), (1, 2), (2, 1), (3, 5), (1, 600), (600, 1), (2, 699), (701, 3), (224, 224)),
    *((223, 225), (225, 223), (256, 17), (17, 256), (640, 480), (333, 500), (97, 653)),
]
DRAWN = [tuple(map(int, size)) for size in np.random.default_rng(4).integers(1, 700, (8, 2))]
SIZES = [*FIXED, *DRAWN]
WAYS = [(224, "bicubic", "clip"), (224, "bilinear", "half"), (45, "bilinear", "imagenet")]
"""Side of the square, filter, colours."""


@cache
def photo(width, height):
    """Smooth colours with noise and hard edges, so that both filters have something to do."""
    draw = np.random.default_rng(width * 1000 + height)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(across / draw.uniform(2, 40)) + np.cos(down / draw.uniform(2, 40))]
    values = 60 * np.dstack(waves * 3) + draw.integers(0, 256, 3) + draw.normal(0, 25, (1, 1, 3))
    values[draw.random((height, width)) < 0.1] = draw.integers(0, 256, 3)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def ours(picture, config):
    pixels = torch.from_numpy(evaluation_transform(picture, config))[None]
    return normalise(pixels, config.mean, config.std)[0]


def same_bits(found, expected):
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("colour", COLOURS)
def test_normalise_has_the_bits_of_both_libraries_for_every_pixel_value(colour):
    from open_clip import transform
    from transformers.image_transforms import normalize as numpy_normalize
    from transformers.image_transforms import rescale

    mean, std = COLOURS[colour]
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)[:, :, None].repeat(3, axis=2)
    found = normalise(torch.from_numpy(pixels)[None], mean, std)[0]
    same_bits(found, transform.Normalize(mean, std)(transform.F.to_tensor(pixels)))
    theirs = numpy_normalize(rescale(pixels.transpose(2, 0, 1), 1 / 255), mean, std)
    same_bits(found, torch.from_numpy(theirs))


@pytest.mark.parametrize(("side", "interpolation", "colour"), WAYS)
@pytest.mark.parametrize("resize", ["shortest", "squash", "pad"])
def test_pixels_are_those_of_open_clip_bit_for_bit(resize, side, interpolation, colour):
    from open_clip.transform import image_transform

    mean, std = COLOURS[colour]
    # open_clip pads with black unless told otherwise; Diptych pads with white
    mode = {"pad": {"resize_mode": "longest", "fill_color": 255}}
    options = mode.get(resize, {"resize_mode": resize})
    theirs = image_transform(
        side, is_train=False, mean=mean, std=std, interpolation=interpolation, **options
    )
    config = ImageTransformConfig(
        image_size=side, resize=resize, interpolation=interpolation, mean=mean, std=std
    )
    for size in SIZES:
        # open_clip rounds the shorter side of long strips to 0 pixels there, and fails
        if resize == "pad" and round(min(size) * side / max(size)) == 0:
            continue
        picture = photo(*size)
        same_bits(ours(picture, config), theirs(picture))


@pytest.mark.parametrize(("side", "interpolation", "colour"), WAYS)
@pytest.mark.parametrize("name", ["CLIPImageProcessorPil", "SiglipImageProcessorPil"])
def test_pixels_are_those_of_transformers_bit_for_bit(name, side, interpolation, colour):
    """SigLIP 2 of fixed resolution uses SigLIP's processor with the bilinear filter."""
    import transformers

    mean, std = COLOURS[colour]
    squash = name.startswith("Siglip")
    square = {"height": side, "width": side}
    theirs = getattr(transformers, name)(
        size=square if squash else {"shortest_edge": side},
        resample={"bicubic": 3, "bilinear": 2}[interpolation],
        image_mean=list(mean),
        image_std=list(std),
        **({} if squash else {"crop_size": square}),
    )
    config = ImageTransformConfig(
        image_size=side,
        resize="squash" if squash else "shortest",
        crop="floor",
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    for size in SIZES:
        picture = photo(*size)
        same_bits(ours(picture, config), theirs(picture, return_tensors="pt")["pixel_values"][0])


def test_the_two_ways_to_cut_differ_where_half_the_margin_is_no_whole_number():
    """Otherwise the tests above would pass with either."""
    found = [
        ours(photo(70, 47), ImageTransformConfig(image_size=47, crop=crop))
        for crop in ("round", "floor")
    ]
    assert not torch.equal(*found)
