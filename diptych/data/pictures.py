"""Any picture to RGB: files, bytes, Pillow images and arrays, of every mode.

One door, `to_rgb`: what comes out has three channels of eight bits and stands upright; what
cannot be read whole is a DataError, never half a picture. Colour profiles are not applied
(models were trained without them), and formats that run a program to draw, such as EPS, are
not read.

`transforms.py` brings the result to the size a model wants.
"""

import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diptych.errors import DataError

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF"),
    *("MPO", "JPEG2000", "ICO", "TGA", "DIB"),
)
"""Formats that are read, where the installed Pillow knows them."""

COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
"""Those that Pillow reads without importing its other plugins, and pillow-heif: 9 MB."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF tag Orientation."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What a HEIC file says after `ftyp`, its bytes 4 to 7."""

ORIENTATION = 0x0112
WHITE = (255, 255, 255, 255)


def to_rgb(
    picture: bytes | Path | str | Image.Image | np.ndarray,
    *,
    max_pixels: int = 100_000_000,
    key: str | None = None,
) -> Image.Image:
    """Read a picture of any kind as upright 8-bit RGB.

    Transparent parts show white. 16-bit grey is scaled to 8 bits. The first frame of an
    animation is read; of a Pillow image, the frame it stands at. A Pillow image that is
    upright RGB already is returned as it is.

    Args:
        picture: Path of a file, the bytes of one, a Pillow image, or a uint8 array of shape
            (height, width), (height, width, 3) or (height, width, 4).
        max_pixels: Largest width times height; checked before anything is decoded.
        key: What errors call a picture that has no path, such as the key of its sample.

    Raises:
        DataError: There is no such file, it is no picture, it is damaged or cut, it has too
            many pixels, or the array has another type or shape.
    """
    if isinstance(picture, Image.Image):
        name = f"the {picture.mode} picture of {picture.width} x {picture.height} pixels"
        return _decode(picture, name, max_pixels)
    if isinstance(picture, np.ndarray):
        return _decode(_from_array(picture), "the array", max_pixels)
    if isinstance(picture, bytes):
        name = f"picture {key}" if key else f"the picture of {len(picture):,} bytes"
        if not picture:
            empty = f"picture {key}" if key else "the picture"
            raise DataError(f"{empty} is empty: 0 bytes. Fetch it again or leave it out.")
        return _read(BytesIO(picture), name, max_pixels)
    if isinstance(picture, str | Path):
        return _read_file(Path(picture), max_pixels)
    raise DataError(
        f"a picture cannot be a {type(picture).__name__}. "
        "Give a path, bytes, a Pillow image or a uint8 array."
    )


def _read_file(path: Path, max_pixels: int) -> Image.Image:
    """The picture in a file, or a DataError that names the file."""
    name = f"picture {path}"
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{name} is empty: 0 bytes. Fetch it again or leave it out.")
            file.seek(0)
            return _read(file, name, max_pixels)
    except FileNotFoundError:
        raise DataError(f"there is no picture file {path}. Check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder. Give the path of one picture file.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be opened: {error}. Check path and permission.") from None


def _read(file: BufferedReader | BytesIO, name: str, max_pixels: int) -> Image.Image:
    """The picture in an open file."""
    with quiet():
        try:
            image = _opened(file)
        except UnidentifiedImageError:
            file.seek(0)
            raise DataError(_unidentified(name, file.read(12))) from None
        except Image.DecompressionBombError:
            raise DataError(_too_many_pixels(name, None, max_pixels)) from None
        except MemoryError:
            raise
        except Exception as error:  # plugins raise whatever they stumble over
            raise DataError(_damaged(name, error)) from None
    return _decode(image, name, max_pixels)


