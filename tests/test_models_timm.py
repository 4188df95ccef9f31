"""A tower of timm where timm is not installed, and how one is written."""

import importlib

import pytest
from small import small_run

from diptych.errors import ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoder
from diptych.models.timm_tower import TimmTowerConfig


def test_without_timm_the_remedy_is_said(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        RequestError, match=r"No module named 'timm'.*pip install 'diptych\[timm\]'"
    ):
        DualEncoder(small_run("model.image=timm:a_model@32").model)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm:resnet18", TimmTowerConfig(name="resnet18")),
        ("timm:resnet18@96", TimmTowerConfig(name="resnet18", image_size=96)),
    ],
)
def test_a_short_text_stands_for_a_config(text, expected):
    assert TimmTowerConfig.model_validate(text) == expected


def test_a_size_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match=r"size 'big', which is no number.*\"timm:resnet18@64\""):
        small_run("model.image=timm:resnet18@big")


def test_a_text_that_names_no_tower_is_refused():
    with pytest.raises(ConfigError, match=r"setting 'model.image' is 'resnet18'"):
        small_run("model.image=resnet18")
