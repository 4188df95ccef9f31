"""What training changes in a picture stays within what was asked and follows from its generator."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from diptych.data.augment import AugmentConfig, training_transform
from diptych.data.transforms import ImageTransformConfig, evaluation_transform
from diptych.errors import ConfigError, DataError

SIZES = [(1, 1), (1, 500), (500, 1), (37, 53), (53, 37), (32, 32), (100, 33), (640, 480), (31, 500)]
SQUARE = ImageTransformConfig(image_size=32)
NO_CROP = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def noise(width, height):
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def ramps(width=256, height=256):
    """Red counts columns and green counts rows, so a crop tells where it was taken."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([across, down, 0 * down]).astype(np.uint8))


def dot(left=10, top=14, side=4):
    """A black square on white, 32 pixels wide."""
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste((0, 0, 0), (left, top, left + side, top + side))
    return picture


def centre_and_area(image):
    """Where the ink of a picture lies, (x, y) from its middle, and how much there is."""
    ink = (255 - image[..., 0].astype(float)) / 255
    down, across = np.mgrid[: len(ink), : len(ink)] + 0.5 - len(ink) / 2
    return (across * ink).sum() / ink.sum(), (down * ink).sum() / ink.sum(), ink.sum()


def moved(augment, picture, draws=200):
    rng = np.random.default_rng(0)
    augment = NO_CROP.model_copy(update=augment)
    return np.array(
        [centre_and_area(training_transform(picture, SQUARE, augment, rng)) for _ in range(draws)]
    )


def test_a_picture_that_is_not_rgb_is_refused():
    picture = Image.new("L", (8, 8))
    with pytest.raises(DataError, match=r"mode L, not RGB. Give it to to_rgb first"):
        training_transform(picture, SQUARE, AugmentConfig(), np.random.default_rng(0))


def crop_of(image):
    """Share of the picture that a transform of `ramps` shows: left, top, width, height."""
    size = len(image)
    red, green = image[..., 0].mean(axis=0) / 255, image[..., 1].mean(axis=1) / 255
    step_x, step_y = (red[-2] - red[1]) / (size - 3), (green[-2] - green[1]) / (size - 3)
    return red[1] - 1.5 * step_x, green[1] - 1.5 * step_y, step_x * size, step_y * size


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 0.5)])
def test_crops_keep_the_asked_share_of_the_area_and_the_asked_ratio(scale):
    rng = np.random.default_rng(0)
    augment = AugmentConfig(crop_scale=scale, crop_ratio=(0.8, 1.25))
    crops = []
    for _ in range(200):
        left, top, width, height = crop_of(training_transform(ramps(), SQUARE, augment, rng))
        assert -0.02 <= left <= left + width <= 1.02
        assert -0.02 <= top <= top + height <= 1.02
        assert scale[0] - 0.02 <= width * height <= scale[1] + 0.02
        assert 0.78 <= width / height <= 1.28
        crops.append((left, top, width * height))
    reach = np.ptp(np.array(crops), axis=0)
    assert reach[2] > 0.8 * (scale[1] - scale[0])
    if scale[1] < 1:
        assert reach[0] > 0.4
        assert reach[1] > 0.4


def test_the_whole_picture_is_the_plain_resize():
    picture = noise(64, 64)
    found = training_transform(picture, SQUARE, NO_CROP, np.random.default_rng(0))
    np.testing.assert_array_equal(found, evaluation_transform(picture, SQUARE))


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (40, 96), (65, 64)])
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_without_crops_the_whole_picture_comes_as_in_evaluation(size, resize):
    """Whatever else is changed then draws as before."""
    picture, whole = noise(*size), SQUARE.model_copy(update={"resize": resize, "fill": 30})
    found = training_transform(picture, whole, NO_CROP, np.random.default_rng(0))
    np.testing.assert_array_equal(found, evaluation_transform(picture, whole))
    moving = NO_CROP.model_copy(update={"turn": 20.0, "flip": 0.5, "color": 0.3})
    square = Image.fromarray(found)
    if size[0] == size[1]:
        one, other = (
            training_transform(each, whole, moving, np.random.default_rng(5))
            for each in (picture, square)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (40, 96)])
