"""What training changes in a picture, at random, on its way to the model's size.

A crop, a mirror, a small turn, other colours: each is off or mild by default and drawn from the
generator that is given, so a picture's changes belong to its place in the run. The result is
uint8, as that of `evaluation_transform` (`transforms.py`).
"""

import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field, model_validator

from diptych.config import Config
from diptych.data.transforms import (
    RESAMPLING,
    WHITE,
    ImageTransformConfig,
    evaluation_transform,
    require_rgb,
)
from diptych.errors import ConfigError

CROP_TRIES = 10
"""As in torchvision's RandomResizedCrop."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weight of red, green and blue in grey (ITU-R BT.601, as in Pillow's mode L)."""

TO_YIQ = np.array(
    [LUMA, [0.59590059, -0.27455667, -0.32134392], [0.21153661, -0.52273617, 0.31119955]],
    dtype=np.float32,
)
"""RGB to grey and two axes of colour (NTSC); hue is the angle between the two."""


class AugmentConfig(Config):
    """What training changes in a picture, at random."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the area that a crop keeps, in (0, 1]. open_clip's default;
    small crops lose what the caption speaks of. (1, 1), with `crop_ratio` (1, 1), is no crop: the
    picture comes whole, or its centred square, as `resize` of the transform says."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop before it becomes square."""

    flip: float = 0.0
    """Probability of mirroring left and right. Off, because captions say left and right and
    pictures contain writing."""

    quarter_turns: bool = False
    """Turn by 0, 90, 180 or 270 degrees, each as often: for pictures from above (boards, land,
    tissue), which have no up and down."""

    turn: float = Field(default=0.0, ge=0, le=180)
    """Largest angle, in degrees, by which a picture is turned either way; white fills the
    corners."""

    zoom: float = Field(default=1.0, ge=1)
    """Largest factor by which a picture is made larger or smaller; white fills the margin."""

    shear: float = Field(default=0.0, ge=0, lt=1)
    """Largest sideways shift of a row, as a share of its distance from the middle."""

    shift: float = Field(default=0.0, ge=0, le=0.5)
    """Largest move either way, across and down, as a share of the side."""

    color: float = 0.0
    """Strength of random brightness, contrast and saturation, in [0, 1): each is multiplied by
    a factor from 1 - color to 1 + color."""

    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Largest turn of the hue either way, as a share of the colour circle; 0.5 is any hue."""

    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of losing all colour."""

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

    @property
    def crops(self) -> bool:
        """Whether crops are drawn at random."""
        return (self.crop_scale, self.crop_ratio) != ((1, 1), (1, 1))

    @property
    def moves(self) -> bool:
        """Whether pictures are turned, zoomed, sheared or shifted."""
        return bool(self.turn or self.zoom > 1 or self.shear or self.shift)

    @property
    def recolours(self) -> bool:
        """Whether colours are changed."""
        return bool(self.color or self.hue or self.grey)


def training_transform(
    picture: Image.Image,
    config: ImageTransformConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "size size 3"]:
    """Bring a random crop of an RGB picture to the model's size, and change it further.

    The crop is stretched to the square whatever `config.resize` says. Where nothing is cropped at
    random, `squash` and `pad` bring the whole picture to it, as in evaluation. The result depends
    on the arguments and the state of `rng` alone.

    Raises:
        DataError: The picture is not RGB.
    """
    require_rgb(picture)
    left, top, width, height = _random_crop(picture.size, augment, rng)
    if not augment.crops and config.resize != "shortest":
        square = Image.fromarray(evaluation_transform(picture, config))
    else:
        square = picture.resize(
            (config.image_size, config.image_size),
            RESAMPLING[config.interpolation],
            box=(left, top, left + width, top + height),
        )
    mirrored = augment.flip and rng.random() < augment.flip
    quarters = int(rng.integers(4)) if augment.quarter_turns else 0
    if augment.moves:
        square = _move(square, augment, rng)
    image = np.array(square)
    if quarters:
        image = np.ascontiguousarray(np.rot90(image, quarters))
    if mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
    if augment.recolours:
        image = _recolour(image, augment, rng)
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


def _move(square: Image.Image, augment: AugmentConfig, rng: np.random.Generator) -> Image.Image:
    """Turn, zoom, shear and shift a picture about its middle."""
    side = square.width
    angle = math.radians(rng.uniform(-augment.turn, augment.turn))
    zoom = math.exp(rng.uniform(-math.log(augment.zoom), math.log(augment.zoom)))
    shear = rng.uniform(-augment.shear, augment.shear)
    shift = rng.uniform(-augment.shift, augment.shift, size=2) * side
    cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
    back = np.array([[cosine, cosine * shear - sine], [sine, sine * shear + cosine]])
    offset = side / 2 - back @ (side / 2 + shift)  # Pillow asks where each pixel comes from
    steps = (*back[0], offset[0], *back[1], offset[1])
    return square.transform(
        square.size, Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR, fillcolor=WHITE
    )


def _recolour(
    image: UInt8[np.ndarray, "size size 3"], augment: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Change brightness, contrast, saturation and hue by random amounts, in this order."""
    values = image.astype(np.float32)
    if augment.color:
        values = _jitter(values, augment.color, rng)
    if augment.hue:
        values = _turn_hue(values, 2 * math.pi * rng.uniform(-augment.hue, augment.hue))
    if augment.grey and rng.random() < augment.grey:
        values = np.repeat((values @ LUMA)[..., None], 3, axis=2)
    return np.rint(values).astype(np.uint8)


def _jitter(
    values: Float[np.ndarray, "size size 3"], strength: float, rng: np.random.Generator
) -> Float[np.ndarray, "size size 3"]:
    """Multiply brightness, contrast and saturation by random factors, within 0 to 255."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    values = np.clip(values * np.float32(brightness), 0, 255)
    middle = (values @ LUMA).mean()
    values = np.clip((values - middle) * np.float32(contrast) + middle, 0, 255)
    grey = (values @ LUMA)[..., None]  # (size, size, 1)
    return np.clip((values - grey) * np.float32(saturation) + grey, 0, 255)


def _turn_hue(
    values: Float[np.ndarray, "size size 3"], angle: float
) -> Float[np.ndarray, "size size 3"]:
    """Turn the hue by an angle in radians, at the same grey, within 0 to 255."""
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=np.float32)
    whole = np.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
    return np.clip(values @ whole.T, 0, 255)
