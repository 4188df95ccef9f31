"""Resized position tables equal those of the original libraries."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diptych.pretrained.positions import resize_positions, resize_text_positions

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

SIZES = [(7, 12), (14, 9), (6, 6), (5, 1), (3, 16)]
WIDTH = 24


def table_of(rows):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_open_clip(old, new):
    from open_clip.model import resize_pos_embed

    table = table_of(1 + old * old)
    state = {"visual.positional_embedding": table}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(new, new))))
    found = resize_positions(table, new, method="open_clip")
    assert torch.equal(found, state["visual.positional_embedding"])


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_timm(old, new, first):
    from timm.layers import resample_abs_pos_embed

    table = table_of(first + old * old)
    expected = resample_abs_pos_embed(table[None], [new, new], num_prefix_tokens=first)[0]
    assert torch.equal(resize_positions(table, new, method="open_clip"), expected)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_transformers(old, new, family):
    from transformers.models.clip import configuration_clip, modeling_clip
    from transformers.models.siglip import configuration_siglip, modeling_siglip

    sizes = {"hidden_size": WIDTH, "image_size": 8 * old, "patch_size": 8}
    if family == "clip":
        config = configuration_clip.CLIPVisionConfig(**sizes, num_attention_heads=2)
        embeddings = modeling_clip.CLIPVisionEmbeddings(config)
    else:
        config = configuration_siglip.SiglipVisionConfig(**sizes, num_attention_heads=2)
        embeddings = modeling_siglip.SiglipVisionEmbeddings(config)
    table = embeddings.position_embedding.weight.data
    first = len(table) - old * old
    tokens = torch.zeros(1, first + new * new, WIDTH)
    with torch.no_grad():
        expected = embeddings.interpolate_pos_encoding(tokens, 8 * new, 8 * new)[0]
    found = resize_positions(table, new, method="transformers")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_big_vision(old, new):
    """big_vision's own lines: scipy's zoom with order 1 over rows and columns."""
    scipy = pytest.importorskip("scipy.ndimage")
    table = table_of(old * old)
    grid = table.numpy().reshape(old, old, WIDTH)
    expected = scipy.zoom(grid, (new / old, new / old, 1), order=1).reshape(new * new, WIDTH)
    found = resize_positions(table, new, method="big_vision").numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("context", [16, 77, 100])
def test_open_clip_texts(context):
    from open_clip.model import resize_text_pos_embed

    table = table_of(77)
    state = {"positional_embedding": table}
    model = SimpleNamespace(positional_embedding=torch.zeros(context, WIDTH))
    resize_text_pos_embed(state, model)
    assert torch.equal(resize_text_positions(table, context), state["positional_embedding"])
