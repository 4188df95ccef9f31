"""HEIC photos are read where pillow-heif is installed, and name it where it is not."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.errors import DataError

pillow_heif = pytest.importorskip("pillow_heif")


def heic(image, **options):
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", quality=95, **options)
    return buffer.getvalue()


def smooth(width=48, height=32):
    """Dark at the top left, red to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([across, down, 0 * down], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("kind", ["bytes", ".heic", ".HEIF"])
def test_a_heic_photo_is_read_from_bytes_and_files(tmp_path, kind):
    data = heic(Image.fromarray(smooth()))
    picture = data
    if kind != "bytes":
        picture = tmp_path / f"a{kind}"
        picture.write_bytes(data)
    found = np.asarray(to_rgb(picture)).astype(int)
    assert found.shape == (32, 48, 3)
    assert np.abs(found - smooth()).mean() < 4


def test_a_heic_photo_stands_upright(tmp_path):
    """The tag says: the first row is at the right, the first column at the top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = np.asarray(to_rgb(heic(Image.fromarray(smooth()), exif=exif.tobytes()))).astype(int)
    assert found.shape == (48, 32, 3)
    assert np.abs(found - np.rot90(smooth(), -1)).mean() < 4


def test_heic_photos_of_a_folder_are_found(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.heif"):
        (tmp_path / name).write_bytes(heic(Image.fromarray(smooth())))
    source = open_source(str(tmp_path), captions_needed=False)
    assert [source.sample(index).key for index in range(source.size)] == [
        "a.heic",
        "b.HEIC",
        "c.heif",
    ]


def test_a_cut_or_huge_heic_photo_is_an_error():
    data = heic(Image.fromarray(smooth()))
    for cut in (20, 200, len(data) - 40):
        with pytest.raises(DataError):
            to_rgb(data[:cut])
    with pytest.raises(DataError, match=r"has 1,536 pixels, over 1,000"):
        to_rgb(data, max_pixels=1000)


def test_without_pillow_heif_the_error_says_how_to_install_it(tmp_path):
    (tmp_path / "a.heic").write_bytes(heic(Image.fromarray(smooth())))
    code = (
        "import sys\nsys.modules['pillow_heif'] = None\n"  # as if it were not installed
        "from diptych.data.pictures import to_rgb\n"
        "from diptych.errors import DataError\n"
        "try:\n    to_rgb(sys.argv[1])\nexcept DataError as error:\n    print(error)\n"
    )
    path = str(tmp_path / "a.heic")
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert ended.stdout.strip() == (
        f"picture {path} is HEIC, and pillow-heif, which reads it, is not installed. "
        "Install it: pip install 'diptych[heif]'."
    ), ended.stderr
