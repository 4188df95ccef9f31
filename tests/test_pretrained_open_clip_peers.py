"""Folders that open_clip saved give its vectors and logits in Diptych, and the other way round.

Every parameter and buffer is drawn at random, so that no norm, bias or statistic is neutral. The
models are open_clip's own classes in small shapes, opened by open_clip's `local-dir:`; pictures
have odd sizes and go through both libraries' preprocessing.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small import caption_of, picture_of, random_model

from diptych.checkpoint import Bundle
from diptych.data.transforms import evaluation_transform, normalise
from diptych.models.dual_encoder import DualEncoder
from diptych.models.image_tower import ImageTowerConfig
from diptych.pretrained import architectures, open_clip_config
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.open_clip import read_open_clip, write_open_clip
from diptych.pretrained.sentencepiece import sentencepiece_tokenizer
from diptych.pretrained.tokenizers_of import open_clip_tokenizer, transformers_tokenizer

pytestmark = [
    pytest.mark.peers,
    # what open_clip, timm and transformers say to themselves
    pytest.mark.filterwarnings("ignore"),
]

SLOW = pytest.mark.slow

TEXTS = [
    "a photo of a cat",
    "",
    "Two dogs &amp; one “Ｃat” — naïve café, 日本 🙂",
    "word " * 100,
]
CAPTIONS = [caption_of(number) for number in (3, 50)] + ["", "Thing  " * 30]
"""Without the characters that open_clip changes in every text."""

PICTURES = [picture_of(number, side) for number, side in enumerate((40, 33, 77))]
PICTURES.append(Image.fromarray(np.asarray(picture_of(7, 61))[:19]))

CLIP_TEXT = {"width": 32, "heads": 2, "layers": 2}
SQUASH = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.6, 0.7],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def vit(**fields):
    return {
        "image_size": 48,
        "layers": 2,
        "width": 48,
        "head_width": 16,
        "patch_size": 16,
        **fields,
    }


def resnet(**fields):
    return {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32, **fields}


def trunk(name, **fields):
    return {"image_size": 32, "timm_model_name": name, "timm_pool": "", **fields}


LAST = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "context_length": 24}
SIGLIP = {"init_logit_bias": -10, "custom_text": True}
TANH = {"act_kwargs": {"approximate": "tanh"}}

MODELS = {
    "vit": {"vision_cfg": vit()},
    "quick gelu": {"vision_cfg": vit(), "quick_gelu": True},
    "mean pool": {"vision_cfg": vit(pool_type="avg", no_ln_pre=True, mlp_ratio=2.7)},
    "tanh and epsilon": {
        "vision_cfg": vit(**TANH, norm_kwargs={"eps": 1e-3}),
        "text_cfg": {**CLIP_TEXT, **TANH, "norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 3.3},
    },
    "edge left out": {"vision_cfg": vit(image_size=53)},
    "norm after the class token": {"vision_cfg": vit(final_ln_after_pool=True)},
    "custom text": {"vision_cfg": vit(), "custom_text": True, "init_logit_bias": -3.5},
    "resnet": {"vision_cfg": resnet(), "quick_gelu": True},
    "siglip": {
        "vision_cfg": trunk("vit_test_patch8_siglip_32", timm_pool="map", timm_proj="none"),
        "text_cfg": {**CLIP_TEXT, **LAST, "norm_kwargs": {"eps": 1e-6}},
        **SIGLIP,
    },
    "siglip with the edge left out": {
        "vision_cfg": trunk(
            "vit_test_patch7_siglip_33",
            image_size=33,
            timm_pool="map",
            timm_proj="linear",
            timm_proj_bias=True,
        ),
        "text_cfg": {**CLIP_TEXT, **LAST, **TANH},
        **SIGLIP,
    },
    "timm linear": {"vision_cfg": trunk("resnet10t", timm_proj="linear")},
    "timm mlp": {"vision_cfg": trunk("test_convnext", timm_proj="mlp", timm_proj_bias=True)},
    "timm classifier": {
        "vision_cfg": trunk("test_vit", image_size=160, timm_pool="token", timm_proj=None),
        "custom_text": True,
    },
    "timm with tables outside": {
        "vision_cfg": trunk(
            "eva02_tiny_patch14_224", image_size=224, timm_pool="token", timm_proj="linear"
        )
    },
}


@pytest.fixture(scope="module", autouse=True)
def small_siglip_trunks():
    """SigLIP's towers in a size for tests, known to timm and to our table."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    known = dict(open_clip_config.SIGLIP_TRUNKS)
    for name, side, patch, act in (
        ("vit_test_patch8_siglip_32", 32, 8, "gelu"),
        ("vit_test_patch7_siglip_33", 33, 7, "gelu_tanh"),
    ):

        def make(pretrained=False, side=side, patch=patch, act=act, **fields):
            fields = {"global_pool": "map", **fields}
            for extra in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
                fields.pop(extra, None)
            model = VisionTransformer(
                img_size=side,
                patch_size=patch,
                embed_dim=48,
                depth=2,
                num_heads=3,
                mlp_ratio=3,
                class_token=False,
                act_layer=act,
                **fields,
            )
            model.default_cfg = model.pretrained_cfg = {"input_size": (3, side, side)}
            return model

        make.__name__ = name
        make.__module__ = "timm.models.vision_transformer"
        timm.models.register_model(make)
        open_clip_config.SIGLIP_TRUNKS[name] = ImageTowerConfig(
            image_size=side,
            patch_size=patch,
            cut_edge=side % patch != 0,
            width=48,
            layers=2,
            heads=3,
            mlp_width=144,
            activation=act,
            class_token=False,
            pool="attention",
            pre_norm=False,
            patch_bias=True,
            norm_epsilon=1e-6,
        )
    yield
    open_clip_config.SIGLIP_TRUNKS.clear()
    open_clip_config.SIGLIP_TRUNKS.update(known)


