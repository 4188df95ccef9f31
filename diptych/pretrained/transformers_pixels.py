"""preprocessor_config.json of transformers, to and from our contract for pictures.

What is meant are the numbers of the Pillow backend (`CLIPImageProcessorPil`): the torchvision
backend, which transformers prefers where torchvision is installed, resizes otherwise.
`transformers.py` reads and writes the rest of the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.transforms import CLIP_MEAN, CLIP_STD, ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.pretrained.transformers_names import Family

FILTERS = {3: "bicubic", 2: "bilinear"}
"""Pillow's numbers of the filters."""

PER_PIXEL = 1 / 255

COMMON = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": PER_PIXEL,
    "do_normalize": True,
    "do_pad": False,
    "pad_size": None,
}
DEFAULTS: dict[Family, dict[str, Any]] = {
    "clip": {
        **COMMON,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    },
    "siglip": {
        **COMMON,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "crop_size": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}
"""What transformers does where the file says nothing, or null. `do_convert_rgb` and the like are
not asked: Diptych always converts to RGB."""

ENDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
PROCESSORS: dict[str, Family] = {
    **dict.fromkeys((f"CLIP{end}" for end in ENDS), "clip"),
    **dict.fromkeys((f"Siglip{end}" for end in ENDS), "siglip"),
}
"""Their classes."""


def read_pixels(
    stated: Mapping[str, Any], family: Family, path: Path
) -> tuple[ImageTransformConfig, list[str]]:
    """How pictures are prepared, and which fields were completed.

    Args:
        stated: What the file says.
        family: Of the model; the processor's class may name the other.
        path: Of the file, for messages.

    Raises:
        CheckpointError: It asks for something that Diptych cannot do.
    """
    name = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    if name is not None and not (isinstance(name, str) and name in PROCESSORS):
        raise CheckpointError(
            f"{path} asks for the image processor {name!r}, which Diptych does not know. "
            f"Known: {', '.join(sorted(PROCESSORS))}."
        )
    defaults = DEFAULTS[PROCESSORS[name] if name else family]
    found = {key: value for key, value in stated.items() if value is not None}
    values = {**defaults, **found}
    _require(values, {"do_resize": True, "do_rescale": True, "do_pad": False}, path)
    if values["rescale_factor"] != PER_PIXEL:
        raise _unknown("rescale_factor", values["rescale_factor"], PER_PIXEL, path)
    if not isinstance(values["resample"], int) or values["resample"] not in FILTERS:
        raise _unknown("resample", values["resample"], "3 (bicubic) or 2 (bilinear)", path)
    resize, side = _size(values, path)
    plain = not values["do_normalize"]
    try:
        transform = ImageTransformConfig(
            image_size=side,
            resize=resize,
            crop="floor",
            interpolation=FILTERS[values["resample"]],
            mean=(0, 0, 0) if plain else _thrice(values["image_mean"]),
            std=(1, 1, 1) if plain else _thrice(values["image_std"]),
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    wanted = ["size", "resample", *([] if plain else ["image_mean", "image_std"])]
    wanted += ["crop_size"] if values["do_center_crop"] else []
    return transform, [
        f"{path.name} says nothing of {key}: {values[key]}, as in transformers"
        for key in wanted
        if key not in found
    ]


def write_pixels(
    transform: ImageTransformConfig, family: Family
) -> tuple[dict[str, Any], list[str]]:
    """What preprocessor_config.json says, and what it cannot say exactly.

    Raises:
        RequestError: transformers' processors cannot do it.
    """
    if transform.resize == "pad":
        raise RequestError(
            "this model's pictures are resized by 'pad', and transformers' CLIP and SigLIP "
            "processors cannot pad. Convert to diptych or open_clip instead."
        )
    side = transform.image_size
    square = {"height": side, "width": side}
    cut = transform.resize == "shortest"
    filters = {name: number for number, name in FILTERS.items()}
    stated = {
        "image_processor_type": "CLIPImageProcessor"
        if family == "clip"
        else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if cut else square,
        "resample": filters[transform.interpolation],
        "do_center_crop": cut,
        **({"crop_size": square} if cut else {}),
        "do_rescale": True,
        "rescale_factor": PER_PIXEL,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    if cut and transform.crop == "round":
        beside = "some pictures that are not square are cut one pixel beside"
        return stated, [f"transformers halves odd margins in another way: {beside}"]
    return stated, []


def _size(values: Mapping[str, Any], path: Path) -> tuple[str, int]:
    """How pictures become square, and the side of the square.

    Raises:
        CheckpointError: They do not, or not in a way that Diptych knows.
    """
    size, crop = values["size"], None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if values["do_center_crop"]:
        crop = values["crop_size"]
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    sides = size if isinstance(size, dict) else {}
    if set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
        if crop in (None, sides):
            return "squash", sides["height"]
    elif set(sides) == {"shortest_edge"}:
        side = sides["shortest_edge"]
        if crop == {"height": side, "width": side}:
            return "shortest", side
    raise CheckpointError(
        f"{path} has size={values['size']!r} and a centre crop to {crop!r}, and Diptych knows "
        "a square size, and a shortest edge with a centre crop of the same side. "
        "State one of these in the file, if the model was trained so."
    )


def _require(values: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse switches that stand otherwise than the one way that Diptych knows."""
    for key, value in wanted.items():
        if values[key] != value:
            raise _unknown(key, values[key], value, path)


def _unknown(key: str, found: object, wanted: object, path: Path) -> CheckpointError:
    """A setting that Diptych has no counterpart for."""
    return CheckpointError(
        f"{path} has {key}={found!r}, and Diptych can only do {wanted}. "
        "Mend the file, if the model was trained so; otherwise the model cannot be used."
    )


def _thrice(values: Any) -> tuple[float, ...]:
    """One number for all colours, or one for each."""
    each = [values] * 3 if isinstance(values, int | float) else values
    return tuple(float(value) for value in each)
