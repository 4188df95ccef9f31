"""An adapter computes what its definition says, learns alone, and can be merged away."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diptych.errors import ConfigError
from diptych.nn.lora import (
    LoraConvolution,
    LoraLinear,
    adapted_layers,
    add_adapters,
    learned_change,
    merged,
)

RANK, ALPHA = 3, 5.0


class Net(nn.Module):
    """A convolution with a stride, one without bias, and two linear layers around a norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 5, 1, bias=False)
        self.inner = nn.ModuleDict({"up": nn.Linear(5, 11), "down": nn.Linear(11, 4, bias=False)})
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        grid = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.norm(self.inner["down"](torch.tanh(self.inner["up"](grid.mean(dim=(2, 3))))))


NAMES = ("first", "second", "inner.up", "inner.down")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def adapted(net):
    """The net with adapters that have learned something."""
    add_adapters(net, NAMES, rank=RANK, alpha=ALPHA)
    for layer in adapted_layers(net).values():
        nn.init.normal_(layer.lora_B)
    return net


def pictures():
    return torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1))


def test_a_new_adapter_changes_nothing(net):
    before = net(pictures())
    add_adapters(net, NAMES, rank=RANK, alpha=ALPHA, dropout=0.5)
    assert torch.equal(net(pictures()), before)


def test_a_linear_layer_with_adapter_is_the_paper_s_formula():
    torch.manual_seed(0)
    base = nn.Linear(7, 5)
    layer = LoraLinear(base, RANK, ALPHA, 0.0)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 3, 7)
    expected = torch.empty(2, 3, 5)
    for i in range(2):
        for j in range(3):
            learned = layer.lora_B @ (layer.lora_A @ x[i, j])
            expected[i, j] = base.weight @ x[i, j] + base.bias + ALPHA / RANK * learned
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_with_adapter_is_one_with_the_changed_weight(kernel, stride):
    torch.manual_seed(0)
    base = nn.Conv2d(3, 5, kernel, stride=stride, padding=kernel // 2, bias=False)
    layer = LoraConvolution(base, RANK, ALPHA, 0.0)
    nn.init.normal_(layer.lora_B)
    change = torch.zeros_like(base.weight)
    for out in range(5):
        for r in range(RANK):
            change[out] += ALPHA / RANK * layer.lora_B[out, r, 0, 0].detach() * layer.lora_A[r]
    expected = F.conv2d(pictures(), base.weight + change, None, stride, kernel // 2)
    torch.testing.assert_close(layer(pictures()), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learned_change(layer), change)


def test_merged_and_unmerged_agree_and_the_model_keeps_its_adapters(adapted):
    expected = adapted(pictures())
    plain = merged(adapted)
    torch.testing.assert_close(plain(pictures()), expected, atol=1e-6, rtol=0)
    assert not adapted_layers(plain)
    assert plain.state_dict().keys() == Net().state_dict().keys()
    assert len(adapted_layers(adapted)) == len(NAMES)
    assert torch.equal(adapted(pictures()), expected)


def test_a_merged_model_has_memory_of_its_own(adapted):
    before = adapted(pictures())
    for weight in merged(adapted).parameters():
        weight.data.zero_()
    assert torch.equal(adapted(pictures()), before)


def test_the_change_of_a_weight_has_the_rank_of_the_adapter(adapted):
    layer = adapted_layers(adapted)["inner.up"]
    assert torch.linalg.matrix_rank(learned_change(layer)) == RANK


def test_training_moves_adapters_alone(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    add_adapters(net, NAMES, rank=RANK, alpha=ALPHA)
    optimizer = torch.optim.AdamW([w for w in net.parameters() if w.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        net(pictures()).square().sum().backward()
        optimizer.step()
    after = net.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    moved = {name for name in after if name not in before and after[name].abs().max() > 0}
    assert moved == {f"{name}.lora_{which}" for name in NAMES for which in "AB"}
    change = merged(net).state_dict()
    assert all(
        not torch.equal(change[f"{name}.weight"], before[f"{name}.weight"]) for name in NAMES
    )


def test_gradients_are_those_of_the_merged_weight(adapted):
    """By the chain rule: dA = scale B^T dW, dB = scale dW A^T."""
    adapted(pictures()).square().sum().backward()
    plain = merged(adapted).requires_grad_(True)
    plain(pictures()).square().sum().backward()
    for name, layer in adapted_layers(adapted).items():
        whole = plain.get_submodule(name).weight.grad.flatten(1)
        scale = ALPHA / RANK
        b, a = layer.lora_B.flatten(1), layer.lora_A.flatten(1)
        options = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(layer.lora_A.grad.flatten(1), scale * b.T @ whole, **options)
        torch.testing.assert_close(layer.lora_B.grad.flatten(1), scale * whole @ a.T, **options)


def test_dropout_leaves_the_base_layer_and_evaluation_alone():
    torch.manual_seed(0)
    base = nn.Linear(50, 4)
    layer = LoraLinear(base, RANK, ALPHA, 0.5)
    x = torch.randn(6, 50)
    assert torch.equal(layer.train()(x), base(x))  # B is zero: what is dropped does not matter
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_adapters_start_as_in_the_paper_s_code(net):
    add_adapters(net, ["inner.up"], rank=RANK, alpha=ALPHA)
    layer = adapted_layers(net)["inner.up"]
    assert layer.lora_B.abs().max() == 0
    assert layer.lora_A.abs().max() <= 5**-0.5  # uniform within 1 / sqrt(inputs)


@pytest.mark.parametrize(
    ("name", "words"), [("norm", "norm is a LayerNorm"), ("inner.side", "inner.side is not there")]
)
def test_what_can_have_no_adapter_is_refused(net, name, words):
    with pytest.raises(ConfigError, match=f"{words}, and adapters are for linear layers"):
        add_adapters(net, [name], rank=1, alpha=1.0)
