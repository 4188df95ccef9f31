"""Configs are frozen, refuse what they do not know, and say so in words a reader can act on."""

import json
from typing import Literal

import pytest
from pydantic import Field, model_validator

from diptych.config import Config
from diptych.errors import ConfigError


class Lens(Config):
    """Inner settings."""

    focus: float = 1.0
    """In metres."""

    filters: tuple[str, ...] = ()
    """Names."""


class Camera(Config):
    """Outer settings."""

    lens: Lens = Lens()
    """The glass."""

    name: str
    """Has no default."""

    exposure: int = Field(default=3, ge=1)
    """At least 1."""

    mode: Literal["day", "night"] = "day"
    """One of two."""

    note: str | None = None
    """May be missing."""

    a: Lens = Lens()
    """A name of one letter."""

    @model_validator(mode="after")
    def check(self) -> "Camera":
        """A rule over two settings."""
        if self.mode == "night" and self.exposure < 2:
            raise ConfigError("exposure 1 is too short at night. Use exposure=2.")
        return self


CAMERA = Camera(name="box")


class Film(Config):
    """Inner settings that a text may stand for."""

    maker: str = "any"
    """A name."""

    frames: int = Field(default=36, ge=1)
    """At least 1."""

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, values):
        """Take the name of a maker."""
        return {"maker": values} if isinstance(values, str) else values


class Bag(Config):
    """Settings two tables deep, of which a text may stand for the inner one."""

    film: Film = Film()
    """What is in it."""

    lens: Lens = Lens()
    """No text stands for this one."""


class Trip(Config):
    """What is taken along."""

    bag: Bag = Bag()
    """One."""


def refusal(make):
    """The words with which a config refuses."""
    with pytest.raises(ConfigError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_unknown_key_is_refused_with_the_nearest_name():
    said = refusal(lambda: Camera(name="box", exposur=4))
    assert said == "there is no setting 'exposur'. Did you mean 'exposure'?"


def test_an_unknown_key_far_from_all_lists_them():
    said = refusal(lambda: Camera(name="box", zzz=4))
    assert said == "there is no setting 'zzz'. Known: a, exposure, lens, mode, name, note."


def test_an_unknown_inner_key_is_named_with_its_whole_path():
    said = refusal(lambda: Camera(name="box", lens={"focsu": 2}))
    assert said == "there is no setting 'lens.focsu'. Did you mean 'focus'?"


def test_a_missing_value_is_named():
    assert refusal(Camera) == "setting 'name' of Camera is missing. Give it a value."


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exposure": 0}, "setting 'exposure' is 0: Input should be greater than or equal to 1"),
        ({"exposure": "x"}, "setting 'exposure' is 'x': Input should be a valid integer"),
        ({"mode": "dusk"}, "setting 'mode' is 'dusk': Input should be 'day' or 'night'"),
        ({"lens": {"focus": "far"}}, "setting 'lens.focus' is 'far'"),
        ({"lens": {"focus": float("nan")}}, "setting 'lens.focus' is nan"),
        ({"lens": {"focus": float("inf")}}, "setting 'lens.focus' is inf"),
        ({"lens": {"filters": ["uv", 3]}}, "setting 'lens.filters.1' is 3"),
    ],
)
def test_a_value_that_does_not_fit_is_shown_with_the_reason(values, words):
    assert words in refusal(lambda: Camera(name="box", **values))


def test_a_config_checks_itself_in_its_own_words():
    said = refusal(lambda: Camera(name="box", mode="night", exposure=1))
    assert said == "exposure 1 is too short at night. Use exposure=2."


def test_a_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        CAMERA.exposure = 5


def test_equal_values_make_equal_configs():
    assert Camera(name="box") == CAMERA
    assert Camera(name="box", lens={"focus": 2}) == Camera(name="box", lens=Lens(focus=2))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("exposure=7", Camera(name="box", exposure=7)),
        ("lens.focus=2.5", Camera(name="box", lens=Lens(focus=2.5))),
        ("lens.focus=1e-3", Camera(name="box", lens=Lens(focus=0.001))),
        ('lens.filters=["uv", "red"]', Camera(name="box", lens=Lens(filters=("uv", "red")))),
        ("a.focus=3", Camera(name="box", a=Lens(focus=3))),
        ('lens={"focus": 4}', Camera(name="box", lens=Lens(focus=4))),
        ("name=plain words", Camera(name="plain words")),
        ("name=a=b", Camera(name="a=b")),
        ("note=", Camera(name="box", note="")),
        ("note=null", CAMERA),
        (" exposure =7", Camera(name="box", exposure=7)),
    ],
)
def test_a_dotted_setting_replaces_one_value(setting, expected):
    assert CAMERA.override([setting]) == expected


