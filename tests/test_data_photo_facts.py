"""Size, date, place and camera are read from whatever a file says, and nothing is an error."""

import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image, TiffImagePlugin

from diptych.data.photo_facts import PhotoFacts, photo_facts

TAKEN, DIGITISED, CHANGED, GPS, EXIF = 0x9003, 0x9004, 0x0132, 0x8825, 0x8769
PICTURE = Image.new("RGB", (6, 4), "red")


def encoded(exif=b"", kind="JPEG"):
    file = BytesIO()
    PICTURE.save(file, kind, exif=exif)
    return file.getvalue()


def facts_with(top=(), inner=(), place=()):
    exif = Image.Exif()
    exif.update(dict(top))
    exif.get_ifd(EXIF).update(dict(inner))
    exif.get_ifd(GPS).update(dict(place))
    return photo_facts(encoded(exif))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_size_is_read_from_bytes_files_and_pictures(tmp_path, kind):
    file = BytesIO()
    PICTURE.save(file, kind)
    path = tmp_path / "picture"
    path.write_bytes(file.getvalue())
    for picture in (file.getvalue(), path, PICTURE):
        assert photo_facts(picture) == PhotoFacts(width=6, height=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_picture(orientation):
    facts = facts_with({0x0112: orientation})
    assert (facts.width, facts.height) == ((4, 6) if orientation >= 5 else (6, 4))


def test_the_date_is_when_it_was_taken_else_digitised_else_changed():
    dates = {tag: f"200{n}:01:02 03:04:05" for n, tag in enumerate((TAKEN, DIGITISED, CHANGED))}
    inner = {tag: dates[tag] for tag in (TAKEN, DIGITISED)}
    top = {CHANGED: dates[CHANGED]}
    assert facts_with(top, inner).date == "2000-01-02 03:04:05"
    del inner[TAKEN]
    assert facts_with(top, inner).date == "2001-01-02 03:04:05"
    assert facts_with(top).date == "2002-01-02 03:04:05"
    assert facts_with(top, {TAKEN: "    :  :     :  :  "}).date == "2002-01-02 03:04:05"


@pytest.mark.parametrize(
    ("said", "date"),
    [
        ("2020:02:29 23:59:59", "2020-02-29 23:59:59"),
        ("2020:02:29 23:59:59\0", "2020-02-29 23:59:59"),
        ("2020-02-29T23:59:59+02:00", "2020-02-29 23:59:59"),
        ("2021:02:29 23:59:59", None),
        ("0000:00:00 00:00:00", None),
        ("yesterday", None),
        ("", None),
        ("2020:02:29", None),
    ],
)
def test_a_date_exists_or_is_none(said, date):
    assert facts_with(inner={TAKEN: said}).date == date


def rational(over, under):
    return TiffImagePlugin.IFDRational(over, under)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.2)}, (48.8583333, 2.2945)),
        ({1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 0.0, 0.0)}, (-33.5, -70.0)),
        ({2: (1.0, 0.0, 0.0), 4: (2.0, 0.0, 0.0)}, (1.0, 2.0)),
        ({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}, (0.0, 0.0)),
        ({1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (2.0, 0.0, 0.0)}, (None, None)),
        ({1: "N", 2: (1.0, 0.0), 3: "E", 4: (2.0, 0.0, 0.0)}, (None, None)),
        ({1: "N", 2: (1.0, 0.0, 0.0)}, (None, None)),
        (
            {1: "N", 2: (rational(1, 0), rational(0, 0), 0.0), 3: "E", 4: (2.0, 0.0, 0.0)},
            (None, None),
        ),
        ({}, (None, None)),
    ],
)
def test_a_place_is_in_signed_degrees_or_none(place, expected):
    facts = facts_with(place=place)
    assert (facts.latitude, facts.longitude) == expected


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "D90\0\0", "NIKON CORPORATION D90"),
        ("Apple", "", "Apple"),
        ("", "Box", "Box"),
        ("", "", None),
        ("a\nb", "c", "a b c"),
    ],
)
def test_the_camera_is_make_and_model(make, model, camera):
    assert facts_with({0x010F: make, 0x0110: model}).camera == camera


@pytest.mark.parametrize("seed", range(30))
def test_broken_exif_is_never_an_error(seed):
    import random

    chance = random.Random(seed)
    exif = Image.Exif()
    exif[CHANGED] = "2020:02:03 04:05:06"
    exif.get_ifd(EXIF)[TAKEN] = "2020:02:03 04:05:06"
    exif.get_ifd(GPS).update({1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (1.0, 2.0, 3.0)})
    broken = bytearray(exif.tobytes())
    for _ in range(12):
        broken[chance.randrange(6, len(broken))] = chance.randrange(256)
    facts = photo_facts(encoded(bytes(broken)))
    assert {facts.width, facts.height} == {4, 6}
    cut = exif.tobytes()[: chance.randrange(8, 60)]
    assert {photo_facts(encoded(cut)).width} <= {4, 6}


@pytest.mark.parametrize("garbage", [b"Exif\0\0", b"Exif\0\0garbage", b"\0" * 40])
def test_garbage_instead_of_exif_is_no_error(garbage):
    assert photo_facts(encoded(garbage)) == PhotoFacts(width=6, height=4)


def test_only_the_formats_that_are_read_as_pictures_are_opened():
    file = BytesIO()
    PICTURE.save(file, "EPS")  # Pillow knows it, and would start Ghostscript to draw it
    with pytest.raises(OSError, match="cannot identify image file"):
        photo_facts(file.getvalue())


def test_a_heic_photo_has_a_size_before_any_picture_was_decoded(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    PICTURE.resize((48, 32)).save(tmp_path / "photo.heic", "HEIF")
    code = (
        "import sys; from pathlib import Path; from diptych.data.photo_facts import photo_facts; "
        "facts = photo_facts(Path(sys.argv[1])); print(facts.width, facts.height)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "photo.heic")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "48 32\n"
