"""An RGB picture to the square of numbers a model sees, and those numbers to a tensor.

`evaluation_transform` ends in uint8; `normalise` makes floats of a whole batch, on the device of
the model. Together they give an upright RGB picture the same float32 bits as open_clip (torchvision
on Pillow images) and as transformers' image processors with the Pillow backend.

Three things differ on purpose. `pictures.py`, which makes the RGB picture, turns it upright as its
EXIF tag says and shows white through transparent parts; the two libraries ignore the tag, and show
whatever colour the transparent parts hide. Strips that would resize to more than
`MOST_RESIZED_PIXELS` are resized only where the crop will be. And open_clip resizes pictures of
other modes (palette, grey with 16 bits) before they become RGB.

`augment.py` is what training does instead.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from diptych.config import Config
from diptych.errors import ConfigError, DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
WHITE = (255, 255, 255)

MOST_RESIZED_PIXELS = 2**25
"""Pictures that would resize to more than this (134 MB; at 224 pixels, strips over 668 times as
long as wide) are resized only where the crop will be. Pillow knows that place to 24 bits only and
may take height and width in the other order, which moves sharp edges by a few levels."""


class ImageTransformConfig(Config):
    """How a picture becomes the input of a model; part of the model's contract."""

    image_size: int = 224
    """Side of the square input, in pixels."""

    resize: Literal["shortest", "squash", "pad"] = "shortest"
    """What happens to pictures that are not square. `shortest`: the shorter side fits, and the
    ends of the longer one are cut off (CLIP). `squash`: both sides fit, and proportions change
    (SigLIP). `pad`: the longer side fits, and `fill` is beside it."""

    fill: int = Field(default=255, ge=0, le=255)
    """Grey of what `pad` leaves free: 255 is white; open_clip has 0, black, unless told."""

    crop: Literal["round", "floor"] = "round"
    """Where `shortest` cuts when the margin is odd: `round` takes half of it, rounded half to even
    (torchvision, open_clip), `floor` half of it, rounded down (transformers)."""

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
        square = _resize_and_pad(picture, config)
    else:
        square = _resize_and_crop(picture, config)
    return np.array(square)


def _resize_and_crop(picture: Image.Image, config: ImageTransformConfig) -> Image.Image:
    """Fit the shorter side, keep the middle of the longer."""
    size, resampling = config.image_size, RESAMPLING[config.interpolation]
    short = min(picture.size)
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    left, top = (_margin(side - size, config.crop) for side in (width, height))
    if width * height > MOST_RESIZED_PIXELS:
        # Without the strip around the crop, which could fill the memory.
        across, down = picture.width / width, picture.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return picture.resize((size, size), resampling, box=box)
    return picture.resize((width, height), resampling).crop((left, top, left + size, top + size))


def _margin(left_over: int, crop: Literal["round", "floor"]) -> int:
    """How much of `left_over` pixels stands before the crop."""
    return left_over // 2 if crop == "floor" else round(left_over / 2)


def _resize_and_pad(picture: Image.Image, config: ImageTransformConfig) -> Image.Image:
    """Fit the longer side and centre the picture on a plain ground."""
    size, resampling = config.image_size, RESAMPLING[config.interpolation]
    ratio = max(picture.size) / size
    width, height = (max(1, round(side / ratio)) for side in picture.size)
    square = Image.new("RGB", (size, size), (config.fill,) * 3)
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

    Three roundings to float32 in this order, as in the libraries: the bits are theirs.

    Args:
        image: RGB, 0 to 255.
        mean: Of red, green and blue, in [0, 1].
        std: Of red, green and blue, in (0, 1].
        dtype: Of the result; the arithmetic is float32 whatever it is.
    """
    # As tensors on the device: by a number of Python, CUDA multiplies with its inverse instead.
    white, centre, spread = (
        torch.tensor(values, dtype=torch.float32, device=image.device).view(-1, 1, 1)
        for values in ((255,), mean, std)
    )
    pixels = image.permute(0, 3, 1, 2).contiguous().float()  # bytes are the cheapest to reorder
    return pixels.div_(white).sub_(centre).div_(spread).to(dtype)


def require_rgb(picture: Image.Image) -> None:
    """Refuse pictures that have not gone through `to_rgb`."""
    if picture.mode != "RGB":
        raise DataError(f"the picture has mode {picture.mode}, not RGB. Give it to to_rgb first.")
