"""What changed between two pictures: vectors that match the text of a change, and models that write
that text.

    diptych train change-clip-small --data scenes:changes-few --out runs/changes

The stateful encoder reads each picture in the light of the one before (Wang et al., Stateful
Visual Encoders, arXiv:2606.04433). Today's way, the difference of two vectors, is the same recipe
with `--set model.pair=difference --set model.image.state=none`; the stateless twin of a model that
writes is `--set model.image.state=none`.
"""

from diptych.data.augment import AugmentConfig
from diptych.data.transforms import ImageTransformConfig
from diptych.models.change import ChangeModelConfig
from diptych.models.decoder import DecoderConfig
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.nn.state import StateConfig
from diptych.recipes.finetune import finetune
from diptych.train.run import DataConfig, OptimizerConfig, Run

SOURCE = "scenes:changes-few"
"""Few and large things, one change at most: what a small model learns in minutes."""

WHOLE = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1))
"""Whole pictures: a crop may leave out what changed."""


def change_tiny() -> Run:
    """Pairs for tests: 32 px, 2 layers of 64; seconds to train, too small to be of use."""
    return change_clip_small().override(
        [
            *("recipe=change-tiny", "model.embed=64", "batch=64", "steps=200"),
            *("model.image.image_size=32", "data.transform.image_size=32"),
            *("model.image.width=64", "model.image.layers=2", "model.image.heads=2"),
            *("model.image.mlp_width=256", "model.text.width=64", "model.text.layers=2"),
            *("model.text.heads=2", "model.text.mlp_width=256"),
        ]
    )


def change_clip_small() -> Run:
    """CLIP of changes: two pictures of 64 px to one vector that matches what changed."""
    return Run(
        recipe="change-clip-small",
        model=DualEncoderConfig(
            image=_encoder(192, 6),
            text=TextTowerConfig(
                vocabulary=2048,
                context=64,
                width=192,
                layers=3,
                heads=3,
                mlp_width=768,
                causal=False,
                pool="mean",
                end_token=2,
                pad_token=0,
            ),
            embed=192,
            pair="located",
        ),
        data=_pairs(64),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.1, warmup=0.05),
        batch=256,
        steps=2000,
    )


def change_caption_tiny() -> Run:
    """Writing what changed, for tests: 32 px, 2 layers of 64; seconds, too small to be of use."""
    return change_caption_small().override(
        [
            *("recipe=change-caption-tiny", "batch=32", "steps=200"),
            *("model.image.image_size=32", "data.transform.image_size=32"),
            *("model.image.width=64", "model.image.layers=2", "model.image.heads=2"),
            *("model.image.mlp_width=256", "model.text.width=64", "model.text.layers=2"),
            *("model.text.heads=2", "model.text.mlp_width=256"),
        ]
    )


def change_caption_small() -> Run:
    """A model that writes what changed: two pictures of 64 px to a text, yes or no, and where."""
    return Run(
        recipe="change-caption-small",
        model=ChangeModelConfig(
            image=_encoder(192, 6),
            text=DecoderConfig(
                vocabulary=2048,
                context=64,
                width=192,
                layers=4,
                heads=3,
                mlp_width=768,
                start_token=1,
                end_token=2,
                pad_token=0,
            ),
        ),
        data=_pairs(64),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.1, warmup=0.05),
        batch=64,
        steps=4000,
    )


def change_finetune() -> Run:
    """Changes from a trained CLIP: --from MODEL with a vision transformer becomes stateful."""
    trained = finetune()
    state = StateConfig(variant="cross_ffn", output_std=1e-4)  # as the paper on real pictures
    model = change_clip_small().model
    image = model.image.model_copy(update={"state": state})
    return trained.model_copy(
        update={
            "recipe": "change-finetune",
            "model": model.model_copy(update={"image": image}),  # that of --from takes its place
            "data": _pairs(64).model_copy(update={"augment": WHOLE}),
        }
    )


def _encoder(width: int, layers: int) -> ImageTowerConfig:
    """A small stateful vision transformer with a token for each patch and no other. Their mean is
    its vector, where a pair reads vectors ("difference", "concatenation")."""
    return ImageTowerConfig(
        image_size=64,
        patch_size=8,
        width=width,
        layers=layers,
        heads=width // 64,
        mlp_width=4 * width,
        class_token=False,
        pool="mean",
        state=StateConfig(variant="cross_ffn"),
    )


def _pairs(side: int) -> DataConfig:
    """Pairs of pictures of this size."""
    transform = ImageTransformConfig(image_size=side)
    return DataConfig(source=SOURCE, transform=transform, augment=WHOLE)
