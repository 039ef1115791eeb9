"""Residual blocks whose channels mix in 1x1 convolutions: inverted residuals and network in network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn

from reskit.nn.convolution import BlockOptions, ConvolutionBlock
from reskit.nn.layers import make_conv, make_norm, zero_init_

__all__ = ["InvertedResidual", "MlpConv"]


class InvertedResidual(ConvolutionBlock):
    """1x1 up, depthwise 3x3, linear 1x1 down; the narrow ends are added, nothing follows the sum.

    The shortcut is the identity. Where stride or channels change there is none, as in the paper, and the
    options that need one do nothing.

    Source: Sandler et al., MobileNetV2, 2018, figure 4d and table 1.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        expansion: how many times wider the depthwise part is; 1 leaves the first convolution out.
        options: see :class:`ConvolutionBlock`; `shortcut` has one meaning here, the identity.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: int = 6, **options: Unpack[BlockOptions]
    ) -> None:
        if options.get("stride", 1) != 1 or in_channels != out_channels:
            options |= {"residual": False, "stochastic_depth": 0.0, "zero_init": False}
        super().__init__(in_channels, out_channels, **(options | {"shortcut": "identity"}))
        width = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(self._rectified(in_channels, width, 1))
        layers.append(self._rectified(width, width, 3, stride=self.stride, groups=width))
        layers.append(make_conv(self.rank, width, out_channels, 1))
        layers.append(make_norm(self.rank, out_channels))
        self.conv = nn.Sequential(*layers)
        if self.zero_init:
            zero_init_(self.conv[-1])

    def _rectified(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> nn.Module:
        """Return convolution, norm and the rectifier clipped at 6."""
        conv = make_conv(self.rank, in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        return nn.Sequential(conv, make_norm(self.rank, out_channels), nn.ReLU6(inplace=True))

    def branch(self, x: Tensor) -> Tensor:
        """Return the bottleneck turned inside out applied to `x`."""
        return self.conv(x)  # type: ignore[no-any-return]


class MlpConv(ConvolutionBlock):
    """A convolution and then 1x1 convolutions: a small perceptron slid over the map.

    As published it is plain (``residual=False``) and has no norms. With `zero_init` the last convolution
    (or its norm) starts at zero.

    Source: Lin et al., Network In Network, 2014, section 3.1.

    Args:
        in_channels: channels in.
        widths: channels after each convolution; the last are the channels out.
        kernel_size: of the first convolution; the others are 1x1.
        norm: whether a norm follows each convolution.
        options: see :class:`ConvolutionBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        *,
        kernel_size: int = 3,
        norm: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(
            in_channels, widths[-1], activation=nn.ReLU(inplace=True), shortcut_norm=norm, **options
        )
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.ReLU(inplace=True))
            first = {"kernel_size": kernel_size, "stride": self.stride} if i == 0 else {"kernel_size": 1}
            layers.append(make_conv(self.rank, in_channels, width, bias=not norm, **first))
            if norm:
                layers.append(make_norm(self.rank, width))
            in_channels = width
        self.layers = nn.Sequential(*layers)
        if self.zero_init:
            zero_init_(self.layers[-1])

    def branch(self, x: Tensor) -> Tensor:
        """Return the convolutions applied to `x`, rectified in between."""
        return self.layers(x)  # type: ignore[no-any-return]