def test_a_one_letter_name_inside_itself_is_no_setting():
    assert "there is no setting 'a.a'" in refusal(lambda: CAMERA.override(["a.a=1"]))


def test_overriding_leaves_the_original_as_it_was():
    CAMERA.override(["exposure=9", "lens.focus=9"])
    assert Camera(name="box") == CAMERA


def test_later_settings_win():
    assert CAMERA.override(["exposure=7", "exposure=8"]).exposure == 8


def test_a_text_that_stands_for_settings_may_be_followed_by_some_of_them():
    film = {"maker": "fuji", "frames": 24}
    settings = ["bag.film=fuji", "bag.film.frames=24"]
    assert Trip().override(settings) == Trip(bag={"film": film})
    assert Trip().override(settings[::-1]) == Trip(bag={"film": "fuji"})  # the later one is whole
    assert Trip().bag.override(["film=fuji", "film.frames=24"]) == Bag(film=film)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["film=fuji", "film.frame=24"], "no setting 'film.frame'. Did you mean 'frames'?"),
        (["film=fuji", "film.maker.x=2"], "film.maker holds no settings. Write it as film.maker="),
        (["lens=wide", "lens.focus=2"], "setting 'lens' is 'wide': Input should be a valid dict"),
        (["lens=3", "lens.focus=2"], "lens holds no settings. Write it as lens=value."),
        (["film=fuji", "film.frames=0"], "setting 'film.frames' is 0: Input should be greater"),
    ],
)
def test_settings_after_a_text_that_does_not_stand_for_them_are_refused_by_text(settings, words):
    assert words in refusal(lambda: Bag().override(settings))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("exposure", "setting 'exposure' has no '='. Write it as name=value, such as seed=1."),
        ("exposre=2", "there is no setting 'exposre'. Did you mean 'exposure'?"),
        ("lense.focus=2", "there is no setting 'lense.focus'. Did you mean 'lens'?"),
        ("lens.focsu=2", "there is no setting 'lens.focsu'. Did you mean 'focus'?"),
        ("exposure.x=2", "exposure holds no settings. Write it as exposure=value."),
        ("lens.focus.x.y=2", "lens.focus holds no settings. Write it as lens.focus=value."),
        ("lens.=2", "there is no setting 'lens.'. Known: filters, focus."),
        ("exposure=long", "setting 'exposure' is 'long'"),
        ("lens=3", "setting 'lens' is 3"),
        ('lens={"focsu": 4}', "there is no setting 'lens.focsu'. Did you mean 'focus'?"),
        ("lens.focus=NaN", "setting 'lens.focus' is nan"),
    ],
)
def test_a_wrong_setting_is_refused_by_text(setting, words):
    assert words in refusal(lambda: CAMERA.override([setting]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'name = "box"\nexposure = 5\n[lens]\nfocus = 2\n'),
        ("c.json", '{"name": "box", "exposure": 5, "lens": {"focus": 2}}'),
    ],
)
def test_toml_and_json_files_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert Camera.read(tmp_path / name) == Camera(name="box", exposure=5, lens=Lens(focus=2))


def test_what_was_written_as_json_is_read_back(tmp_path):
    path = tmp_path / "c.json"
    camera = Camera(name="ÿ 🎞", lens=Lens(filters=("uv",)), note="x")
    path.write_text(camera.model_dump_json(), encoding="utf-8")
    assert Camera.read(path) == camera
    path.write_text(json.dumps(camera.model_dump(mode="json")))
    assert Camera.read(path) == camera


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("c.toml", b"name = ", "cannot be read"),
        ("c.json", b'{"name": ', "cannot be read"),
        ("c.json", b"\xff\xfe\x00", "cannot be read"),
        ("c.json", b"[1, 2]", "holds a list, not a table of settings. Mend the file."),
        ("c.json", b'{"name": "box", "lense": 1}', "Did you mean 'lens'?"),
        ("c.toml", b'name = "box"\n[lens]\nfocsu = 1', "Did you mean 'focus'?"),
    ],
)
def test_a_wrong_file_is_refused_by_text(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert words in refusal(lambda: Camera.read(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    said = refusal(lambda: Camera.read(tmp_path / "none.toml"))
    assert said == f"there is no config file {tmp_path / 'none.toml'}. Check the path."
