"""Small runs and batches of pictures in a row, for the tests that need one."""

import torch

from diptych.batch import ImagePairBatch
from diptych.nn.state import CrossBlock, ModulatedBlock
from diptych.recipes import find_recipe

SHRINK_CHANGE = (
    *("model.image.width=32", "model.image.layers=1", "model.image.mlp_width=64"),
    *("model.text.width=32", "model.text.layers=1", "model.text.mlp_width=64"),
    *("model.text.vocabulary=400", "model.text.context=24", "data.workers=0"),
)
"""Settings that make the tiny recipes of changes tinier."""

DIFFERENCE = ("model.pair=difference", "model.image.state=none")
"""Today's way to compare two pictures."""


def change_run(*settings, recipe="change-tiny"):
    """Six steps of eight pairs of scenes, every step logged, in fp32."""
    return find_recipe(recipe).override(
        [
            *SHRINK_CHANGE,
            *("batch=8", "steps=6", "log_every=1", "validate_every=3", "precision=fp32"),
            *("data.source=scenes:changes-few:val", "data.val=scenes:changes-few:test"),
            *("data.val_pairs=24", *settings),
        ]
    )


def pair_batch(run, count, *, images=2, mask=True):
    """Noise: texts of several lengths, a row of which nobody knows whether it changed, and two
    rows that show the same change."""
    generator = torch.Generator().manual_seed(3)
    side, text = run.model.image.image_size, run.model.text
    ids = torch.randint(3, 300, (count, 12), generator=generator)
    ids[:, 0] = 1
    for row in range(count):
        end = 5 + row % 7
        ids[row, end], ids[row, end + 1 :] = text.end_token, text.pad_token
    ids[-1] = ids[0]
    groups = torch.arange(count)
    groups[-1] = 0
    changed = (torch.arange(count) % 2).float()
    changed[1] = float("nan")
    shape = (count, images, side, side, 3)
    marked = torch.rand((count, side, side), generator=generator) < 0.01
    return ImagePairBatch(
        image=torch.randint(0, 256, shape, generator=generator).byte(),
        text=ids,
        changed=changed,
        mask=marked.byte() if mask else None,
        groups=groups,
        position=0,
    )


def woken_state(model):
    """The model with what begins at zero in its stateful encoder moved away from it."""
    generator = torch.Generator().manual_seed(11)
    for module in model.modules():
        weights = []
        if isinstance(module, CrossBlock):
            weights = [module.attention.out.weight]
            weights += [module.mlp.down.weight] if module.mlp is not None else []
        if isinstance(module, ModulatedBlock):
            weights = [module.modulation.weight]
        for weight in weights:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return model
