"""transformers and Diptych give the same vectors, pixels and ids for one folder, whoever wrote it.

Every parameter is drawn at random before the original library saves the model.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from diptych.checkpoint import Bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ImageTransformConfig,
    evaluation_transform,
    normalise,
)
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig
from diptych.pretrained.clip_vocabulary import clip_tokenizer, clip_vocabulary
from diptych.pretrained.transformers import read_transformers, write_transformers

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CONTEXT = 12
TEXTS = ["a red kite", "Two dogs, don't run", "", "snow " * 30, "Straße 123"]
TEXT = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "max_position_embeddings": CONTEXT}
VISION = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
VISION |= {"num_attention_heads": 3, "image_size": 32, "patch_size": 8}


def draw_anew(model):
    """Random weights everywhere, so that no norm, bias or class token is neutral."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def photo(width, height):
    draw = np.random.default_rng(width * height)
    small = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR)


PICTURES = [photo(32, 32), photo(97, 40), photo(39, 64), photo(300, 211)]


@pytest.fixture(scope="module")
def learned():
    """A vocabulary of our own."""
    return Tokenizer.learn(TEXTS, vocabulary=300, context=CONTEXT)


def save_clip(folder, *, end=None, **activation):
    """A CLIP with bytes as its vocabulary."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPTokenizer,
    )

    whole, _ = clip_vocabulary(("<|startoftext|>", "<|endoftext|>"))
    tokens = [*list(whole)[:512], "<|startoftext|>", "<|endoftext|>"]
    words = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        model_max_length=CONTEXT,
    )
    words.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    text = {**TEXT, **activation, "vocab_size": 514, "eos_token_id": end or 513}
    config = CLIPConfig(
        text_config={**text, "bos_token_id": 512, "pad_token_id": 513},
        vision_config={**VISION, **activation},
        projection_dim=40,
    )
    model = draw_anew(CLIPModel(config))
    model.save_pretrained(folder)
    return model


def save_siglip(folder, learned, *, image_size=32, resample=2):
    """A SigLIP whose vocabulary is in a tokenizer.json, as SigLIP 2 has it."""
    import tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
    )

    inner = tokenizers.Tokenizer.from_str(learned.to_json())
    words = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<end>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        model_input_names=["input_ids"],
    )
    words.save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    SiglipImageProcessorPil(size=size, resample=resample).save_pretrained(folder)
    vision = {**VISION, "image_size": image_size}
    text = {**TEXT, "vocab_size": learned.vocabulary + 3, "projection_size": 48}
    special = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 1}
    config = SiglipConfig(text_config={**text, **special}, vision_config=vision)
    model = draw_anew(SiglipModel(config))
    model.save_pretrained(folder)
    return model


def same_vectors(theirs, foreign, *, masked):
    """Vectors and logits of our pictures and texts."""
    ours = DualEncoder(foreign.config).eval()
    ours.load_state_dict(foreign.tensors)
    same_as(theirs, ours, foreign.tokenizer, foreign.config.image.image_size, masked=masked)


def same_as(theirs, ours, tokenizer, size, *, masked):
    pictures = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(tokenizer.encode(TEXTS)[0])
    ends = (ids == tokenizer.end_token).int().argmax(dim=1)
    mask = {"attention_mask": (torch.arange(CONTEXT) <= ends[:, None]).long()} if masked else {}
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pictures, **mask)
        alone = theirs.get_image_features(pixel_values=pictures).pooler_output
        found = ours(pictures, ids)
        logits = found.scale * found.image @ found.text.T
        logits = logits if found.bias is None else logits + found.bias
    close(found.image, F.normalize(expected.image_embeds, dim=-1))
    close(found.image, F.normalize(alone, dim=-1))
    close(found.text, F.normalize(expected.text_embeds, dim=-1))
    close(logits, expected.logits_per_image)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def same_pixels(folder, transform):
    """What AutoImageProcessor with the Pillow backend gives, bit for bit."""
    from transformers import AutoImageProcessor

    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for picture in PICTURES:
        expected = theirs(picture, return_tensors="pt")["pixel_values"]
        pixels = torch.from_numpy(evaluation_transform(picture, transform))[None]
        found = normalise(pixels, transform.mean, transform.std)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def same_ids(folder, tokenizer):
    """What the processor's tokenizer gives, padded and cut to the model's length."""
    from transformers import AutoProcessor, AutoTokenizer

    ids, _ = tokenizer.encode(TEXTS)
    for theirs in (
        AutoTokenizer.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder, backend="pil").tokenizer,
    ):
        found = theirs(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT)
        assert found["input_ids"] == ids.tolist()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [513, 2])
def test_a_clip_of_transformers_gives_the_same_here(tmp_path, activation, end):
    theirs = save_clip(tmp_path, end=end, hidden_act=activation)
    foreign = read_transformers(tmp_path)
    assert foreign.transform == ImageTransformConfig(image_size=32, crop="floor")
    assert foreign.notes == ()
    same_vectors(theirs, foreign, masked=True)
    same_pixels(tmp_path, foreign.transform)
    same_ids(tmp_path, foreign.tokenizer)


@pytest.mark.parametrize(("image_size", "resample"), [(32, 3), (35, 2)])
def test_a_siglip_of_transformers_gives_the_same_here(tmp_path, learned, image_size, resample):
    theirs = save_siglip(tmp_path, learned, image_size=image_size, resample=resample)
    foreign = read_transformers(tmp_path)
    assert foreign.transform.interpolation == {2: "bilinear", 3: "bicubic"}[resample]
    same_vectors(theirs, foreign, masked=False)
    same_pixels(tmp_path, foreign.transform)
    same_ids(tmp_path, foreign.tokenizer)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_positions_of_another_image_size_are_those_of_transformers(tmp_path, learned, kind):
    theirs = save_clip(tmp_path) if kind == "clip" else save_siglip(tmp_path, learned)
    foreign = read_transformers(tmp_path, image_size=56)
    ours = DualEncoder(foreign.config).eval()
    ours.load_state_dict(foreign.tensors)
    pictures = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.get_image_features(pictures, interpolate_pos_encoding=True)
        close(ours.encode_image(pictures), F.normalize(expected.pooler_output, dim=-1))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_weights_of_torch_and_in_several_files_are_read_alike(tmp_path, learned, kind):
    theirs = save_clip(tmp_path) if kind == "clip" else save_siglip(tmp_path, learned)
    whole = read_transformers(tmp_path).tensors
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    pickled = read_transformers(tmp_path).tensors
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    several = read_transformers(tmp_path).tensors
    for name, tensor in whole.items():
        torch.testing.assert_close(pickled[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(several[name], tensor, rtol=0, atol=0)


def load(folder):
    """The model as transformers loads it; a tensor that does not fit is an error."""
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_diptych_writes_gives_the_same_in_transformers(tmp_path, learned, kind):
    """Read from transformers and written again: also the bits of the weights."""
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    theirs = save_clip(first) if kind == "clip" else save_siglip(first, learned)
    foreign = read_transformers(first)
    ours = DualEncoder(foreign.config).eval()
    ours.load_state_dict(foreign.tensors)
    bundle = Bundle(ours, foreign.tokenizer, foreign.transform, "")
    assert write_transformers(bundle, second) == ()
    again = load(second)
    assert type(again) is type(theirs)
    weights = again.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)
    same_vectors(again, foreign, masked=kind == "clip")
    same_pixels(second, foreign.transform)
    same_ids(second, foreign.tokenizer)


def trained(tokenizer, **settings):
    """A model as Diptych makes it."""
    tower = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 48}
    words = {"vocabulary": tokenizer.vocabulary, "context": CONTEXT}
    words |= {"end_token": tokenizer.end_token, "pad_token": tokenizer.pad_token}
    image = {"image_size": 32, "patch_size": 8, "activation": "quick_gelu"}
    config = DualEncoderConfig(
        image={**tower, **image}, text={**tower, **words}, embed=24, **settings
    )
    return draw_anew(DualEncoder(config))


def test_a_model_with_a_vocabulary_of_its_own_gives_the_same_in_transformers(tmp_path, learned):
    """Its end token has the id 2, which changes places with the last one."""
    from transformers import AutoTokenizer

    ours = trained(learned)
    transform = ImageTransformConfig(image_size=32, crop="floor")
    assert write_transformers(Bundle(ours, learned, transform, ""), tmp_path) == ()
    theirs, words = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    inputs = words(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs.get_text_features(**inputs).pooler_output
        expected = ours.encode_text(torch.from_numpy(learned.encode(TEXTS)[0]))
    close(F.normalize(found, dim=-1), expected)
    same_pixels(tmp_path, transform)
    same_ids(tmp_path, read_transformers(tmp_path).tokenizer)


def test_a_clip_of_open_clip_gives_the_same_in_transformers(tmp_path):
    """Through Diptych: the names of the special tokens change, their ids stay."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import AutoTokenizer

    from diptych.pretrained.open_clip_names import places, to_ours

    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=CONTEXT, width=32, heads=2, layers=2)
    original = draw_anew(CLIP(24, vision, text, quick_gelu=True))
    tokenizer = clip_tokenizer("open_clip", CONTEXT)
    tower = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 128, "activation": "quick_gelu"}
    ours = trained(tokenizer)
    config = ours.config.override(
        [f"{side}.{name}={value}" for side in ("image", "text") for name, value in tower.items()]
    )
    ours = DualEncoder(config).eval()
    ours.load_state_dict(to_ours(dict(original.state_dict()), places(config), "here"))
    transform = ImageTransformConfig(image_size=32, mean=CLIP_MEAN, std=CLIP_STD)
    notes = write_transformers(Bundle(ours, tokenizer, transform, ""), tmp_path)
    assert len(notes) == 3  # how margins are halved, texts cleaned, special words read
    theirs, words = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    inputs = words(TEXTS, padding=True, truncation=True, return_tensors="pt")
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = theirs(**inputs, pixel_values=pictures)
        ids = SimpleTokenizer(context_length=CONTEXT)(TEXTS)
        close(found.text_embeds, original.encode_text(ids, normalize=True))
        close(found.image_embeds, original.encode_image(pictures, normalize=True))
        close(theirs.logit_scale, original.logit_scale)
