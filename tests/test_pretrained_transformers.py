"""Folders of transformers are read and written exactly, and refused by name where they cannot be.

What transformers itself says of such folders is in test_pretrained_transformers_peers.py.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from strings import gemma_pairs

from diptych.checkpoint import Bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.pretrained.clip_vocabulary import clip_tokenizer
from diptych.pretrained.opening import open_model
from diptych.pretrained.tokenizers_of import transformers_tokenizer
from diptych.pretrained.transformers import (
    is_transformers,
    read_transformers,
    write_transformers,
)

CONTEXT = 9
TEXTS = ["a red kite", "two dogs & a cat", "", "Ünïcode " * 9, "snow"]
TOWER = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 48}


@pytest.fixture(scope="module")
def learned():
    """A vocabulary of our own; its end token has the id 2."""
    return Tokenizer.learn(TEXTS, vocabulary=300, context=CONTEXT)


def model_of(tokenizer, *, image=None, text=None, **settings):
    """Random weights everywhere, so that nothing is neutral."""
    words = {"vocabulary": tokenizer.vocabulary, "context": tokenizer.context, **TOWER}
    words |= {"end_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
    config = DualEncoderConfig(
        image={"image_size": 32, "patch_size": 8, **TOWER, **(image or {})},
        text={**words, **(text or {})},
        **{"embed": 24, **settings},
    )
    model = DualEncoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def siglip_of(tokenizer, image_size=32, **image):
    tanh = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}
    plain = {"class_token": False, "pool": "attention", "pre_norm": False, "patch_bias": True}
    return model_of(
        tokenizer,
        image={**tanh, **plain, "image_size": image_size, **image},
        text={**tanh, "causal": False, "pool": "last"},
        embed=32,
        objective="sigmoid",
        initialisation="siglip",
        image_projection=False,
        text_projection_bias=True,
    )


def bundle_of(model, tokenizer, **transform):
    size = model.config.image.image_size
    pictures = ImageTransformConfig(**{"image_size": size, "crop": "floor", **transform})
    return Bundle(model, tokenizer, pictures, "")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A bundle with CLIP's vocabulary, and its folder in transformers' layout."""
    tokenizer = clip_tokenizer("transformers", CONTEXT)
    bundle = bundle_of(model_of(tokenizer, image={"activation": "quick_gelu"}), tokenizer)
    folder = tmp_path_factory.mktemp("clip")
    assert write_transformers(bundle, folder) == ()
    return bundle, folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory, learned):
    squash = {"resize": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3}
    bundle = bundle_of(siglip_of(learned), learned, **squash)
    folder = tmp_path_factory.mktemp("siglip")
    assert write_transformers(bundle, folder) == ()
    return bundle, folder


@pytest.fixture
def changed(clip, tmp_path):
    """A copy of the CLIP folder in which JSON files are changed, or taken away."""

    def change(name, *, drop=(), **values):
        for path in clip[1].iterdir():
            copy = tmp_path / path.name
            if not copy.exists():
                copy.write_bytes(path.read_bytes())
        content = json.loads((tmp_path / name).read_text())
        table = content
        for key, value in values.items():
            *parents, last = key.split("__")
            for parent in parents:
                table = table[parent]
            table[last] = value
            table = content
        for key in drop:
            del content[key]
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return change


