"""An archive of OpenAI's kind, made here by torch.jit from open_clip's classes at random, opens as
OpenAI's own code and open_clip open it: shape, quick GELU, preprocessing and vocabulary."""

import pytest
import torch
from test_pretrained_open_clip_peers import (  # type: ignore[import-not-found]
    CLIP_TEXT,
    PICTURES,
    TEXTS,
    drawn,
    found,
    resnet,
    same,
    vit,
)

from diptych.errors import CheckpointError
from diptych.pretrained.open_clip import FACTS
from diptych.pretrained.openai import is_openai, read_openai
from diptych.pretrained.weights import read_weights

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

TOWERS = {
    "vit": vit(width=128, head_width=64),
    "resnet": resnet(head_width=64),
}


class Named(torch.nn.Module):
    """Tensors under dotted names, as modules within modules; TorchScript takes it."""

    def __init__(self, tensors):
        super().__init__()
        inner = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for first, rest in inner.items():
            self.add_module(first, Named(rest))

    def forward(self):
        return 1


def tensors_of(tower):
    """The float16 tensors of an archive, with the numbers that OpenAI keeps among them."""
    import open_clip

    torch.manual_seed(0)
    text = {**CLIP_TEXT, "width": 128}
    model = drawn(open_clip.CLIP(48, TOWERS[tower], text, quick_gelu=True)).half()
    facts = zip(FACTS, (TOWERS[tower]["image_size"], 77, 49408), strict=True)
    return {**model.state_dict(), **{name: torch.tensor(value) for name, value in facts}}


def saved(path, tensors, form):
    if form == "archive":
        torch.jit.script(Named(tensors).eval()).save(path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("form", ["archive", "state dict"])
@pytest.mark.parametrize("tower", TOWERS)
def test_an_archive_gives_the_vectors_of_the_original(tower, form, tmp_path):
    import open_clip
    from open_clip.model import build_model_from_openai_state_dict

    tensors = tensors_of(tower)
    path = saved(tmp_path / "model.pt", tensors, form)
    assert is_openai(read_weights(path))
    foreign = read_openai(path)
    assert foreign.made_by == "openai"
    assert foreign.config.text.activation == "quick_gelu"
    assert foreign.config.image.heads == (2 if tower == "vit" else 4)

    theirs = build_model_from_openai_state_dict(dict(tensors), cast_dtype=None).float().eval()
    transform = open_clip.image_transform(TOWERS[tower]["image_size"], is_train=False)
    pixels = torch.stack([transform(picture) for picture in PICTURES])
    ids = open_clip.tokenize(TEXTS)
    with torch.no_grad():
        image = theirs.encode_image(pixels, normalize=True)
        text = theirs.encode_text(ids, normalize=True)
        expected = image, text, theirs.get_logits(pixels, ids)[0], pixels, ids
    same(found(foreign), expected)


def test_an_archive_takes_pictures_of_another_size(tmp_path):
    path = saved(tmp_path / "model.pt", tensors_of("vit"), "archive")
    foreign = read_openai(path, image_size=80)
    assert foreign.tensors["image.positions"].shape == (26, 128)
    assert foreign.transform.image_size == 80


def test_tensors_that_are_no_clip_are_refused(tmp_path):
    tensors = tensors_of("vit")
    assert not is_openai({"visual.conv1.weight": torch.zeros(1)})
    del tensors["ln_final.weight"]
    path = saved(tmp_path / "model.pt", tensors, "state dict")
    with pytest.raises(CheckpointError, match=r"has no tensor ln_final.weight \[128\]"):
        read_openai(path)
    tensors["text_projection"] = torch.zeros(3)
    path = saved(tmp_path / "model.pt", tensors, "state dict")
    with pytest.raises(CheckpointError, match="is no archive of OpenAI's CLIP: its tensors descri"):
        read_openai(path)
