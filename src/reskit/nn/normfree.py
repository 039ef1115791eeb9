"""A residual block without norms, for networks whose answer is an image."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.nn.convolution import BlockOptions, ConvolutionBlock
from reskit.nn.layers import make_conv, zero_init_

__all__ = ["NormFreeBlock"]


class NormFreeBlock(ConvolutionBlock):
    """Two 3x3 convolutions with biases and a rectifier in between; nothing after the sum.

    Norms would take from an image the range of its values, which super-resolution has to keep. `scaling`
    keeps wide blocks stable in training.

    Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, 2017, figure 2c and
    section 3.3.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        scaling: what `F` is multiplied by before the sum, 0.1 for the paper's widest networks.
        options: see :class:`ConvolutionBlock`; a projection shortcut has no norm either.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, scaling: float = 1.0, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__(in_channels, out_channels, shortcut_norm=False, **options)
        if not isinstance(scaling, int | float) or not scaling > 0:
            raise ModelError(f"scaling is {scaling!r}: give a positive number")
        self.scaling = scaling
        self.conv1 = make_conv(self.rank, in_channels, out_channels, 3, stride=self.stride, bias=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = make_conv(self.rank, out_channels, out_channels, 3, bias=True)
        for conv in (self.conv1, self.conv2):
            # Without norms, a variance of 2 / fan would double the signal in every block. PyTorch's default,
            # with which the published networks begin, has a sixth of it.
            conv.reset_parameters()  # type: ignore[operator]
        if self.zero_init:
            zero_init_(self.conv2)

    def branch(self, x: Tensor) -> Tensor:
        """Return ``scaling * conv2(relu(conv1(x)))``."""
        x = self.conv2(self.relu1(self.conv1(x)))
        return x if self.scaling == 1 else x * self.scaling