def test_without_crops_the_centred_square_is_what_shortest_keeps(size):
    picture, short = noise(*size), min(size)
    left, top = ((side - short) // 2 for side in size)
    expected = picture.resize(
        (32, 32), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short)
    )
    found = training_transform(picture, SQUARE, NO_CROP, np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_crops_are_stretched_whatever_the_transform_does_with_whole_pictures():
    augment = NO_CROP.model_copy(update={"crop_scale": (0.5, 1.0)})
    one, other = (
        training_transform(
            noise(96, 40),
            SQUARE.model_copy(update={"resize": resize}),
            augment,
            np.random.default_rng(2),
        )
        for resize in ("shortest", "pad")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_training_reads_pictures_of_every_size(size):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image = training_transform(noise(*size), SQUARE, AugmentConfig(), rng)
        assert image.shape == (32, 32, 3)


@pytest.mark.parametrize("size", [(800, 100), (100, 800)])
def test_a_strip_that_fits_no_crop_falls_back_to_its_middle(size):
    image = training_transform(ramps(*size), SQUARE, AugmentConfig(), np.random.default_rng(0))
    left, top, width, height = crop_of(image)
    start, length = (left, width) if size[0] > size[1] else (top, height)
    assert length == pytest.approx(4 / 3 / 8, abs=0.01)
    assert start + length / 2 == pytest.approx(0.5, abs=0.01)


def test_the_same_generator_state_gives_the_same_image():
    augment = AugmentConfig(crop_scale=(0.4, 1.0), flip=0.5, color=0.4)
    picture = noise(80, 60)
    one = [training_transform(picture, SQUARE, augment, np.random.default_rng(s)) for s in range(8)]
    two = [training_transform(picture, SQUARE, augment, np.random.default_rng(s)) for s in range(8)]
    np.testing.assert_array_equal(one, two)
    assert len({image.tobytes() for image in one}) == 8


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0), (1.0, 200), (0.5, 100)])
def test_flip_mirrors_as_often_as_asked_and_never_by_default(flip, expected):
    rng = np.random.default_rng(0)
    augment = NO_CROP.model_copy(update={"flip": flip})
    plain = evaluation_transform(ramps(), SQUARE)
    mirrored = 0
    for _ in range(200):
        image = training_transform(ramps(), SQUARE, augment, rng)
        turned = image[0, 0, 0] > image[0, -1, 0]
        np.testing.assert_array_equal(image[:, ::-1] if turned else image, plain)
        mirrored += turned
    assert abs(mirrored - expected) <= (25 if flip == 0.5 else 0)
    assert AugmentConfig().flip == 0


def test_color_changes_brightness_contrast_and_saturation_within_the_strength():
    picture = Image.new("RGB", (32, 32), (100, 120, 140))
    rng = np.random.default_rng(0)
    augment = NO_CROP.model_copy(update={"color": 0.2})
    images = [training_transform(picture, SQUARE, augment, rng)[0, 0] for _ in range(100)]
    grey = np.array(images, float) @ [0.299, 0.587, 0.114]
    before = np.dot([100, 120, 140], [0.299, 0.587, 0.114])
    assert grey.min() >= 0.8 * before - 1
    assert grey.max() <= 1.2 * before + 1
    assert np.ptp(grey) > 0.3 * before
    assert np.ptp([image[2] - float(image[0]) for image in images]) > 10


def test_a_turn_keeps_the_distance_from_the_middle_and_stays_within_the_angle():
    left, top, _ = centre_and_area(np.array(dot()))
    found = moved({"turn": 30.0}, dot())
    np.testing.assert_allclose(np.hypot(found[:, 0], found[:, 1]), np.hypot(left, top), atol=0.2)
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]) - np.arctan2(top, left))
    angles = (angles + 180) % 360 - 180
    assert np.abs(angles).max() <= 31
    assert angles.max() > 25
    assert angles.min() < -25


def test_a_zoom_scales_distance_and_area_alike_both_ways():
    left, _, area = centre_and_area(np.array(dot()))
    found = moved({"zoom": 1.5}, dot())
    factors = found[:, 0] / left
    np.testing.assert_allclose(found[:, 2] / area, factors**2, rtol=0.1)
    assert 1 / 1.57 <= factors.min() < 0.75
    assert 1.35 < factors.max() <= 1.57
    assert abs(np.log(factors).mean()) < 0.05


