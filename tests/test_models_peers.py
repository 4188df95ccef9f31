"""With the same weights our encoder gives the vectors of open_clip's CLIP, in both kinds of image
tower, and of transformers' SigLIP.

The weights are drawn at random and copied by the key tables below: ours on the right.
"""

import pytest
import torch
from torch.nn import functional as F

from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.resnet_tower import ResNetTowerConfig
from diptych.models.text_tower import TextTowerConfig

pytestmark = pytest.mark.peers

SIDE, PATCH, CONTEXT, WORDS, EMBED = 32, 8, 9, 50, 48
END, PAD = WORDS - 1, 0
PICTURES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
TEXTS = torch.tensor(
    [
        [1, 5, 6, 7, END, PAD, PAD, PAD, PAD],
        [1, END, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
        [1, 8, 9, 10, 11, 12, 13, 14, END],
    ]
)

OPEN_CLIP_BLOCK = {
    "ln_1": "attention_norm",
    "attn.in_proj_": "attention.query_key_value.",
    "attn.out_proj": "attention.out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
OPEN_CLIP = {
    "visual.class_embedding": "image.class_token",
    "visual.positional_embedding": "image.positions",
    "visual.proj": "image_projection.weight",
    "visual.conv1.weight": "image.patches.project.weight",
    "visual.ln_pre": "image.pre_norm",
    "visual.ln_post": "image.final_norm",
    "visual.transformer.resblocks": "image.blocks",
    "transformer.resblocks": "text.blocks",
    "token_embedding": "text.tokens",
    "positional_embedding": "text.positions",
    "ln_final": "text.final_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "log_scale",
}

OPEN_CLIP_RESNET = {
    "visual.attnpool.positional_embedding": "image.pool.positions",
    "visual.attnpool.q_proj": "image.pool.query",
    "visual.attnpool.kv_proj": "image.pool.key_value",
    "visual.attnpool.c_proj": "image_projection",
    **{f"visual.conv{n}": f"image.stem.{n - 1}.convolution" for n in (1, 2, 3)},
    **{f"visual.bn{n}": f"image.stem.{n - 1}.norm" for n in (1, 2, 3)},
    **{f"visual.layer{n}": f"image.stages.{n - 1}" for n in (1, 2, 3, 4)},
}
OPEN_CLIP_BOTTLENECK = {
    "conv1.": "reduce.convolution.",
    "bn1.": "reduce.norm.",
    "conv2.": "mix.convolution.",
    "bn2.": "mix.norm.",
    "conv3.": "expand.convolution.",
    "bn3.": "expand.norm.",
    "downsample.0.": "match.convolution.",
    "downsample.1.": "match.norm.",
}

TRANSFORMERS_BLOCK = {
    "layer_norm1": "attention_norm",
    "self_attn.qkv.": "attention.query_key_value.",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}
TRANSFORMERS = {
    "text_model.embeddings.token_embedding": "text.tokens",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    "text_model.encoder.layers": "text.blocks",
    "text_model.final_layer_norm": "text.final_norm",
    "text_model.head": "text_projection",
    "vision_model.embeddings.patch_embedding": "image.patches.project",
    "vision_model.embeddings.position_embedding.weight": "image.positions",
    "vision_model.encoder.layers": "image.blocks",
    "vision_model.post_layernorm": "image.final_norm",
    "vision_model.head.probe": "image.pool.probe",
    "vision_model.head.attention.q.": "image.pool.attention.query.",
    "vision_model.head.attention.kv.": "image.pool.attention.key_value.",
    "vision_model.head.attention.out_proj": "image.pool.attention.out",
    "vision_model.head.layernorm": "image.pool.mlp_norm",
    "vision_model.head.mlp.fc1": "image.pool.mlp.up",
    "vision_model.head.mlp.fc2": "image.pool.mlp.down",
    "logit_scale": "log_scale",
    "logit_bias": "bias",
}


def draw_anew(model):
    """Random weights everywhere, so that no norm, bias or class token is neutral."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def renamed(weights, table, block):
    """The weights under our names; a name that no line of the table begins is an error."""
    ours = {}
    for name, value in weights.items():
        start = next(start for start in table if name == start or name.startswith(start))
        name = table[start] + name[len(start) :]
        if ".blocks." in name or ".stages." in name:
            for theirs, our in block.items():
                name = name.replace(f".{theirs}", f".{our}")
        assert name not in ours
        ours[name] = value
    return ours


def from_open_clip(weights):
    ours = renamed(weights, OPEN_CLIP, OPEN_CLIP_BLOCK)
    for name in ("image_projection.weight", "text_projection.weight"):
        ours[name] = ours[name].T
    ours["image.patches.project.weight"] = ours["image.patches.project.weight"].flatten(1)
    return ours


def from_open_clip_resnet(weights):
    """Keys and values in one matrix; the text side has no part in this."""
    weights = {name: value for name, value in weights.items() if name.startswith("visual.")}
    for end in ("weight", "bias"):
        parts = [weights.pop(f"visual.attnpool.{part}_proj.{end}") for part in "kv"]
        weights[f"visual.attnpool.kv_proj.{end}"] = torch.cat(parts)
    return renamed(weights, OPEN_CLIP_RESNET, OPEN_CLIP_BOTTLENECK)


def from_transformers(weights):
    weights = dict(weights)
    for name in [name for name in weights if ".self_attn.q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("q_proj", "qkv")] = torch.cat(parts)
    for end in ("weight", "bias"):
        joined = weights.pop(f"vision_model.head.attention.in_proj_{end}")
        weights[f"vision_model.head.attention.q.{end}"] = joined[:EMBED]
        weights[f"vision_model.head.attention.kv.{end}"] = joined[EMBED:]
    ours = renamed(weights, TRANSFORMERS, TRANSFORMERS_BLOCK)
    ours["image.patches.project.weight"] = ours["image.patches.project.weight"].flatten(1)
    return {name: value.squeeze() if value.numel() == 1 else value for name, value in ours.items()}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_our_encoder_gives_the_vectors_of_open_clip(activation):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    theirs = draw_anew(
        CLIP(
            EMBED,
            CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=PATCH, image_size=SIDE),
            CLIPTextCfg(context_length=CONTEXT, vocab_size=WORDS, width=36, heads=3, layers=3),
            quick_gelu=activation == "quick_gelu",
        )
    )
    ours = DualEncoder(
        DualEncoderConfig(
            image=ImageTowerConfig(
                image_size=SIDE,
                patch_size=PATCH,
                width=64,
                layers=2,
                heads=2,
                mlp_width=256,
                activation=activation,
            ),
            text=TextTowerConfig(
                vocabulary=WORDS,
                context=CONTEXT,
                width=36,
                layers=3,
                heads=3,
                mlp_width=144,
                activation=activation,
                end_token=END,
                pad_token=PAD,
            ),
            embed=EMBED,
        )
    ).eval()
    ours.load_state_dict(from_open_clip(theirs.state_dict()))
    with torch.no_grad():
        close(ours.encode_image(PICTURES), theirs.encode_image(PICTURES, normalize=True))
        close(ours.encode_text(TEXTS), theirs.encode_text(TEXTS, normalize=True))
        close(ours(PICTURES, TEXTS).scale, theirs.logit_scale.exp())


@pytest.mark.parametrize("training", [False, True])
def test_our_resnet_gives_the_vectors_and_gradients_of_open_clip(training):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    text = {"width": 32, "heads": 2, "layers": 1}
    theirs = CLIP(
        EMBED,
        CLIPVisionCfg(layers=[1, 2, 1, 1], width=8, head_width=32, image_size=64),
        CLIPTextCfg(context_length=CONTEXT, vocab_size=WORDS, **text),
    )
    for module in theirs.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, 0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    image = ResNetTowerConfig(image_size=64, layers=(1, 2, 1, 1), width=8, heads=8)
    tower = TextTowerConfig(
        **text, vocabulary=WORDS, context=CONTEXT, mlp_width=128, end_token=END, pad_token=PAD
    )
    ours = DualEncoder(
        DualEncoderConfig(image=image, text=tower, embed=EMBED, image_projection_bias=True)
    )
    copied = from_open_clip_resnet(theirs.state_dict())
    missing = ours.load_state_dict(copied, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith(("text", "log_scale")) for name in missing.missing_keys)

    ours, theirs = ours.double().train(training), theirs.double().train(training)
    pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    found, expected = ours.image_projection(ours.image(pictures)), theirs.visual(pictures)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    direction = torch.randn(4, EMBED, generator=torch.Generator().manual_seed(2)).double()
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = {f"visual.{name}": weight.grad for name, weight in theirs.visual.named_parameters()}
    for name, gradient in from_open_clip_resnet(gradients).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-10)
    for name, value in from_open_clip_resnet(theirs.state_dict()).items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-12)


def test_our_encoder_gives_the_vectors_and_logits_of_transformers_siglip():
    from transformers import SiglipConfig, SiglipModel

    shape = {"hidden_size": EMBED, "intermediate_size": 96, "num_attention_heads": 3}
    theirs = draw_anew(
        SiglipModel(
            SiglipConfig(
                text_config={
                    **shape,
                    "num_hidden_layers": 3,
                    "vocab_size": WORDS,
                    "max_position_embeddings": CONTEXT,
                    "projection_size": EMBED,
                    "bos_token_id": 1,
                    "eos_token_id": END,
                    "pad_token_id": PAD,
                },
                vision_config={
                    **shape,
                    "num_hidden_layers": 2,
                    "image_size": SIDE,
                    "patch_size": PATCH,
                },
            )
        )
    )
    tower = {
        "width": EMBED,
        "heads": 3,
        "mlp_width": 96,
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
    }
    ours = DualEncoder(
        DualEncoderConfig(
            image=ImageTowerConfig(
                **tower,
                image_size=SIDE,
                patch_size=PATCH,
                layers=2,
                class_token=False,
                pool="attention",
                pre_norm=False,
                patch_bias=True,
            ),
            text=TextTowerConfig(
                **tower,
                vocabulary=WORDS,
                context=CONTEXT,
                layers=3,
                causal=False,
                pool="last",
                end_token=END,
                pad_token=PAD,
            ),
            embed=EMBED,
            objective="sigmoid",
            initialisation="siglip",
            image_projection=False,
            text_projection_bias=True,
        )
    ).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    with torch.no_grad():
        expected = theirs(input_ids=TEXTS, pixel_values=PICTURES)
        found = ours(PICTURES, TEXTS)
        close(found.image, F.normalize(expected.image_embeds, dim=-1))
        close(found.text, F.normalize(expected.text_embeds, dim=-1))
        close(found.scale * found.image @ found.text.T + found.bias, expected.logits_per_image)
