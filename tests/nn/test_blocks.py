"""Promises every block keeps, and what is particular to each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from reskit.errors import ModelError
from reskit.nn import (
    BasicBlock,
    Bottleneck,
    CausalBlock,
    DenseBlock,
    DenseLayer,
    DilatedBlock,
    InvertedResidual,
    MlpConv,
    PreActBasicBlock,
    PreActBottleneck,
    Residual,
    ResidualMLP,
    SqueezeExcitation,
    StochasticDepth,
    Transition,
    WideBlock,
)


def mlpconv(in_channels: int, out_channels: int, **options: object) -> MlpConv:
    return MlpConv(in_channels, (6, 5, out_channels), **options)


SPATIAL: dict[str, Callable[..., Residual]] = {
    "basic": BasicBlock,
    "dilated": DilatedBlock,
    "bottleneck": Bottleneck,
    "grouped": partial(Bottleneck, width=4, groups=2),
    "preact_basic": PreActBasicBlock,
    "preact_bottleneck": PreActBottleneck,
    "wide": WideBlock,
    "inverted": InvertedResidual,
    "mlpconv": mlpconv,
    "mlpconv_norm": partial(mlpconv, norm=True),
}
# as above, without what only they take: rank, stride and squeeze-excitation
ALL = SPATIAL | {"causal": CausalBlock, "mlp": ResidualMLP}


def example(name: str, channels: int = 8, rank: int = 2, size: int = 9) -> torch.Tensor:
    rank = {"causal": 1, "mlp": 0}.get(name, rank)
    return torch.randn(3, channels, *(size,) * rank)


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", SPATIAL)
def test_shapes_and_gradients(name: str, rank: int) -> None:
    for in_channels, out_channels, stride in [(8, 8, 1), (8, 12, 2)]:
        block = SPATIAL[name](
            in_channels, out_channels, stride=stride, rank=rank, se=4, stochastic_depth=0.01
        )
        y = block(example(name, rank=rank, size=5))
        assert y.shape == (3, out_channels, *(5 if stride == 1 else 3,) * rank)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("name", ALL)
def test_equation(name: str) -> None:
    block = ALL[name](8, 12).eval()
    x = example(name)
    if not block.plain:
        expected = block.activation(block.residual(x) + block.shortcut(x))
        torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_plain_twin(name: str) -> None:
    block, twin = ALL[name](8, 12).eval(), ALL[name](8, 12, residual=False).eval()
    own = {k: v for k, v in block.state_dict().items() if not k.startswith("downsample")}
    twin.load_state_dict(own)
    x = example(name)
    torch.testing.assert_close(twin(x), block.activation(block.residual(x)), rtol=0, atol=0)
    assert numbers(block) - numbers(twin) == numbers(block.downsample)


@pytest.mark.parametrize("name", ALL)
def test_zero_init_starts_as_the_shortcut(name: str) -> None:
    block = ALL[name](8, 8, zero_init=True)
    x = example(name)
    torch.testing.assert_close(block(x), block.activation(x.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_zero_init_learns(name: str) -> None:
    """A zero followed by a rectifier would pass no gradient and stay zero."""
    block = ALL[name](8, 8, zero_init=True)
    block(example(name).abs()).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_agrees_with_torchvision(name: str) -> None:
    torch.manual_seed(0)
    down = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    if name == "basic":
        theirs, ours = torchvision.models.resnet.BasicBlock(8, 16, 2, down), BasicBlock(8, 16, stride=2)
    else:
        theirs = torchvision.models.resnet.Bottleneck(8, 4, 2, down, groups=2, base_width=64)
        ours = Bottleneck(8, 16, stride=2, width=8, groups=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(ours(x), theirs(x))  # with the statistics of the batch
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (2, 4)])
def test_causal_block_never_looks_ahead(kernel_size: int, dilation: int) -> None:
    block = CausalBlock(2, 4, kernel_size=kernel_size, dilation=dilation, dropout=0.5).eval()
    x = torch.randn(1, 2, 20)
    changed = x.clone()
    changed[..., 12:] += 1.0
    before, after = block(x), block(changed)
    assert torch.equal(before[..., :12], after[..., :12])
    assert not torch.equal(before[..., 12], after[..., 12])


def test_causal_block_remembers_as_far_as_its_taps_reach() -> None:
    x = torch.zeros(1, 1, 20, requires_grad=True)
    block = CausalBlock(1, 1, kernel_size=3, dilation=2, residual=False).eval()
    for conv in (block.conv1, block.conv2):
        nn.init.ones_(conv.weight)
    (block.branch(x + 1.0)[..., 19]).sum().backward()
    assert x.grad is not None
    # two convolutions of three taps, two apart: 2 * (3 - 1) * 2 steps back, every second
    assert x.grad[0, 0].nonzero().flatten().tolist() == [11, 13, 15, 17, 19]


def test_dilated_block_reaches_further_at_the_same_cost() -> None:
    assert numbers(DilatedBlock(4, 4)) == numbers(BasicBlock(4, 4))
    assert DilatedBlock(4, 4, dilation=3).conv1.dilation == (3, 3)


def test_wide_block_drops_between_its_convolutions() -> None:
    assert WideBlock(4, 4).dropout.p == 0.3
    assert isinstance(PreActBasicBlock(4, 4).dropout, nn.Identity)


def test_inverted_residual_has_no_shortcut_where_shapes_change() -> None:
    block = InvertedResidual(4, 8, zero_init=True, stochastic_depth=0.5)
    assert block.plain
    assert not InvertedResidual(4, 4).plain
    assert block(torch.randn(2, 4, 5, 5)).abs().sum() > 0


def test_squeeze_excitation_by_hand() -> None:
    se = SqueezeExcitation(4, reduction=2)
    x = torch.randn(2, 4, 3, 5)
    hidden = torch.relu(x.mean((2, 3)) @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias)
    gate = torch.sigmoid(hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)
    torch.testing.assert_close(se(x), x * gate[:, :, None, None])


def test_stochastic_depth_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    y = layer(torch.ones(4000, 2, 3))
    per_sample = y.flatten(1)
    assert per_sample.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (per_sample.amin(1) == per_sample.amax(1)).all()
    assert per_sample[:, 0].mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(layer.eval()(y), y)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_stochastic_depth_rate_is_checked(rate: float) -> None:
    with pytest.raises(ModelError, match="probability"):
        BasicBlock(4, 4, stochastic_depth=rate)


@pytest.mark.parametrize("se", [-1, 0.5, "16"])
def test_se_is_checked(se: object) -> None:
    with pytest.raises(ModelError, match="reduction ratio"):
        BasicBlock(4, 4, se=se)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dense_block_concatenates(rank: int) -> None:
    block = DenseBlock(4, 3, 2, rank=rank, se=2, dropout=0.1, stochastic_depth=0.1)
    x = example("", channels=4, rank=rank, size=6)
    y = block(x)
    assert y.shape == (3, 10, *(6,) * rank)
    assert torch.equal(y[:, :4], x)
    assert Transition(10, 5, rank=rank)(y).shape == (3, 5, *(3,) * rank)


def test_dense_layer_agrees_with_torchvision() -> None:
    theirs = torchvision.models.densenet._DenseLayer(6, 4, 2, 0.0)
    ours = DenseLayer(6, 4, bottleneck=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(ours(x), torch.cat([x, theirs(x)], 1))
