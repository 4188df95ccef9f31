"""An RGB picture to the square of numbers a model sees, and those numbers to a tensor.

`evaluation_transform` is fixed: it equals torchvision's Resize and CenterCrop on Pillow images,
which open_clip uses. `training_transform` draws a random crop from the generator it is given.
Both end in uint8; `normalise` makes floats of a whole batch, on the device of the model.

`pictures.py` makes the RGB picture.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from diptych.config import Config
from diptych.errors import ConfigError, DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
WHITE = (255, 255, 255)

LONGEST_STRIP = 100
"""Pictures longer than this many squares are resized only where the crop will be. Pillow may
then resample height and width in the other order, which moves sharp edges by a few levels."""

CROP_TRIES = 10
"""As in torchvision's RandomResizedCrop."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weight of red, green and blue in grey (ITU-R BT.601, as in Pillow's mode L)."""


class ImageTransformConfig(Config):
    """How a picture becomes the input of a model; part of the model's contract."""

    image_size: int = 224
    """Side of the square input, in pixels."""

    resize: Literal["shortest", "squash", "pad"] = "shortest"
    """What happens to pictures that are not square. `shortest`: the shorter side fits, and the
    ends of the longer one are cut off (CLIP). `squash`: both sides fit, and proportions change
    (SigLIP). `pad`: the longer side fits, and white fills the rest."""

    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Resampling filter, with antialiasing."""

    mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from red, green and blue in [0, 1]. OpenAI's CLIP; SigLIP uses 0.5 thrice."""

    std: tuple[float, float, float] = CLIP_STD
    """Divides what is left. OpenAI's CLIP; SigLIP uses 0.5 thrice."""

    @model_validator(mode="after")
    def check(self) -> "ImageTransformConfig":
        """Refuse sizes and colours that no picture has."""
        if self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}. Use at least 1, such as 224.")
        if not all(0 <= value <= 1 for value in self.mean):
            raise ConfigError(f"mean {self.mean} leaves 0 to 1. Divide values of 0..255 by 255.")
        if not all(0 < value <= 1 for value in self.std):
            raise ConfigError(f"std {self.std} leaves (0, 1]. Divide values of 0..255 by 255.")
        return self


class AugmentConfig(Config):
    """What training changes in a picture, at random."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the area that a crop keeps, in (0, 1]. open_clip's default;
    small crops lose what the caption speaks of."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop before it becomes square."""

    flip: float = 0.0
    """Probability of mirroring left and right. Off, because captions say left and right and
    pictures contain writing."""

    color: float = 0.0
    """Strength of random brightness, contrast and saturation, in [0, 1): each is multiplied by
    a factor from 1 - color to 1 + color."""

    @model_validator(mode="after")
    def check(self) -> "AugmentConfig":
        """Refuse shares, ratios and probabilities out of range."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"crop_scale {self.crop_scale} is no range within (0, 1]. Use (0.9, 1.0)."
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ConfigError(
                f"crop_ratio {self.crop_ratio} is no range above 0. Use (0.75, 1.3333)."
            )
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip {self.flip} is no probability. Use 0 or 0.5.")
        if not 0 <= self.color < 1:
            raise ConfigError(f"color {self.color} is not in [0, 1). Use 0 or 0.4.")
        return self


def evaluation_transform(
    picture: Image.Image, config: ImageTransformConfig
) -> UInt8[np.ndarray, "size size 3"]:
    """Bring an RGB picture to the model's size, the same way each time.

    Raises:
        DataError: The picture is not RGB.
    """
    _require_rgb(picture)
    size, resampling = config.image_size, RESAMPLING[config.interpolation]
    if config.resize == "squash":
        square = picture.resize((size, size), resampling)
    elif config.resize == "pad":
        square = _resize_and_pad(picture, size, resampling)
    else:
        square = _resize_and_crop(picture, size, resampling)
    return np.array(square)


def _resize_and_crop(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Fit the shorter side, keep the middle of the longer; both round as torchvision does."""
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    if max(width, height) > LONGEST_STRIP * size:
        # Without the strip around the crop, which could fill the memory.
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return picture.resize((size, size), resampling, box=box)
    return picture.resize((width, height), resampling).crop((left, top, left + size, top + size))


def _resize_and_pad(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Fit the longer side and centre the picture on white."""
    longest = max(picture.size)
    width, height = (max(1, round(size * side / longest)) for side in picture.size)
    square = Image.new("RGB", (size, size), WHITE)
    resized = picture.resize((width, height), resampling)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def training_transform(
    picture: Image.Image,
    config: ImageTransformConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "size size 3"]:
    """Bring a random crop of an RGB picture to the model's size.

    The crop is stretched to the square whatever `config.resize` says. The result depends on
    the arguments and the state of `rng` alone.

    Raises:
        DataError: The picture is not RGB.
    """
    _require_rgb(picture)
    left, top, width, height = _random_crop(picture.size, augment, rng)
    square = picture.resize(
        (config.image_size, config.image_size),
        RESAMPLING[config.interpolation],
        box=(left, top, left + width, top + height),
    )
    image = np.array(square)
    if augment.flip and rng.random() < augment.flip:
        image = np.ascontiguousarray(image[:, ::-1])
    if augment.color:
        image = _jitter_color(image, augment.color, rng)
    return image


def _random_crop(
    size: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop, as torchvision's RandomResizedCrop draws it.

    Where ten draws do not fit the picture, the largest centred crop within the ratios is taken.
    """
    width, height = size
    low, high = augment.crop_ratio
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*augment.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width + 1))
            top = int(rng.integers(0, height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, round(height * high)))
    crop_height = min(height, max(1, round(width / low)))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _jitter_color(
    image: UInt8[np.ndarray, "size size 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Change brightness, contrast and saturation by random factors, in this order."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    values = np.clip(image.astype(np.float32) * np.float32(brightness), 0, 255)
    middle = (values @ LUMA).mean()
    values = np.clip((values - middle) * np.float32(contrast) + middle, 0, 255)
    grey = (values @ LUMA)[..., None]  # (size, size, 1)
    values = np.clip((values - grey) * np.float32(saturation) + grey, 0, 255)
    return np.rint(values).astype(np.uint8)


def normalise(
    image: UInt8[Tensor, "batch height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch 3 height width"]:
    """Make floats of pixels, on the device where the pixels are: (pixel / 255 - mean) / std.

    Args:
        image: RGB, 0 to 255.
        mean: Of red, green and blue, in [0, 1].
        std: Of red, green and blue, in (0, 1].
        dtype: Of the result; the arithmetic is float32 whatever it is.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=image.device)
    shift = torch.tensor(
        [-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=image.device
    )
    pixels = image.permute(0, 3, 1, 2).contiguous().float()  # bytes are the cheapest to reorder
    return pixels.mul_(scale[:, None, None]).add_(shift[:, None, None]).to(dtype)


def _require_rgb(picture: Image.Image) -> None:
    """Refuse pictures that have not gone through `to_rgb`."""
    if picture.mode != "RGB":
        raise DataError(f"the picture has mode {picture.mode}, not RGB. Give it to to_rgb first.")
