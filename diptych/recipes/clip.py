"""CLIP in sizes that a workstation trains from scratch.

    diptych train clip-small --data photos/ --val more-photos/ --out runs/photos

Paper: Radford et al., arXiv:2103.00020. The optimizer's settings are the paper's for ViT; the
rate is higher and the warm-up a share of the run because batches and runs are far smaller.
"""

from diptych.data.augment import AugmentConfig
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.train.run import DataConfig, OptimizerConfig, Run


def clip_tiny() -> Run:
    """CLIP for tests: 32 px, 2 layers of 64; seconds to train, too small to be of use."""
    return Run(
        recipe="clip-tiny",
        model=DualEncoderConfig(
            image=ImageTowerConfig(
                image_size=32, patch_size=8, width=64, layers=2, heads=2, mlp_width=256
            ),
            text=TextTowerConfig(
                vocabulary=1024,
                context=32,
                width=64,
                layers=2,
                heads=2,
                mlp_width=256,
                end_token=2,
                pad_token=0,
            ),
            embed=64,
        ),
        data=DataConfig(transform=ImageTransformConfig(image_size=32)),
        batch=64,
        steps=200,
    )


def clip_mini() -> Run:
    """CLIP for the demo: 64 px, 4 layers of 128; learns the scenes in 3 minutes on 2 cores."""
    return clip_small().override(
        [
            *("recipe=clip-mini", "batch=128", "optimizer.lr=2e-3", "model.embed=128"),
            *("model.image.width=128", "model.image.layers=4", "model.image.mlp_width=512"),
            *("model.text.width=128", "model.text.layers=3", "model.text.mlp_width=512"),
        ]
    )


def clip_small() -> Run:
    """CLIP for small pictures on a small machine: 64 px, 6 layers of 256; some minutes on CPU."""
    return Run(
        recipe="clip-small",
        model=DualEncoderConfig(
            image=ImageTowerConfig(
                image_size=64, patch_size=8, width=256, layers=6, heads=4, mlp_width=1024
            ),
            text=TextTowerConfig(
                vocabulary=8192,
                context=40,
                width=256,
                layers=4,
                heads=4,
                mlp_width=1024,
                end_token=2,
                pad_token=0,
            ),
            embed=256,
        ),
        data=DataConfig(
            transform=ImageTransformConfig(image_size=64),
            augment=AugmentConfig(crop_scale=(0.7, 1.0)),
        ),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.2, warmup=0.05),
        batch=256,
        steps=2000,
    )


def clip_resnet_small() -> Run:
    """CLIP with a residual network: 64 px, 4 blocks; learns most in a few minutes on CPU.

    Convolutions know that neighbouring pixels belong together, which a vision transformer has to
    learn from pictures that a small source does not have (docs/benchmarks.md).
    """
    return Run(
        recipe="clip-resnet-small",
        model=DualEncoderConfig(
            image=ResNetTowerConfig(
                image_size=64,
                width=24,
                layers=(1, 1, 1, 1),
                block="basic",
                stem_pool=False,
                pool="mean",
            ),
            text=TextTowerConfig(
                vocabulary=4096,
                context=24,
                width=256,
                layers=2,
                heads=4,
                mlp_width=1024,
                causal=False,
                pool="mean",
                end_token=2,
                pad_token=0,
            ),
            embed=256,
        ),
        data=DataConfig(
            transform=ImageTransformConfig(image_size=64),
            augment=AugmentConfig(
                crop_scale=(1, 1),
                crop_ratio=(1, 1),
                turn=15,
                zoom=1.22,
                shear=0.1,
                shift=0.08,
                color=0.2,
                hue=0.03,
            ),
        ),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.1, warmup=0.05),
        ema=0.998,
        batch=256,
        steps=2000,
    )
