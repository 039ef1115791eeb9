"""Dense connections: layers that add channels instead of numbers, `y = [x, H(x)]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reskit.nn.layers import make_conv, make_norm, make_squeeze, make_stochastic_depth

__all__ = ["DenseBlock", "DenseLayer", "Transition"]


class DenseLayer(nn.Module):
    """``y = [x, H(x)]`` with `H` norm, rectifier, 1x1, norm, rectifier, 3x3 (the bottleneck form, "B").

    It keeps `x` by concatenation, so it is no :class:`~reskit.nn.Residual` and has no plain twin.

    Source: Huang et al., Densely Connected Convolutional Networks, 2017, section 3.

    Args:
        in_channels: channels in, `(N, in_channels, ...)`.
        growth: channels added; channels out are ``in_channels + growth``.
        bottleneck: the 1x1 has ``bottleneck * growth`` channels.
        rank: 1, 2 or 3.
        dropout: probability of dropping an activation of `H(x)`.
        se: reduction ratio of squeeze-excitation on `H(x)`; True for 16, 0 for none.
        stochastic_depth: probability of dropping a sample's `H(x)` while training.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        *,
        bottleneck: int = 4,
        rank: int = 2,
        dropout: float = 0.0,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(rank, in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = make_conv(rank, in_channels, bottleneck * growth, 1)
        self.norm2 = make_norm(rank, bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = make_conv(rank, bottleneck * growth, growth, 3)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.se = make_squeeze(growth, se, rank)
        self.stochastic_depth = make_stochastic_depth(stochastic_depth)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, in_channels + growth, ...)`."""
        new = self.conv1(self.relu1(self.norm1(x)))
        new = self.conv2(self.relu2(self.norm2(new)))
        return torch.cat((x, self.stochastic_depth(self.se(self.dropout(new)))), 1)


class DenseBlock(nn.Sequential):
    """Dense layers one after another, each seeing what all before it made.

    Args:
        in_channels: channels in.
        growth: channels each layer adds.
        depth: number of layers; channels out are ``in_channels + depth * growth``.
        bottleneck: see :class:`DenseLayer`.
        rank: 1, 2 or 3.
        dropout: see :class:`DenseLayer`.
        se: see :class:`DenseLayer`.
        stochastic_depth: see :class:`DenseLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        depth: int,
        *,
        bottleneck: int = 4,
        rank: int = 2,
        dropout: float = 0.0,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        for i in range(depth):
            layer = DenseLayer(
                in_channels + i * growth,
                growth,
                bottleneck=bottleneck,
                rank=rank,
                dropout=dropout,
                se=se,
                stochastic_depth=stochastic_depth,
            )
            self.add_module(f"denselayer{i + 1}", layer)


class Transition(nn.Sequential):
    """Norm, rectifier, 1x1 convolution and average pooling by two between dense blocks.

    Source: Huang et al. 2017, section 3, pooling layers and compression.

    Args:
        in_channels: channels in, `(N, in_channels, H, ...)`.
        out_channels: channels out, `(N, out_channels, H // 2, ...)`.
        rank: 1, 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rank: int = 2) -> None:
        super().__init__()
        self.norm = make_norm(rank, in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = make_conv(rank, in_channels, out_channels, 1)
        self.pool = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[rank](2, 2)
