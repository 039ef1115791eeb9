"""Pre-activation blocks: norm and rectifier come before each convolution, the sum is left as it is."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from reskit.nn.convolution import BlockOptions, ConvolutionBlock
from reskit.nn.layers import make_conv, make_norm, zero_init_

__all__ = ["PreActBasicBlock", "PreActBottleneck", "WideBlock"]


class PreActBasicBlock(ConvolutionBlock):
    """Norm and rectifier before each of two 3x3 convolutions; nothing after the sum.

    Where the shape changes, the papers normalise and rectify *before* the input splits into `F` and the
    shortcut. That is a layer before the block, not part of it: put one there and say ``preactivated=True``.

    With `zero_init` the last convolution starts at zero, not the last norm: a rectifier follows that norm,
    and nothing would ever flow back through a rectified zero.

    Source: He et al., Identity Mappings in Deep Residual Networks, 2016, figure 1b and appendix.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        preactivated: whether the input has been normalised and rectified already.
        dropout: probability of dropping an activation between the convolutions.
        options: see :class:`ConvolutionBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        preactivated: bool = False,
        dropout: float = 0.0,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, shortcut_norm=False, **options)
        self.bn1 = nn.Identity() if preactivated else make_norm(self.rank, in_channels)
        self.relu1 = nn.Identity() if preactivated else nn.ReLU(inplace=True)
        self.conv1 = make_conv(self.rank, in_channels, out_channels, 3, stride=self.stride)
        self.bn2 = make_norm(self.rank, out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = make_conv(self.rank, out_channels, out_channels, 3)
        if self.zero_init:
            zero_init_(self.conv2)

    def branch(self, x: Tensor) -> Tensor:
        """Return ``conv2(dropout(relu(bn2(conv1(relu(bn1(x)))))))``."""
        x = self.conv1(self.relu1(self.bn1(x)))
        return self.conv2(self.dropout(self.relu2(self.bn2(x))))  # type: ignore[no-any-return]


class WideBlock(PreActBasicBlock):
    """The pre-activation block of wide networks: dropout between its convolutions.

    Source: Zagoruyko and Komodakis, Wide Residual Networks, 2016, figure 1d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        preactivated: bool = False,
        dropout: float = 0.3,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, preactivated=preactivated, dropout=dropout, **options)


class PreActBottleneck(ConvolutionBlock):
    """Norm and rectifier before each of 1x1 down, 3x3, 1x1 up; nothing after the sum.

    Source and `zero_init`: see :class:`PreActBasicBlock`.

    Args:
        in_channels: channels in.
        out_channels: channels out; the 3x3 has a quarter of them.
        preactivated: whether the input has been normalised and rectified already.
        options: see :class:`ConvolutionBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        preactivated: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, shortcut_norm=False, **options)
        width = out_channels // 4
        self.bn1 = nn.Identity() if preactivated else make_norm(self.rank, in_channels)
        self.relu1 = nn.Identity() if preactivated else nn.ReLU(inplace=True)
        self.conv1 = make_conv(self.rank, in_channels, width, 1)
        self.bn2 = make_norm(self.rank, width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = make_conv(self.rank, width, width, 3, stride=self.stride)
        self.bn3 = make_norm(self.rank, width)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv3 = make_conv(self.rank, width, out_channels, 1)
        if self.zero_init:
            zero_init_(self.conv3)

    def branch(self, x: Tensor) -> Tensor:
        """Return the three convolutions, each after its norm and rectifier."""
        x = self.conv1(self.relu1(self.bn1(x)))
        x = self.conv2(self.relu2(self.bn2(x)))
        return self.conv3(self.relu3(self.bn3(x)))  # type: ignore[no-any-return]