def drawn(model, seed=0):
    """Random numbers in every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(3)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif name.startswith("logit_scale"):
            tensor.fill_(2.0)
        else:
            tensor.normal_(0.1, 0.15, generator=generator)
    return model.eval()


def completed(model):
    return {"embed_dim": 40 if "none" not in str(model) else 48, "text_cfg": CLIP_TEXT, **model}


def theirs_of(model):
    """open_clip's own model, at random."""
    import open_clip

    values = json.loads(json.dumps(completed(model)))
    custom = values.pop("custom_text", False)
    torch.manual_seed(0)
    return drawn((open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**values))


def saved(folder, model, preprocess=SQUASH):
    """A folder as open_clip writes it; gives what open_clip reads from it."""
    folder.mkdir()
    written = {"model_cfg": completed(model), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    save_file(theirs_of(model).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def expected(folder, texts=TEXTS, **options):
    """Image vectors, text vectors, logits and token ids of open_clip."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    pixels = torch.stack([transform(picture) for picture in PICTURES])
    with torch.no_grad():
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(ids, normalize=True)
        return image, text, model.get_logits(pixels, ids)[0], pixels, ids


def bundle_of(foreign):
    """The same as `make_bundle`, without the fingerprint."""
    with torch.device("meta"):
        model = DualEncoder(foreign.config)
    model.load_state_dict(foreign.tensors, assign=True)
    return Bundle(model.eval(), foreign.tokenizer, foreign.transform, "none")


def found(foreign, texts=TEXTS):
    """The same of ours."""
    bundle = bundle_of(foreign)
    transform = foreign.transform
    square = [evaluation_transform(picture, transform) for picture in PICTURES]
    pixels = normalise(torch.from_numpy(np.stack(square)), transform.mean, transform.std)
    ids = torch.from_numpy(foreign.tokenizer.encode(texts)[0])
    with torch.no_grad():
        ours = bundle.model(pixels, ids)
    logits = ours.scale * ours.image @ ours.text.T + (0 if ours.bias is None else ours.bias)
    return ours.image, ours.text, logits, pixels, ids


def same(ours, theirs):
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = 0 if number > 2 else 1e-5  # pixels and ids to the bit
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_open_clip_gives_its_vectors_and_written_again_every_bit(name, tmp_path):
    folder = saved(tmp_path / "first", MODELS[name])
    first = read_open_clip(folder)
    assert (first.made_by, first.notes) == ("open_clip", ())
    theirs = expected(folder)
    same(found(first), theirs)
    (tmp_path / "second").mkdir()
    notes = write_open_clip(bundle_of(first), tmp_path / "second")
    assert notes == ()
    second = read_open_clip(tmp_path / "second")
    assert second.config == first.config
    assert second.transform == first.transform
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    assert second.tokenizer.rules == first.tokenizer.rules
    assert set(second.tensors) == set(first.tensors)
    for key, tensor in first.tensors.items():
        assert torch.equal(second.tensors[key], tensor), key
    weights = [
        # in both of open_clip's classes
        {key.removeprefix("text."): tensor for key, tensor in load_file(path).items()}
        for path in sorted(tmp_path.glob("*/open_clip_model.safetensors"))
    ]
    assert set(weights[0]) == set(weights[1])
    for key, tensor in weights[0].items():
        assert torch.equal(weights[1][key], tensor), key
    for one, other in zip(expected(tmp_path / "second"), theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)  # not every class is the same


PARTIAL = {
    "nothing": (None, "as in open_clip: mean (0.48145466, 0.4578275, 0.40821073), std "),
    "colours only": ({"mean": [0.5] * 3, "std": 0.25}, "interpolation bicubic, resize_mode short"),
    "nulls and words nobody knows": (
        {"mean": None, "resize_mode": "squash", "interpolation": "random", "colour": "red"},
        "mean (0.48145466",
    ),
    "no size": ({**SQUASH, "size": 999}, None),
    "padded with black": ({"resize_mode": "longest"}, "std (0.26862954"),
    "padded with white": ({"resize_mode": "longest", "fill_color": 255}, "std (0.26862954"),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_a_partial_preprocessing_is_completed_as_open_clip_does_and_reported(name, tmp_path):
    preprocess, note = PARTIAL[name]
    folder = saved(tmp_path / "folder", MODELS["vit"], preprocess)
    if preprocess is None:
        written = json.loads((folder / "open_clip_config.json").read_text())
        del written["preprocess_cfg"]
        (folder / "open_clip_config.json").write_text(json.dumps(written))
    foreign = read_open_clip(folder)
    assert note in foreign.notes[0] if note else foreign.notes == ()
    same(found(foreign), expected(folder))


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit", 80), ("edge left out", 70), ("siglip", 48), ("timm classifier", 192)]
    + [("siglip with the edge left out", 40), pytest.param("timm linear", 64, marks=SLOW)],
)
def test_another_image_size_gives_the_vectors_of_force_image_size(name, size, tmp_path):
    folder = saved(tmp_path / "folder", MODELS[name])
    foreign = read_open_clip(folder, image_size=size)
    assert foreign.config.image.image_size == foreign.transform.image_size == size
    same(found(foreign), expected(folder, force_image_size=size))


def test_tables_of_another_length_are_resized_as_open_clip_does(tmp_path):
    folder = saved(tmp_path / "folder", MODELS["vit"])
    written = json.loads((folder / "open_clip_config.json").read_text())
    written["model_cfg"]["vision_cfg"]["image_size"] = 64
    written["model_cfg"]["text_cfg"]["context_length"] = 50
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    same(found(read_open_clip(folder)), expected(folder))


def test_weights_are_read_whatever_wraps_them(tmp_path):
    folder = saved(tmp_path / "folder", MODELS["custom text"])
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    plain = read_open_clip(folder).tensors
    path.unlink()
    module = {f"module.{name}": tensor for name, tensor in tensors.items()}
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}}
    lightning = {f"model.{name}": tensor for name, tensor in tensors.items()}
    for wrapped in (
        tensors,
        module,
        {"epoch": 3, "name": "run", "state_dict": module, "optimizer": moments},
        {"state_dict": lightning},
    ):
        torch.save(wrapped, folder / "open_clip_pytorch_model.bin")
        read = read_open_clip(folder).tensors
        assert all(torch.equal(read[name], tensor) for name, tensor in plain.items())
    half = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save(half, folder / "open_clip_pytorch_model.bin")
    same(found(read_open_clip(folder)), expected(folder))


def test_a_missing_logit_bias_is_zero_as_in_open_clip(tmp_path):
    folder = saved(tmp_path / "folder", MODELS["custom text"])
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    del tensors["logit_bias"]
    save_file(tensors, path)
    foreign = read_open_clip(folder)
    assert "has no logit_bias: 0, as in open_clip" in foreign.notes[0]
    same(found(foreign), expected(folder))


def trained_here(tmp_path, *settings, family="clip"):
    """A model as a run of Diptych leaves it, with random numbers everywhere."""
    bundle = random_model(tmp_path, *settings, family=family)._bundle
    drawn(bundle.model)
    return bundle


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.image.pool=mean", "model.image.activation=quick_gelu")
        + ("model.text.activation=quick_gelu", "model.text.norm_epsilon=1e-3"),
        ('model.image={"kind":"resnet","image_size":32,"width":8,"heads":8}',)
        + ("model.image_projection_bias=true", "model.text.pool=last"),
        ("model.image=timm:resnet10t@32", "model.text.causal=false", "model.text.pool=last"),
        ("model.objective=sigmoid", "model.start_bias=-3", "model.text_projection_bias=true")
        + ("data.transform.resize=pad", "data.transform.interpolation=bilinear"),
    ],
)
def test_open_clip_opens_what_diptych_trained(settings, tmp_path):
    bundle = trained_here(tmp_path, *settings)
    folder = tmp_path / "written"
    folder.mkdir()
    notes = write_open_clip(bundle, folder)
    assert 'open_clip cleans texts with "whitespace", and this model with []' in notes[0]
    assert "open_clip reads '<end>' written in a text as the token" in notes[1]
    theirs = expected(folder, texts=CAPTIONS)
    ours = found(
        Foreign(
            bundle.model.config,
            bundle.model.state_dict(),
            bundle.tokenizer,
            bundle.transform,
            "diptych",
        ),
        texts=CAPTIONS,
    )
    same(ours, theirs)
    again = read_open_clip(folder)
    assert again.config == bundle.model.config.model_copy(
        update={"initialisation": again.config.initialisation}
    )
    same(found(again, texts=CAPTIONS), theirs)


@pytest.mark.parametrize("clean", ["lower", "canonicalize"])
def test_a_tokenizer_of_its_own_gives_the_ids_of_open_clip(clean, tmp_path):
    bundle = trained_here(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_open_clip(bundle, first)
    written = json.loads((first / "open_clip_config.json").read_text())
    written["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["clean"] = clean
    (first / "open_clip_config.json").write_text(json.dumps(written))
    foreign = read_open_clip(first)
    same(found(foreign), expected(first))
    assert write_open_clip(bundle_of(foreign), second) == ()
    assert read_open_clip(second).tokenizer.rules == foreign.tokenizer.rules
    same(found(foreign), expected(second))


@pytest.mark.slow
def test_a_published_siglip_in_full_size_gives_the_vectors_of_open_clip(tmp_path):
    text = {**CLIP_TEXT, **LAST, "width": 768, "heads": 12}
    vision = trunk("vit_base_patch16_siglip_224", timm_pool="map", timm_proj="none")
    model = {"vision_cfg": {**vision, "image_size": 224}, "text_cfg": text, **SIGLIP}
    folder = saved(tmp_path / "folder", {**model, "embed_dim": 768})
    same(found(read_open_clip(folder)), expected(folder))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A sentencepiece file as SigLIP has them: end 1, unknown 2."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    lines = [f"{caption_of(number)} and Some words, naïve café" for number in range(200)]
    (folder / "lines.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spiece.model"


@pytest.mark.parametrize("kind", ["T5Tokenizer", "SiglipTokenizer", "big_vision"])
def test_models_with_sentencepiece_are_written_for_open_clip(kind, pieces, tmp_path):
    settings = {"tokenizer_class": kind, "pad_token": "</s>", "eos_token": "</s>"}
    (tmp_path / "spiece.model").write_bytes(pieces.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    if kind == "big_vision":
        tokenizer = sentencepiece_tokenizer(pieces, 24)
    elif kind == "SiglipTokenizer":
        tokenizer = transformers_tokenizer(tmp_path, context=24)
    else:
        stated = {"hf_tokenizer_name": "here", "context_length": 24}
        stated["tokenizer_kwargs"] = {"clean": "canonicalize"}
        tokenizer = open_clip_tokenizer(tmp_path, stated)
    bundle = trained_here(
        tmp_path,
        *(f"model.text.vocabulary={tokenizer.vocabulary}", "model.text.context=24"),
        *("model.text.pool=last", "model.text.causal=false"),
    )
    shape = bundle.model.config
    text = {"end_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
    text["vocabulary"] = tokenizer.vocabulary
    shape = shape.model_copy(update={"text": shape.text.model_copy(update=text)})
    bundle = Bundle(drawn(DualEncoder(shape)), tokenizer, bundle.transform, "none")
    folder = tmp_path / "written"
    folder.mkdir()
    notes = write_open_clip(bundle, folder)
    assert bool(notes) == (kind != "T5Tokenizer")
    plain = Foreign(shape, bundle.model.state_dict(), tokenizer, bundle.transform, "diptych")
    same(found(plain, texts=CAPTIONS), expected(folder, texts=CAPTIONS))
    same(found(read_open_clip(folder)), expected(folder))


def test_bare_siglip_weights_with_a_sentencepiece_file_get_the_ids_of_open_clip(pieces, tmp_path):
    """The oracle is the tokenizer of open_clip's own SigLIP folders: its SigLipTokenizer cannot
    open a file under transformers 5."""
    from open_clip.tokenizer import HFTokenizer

    settings = {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "eos_token": "</s>"}
    (tmp_path / "spiece.model").write_bytes(pieces.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    theirs = HFTokenizer(str(tmp_path), context_length=64, clean="canonicalize")
    tokenizer = architectures._tokenizer("ViT-B-16-SigLIP", pieces)
    expected_ids = theirs(TEXTS + CAPTIONS)
    assert tokenizer.encode(TEXTS + CAPTIONS)[0].tolist() == expected_ids.tolist()
