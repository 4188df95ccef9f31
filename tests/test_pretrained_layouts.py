"""One order of layouts, for folders and for what is fetched from the hub."""

from itertools import chain, combinations

import pytest

from diptych.errors import CheckpointError
from diptych.pretrained.hub import wanted_files
from diptych.pretrained.layouts import (
    DIPTYCH,
    OPEN_CLIP,
    TRANSFORMERS,
    find_layout,
    marked_layout,
    open_clip_weights,
)

FILES = (
    "contract.json",
    "open_clip_config.json",
    "config.json",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "other.pth",
    "tokenizer.json",
)


@pytest.mark.parametrize(
    ("names", "layout", "weights"),
    [
        (
            ("contract.json", "open_clip_config.json", "config.json", "model.safetensors"),
            *(DIPTYCH, "model.safetensors"),
        ),
        (
            ("contract.json", "open_clip_config.json", "open_clip_model.safetensors"),
            *(OPEN_CLIP, "open_clip_model.safetensors"),
        ),
        (
            ("open_clip_config.json", "config.json", "pytorch_model.bin"),
            *(TRANSFORMERS, "pytorch_model.bin"),
        ),
        (("open_clip_config.json", "model.safetensors"), OPEN_CLIP, "model.safetensors"),
        (("open_clip_config.json", "config.json", "z.bin"), OPEN_CLIP, "z.bin"),
    ],
)
def test_a_layout_counts_with_weights_of_its_own_and_ours_goes_first(names, layout, weights):
    assert find_layout(names) == (layout, weights)


@pytest.mark.parametrize("names", [(), ("config.json",), ("model.safetensors", "README.md")])
def test_without_a_config_or_weights_there_is_no_model(names):
    assert find_layout(names) is None


def test_a_folder_without_weights_is_told_by_its_mark():
    assert marked_layout(["open_clip_config.json", "config.json"]) == OPEN_CLIP
    assert marked_layout(["config.json"]) == TRANSFORMERS
    assert marked_layout(["run.json", "checkpoints"]) is None


def test_open_clip_takes_weights_of_any_name_the_safe_ones_first():
    assert open_clip_weights(["a.bin", "z.safetensors", "b.safetensors"]) == "b.safetensors"
    assert open_clip_weights(["a.txt"]) is None


def test_what_is_fetched_opens_as_what_it_was_fetched_for():
    """For every set of files that a repository may have."""
    every = chain.from_iterable(combinations(FILES, count) for count in range(len(FILES) + 1))
    for names in every:
        found = find_layout(names)
        if found is None:
            with pytest.raises(CheckpointError, match="is no model that Diptych knows"):
                wanted_files(names)
        else:
            fetched = wanted_files(names)
            assert find_layout(fetched) == found, names
            marks = {DIPTYCH.mark, OPEN_CLIP.mark} & set(fetched)
            assert marks <= {found[0].mark}, names
