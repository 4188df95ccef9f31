"""Both families learn the scenes: minutes of training, so only `make slow` runs it."""

import pytest

from diptych.data.opening import open_source
from diptych.evaluate.retrieval import judge_retrieval
from diptych.predict.model import load
from diptych.recipes import find_recipe
from diptych.train.loop import train

SMALLER = {
    "clip-mini": (),
    "siglip-small": (
        *("model.embed=128", "batch=128"),
        *("model.image.width=128", "model.image.layers=4", "model.image.mlp_width=512"),
        *("model.text.width=128", "model.text.layers=3", "model.text.mlp_width=512"),
    ),
}
"""Both about 1.5 million numbers."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", SMALLER)
def test_a_family_finds_unseen_scenes_far_above_chance(recipe, tmp_path):
    run = find_recipe(recipe).override(["steps=250", *SMALLER[recipe]])
    train(run, tmp_path / "run")
    judged = judge_retrieval(load(tmp_path / "run"), open_source("scenes:shapes:test"))
    found = judged.result.text_to_image
    print(f"\n{recipe}\n{judged.result.summary()}")
    assert found.recall[10].low > 20 * found.chance[10]
