"""CLIP and SigLIP in the sizes of their papers, with the settings they were trained with.

    torchrun --nproc-per-node 8 -m diptych train clip-vit-b-32 --data shards/ --out runs/b32

The size rule (CLIP, arXiv:2103.00020, section 2.5): image towers scale width, depth and resolution
together, text towers width only. RN50x4, x16 and x64 follow it with about 4, 16 and 64 times the
compute of RN50; their text towers keep 12 layers and grow from 512 to 1,024 wide. Quality was
found to depend less on the text tower. SigLIP gives both towers the same width and depth.

Settings: CLIP, tables 18 to 20: AdamW with decay 0.2, 2,000 steps of warm-up in 32 passes over 400
M pairs in batches of 32,768; beta2 and epsilon 0.98 and 1e-6 for vision transformers, 0.999 and
1e-8 for residual networks (rates of these five from memory of the tables). SigLIP: beta2 0.95
(arXiv:2303.15343); rate 1e-3 and decay 1e-4 as SigLIP 2 states them (arXiv:2502.14786), where the
decay is not multiplied by the rate as AdamW does (so 0.1 here). Length, warm-up and epsilon of
SigLIP, clipping and crops are this project's. A smaller machine gives a smaller `--batch` and a
lower `--set optimizer.lr=`.

The text tables have the published size here; a run makes them as large as the vocabulary learned
from its captions, and no larger. `clip.py` and `siglip.py` hold sizes that a workstation trains.
"""

from typing import Any

from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.recipes.siglip import HALF
from diptych.train.run import DataConfig, OptimizerConfig, Run

HEAD_WIDTH = 64
"""Numbers per attention head in every tower of CLIP."""

BATCH = 32_768
"""Pairs per step in both papers."""


def clip_rn50() -> Run:
    """CLIP RN50: a residual network of 50 layers, 224 px."""
    return _clip_resnet(
        "clip-rn50",
        image_size=224,
        layers=(3, 4, 6, 3),
        width=64,
        text_width=512,
        embed=1024,
        lr=5e-4,
    )


def clip_rn101() -> Run:
    """CLIP RN101: a residual network of 101 layers, 224 px."""
    return _clip_resnet(
        "clip-rn101",
        image_size=224,
        layers=(3, 4, 23, 3),
        width=64,
        text_width=512,
        embed=512,
        lr=5e-4,
    )


def clip_rn50x4() -> Run:
    """CLIP RN50x4: about 4 times the compute of RN50, 288 px."""
    return _clip_resnet(
        "clip-rn50x4",
        image_size=288,
        layers=(4, 6, 10, 6),
        width=80,
        text_width=640,
        embed=640,
        lr=5e-4,
    )


def clip_rn50x16() -> Run:
    """CLIP RN50x16: about 16 times the compute of RN50, 384 px."""
    return _clip_resnet(
        "clip-rn50x16",
        image_size=384,
        layers=(6, 8, 18, 8),
        width=96,
        text_width=768,
        embed=768,
        lr=4e-4,
    )


def clip_rn50x64() -> Run:
    """CLIP RN50x64: about 64 times the compute of RN50, 448 px."""
    return _clip_resnet(
        "clip-rn50x64",
        image_size=448,
        layers=(3, 15, 36, 10),
        width=128,
        text_width=1024,
        embed=1024,
        lr=3.6e-4,
    )


def clip_vit_b_32() -> Run:
    """CLIP ViT-B/32: patches of 32 px, 12 layers of 768, 224 px."""
    return _clip_vit(
        "clip-vit-b-32",
        image_size=224,
        patch_size=32,
        layers=12,
        width=768,
        text_width=512,
        embed=512,
        lr=5e-4,
    )


def clip_vit_b_16() -> Run:
    """CLIP ViT-B/16: patches of 16 px, 12 layers of 768, 224 px."""
    return _clip_vit(
        "clip-vit-b-16",
        image_size=224,
        patch_size=16,
        layers=12,
        width=768,
        text_width=512,
        embed=512,
        lr=5e-4,
    )


def clip_vit_l_14() -> Run:
    """CLIP ViT-L/14: patches of 14 px, 24 layers of 1,024, 224 px."""
    return _clip_vit(
        "clip-vit-l-14",
        image_size=224,
        patch_size=14,
        layers=24,
        width=1024,
        text_width=768,
        embed=768,
        lr=4e-4,
    )