def _opened(file: BufferedReader | BytesIO) -> Image.Image:
    """The picture in an open file, not decoded yet.

    Raises:
        UnidentifiedImageError: It is of none of `FORMATS`.
    """
    try:
        return Image.open(file, formats=COMMON)
    except UnidentifiedImageError:
        file.seek(0)
        return Image.open(file, formats=formats())


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Decode an opened picture, turn it upright and make it RGB."""
    pixels = image.width * image.height
    if pixels == 0:
        raise DataError(f"{name} has no pixels. Leave it out.")
    if pixels > max_pixels:
        raise DataError(_too_many_pixels(name, pixels, max_pixels))
    with quiet():
        try:
            image.load()
            image = _flatten(_turn_upright(image), name)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # plugins raise whatever they stumble over
            raise DataError(_damaged(name, error)) from None
    return image


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an unreadable tag counts as upright."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels are whole, and damaged EXIF raises anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _flatten(image: Image.Image, name: str) -> Image.Image:
    """RGB from any mode; transparent parts show white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_from_16_bit(image, name)
    if image.mode == "F":
        return _grey_from_float(image, name)
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion would cut everything above 255."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(
            f"{name} has values from {low} to {high}. Scale them to the 16-bit range, 0 to 65535."
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _grey_from_float(image: Image.Image, name: str) -> Image.Image:
    """Read values up to 1 as shares of white, and others as 0..255."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # NaN fails both
        raise DataError(f"{name} has values from {low:g} to {high:g}. Scale them to 0 to 1.")
    scale = 255 if high <= 1 else 1
    return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """A Pillow image from a uint8 array of 1, 3 or 4 channels."""
    if array.dtype != np.uint8:
        raise DataError(
            f"the array has type {array.dtype}. Scale it to 0..255 and convert it: "
            "array.astype(numpy.uint8)."
        )
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise DataError(
            f"the array has shape {array.shape}. "
            "Give one picture as (height, width), (height, width, 3) or (height, width, 4)."
        )
    if array.size == 0:
        raise DataError(f"the array has shape {array.shape}: no pixels. Leave it out.")
    return Image.fromarray(np.ascontiguousarray(array))


def _unidentified(name: str, head: bytes) -> str:
    """What to say of a file that no reader knows, from its first 12 bytes."""
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS and "HEIF" not in formats():
        return (
            f"{name} is HEIC, and pillow-heif, which reads it, is not installed. "
            "Install it: pip install 'diptych[heif]'."
        )
    return (
        f"{name} is no picture that can be read: it begins with {head[:8]!r}. "
        "Give a whole JPEG, PNG, WebP, GIF, BMP or TIFF file."
    )


def _too_many_pixels(name: str, pixels: int | None, max_pixels: int) -> str:
    """What to say of a picture that is too large to decode."""
    pillow = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if pixels is None and max_pixels >= pillow:  # Pillow itself refused
        return (
            f"{name} has more than {pillow:,} pixels, Pillow's limit. "
            "Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS."
        )
    count = f"more than {pillow:,}" if pixels is None else f"{pixels:,}"
    return f"{name} has {count} pixels, over {max_pixels:,}. Make it smaller, or raise max_pixels."


def _damaged(name: str, error: Exception) -> str:
    """What to say of a picture that cannot be decoded whole."""
    reason = str(error).rstrip(".") or type(error).__name__
    return f"{name} is damaged or cut: {reason}. Fetch it again or leave it out."


@cache
def formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that the installed Pillow can open, HEIC with pillow-heif."""
    Image.init()
    with suppress(ImportError):  # an extra: diptych[heif]
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


_quiet_lock = threading.Lock()
_quiet_inside = 0
_quiet_saved = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings: what matters in them is checked here and raised.

    `warnings.catch_warnings` is not safe in threads, and pictures are decoded in many, so the
    first thread in silences and the last one out restores.
    """
    global _quiet_inside, _quiet_saved
    with _quiet_lock:
        if _quiet_inside == 0:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _quiet_inside += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_inside -= 1
            if _quiet_inside == 0:
                _quiet_saved.__exit__(None, None, None)
