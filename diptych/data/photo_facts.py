"""What a picture's file says of the photo: size, date, place and camera.

Cameras, phones and editors write EXIF in many broken ways, so nothing here is an error: a value
that is missing or makes no sense is None. `pictures.py` reads the pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.pictures import ORIENTATION, formats, quiet

MAKE, MODEL, CHANGED = 0x010F, 0x0110, 0x0132
EXIF_PART, TAKEN, DIGITISED = 0x8769, 0x9003, 0x9004
GPS_PART, LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE = 0x8825, 1, 2, 3, 4


@dataclass(frozen=True)
class PhotoFacts:
    """What is known of a photo; None where it does not say."""

    width: int
    """In pixels, standing upright."""

    height: int
    date: str | None = None
    """When it was taken, by the camera's own clock: "YYYY-MM-DD HH:MM:SS"."""

    latitude: float | None = None
    """Where it was taken, in degrees in [-90, 90]; south is negative."""

    longitude: float | None = None
    """In degrees in [-180, 180]; west is negative."""

    camera: str | None = None
    """Make and model."""


def photo_facts(picture: bytes | Path | Image.Image) -> PhotoFacts:
    """Read a picture's size and EXIF without decoding its pixels.

    Args:
        picture: What `to_rgb` has read, or could read: its errors come from there.

    Raises:
        OSError: The file is gone or no picture.
    """
    with quiet():
        if isinstance(picture, Image.Image):
            return _facts(picture)
        file = BytesIO(picture) if isinstance(picture, bytes) else picture
        with Image.open(file, formats=formats()) as image:
            return _facts(image)


def _facts(image: Image.Image) -> PhotoFacts:
    """The facts of an opened picture."""
    try:
        exif: Mapping[int, Any] = image.getexif()
    except Exception:  # damaged EXIF raises anything
        exif = {}
    width, height = image.size
    if exif.get(ORIENTATION) in (5, 6, 7, 8):
        width, height = height, width
    taken, place = _part(exif, EXIF_PART), _part(exif, GPS_PART)
    latitude = _degrees(place.get(LATITUDE), place.get(LATITUDE_REF), "S", 90)
    longitude = _degrees(place.get(LONGITUDE), place.get(LONGITUDE_REF), "W", 180)
    if latitude is None or longitude is None:
        latitude = longitude = None
    dates = map(_date, (taken.get(TAKEN), taken.get(DIGITISED), exif.get(CHANGED)))
    return PhotoFacts(
        width=width,
        height=height,
        date=next((date for date in dates if date), None),
        latitude=latitude,
        longitude=longitude,
        camera=_camera(_text(exif.get(MAKE)), _text(exif.get(MODEL))),
    )


def _part(exif: Any, tag: int) -> Mapping[int, Any]:
    """A table inside the EXIF; empty if it is not there or damaged."""
    try:
        part: Mapping[int, Any] = exif.get_ifd(tag)
    except Exception:  # damaged EXIF raises anything
        return {}
    return part


def _text(value: Any) -> str:
    """A tag's text, without the zero bytes and spaces that fill it up."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())


def _date(value: Any) -> str | None:
    """EXIF's "YYYY:MM:DD HH:MM:SS" in ISO's form, if it is a date that exists."""
    said = _text(value)[:19]
    for form in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        try:
            return datetime.strptime(said, form).isoformat(sep=" ")
        except ValueError:
            continue
    return None


def _degrees(parts: Any, direction: Any, negative: str, limit: int) -> float | None:
    """Degrees from degrees, minutes and seconds."""
    try:
        degrees, minutes, seconds = (float(part) for part in parts)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    if not (math.isfinite(value) and 0 <= value <= limit):
        return None
    return round(-value if _text(direction).upper().startswith(negative) else value, 7)


def _camera(make: str, model: str) -> str | None:
    """Make and model; many models begin with the make."""
    if model.lower().startswith(make.lower()):
        return model or None
    return f"{make} {model}".strip()
