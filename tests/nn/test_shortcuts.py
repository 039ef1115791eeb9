from __future__ import annotations

import pytest
import torch
from torch import nn

from reskit.errors import ModelError
from reskit.nn import NoShortcut, ZeroPad, make_shortcut


def image(rank: int, channels: int = 4, size: int = 7) -> torch.Tensor:
    return torch.randn(2, channels, *(size,) * rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["A", "B", "C", "D"])
@pytest.mark.parametrize("size", [6, 7])
def test_shape_change(kind: str, rank: int, size: int) -> None:
    shortcut = make_shortcut(kind, 4, 9, 2, rank)
    assert shortcut(image(rank, size=size)).shape == (2, 9, *((size + 1) // 2,) * rank)


@pytest.mark.parametrize("kind", ["identity", "A", "B", "D"])
def test_identity_where_nothing_changes(kind: str) -> None:
    assert isinstance(make_shortcut(kind, 4, 4), nn.Identity)


def test_c_always_projects() -> None:
    assert [type(layer) for layer in make_shortcut("C", 4, 4)] == [nn.Conv2d, nn.BatchNorm2d]


def test_zero_pad_values() -> None:
    x = torch.arange(1.0, 9.0).reshape(1, 2, 4)
    # every second position; one channel of zeros in front, two behind
    assert ZeroPad(2, 5, 2)(x).tolist() == [[[0, 0], [1, 3], [5, 7], [0, 0], [0, 0]]]


def test_zero_pad_has_no_parameters_and_keeps_channels_last() -> None:
    shortcut = make_shortcut("A", 4, 8, 2)
    x = image(2, size=8).to(memory_format=torch.channels_last)
    assert not list(shortcut.parameters())
    assert shortcut(x).is_contiguous(memory_format=torch.channels_last)


def test_d_averages_every_position() -> None:
    shortcut = make_shortcut("D", 1, 1, 2).eval()
    shortcut[1].weight.data.fill_(1.0)
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    # the odd last row and column are averaged over what is there, not over padding
    expected = torch.tensor([[[[2.0, 3.5], [6.5, 8.0]]]]) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(shortcut(x), expected)


def test_b_is_a_strided_projection() -> None:
    shortcut = make_shortcut("B", 4, 6, 2, norm=False)
    x = image(2)
    expected = torch.einsum("oc,nchw->nohw", shortcut[0].weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(shortcut(x), expected)


def test_none_adds_nothing() -> None:
    x = image(2)
    assert torch.equal(x + NoShortcut()(x), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("identity", 4, 8), "cannot go from 4 to 8 channels"),
        (("identity", 4, 4, 2), "at stride 2"),
        (("A", 8, 4), "cannot go from 8 to 4"),
        (("identiy", 4, 4), "did you mean 'identity'"),
        (("B", 4, 8, 1, 4), "rank is 4"),
    ],
)
def test_impossible_shortcuts(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_shortcut(*arguments)
