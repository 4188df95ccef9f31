"""Any picture becomes upright 8-bit RGB, or a DataError that says what to do."""

import inspect
import io
import random
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from diptych.data.pictures import to_rgb
from diptych.errors import DataError

LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
LOSSY = ("JPEG", "WEBP")


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colourful(width=37, height=53):
    """A picture that no flip or rotation leaves as it is."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([across, down, (across * 2 + down) % 256], axis=-1).astype(np.uint8)


def refusal(data, **options):
    """The message of the error that reading gives, or an empty string."""
    try:
        to_rgb(data, **options)
    except DataError as error:
        return str(error)
    return ""


def pixels(picture):
    rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (37, 53)])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind, size):
    image = colourful(*size)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(image), kind)), image)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_stay_close(kind):
    smooth = np.asarray(Image.fromarray(colourful()[..., :1].repeat(3, axis=2)).resize((64, 64)))
    found = pixels(encode(Image.fromarray(smooth), kind, quality=95))
    assert np.abs(found.astype(int) - smooth).mean() < 3


def test_paths_bytes_images_and_arrays_are_the_same_picture(tmp_path):
    image = colourful()
    path = tmp_path / "picture.png"
    Image.fromarray(image).save(path)
    with Image.open(path) as opened:
        for picture in (path, str(path), path.read_bytes(), opened, image):
            np.testing.assert_array_equal(pixels(picture), image)


def test_arrays_of_one_three_and_four_channels_are_read():
    image = colourful()
    np.testing.assert_array_equal(pixels(image[..., 0]), image[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(pixels(image[::-1, ::2]), image[::-1, ::2])
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(pixels(opaque), image)


def test_the_result_does_not_share_memory_with_an_array():
    image = colourful()
    rgb = to_rgb(image)
    before = np.array(rgb)
    image[:] = 0
    np.testing.assert_array_equal(np.asarray(rgb), before)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_transparent_parts_show_white(mode):
    grey, alpha = 80, np.array([[0, 128, 255]], dtype=np.uint8)
    rgba = np.dstack([np.full((1, 3, 3), grey, np.uint8), alpha])
    image = Image.fromarray(rgba)
    if mode in ("LA", "La"):
        image = image.convert("LA")
    if mode == "PA":
        palette = Image.new("PA", (3, 1))
        palette.putpalette([grey] * 768)
        palette.putalpha(Image.fromarray(alpha))
        image = palette
    elif mode != image.mode:
        image = image.convert(mode)
    expected = [round(grey * a / 255 + 255 * (1 - a / 255)) for a in (0, 128, 255)]
    assert np.abs(pixels(image)[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
def test_palette_pictures_with_a_transparent_colour_show_white_there(transparency):
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.putdata([0, 1, 2, 3])
    found = pixels(encode(image, "PNG", transparency=transparency))
    expected = [[10, 20, 30], [255, 255, 255], [70, 80, 90], [100, 110, 120]]
    np.testing.assert_array_equal(found[0], expected)


def test_a_transparent_colour_of_grey_and_rgb_files_shows_white():
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    np.testing.assert_array_equal(pixels(encode(grey, "PNG", transparency=9))[0, :, 0], [7, 255])
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    found = pixels(encode(rgb, "PNG", transparency=(4, 5, 6)))
    np.testing.assert_array_equal(found[0], [[1, 2, 3], [255, 255, 255]])


def test_palette_one_bit_and_cmyk_pictures_keep_their_colours():
    red = Image.new("RGB", (16, 16), (250, 0, 0))
    np.testing.assert_array_equal(pixels(encode(red.quantize(4), "PNG")), np.asarray(red))
    bits = Image.fromarray(np.eye(9, dtype=bool))
    np.testing.assert_array_equal(
        pixels(encode(bits, "PNG"))[..., 1], np.eye(9, dtype=np.uint8) * 255
    )
    cmyk = pixels(encode(red.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(red)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_gradient(kind):
    ramp = np.linspace(0, 65535, 400, dtype=np.uint16)[None].repeat(3, axis=0)
    found = pixels(encode(Image.fromarray(ramp), kind))
    np.testing.assert_array_equal(found[0, :, 0], np.rint(ramp[0] / 257))
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_every_16_bit_mode_is_scaled(mode):
    values = [0, 256, 32768, 65535]
    if mode == "I":
        image = Image.fromarray(np.array([values], dtype=np.int32))
    else:
        code = ">4H" if mode.endswith("B") else "<4H"
        image = Image.frombytes(mode, (4, 1), struct.pack(code, *values))
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(image)[0, :, 0], [0, 1, 128, 255])


def test_float_pictures_are_shares_of_white_or_0_to_255():
    shares = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(pixels(shares)[0, :, 0], [0, 128, 255])
    values = Image.fromarray(np.array([[0.0, 90.2, 255.0]], dtype=np.float32))
    np.testing.assert_array_equal(pixels(values)[0, :, 0], [0, 90, 255])


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 300.0], [float("nan"), 0.5]])
def test_float_pictures_out_of_range_are_refused(values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(DataError, match=r"has values from .* Scale them to 0 to 1"):
        to_rgb(image)


def test_integers_beyond_16_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(DataError, match=r"values from 0 to 70000. Scale them to the 16-bit range"):
        to_rgb(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = np.asarray(Image.fromarray(colourful(40, 24)).convert("L").convert("RGB"))
    # What a camera stores: the first row and column of the file are these sides of the scene.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossy = {"quality": 95} if kind in LOSSY else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossy)
    found = pixels(data)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < (5 if lossy else 0.001)


def test_damaged_exif_counts_as_upright():
    image = Image.fromarray(colourful())
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0xx",
    ):
        data = encode(image, "JPEG", quality=95, exif=exif)
        assert pixels(data).shape == (53, 37, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    path = tmp_path / "animation"
    path.write_bytes(data)
    for picture in (data, path):
        np.testing.assert_array_equal(pixels(picture), np.full((8, 8, 3), [255, 0, 0]))


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_a_cut_file_is_an_error_and_never_half_a_picture(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    whole = pixels(data)
    cuts = [data[: int(len(data) * share)] for share in (0.02, 0.3, 0.6, 0.9, 0.99)]
    messages = [refusal(cut) for cut in cuts]
    assert all(messages[:4])
    for cut, message in zip(cuts, messages, strict=True):
        if message:
            assert "Fetch it again" in message or "Give a whole" in message
        else:  # nothing but what follows the pixels was cut
            np.testing.assert_array_equal(pixels(cut), whole)


def test_a_cut_progressive_jpeg_is_an_error(tmp_path):
    path = tmp_path / "cut.jpg"
    data = encode(Image.fromarray(colourful(200, 200)), "JPEG", progressive=True)
    path.write_bytes(data[:-200])
    with pytest.raises(
        DataError, match=r"cut\.jpg is damaged or cut: .*truncated.* Fetch it again"
    ):
        to_rgb(path)


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_damaged_bytes_give_a_picture_or_a_data_error_and_nothing_else(kind):
    data = encode(Image.fromarray(colourful()), kind)
    dice = random.Random(1)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 12)):
            damaged[dice.randrange(min(len(data), 400))] = dice.randrange(256)
        message = refusal(bytes(damaged), max_pixels=1_000_000)
        assert message == "" or message.endswith(".")


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_001, 12_000, 50_000])
def test_too_many_pixels_are_refused_from_the_header(side):
    with pytest.raises(DataError, match=r"pixels, over 100,000,000. Make it smaller, or raise max"):
        to_rgb(png_header(side, side))


def test_what_only_pillow_refuses_names_the_limit_of_pillow():
    with pytest.raises(DataError, match=r"raise PIL.Image.MAX_IMAGE_PIXELS"):
        to_rgb(png_header(50_000, 50_000), max_pixels=10**12)


def test_max_pixels_counts_for_arrays_and_images_too():
    for picture in (colourful(10, 10), Image.new("RGB", (10, 10))):
        assert to_rgb(picture, max_pixels=100).size == (10, 10)
        with pytest.raises(DataError, match=r"has 100 pixels, over 99"):
            to_rgb(picture, max_pixels=99)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no picture file .*none\.png. Check the path"):
        to_rgb(tmp_path / "none.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(DataError, match=r"is a folder. Give the path of one picture file"):
        to_rgb(tmp_path)


def test_an_empty_picture_is_an_error(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for picture in (b"", tmp_path / "empty.jpg"):
        with pytest.raises(DataError, match=r"empty: 0 bytes. Fetch it again or leave it out"):
            to_rgb(picture)


@pytest.mark.parametrize(
    "content", [b"Dear reader,\nthis is text.", b"\0", b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage"]
)
def test_what_is_no_picture_shows_how_it_begins(tmp_path, content):
    path = tmp_path / "letter.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"letter\.jpg is no picture .* it begins with b.* Give a"):
        to_rgb(path)


def test_arrays_of_another_type_or_shape_are_refused():
    with pytest.raises(DataError, match=r"type float64. Scale it to 0..255 and convert it"):
        to_rgb(np.zeros((4, 4, 3)))
    for shape in ((3, 8, 8), (8, 8, 1), (1, 8, 8, 3), (8,)):
        with pytest.raises(DataError, match=r"Give one picture as .height, width"):
            to_rgb(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"no pixels. Leave it out"):
        to_rgb(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"no pixels. Leave it out"):
        to_rgb(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("picture", [None, 3, [1, 2], {"image": b""}])
def test_other_things_are_refused_without_the_type_checks_of_the_tests(picture):
    with pytest.raises(DataError, match=r"a picture cannot be a .* Give a path, bytes, a Pillow"):
        inspect.unwrap(to_rgb)(picture)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBa"]
    + ["I", "F", "I;16", "I;16L", "I;16B", "I;16N"],
)
def test_every_mode_of_pillow_becomes_rgb(mode):
    assert pixels(Image.new(mode, (5, 7))).shape == (7, 5, 3)


def test_warnings_are_silent_inside_and_as_before_outside():
    before = list(warnings.filters)
    data = [png_header(12_000, 12_000), encode(Image.fromarray(colourful()), "PNG")]

    def work():
        for _ in range(20):
            with pytest.raises(DataError):
                to_rgb(data[0])
            to_rgb(data[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match=r"heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)
