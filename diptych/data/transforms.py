"""An RGB picture to the square of numbers a model sees, and those numbers to a tensor.

`evaluation_transform` is fixed: it equals torchvision's Resize and CenterCrop on Pillow images,
which open_clip uses. It ends in uint8; `normalise` makes floats of a whole batch, on the device of
the model.

`augment.py` is what training does instead; `pictures.py` makes the RGB picture.
"""

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


def evaluation_transform(
    picture: Image.Image, config: ImageTransformConfig
) -> UInt8[np.ndarray, "size size 3"]:
    """Bring an RGB picture to the model's size, the same way each time.

    Raises:
        DataError: The picture is not RGB.
    """
    require_rgb(picture)
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


def require_rgb(picture: Image.Image) -> None:
    """Refuse pictures that have not gone through `to_rgb`."""
    if picture.mode != "RGB":
        raise DataError(f"the picture has mode {picture.mode}, not RGB. Give it to to_rgb first.")