def clip_vit_l_14_336() -> Run:
    """CLIP ViT-L/14@336: ViT-L/14 at 336 px; the published run is one pass from its weights."""
    return _clip_vit(
        "clip-vit-l-14-336",
        image_size=336,
        patch_size=14,
        layers=24,
        width=1024,
        text_width=768,
        embed=768,
        lr=2e-5,
    ).with_length(None, 1.0, None)


def siglip_b_16() -> Run:
    """SigLIP B/16: patches of 16 px, two towers of 12 layers of 768, 224 px."""
    return _siglip(
        "siglip-b-16",
        image_size=224,
        patch_size=16,
        layers=12,
        width=768,
        heads=12,
        mlp_width=3072,
    )


def siglip_l_16() -> Run:
    """SigLIP L/16: patches of 16 px, two towers of 24 layers of 1,024, 256 px."""
    return _siglip(
        "siglip-l-16",
        image_size=256,
        patch_size=16,
        layers=24,
        width=1024,
        heads=16,
        mlp_width=4096,
    )


def siglip_so400m_14() -> Run:
    """SigLIP So400m/14: patches of 14 px, two towers of 27 layers of 1,152, 378 px.

    The paper says 384 pixels; patches of 14 see 378 of them.
    """
    return _siglip(
        "siglip-so400m-14",
        image_size=378,
        patch_size=14,
        layers=27,
        width=1152,
        heads=16,
        mlp_width=4304,
    )


def _clip_resnet(
    name: str,
    *,
    image_size: int,
    layers: tuple[int, ...],
    width: int,
    text_width: int,
    embed: int,
    lr: float,
) -> Run:
    """CLIP with a residual network: a row of the paper's table 19."""
    image = ResNetTowerConfig(
        image_size=image_size, width=width, layers=layers, heads=32 * width // HEAD_WIDTH
    )
    model = DualEncoderConfig(
        image=image, text=_clip_text(text_width), embed=embed, image_projection_bias=True
    )
    return _clip_run(name, model, OptimizerConfig(lr=lr, betas=(0.9, 0.999), epsilon=1e-8))


def _clip_vit(
    name: str,
    *,
    image_size: int,
    patch_size: int,
    layers: int,
    width: int,
    text_width: int,
    embed: int,
    lr: float,
) -> Run:
    """CLIP with a vision transformer: a row of the paper's table 20."""
    image = ImageTowerConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=width // HEAD_WIDTH,
        mlp_width=4 * width,
        activation="quick_gelu",
    )
    model = DualEncoderConfig(image=image, text=_clip_text(text_width), embed=embed)
    return _clip_run(name, model, OptimizerConfig(lr=lr, betas=(0.9, 0.98), epsilon=1e-6))


def _clip_text(width: int) -> TextTowerConfig:
    """CLIP's text tower: 12 layers of this width, 77 positions, 49,408 tokens."""
    return TextTowerConfig(
        vocabulary=49_408,
        context=77,
        width=width,
        layers=12,
        heads=width // HEAD_WIDTH,
        mlp_width=4 * width,
        activation="quick_gelu",
        end_token=2,
        pad_token=0,
    )


def _clip_run(name: str, model: DualEncoderConfig, optimizer: OptimizerConfig) -> Run:
    """What all of CLIP's runs share."""
    return Run(
        recipe=name,
        model=model,
        data=DataConfig(transform=ImageTransformConfig(image_size=model.image.image_size)),
        optimizer=optimizer.model_copy(update={"weight_decay": 0.2, "warmup": 0.005}),
        batch=BATCH,
        epochs=32,
    )


def _siglip(
    name: str,
    *,
    image_size: int,
    patch_size: int,
    layers: int,
    width: int,
    heads: int,
    mlp_width: int,
) -> Run:
    """SigLIP: both towers have these layers, width, heads and MLP."""
    shape: dict[str, Any] = {
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_width": mlp_width,
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
    }
    image = ImageTowerConfig(
        **shape,
        image_size=image_size,
        patch_size=patch_size,
        class_token=False,
        pool="attention",
        pre_norm=False,
        patch_bias=True,
    )
    text = TextTowerConfig(
        **shape,
        vocabulary=32_000,
        context=64,
        causal=False,
        pool="last",
        end_token=2,
        pad_token=0,
    )
    model = DualEncoderConfig(
        image=image,
        text=text,
        embed=width,
        objective="sigmoid",
        initialisation="siglip",
        image_projection=False,
        text_projection_bias=True,
    )
    transform = ImageTransformConfig(image_size=image_size, resize="squash", mean=HALF, std=HALF)
    return Run(
        recipe=name,
        model=model,
        data=DataConfig(transform=transform),
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup=0.02),
        batch=BATCH,
        epochs=32,
    )
