"""The idea itself: the worked examples of the specification, to the number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reskit.nn as rnn
from reskit.errors import ModelError
from reskit.nn import Residual, ResidualMLP


class Constant(Residual):
    """A block whose F is a given tensor, whatever its input."""

    def __init__(
        self, value: list[float], activation: nn.Module | None = None, *, residual: bool = True
    ) -> None:
        super().__init__(activation, residual=residual)
        self.value = torch.tensor([value])

    def residual(self, x: Tensor) -> Tensor:
        return self.value.clone()


class Scale(Residual):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def residual(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_sum_of_input_and_residual() -> None:
    assert Constant([0.5, -0.5])(torch.tensor([[1.0, 2.0]])).tolist() == [[1.5, 1.5]]


def test_activation_follows_the_sum() -> None:
    block = Constant([3.0, -4.0], nn.ReLU())
    assert block(torch.tensor([[-1.0, 2.0]])).tolist() == [[2.0, 0.0]]


def test_plain_twin_is_the_residual_alone() -> None:
    block = Constant([3.0, -4.0], nn.ReLU(), residual=False)
    assert block(torch.tensor([[-1.0, 2.0]])).tolist() == [[3.0, 0.0]]


def test_three_stacked_blocks() -> None:
    stack = nn.Sequential(Scale(0.5), Scale(-0.5), Scale(1.0))
    # 1.5 * 0.5 * 2
    assert stack(torch.tensor([[1.0, -2.0]])).tolist() == [[1.5, -3.0]]


def test_projection_changes_the_width() -> None:
    block = ResidualMLP(64, 128)
    x = torch.randn(1, 64)
    expected = block.residual(x) + x @ block.downsample.weight.T
    assert block(x).shape == (1, 128)
    torch.testing.assert_close(block(x), expected)


def test_two_layer_residual() -> None:
    block = ResidualMLP(2, hidden=2)
    with torch.no_grad():
        block.linear1.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        block.linear1.bias.copy_(torch.tensor([1.0, 1.0]))
        block.linear2.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        block.linear2.bias.copy_(torch.tensor([0.5, -0.5]))
    # x = [1, 3]: hidden relu([2, -2]) = [2, 0]; F = [4.5, 1.5]; y = F + x
    assert block(torch.tensor([[1.0, 3.0]])).tolist() == [[5.5, 4.5]]


def test_gradient_passes_the_shortcut_undiminished() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    ResidualMLP(4, zero_init=True)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0] * 4]


def test_no_block_overrides_forward() -> None:
    blocks = [getattr(rnn, name) for name in rnn.__all__]
    blocks = [b for b in blocks if isinstance(b, type) and issubclass(b, Residual)]
    assert len(blocks) >= 11
    assert {block.forward for block in blocks} == {Residual.forward}


@pytest.mark.parametrize("option", [{"zero_init": True}, {"stochastic_depth": 0.1}])
def test_options_that_need_a_shortcut_are_refused_without_one(option: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="needs a shortcut"):
        ResidualMLP(4, residual=False, **option)
    with pytest.raises(ModelError, match="needs a shortcut"):
        rnn.BasicBlock(4, 4, shortcut="none", **option)
    with pytest.raises(ModelError, match="needs a shortcut"):
        rnn.BasicBlock(4, 4, residual=False, **option)


def test_base_says_what_children_must_define() -> None:
    with pytest.raises(NotImplementedError, match="Residual must define residual"):
        Residual()(torch.zeros(1, 1))