def same_model(foreign, bundle):
    assert foreign.config == bundle.model.config
    weights = bundle.model.state_dict()
    assert set(foreign.tensors) == set(weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(foreign.tensors[name], tensor, rtol=0, atol=0)


def vectors(foreign, texts):
    """Of pictures made of noise and of texts."""
    model = DualEncoder(foreign.config).eval()
    model.load_state_dict(foreign.tensors)
    size = foreign.config.image.image_size
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ids = torch.from_numpy(foreign.tokenizer.encode(texts)[0])
        return model.encode_image(pictures), model.encode_text(ids)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_round_trip_gives_the_same_bits(family, request):
    bundle, folder = request.getfixturevalue(family)
    assert is_transformers(folder)
    foreign = read_transformers(folder)
    same_model(foreign, bundle)
    assert foreign.transform == bundle.transform
    assert foreign.made_by == "transformers"
    assert foreign.notes == ()
    found, expected = foreign.tokenizer.encode(TEXTS), bundle.tokenizer.encode(TEXTS)
    assert (found[0] == expected[0]).all()
    assert found[1] == expected[1]


def test_siglip_2_is_lower_cased_though_its_folder_says_gemma(tmp_path):
    """Also what Diptych writes of it, of which nothing needs to be said."""
    vocabulary, merges = gemma_pairs(600)
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    eos = {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}
    pair = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
    ]
    post = {"type": "TemplateProcessing", "single": pair, "pair": pair, "special_tokens": eos}
    folder, again = tmp_path / "first", tmp_path / "again"
    folder.mkdir()
    again.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "post_processor": post}))
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}')
    keeps = transformers_tokenizer(folder, context=CONTEXT)
    bundle = bundle_of(siglip_of(keeps), keeps, resize="squash")
    write_transformers(bundle, folder)
    texts = ["A RED kite<eos>", "ÄÖÜ Ж", *TEXTS]
    for named, notes in (("GemmaTokenizerFast", 1), ("Siglip2Tokenizer", 0)):
        settings.write_text(json.dumps({"tokenizer_class": named, "padding_side": "right"}))
        found = read_transformers(folder)
        assert len(found.notes) == notes
        ids = found.tokenizer.encode(texts)[0]
        assert (ids == keeps.encode([text.lower() for text in texts])[0]).all()
        assert not (ids == keeps.encode(texts)[0]).all()
    assert write_transformers(replace(bundle, tokenizer=found.tokenizer), again) == ()
    written = json.loads((again / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "Siglip2Tokenizer"
    back = read_transformers(again)
    assert (back.tokenizer.to_json(), back.notes) == (found.tokenizer.to_json(), ())


def test_a_picture_whose_edge_fills_no_patch_goes_both_ways(learned, tmp_path):
    bundle = bundle_of(siglip_of(learned, image_size=35, cut_edge=True), learned, resize="squash")
    write_transformers(bundle, tmp_path)
    same_model(read_transformers(tmp_path), bundle)


def test_an_end_token_with_the_id_2_changes_places_and_the_vectors_stay(learned, tmp_path):
    bundle = bundle_of(model_of(learned), learned)
    write_transformers(bundle, tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["text_config"]["eos_token_id"] == learned.vocabulary - 1
    found = vectors(read_transformers(tmp_path), TEXTS)
    with torch.no_grad():
        ids = torch.from_numpy(learned.encode(TEXTS)[0])
        torch.testing.assert_close(found[1], bundle.model.encode_text(ids), rtol=0, atol=0)


def test_weights_in_several_files_and_in_half_precision_are_read(clip, tmp_path):
    bundle, folder = clip
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    for path in folder.glob("tokenizer*"):
        (tmp_path / path.name).write_text(path.read_text())
    tensors = {
        name: value.half() for name, value in load_file(folder / "model.safetensors").items()
    }
    names, places = list(tensors), {}
    for part, some in enumerate((names[::2], names[1::2])):
        places |= dict.fromkeys(some, f"part-{part}.safetensors")
        save_file({name: tensors[name] for name in some}, tmp_path / f"part-{part}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    foreign = read_transformers(tmp_path)
    for name, tensor in bundle.model.state_dict().items():
        assert foreign.tensors[name].dtype == torch.float32
        torch.testing.assert_close(foreign.tensors[name], tensor.half().float(), rtol=0, atol=0)


def test_another_image_size_resizes_the_positions(clip):
    _, folder = clip
    foreign = read_transformers(folder, image_size=48)
    assert (foreign.config.image.image_size, foreign.transform.image_size) == (48, 48)
    assert foreign.tensors["image.positions"].shape == (37, 32)
    assert vectors(foreign, TEXTS)[0].shape == (2, 24)
    small = read_transformers(folder, image_size=33)
    assert small.config.image.cut_edge


def test_the_older_table_of_settings_wins_with_its_own_defaults(changed):
    folder = changed("config.json", text_config_dict={"hidden_act": "gelu"})
    with pytest.raises(CheckpointError, match=r"layer_norm1.weight has shape \[32\], .* \[512\]"):
        read_transformers(folder)


def test_legacy_end_means_the_largest_id(clip, changed):
    foreign = read_transformers(changed("config.json", text_config__eos_token_id=2))
    assert foreign.config == clip[0].model.config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "siglip2"}, "SigLIP 2 NaFlex.*Use a SigLIP 2 of fixed resolution"),
        ({"model_type": "blip"}, "model_type 'blip', and Diptych reads 'clip' and 'siglip'"),
        ({"text_config__hidden_act": "relu"}, "hidden_act is 'relu'. Known: quick_gelu, gelu"),
        ({"vision_config__num_channels": 4}, "num_channels=4"),
        ({"vision_config__image_size": [32, 48]}, r"image_size=\[32, 48\] in vision_con.*square"),
        ({"vision_config__patch_size": 0}, "'image.patch_size' is 0"),
        (
            {"text_config__hidden_act": ["gelu"]},
            r"hidden_act=\['gelu'\] in text_config, and a text",
        ),
        ({"text_config__vocab_size": "many"}, "vocab_size='many' in text_config, and a whole numb"),
        ({"text_config__num_hidden_layers": True}, "num_hidden_layers=True in text_config, and a"),
        (
            {"vision_config__layer_norm_eps": {}},
            r"layer_norm_eps=\{\} in vision_config, and a numb",
        ),
        ({"text_config": [1]}, r"has \[1\] where the settings of a tower should be"),
        ({"vision_config__num_attention_heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"text_config__vocab_size": 500}, "vocabulary of 500, and the tokenizer.*49408 tokens"),
        ({"text_config__eos_token_id": 7}, "eos_token_id 7.*ends texts with token 49407"),
        ({"projection_dim": 25}, r"visual_projection.weight has shape \[24, 32\].*\[25, 32\]"),
        ({"vision_config__image_size": 40}, "pictures of 32 pixels for a model that takes 40"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changed, values, message):
    with pytest.raises(CheckpointError, match=message):
        read_transformers(changed("config.json", **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "has do_resize=False, and Diptych can only do True"),
        ({"do_rescale": False}, "has do_rescale=False"),
        ({"do_pad": True}, "has do_pad=True"),
        ({"rescale_factor": 1.0}, "has rescale_factor=1.0"),
        ({"resample": 1}, r"has resample=1, and Diptych can only do 3 \(bicubic\) or 2"),
        ({"size": {"shortest_edge": 40}}, r"size=\{'shortest_edge': 40\} and a centre crop to"),
        ({"size": {"height": 32, "width": 40}}, "a square size"),
        ({"do_center_crop": False}, "a centre crop to None"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor'.*Known: CLIP"),
        ({"image_processor_type": ["x"]}, r"asks for the image processor \['x'\]"),
        ({"resample": [3]}, r"has resample=\[3\], and Diptych can only do 3"),
        ({"image_mean": [120, 110, 100]}, "leaves 0 to 1"),
    ],
)
def test_pictures_that_cannot_be_prepared_so_are_refused(changed, values, message):
    with pytest.raises(CheckpointError, match=message):
        read_transformers(changed("preprocessor_config.json", **values))


def test_what_the_preprocessor_does_not_say_is_completed_and_said(changed):
    folder = changed("preprocessor_config.json", drop=["resample", "image_mean", "do_convert_rgb"])
    foreign = read_transformers(folder)
    assert foreign.transform.interpolation == "bicubic"
    assert [note[:50] for note in foreign.notes] == [
        "preprocessor_config.json says nothing of resample:",
        "preprocessor_config.json says nothing of image_mea",
    ]


def test_older_spellings_of_the_preprocessor_are_read(clip, changed):
    bundle, _ = clip
    older = {"size": 32, "crop_size": 32, "image_processor_type": "CLIPFeatureExtractor"}
    assert read_transformers(changed("preprocessor_config.json", **older)).transform == (
        bundle.transform
    )
    plain = {"do_normalize": False, "size": [32, 32]}
    found = read_transformers(changed("preprocessor_config.json", **plain)).transform
    assert (found.resize, found.mean, found.std) == ("squash", (0, 0, 0), (1, 1, 1))


def test_the_processor_file_of_version_5_wins(clip, changed):
    folder = changed("preprocessor_config.json", do_resize=False)
    inner = json.loads((clip[1] / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert read_transformers(folder).transform == clip[0].transform


def test_missing_extra_and_misshapen_tensors_have_the_names_of_transformers(changed):
    folder = changed("config.json")
    path = folder / "model.safetensors"
    whole = load_file(path)
    key = "vision_model.encoder.layers.1.self_attn.k_proj.bias"
    save_file({name: value for name, value in whole.items() if name != key}, path)
    with pytest.raises(CheckpointError, match=rf"{key} \[32\] is missing"):
        read_transformers(folder)
    save_file({**whole, key: torch.zeros(31)}, path)
    with pytest.raises(CheckpointError, match=rf"{key} has shape \[31\], and the model wants"):
        read_transformers(folder)
    save_file({**whole, key: whole[key].to(torch.int8)}, path)
    with pytest.raises(CheckpointError, match=f"holds {key} as torch.int8, and the model wants fl"):
        read_transformers(folder)
    save_file({**whole, "vision_model.layer_scale": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"the model has no vision_model.layer_scale \[3\]"):
        read_transformers(folder)
    harmless = {"text_model.embeddings.position_ids": torch.arange(CONTEXT)[None]}
    save_file({**whole, **harmless}, path)
    assert read_transformers(folder).notes == (
        "text_model.embeddings.position_ids is left out: a list of numbers that needs no file",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "there is no .*config.json"),
        ("preprocessor_config.json", "no preprocessor_config.json, so how to prepare pictures is"),
        ("model.safetensors", "has no weights. Fetch model.safetensors"),
    ],
)
def test_a_missing_file_is_named(changed, name, message):
    folder = changed("config.json")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        read_transformers(folder)


def test_a_damaged_file_is_named(changed):
    folder = changed("config.json")
    for content, reason in (
        (b"", "it is no JSON"),
        (b"\xff", "it is not UTF-8"),
        ("\ufeff{}".encode(), "it is no JSON"),
        (b"[1, 2]", "it holds a list"),
        (b"[" * 100_000, "its tables are nested too deeply"),
    ):
        (folder / "config.json").write_bytes(content)
        for read in (is_transformers, read_transformers, open_model):
            with pytest.raises(CheckpointError, match=rf"config.json cannot be read: {reason}"):
                read(folder)
    (folder / "config.json").write_text("{}")
    assert not is_transformers(folder)
    folder = changed("config.json")
    (folder / "processor_config.json").write_text('{"image_processor": [1]}')
    with pytest.raises(CheckpointError, match=r"image_processor=\[1\], and a table belongs there"):
        read_transformers(changed("config.json", model_type="clip"))


REFUSED = {
    "resnet": (
        {"image": {"kind": "resnet", "image_size": 32, "layers": (1, 1, 1, 1), "width": 8}},
        "an image tower of kind 'resnet', and transformers' CLIPModel has a vision transformer",
    ),
    "mean": ({"image": {"pool": "mean"}}, "has image.pool='mean'.*can only have 'class'"),
    "text": ({"text": {"pool": "mean", "causal": False}}, "has text.causal=False"),
    "bias": ({"text_projection_bias": True}, "has text_projection_bias=True"),
    "sigmoid": ({"objective": "sigmoid"}, "image.class_token=True, and transformers' SiglipModel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_layout_cannot_hold_is_refused_with_the_reason(learned, tmp_path, name):
    settings, message = REFUSED[name]
    if name == "resnet":
        config = {**model_of(learned).config.model_dump(), **settings}
        config["image"]["heads"] = 8
        model = DualEncoder(DualEncoderConfig(**{**config, "image_projection_bias": True}))
    else:
        model = model_of(learned, **settings)
    with pytest.raises(RequestError, match=message):
        write_transformers(bundle_of(model, learned), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_that_the_layout_cannot_prepare_are_refused_or_said(learned, tmp_path):
    model = model_of(learned)
    with pytest.raises(RequestError, match="resized by 'pad'"):
        write_transformers(bundle_of(model, learned, resize="pad"), tmp_path)
    (note,) = write_transformers(bundle_of(model, learned, crop="round"), tmp_path)
    assert "cut one pixel beside" in note


def test_what_transformers_does_otherwise_with_the_texts_of_open_clip_is_said(tmp_path):
    tokenizer = clip_tokenizer("open_clip", CONTEXT)
    notes = write_transformers(bundle_of(model_of(tokenizer), tokenizer), tmp_path)
    assert [note[:60] for note in notes] == [
        "transformers' tokenizers do not mend encodings and HTML: tex",
        "transformers reads <|startoftext|> and <|endoftext|> written",
    ]
    theirs = read_transformers(tmp_path).tokenizer
    for text in ("<|endoftext|> x", "<end_of_text> x"):
        assert not (theirs.encode([text])[0] == tokenizer.encode([text])[0]).all()


def test_an_image_size_that_is_too_small_is_refused(clip):
    with pytest.raises(ConfigError, match="image_size 7 holds no patch"):
        read_transformers(clip[1], image_size=7)


def test_a_siglip_gives_a_text_the_same_vector_alone_and_in_any_batch(siglip):
    """Its text is always padded to the full length: the last position is read."""
    foreign = read_transformers(siglip[1])
    together = vectors(foreign, TEXTS)[1]
    for index, text in enumerate(TEXTS):
        alone = vectors(foreign, [text])[1][0]
        torch.testing.assert_close(alone, together[index], rtol=0, atol=1e-6)
        mates = vectors(foreign, [*reversed(TEXTS), text])[1][-1]
        torch.testing.assert_close(mates, together[index], rtol=0, atol=1e-6)
