"""The real data sets open as sources, with the sizes their README states. Run by `make real`."""

import os
from pathlib import Path

import pytest

from diptych.data.opening import open_source
from diptych.data.pictures import to_rgb
from diptych.data.source import SourceOptions

DATA = Path(os.environ.get("DIPTYCH_DATA", "../shared/data"))
SETS = {
    "emoji/noto.parquet": ({"where": "skin_tone = ''"}, 1928),
    "emoji/twemoji.parquet": ({"where": "skin_tone = ''"}, 1944),
    "emoji/openmoji.parquet": ({"where": "skin_tone = ''"}, 2459),
    "photos/flickr8k.parquet": ({"where": "split = 'test'"}, 1000),
    "clipart/mulberry.parquet": ({}, 3436),
    "clipart/tuxpaint_stamps.parquet": ({}, 949),
    "statements/nlvr.parquet": ({}, 2964),
}


@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_a_set_has_the_size_its_readme_states_and_its_pictures_can_be_read(name):
    options, size = SETS[name]
    source = open_source(str(DATA / name), SourceOptions(**options))
    assert source.size == size
    for index in range(0, size, max(1, size // 50)):
        assert source.captions(index)
        assert to_rgb(source.sample(index).picture).mode == "RGB"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "where", "size"),
    [
        ("changes/deeppcb_patches.parquet", None, 17_024),
        ("changes/deeppcb_patches.parquet", "group <> 'group20085'", 12_205),
        ("changes/deeppcb_pairs.parquet", None, 1_240),
    ],
)
def test_a_set_of_pairs_opens_as_it_is(name, where, size):
    source = open_source(str(DATA / name), SourceOptions(where=where), captions_needed=False)
    assert source.size == size
    for index in range(0, size, max(1, size // 50)):
        sample = source.sample(index)
        assert to_rgb(sample.before[0]).size == to_rgb(sample.picture).size
        assert sample.changed is bool(sample.metadata["changed"])
        assert "patches" not in name or sample.captions
        assert "pairs" not in name or sample.mask.getextrema() == (0, 255)