def test_a_shift_moves_by_at_most_its_share_of_the_side():
    left, top, area = centre_and_area(np.array(dot()))
    found = moved({"shift": 0.25}, dot())
    steps = found[:, :2] - [left, top]
    assert np.abs(steps).max() <= 8.1
    assert (np.abs(steps).max(axis=0) > 7).all()
    np.testing.assert_allclose(found[:, 2], area, atol=0.2)


def test_a_shear_moves_rows_sideways_by_their_distance_from_the_middle():
    left, top, area = centre_and_area(np.array(dot(14, 2)))
    found = moved({"shear": 0.3}, dot(14, 2))
    steps = found[:, 0] - left
    assert np.abs(steps).max() <= abs(0.3 * top) + 0.2
    assert np.abs(steps).max() > abs(0.25 * top)
    np.testing.assert_allclose(found[:, 1], top, atol=0.2)
    np.testing.assert_allclose(found[:, 2], area, atol=0.3)


def test_what_a_move_uncovers_is_white():
    black = Image.new("RGB", (32, 32))
    augment = NO_CROP.model_copy(update={"shift": 0.5})
    corners = [
        training_transform(black, SQUARE, augment, np.random.default_rng(seed))[
            [0, 0, -1, -1], [0, -1, 0, -1]
        ]
        for seed in range(20)
    ]
    assert set(np.unique(corners)) <= {0, 255}
    assert (np.array(corners) == 255).any()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_hue_turns_by_at_most_its_share_of_the_circle_at_the_same_grey(share):
    picture = Image.new("RGB", (32, 32), (140, 110, 120))
    rng = np.random.default_rng(0)
    augment = NO_CROP.model_copy(update={"hue": share})
    colours = [training_transform(picture, SQUARE, augment, rng)[0, 0] / 255 for _ in range(300)]
    grey = np.array(colours) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(
        grey, np.dot([140, 110, 120], [0.299, 0.587, 0.114]) / 255, atol=0.01
    )
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in colours])
    turns = (hues - colorsys.rgb_to_hsv(140, 110, 120)[0] + 0.5) % 1 - 0.5
    assert np.abs(turns).max() <= 1.5 * share  # the two circles run at different speeds
    assert turns.max() > 0.5 * share
    assert turns.min() < -0.5 * share


def test_grey_takes_all_colour_as_often_as_asked():
    picture = Image.new("RGB", (32, 32), (140, 110, 120))
    rng = np.random.default_rng(0)
    augment = NO_CROP.model_copy(update={"grey": 0.3})
    images = [training_transform(picture, SQUARE, augment, rng)[0, 0] for _ in range(300)]
    lost = [image for image in images if len(set(image.tolist())) == 1]
    assert 60 <= len(lost) <= 120
    assert {int(image[0]) for image in lost} == {120}
    assert {tuple(map(int, image)) for image in images} == {(120, 120, 120), (140, 110, 120)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"no range within .0, 1.. Use .0.9, 1.0."),
        ({"crop_scale": (0.9, 0.5)}, r"no range within .0, 1.. Use .0.9, 1.0."),
        ({"crop_ratio": (2.0, 1.0)}, r"no range above 0. Use .0.75, 1.3333."),
        ({"flip": 1.5}, "flip 1.5 is no probability. Use 0 or 0.5"),
        ({"color": 1.0}, "color 1.0 is not in .0, 1.. Use 0 or 0.4"),
        ({"zoom": 0.5}, "setting 'zoom' is 0.5"),
        ({"hue": 0.7}, "setting 'hue' is 0.7"),
    ],
)
def test_augment_config_says_what_is_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**values)


def test_quarter_turns_give_each_of_the_four_as_often_and_none_by_default():
    corner = np.zeros((8, 8, 3), np.uint8)
    corner[:2, :2] = 255
    picture, rng = Image.fromarray(corner), np.random.default_rng(0)
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    transform = ImageTransformConfig(image_size=8)
    turned = AugmentConfig(**whole, quarter_turns=True)
    seen = [training_transform(picture, transform, turned, rng) for _ in range(400)]
    places = [tuple(np.argwhere(image[..., 0] == 255).min(axis=0)) for image in seen]
    assert {(0, 0), (0, 6), (6, 0), (6, 6)} == set(places)
    assert min(places.count(place) for place in set(places)) > 70
    for image in seen:
        assert any((image == np.rot90(corner, count)).all() for count in range(4))
    plain = training_transform(picture, transform, AugmentConfig(**whole), rng)
    assert (plain == corner).all()
