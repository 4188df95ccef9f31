"""Adapters go from PEFT to Diptych and back: the same vectors, numbers and names."""

import json

import pytest
import torch
from small import random_model
from torch import nn

from diptych.nn.lora import adapted_layers, add_adapters, merged
from diptych.train.lora_files import load_adapter, save_adapter

pytestmark = pytest.mark.peers

RESNET = (
    'model.image={"kind":"resnet","image_size":32,"width":8,"layers":[1,1],"block":"basic",'
    '"stem_pool":false,"pool":"mean"}'
)
KINDS = {
    "clip": (
        (),
        ("image.blocks.0.attention.query_key_value", "text.blocks.0.mlp.up"),
    ),
    "resnet": (
        (RESNET,),
        ("image.stages.1.0.second.convolution", "text.blocks.0.attention.out"),
    ),
}


@pytest.fixture(params=KINDS)
def case(request, tmp_path):
    """Makes the same model each time it is called, and names the layers to adapt."""
    settings, places = KINDS[request.param]

    def make():
        model = random_model(tmp_path, *settings)._net.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)
        return model

    return make, places


def vectors(model):
    """Of a few random pictures and texts."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(5, 3, 32, 32, generator=generator)
    texts = torch.randint(3, 200, (5, 16), generator=generator)
    texts[:, -1] = 2
    model.eval()
    with torch.no_grad():
        return torch.cat([model.encode_image(pictures), model.encode_text(texts)])


def randomise(model):
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.5)


def test_peft_reads_our_adapters_and_gives_the_same_vectors(case, tmp_path):
    from peft import PeftModel

    make, places = case
    ours = make()
    add_adapters(ours, places, rank=3, alpha=5.0)
    randomise(ours)
    save_adapter(tmp_path / "adapter", ours, "the/old")
    theirs = PeftModel.from_pretrained(make(), tmp_path / "adapter").base_model.model
    torch.testing.assert_close(vectors(theirs), vectors(ours), atol=1e-6, rtol=0)
    assert (vectors(theirs) - vectors(make())).abs().max() > 0.01


def test_we_read_adapters_that_peft_trained_and_merge_them_as_it_does(case, tmp_path):
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    make, places = case
    config = LoraConfig(r=2, lora_alpha=7, target_modules=list(places), lora_dropout=0.1)
    theirs = get_peft_model(make(), config)
    learning = [weight for weight in theirs.parameters() if weight.requires_grad]
    randomise(theirs)
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    model = theirs.base_model.model
    pictures, texts = torch.randn(4, 3, 32, 32), torch.full((4, 16), 2)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(pictures, texts)
        (output.image @ output.text.T).sum().backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = make()
    load_adapter(ours, tmp_path / "adapter")
    assert adapted_layers(ours).keys() == set(places)
    torch.testing.assert_close(vectors(ours), vectors(model), atol=1e-6, rtol=0)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()  # merge_and_unload wants a config of transformers
    torch.testing.assert_close(vectors(merged(ours)), vectors(model), atol=1e-6, rtol=0)


def test_what_we_write_again_of_theirs_they_read_again(case, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    make, places = case
    theirs = get_peft_model(make(), LoraConfig(r=2, lora_alpha=7, target_modules=list(places)))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "first")
    ours = make()
    load_adapter(ours, tmp_path / "first")
    save_adapter(tmp_path / "second", ours, None)
    again = PeftModel.from_pretrained(make(), tmp_path / "second")
    expected = vectors(theirs.base_model.model)
    assert torch.equal(vectors(again.base_model.model), expected)
    settings = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == sorted(places)
