"""A file of big_vision gives the vectors here that open_clip's own converter gives it there."""

import io

import numpy as np
import pytest
import test_pretrained_big_vision as core  # type: ignore[import-not-found]  # a test beside it
import torch

from diptych.models.dual_encoder import DualEncoder
from diptych.pretrained.big_vision import read_big_vision

tiny, saved, vocabulary = core.tiny, core.saved, core.vocabulary

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("layout", [dict, core.scanned])
def test_the_vectors_are_those_of_open_clip(tmp_path, vocabulary, layout):
    from open_clip.convert import load_big_vision_weights
    from open_clip.model import CLIPTextCfg, CustomTextCLIP
    from timm.models.vision_transformer import VisionTransformer

    path = tmp_path / "siglip.npz"
    np.savez(path, **layout(core.arrays_of_siglip()))
    tanh = {"approximate": "tanh"}
    text = CLIPTextCfg(
        context_length=core.CONTEXT,
        vocab_size=core.WORDS,
        width=core.TEXT_WIDTH,
        heads=core.TEXT_HEADS,
        layers=core.LAYERS,
        mlp_ratio=core.TEXT_HIDDEN / core.TEXT_WIDTH,
        no_causal_mask=True,
        proj_bias=True,
        pool_type="last",
        norm_kwargs={"eps": 1e-6},
        act_kwargs=tanh,
    )
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224}
    theirs = CustomTextCLIP(
        core.WIDTH, {**vision, "timm_proj": "linear"}, text, init_logit_bias=-10
    )
    theirs.visual.trunk = VisionTransformer(
        img_size=core.SIDE,
        patch_size=core.PATCH,
        embed_dim=core.WIDTH,
        depth=core.LAYERS,
        num_heads=core.HEADS,
        mlp_ratio=core.HIDDEN / core.WIDTH,
        class_token=False,
        global_pool="map",
        num_classes=0,
        act_layer="gelu_tanh",
    )
    theirs.visual.head = torch.nn.Identity()
    load_big_vision_weights(theirs.eval(), str(path))

    foreign = read_big_vision(path, "tiny", tokenizer=vocabulary)
    ours = DualEncoder(foreign.config).eval()
    ours.load_state_dict(foreign.tensors)
    pictures = torch.randn(4, 3, core.SIDE, core.SIDE, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(foreign.tokenizer.encode(core.TEXTS)[0])
    with torch.no_grad():
        found = ours(pictures, ids)
        image = theirs.encode_image(pictures, normalize=True)
        words = theirs.encode_text(ids, normalize=True)
        expected = theirs.logit_scale.exp() * image @ words.T + theirs.logit_bias
        logits = found.scale * found.image @ found.text.T + found.bias
    for one, other in ((found.image, image), (found.text, words), (logits, expected)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_ids_are_those_of_sentencepiece(saved, tmp_path):
    """c4_en's way: padding 0 is not used, the end token 1 fills up and is kept."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in core.TEXTS if text] * 20),
        model_writer=written,
        vocab_size=core.WORDS,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "sentencepiece.model").write_bytes(written.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    tokenizer = read_big_vision(saved(), "tiny", tokenizer=tmp_path).tokenizer
    texts = [*core.TEXTS, "Snow on the HILL, a red kite & two dogs", "kite"]
    for row, text in zip(tokenizer.encode(texts)[0], texts, strict=True):
        ids = [*theirs.encode(text.lower())[: core.CONTEXT - 1], 1]
        assert row.tolist() == ids + [1] * (core.CONTEXT - len(ids))
