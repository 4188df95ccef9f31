"""SigLIP in sizes that a workstation trains from scratch.

    diptych train siglip-small --data photos/ --val more-photos/ --out runs/photos

Differs from `clip.py` in everything the paper changes: sigmoid loss with a learned bias, a probe
that pools the patches, no class token, text read both ways at full length and pooled at its last
position. The bias starts at -ln(batch), not at the -10 that suits the paper's batch of 32k.
Paper: Zhai et al., arXiv:2303.15343.
"""

import math

from diptych.data.augment import AugmentConfig
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.train.run import DataConfig, OptimizerConfig, Run

HALF = (0.5, 0.5, 0.5)
"""SigLIP's mean and standard deviation of the pixels."""


def siglip_tiny() -> Run:
    """SigLIP for tests: 32 px, 2 layers of 64; seconds to train, too small to be of use."""
    return Run(
        recipe="siglip-tiny",
        model=_model(
            side=32, width=64, layers=2, text_layers=2, heads=2, context=32, words=1024, batch=64
        ),
        data=DataConfig(
            transform=ImageTransformConfig(image_size=32, resize="squash", mean=HALF, std=HALF)
        ),
        optimizer=OptimizerConfig(betas=(0.9, 0.95)),
        batch=64,
        steps=200,
    )


def siglip_small() -> Run:
    """SigLIP for small pictures on a small machine: 64 px, 6 layers of 256; minutes on CPU."""
    return Run(
        recipe="siglip-small",
        model=_model(
            side=64, width=256, layers=6, text_layers=4, heads=4, context=40, words=8192, batch=256
        ),
        data=DataConfig(
            transform=ImageTransformConfig(image_size=64, resize="squash", mean=HALF, std=HALF),
            augment=AugmentConfig(crop_scale=(0.7, 1.0)),
        ),
        optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup=0.05),
        batch=256,
        steps=2000,
    )


def _model(
    *,
    side: int,
    width: int,
    layers: int,
    text_layers: int,
    heads: int,
    context: int,
    words: int,
    batch: int,
) -> DualEncoderConfig:
    """SigLIP's shape in a given size, with the bias that batches of `batch` want."""
    return DualEncoderConfig(
        image=ImageTowerConfig(
            image_size=side,
            patch_size=8,
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=4 * width,
            activation="gelu_tanh",
            class_token=False,
            pool="attention",
            pre_norm=False,
            patch_bias=True,
            norm_epsilon=1e-6,
        ),
        text=TextTowerConfig(
            vocabulary=words,
            context=context,
            width=width,
            layers=text_layers,
            heads=heads,
            mlp_width=4 * width,
            activation="gelu_tanh",
            causal=False,
            pool="last",
            norm_epsilon=1e-6,
            end_token=2,
            pad_token=0,
        ),
        embed=width,
        objective="sigmoid",
        start_bias=round(-math.log(batch), 2),
        initialisation="siglip",
        image_projection=False,
        text_projection_bias=True,
    )
