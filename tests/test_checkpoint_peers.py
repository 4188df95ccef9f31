"""Models with towers of timm come back from their folder: some have tables that no file holds."""

import pytest
import torch

from diptych.checkpoint import load_bundle, save_bundle
from diptych.data.tokenizer import Tokenizer
from diptych.data.transforms import ImageTransformConfig
from diptych.models.dual_encoder import DualEncoder, DualEncoderConfig

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("name", "computed"), [("eva02_tiny_patch14_224@28", True), ("resnet18@64", False)]
)
def test_a_tower_of_timm_comes_back_with_its_computed_tables(tmp_path, name, computed):
    torch.manual_seed(0)
    tokenizer = Tokenizer.learn(["a photo"] * 9, vocabulary=300, context=16)
    text = {
        "vocabulary": tokenizer.vocabulary,
        "end_token": tokenizer.end_token,
        "pad_token": tokenizer.pad_token,
        "context": 16,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "mlp_width": 32,
    }
    model = DualEncoder(DualEncoderConfig(image=f"timm:{name}", text=text, embed=32)).eval()
    assert computed == bool(dict(model.named_buffers()).keys() - model.state_dict().keys())
    size = model.config.image.image_size
    save_bundle(tmp_path, model, tokenizer, ImageTransformConfig(image_size=size))
    loaded = load_bundle(tmp_path).model.eval()
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(image), model.encode_image(image))
