"""Residual blocks made of convolutions, for 1-D, 2-D and 3-D inputs.

Layers are named as torchvision names them (``conv1``, ``bn1``, ``downsample``), so published weights load.
Every rectifier is a module of its own: quantisers that match patterns stumble over a shared one.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from torch import Tensor, nn

from reskit.nn.layers import make_conv, make_norm, make_squeeze, make_stochastic_depth, zero_init_
from reskit.nn.residual import Residual, check_plain
from reskit.nn.shortcuts import ShortcutKind, make_shortcut

__all__ = [
    "BasicBlock",
    "BlockOptions",
    "Bottleneck",
    "CausalBlock",
    "ConvolutionBlock",
    "DilatedBlock",
]


class BlockOptions(TypedDict, total=False):
    """What every convolution block takes besides its channels; see :class:`ConvolutionBlock`."""

    stride: int
    rank: int
    shortcut: ShortcutKind
    residual: bool
    se: int | bool
    stochastic_depth: float
    zero_init: bool


class ConvolutionBlock(Residual):
    """What all convolution blocks share: the shortcut and the options on `F`.

    ``F(x) = stochastic_depth(se(branch(x)))``; children give :meth:`branch`.

    Args:
        in_channels: channels in, `(N, in_channels, ...)`.
        out_channels: channels out, `(N, out_channels, ...)`, sizes divided by `stride`, rounded up.
        activation: applied after the sum; None for none.
        shortcut_norm: whether a projection shortcut is followed by its norm.
        stride: step of the block.
        rank: 1 for `(N, C, L)`, 2 for `(N, C, H, W)`, 3 for `(N, C, D, H, W)`.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        residual: False builds the plain twin, without the shortcut and its parameters.
        se: reduction ratio of squeeze-excitation on `F` before the sum; True for 16, 0 for none.
        stochastic_depth: probability of dropping a sample's `F(x)` while training.
        zero_init: whether `F` starts at zero, so that the block starts as its shortcut (Goyal et al.,
            Accurate, Large Minibatch SGD, 2017, section 5.1).

    Raises:
        ModelError: an option is out of range, or needs the shortcut that ``residual=False`` takes away.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: nn.Module | None = None,
        shortcut_norm: bool = True,
        stride: int = 1,
        rank: int = 2,
        shortcut: ShortcutKind = "B",
        residual: bool = True,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        residual = residual and shortcut != "none"
        super().__init__(activation, residual=residual)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        self.stride, self.rank, self.zero_init = stride, rank, zero_init
        kind: ShortcutKind = shortcut if residual else "none"
        self.downsample = make_shortcut(kind, in_channels, out_channels, stride, rank, norm=shortcut_norm)
        self.se = make_squeeze(out_channels, se, rank)
        self.stochastic_depth = make_stochastic_depth(stochastic_depth)

    def branch(self, x: Tensor) -> Tensor:
        """Return the layers of `F` applied to `x`."""
        raise NotImplementedError(f"{type(self).__name__} must define branch(x)")

    def residual(self, x: Tensor) -> Tensor:
        """Return `F(x)`: the branch, weighed and dropped as the options say."""
        return self.stochastic_depth(self.se(self.branch(x)))  # type: ignore[no-any-return]

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `W_s x`."""
        return self.downsample(x)  # type: ignore[no-any-return]


class BasicBlock(ConvolutionBlock):
    """Two 3x3 convolutions, rectified after the sum.

    Source: He et al. 2015, figure 5 left.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        dilation: distance between the taps of both convolutions.
        options: see :class:`ConvolutionBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int = 1, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__(in_channels, out_channels, activation=nn.ReLU(inplace=True), **options)
        self.conv1 = make_conv(self.rank, in_channels, out_channels, 3, stride=self.stride, dilation=dilation)
        self.bn1 = make_norm(self.rank, out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = make_conv(self.rank, out_channels, out_channels, 3, dilation=dilation)
        self.bn2 = make_norm(self.rank, out_channels)
        if self.zero_init:
            zero_init_(self.bn2)

    def branch(self, x: Tensor) -> Tensor:
        """Return ``bn2(conv2(relu(bn1(conv1(x)))))``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))  # type: ignore[no-any-return]


class DilatedBlock(BasicBlock):
    """A basic block that sees further at the same cost: its taps are `dilation` apart.

    Source: Yu et al., Dilated Residual Networks, 2017.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, dilation: int = 2, **options: Unpack[BlockOptions]
    ) -> None:
        super().__init__(in_channels, out_channels, dilation=dilation, **options)


class Bottleneck(ConvolutionBlock):
    """1x1 down, 3x3, 1x1 up, rectified after the sum.

    The stride is on the 3x3 ("v1.5", as torchvision and NVIDIA have it), unless `stride_first` puts it on
    the first 1x1 as in the paper, where it skips three quarters of the map.

    Source: He et al. 2015, figure 5 right; groups: Xie et al., Aggregated Residual Transformations, 2017.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        width: channels of the 3x3; a quarter of `out_channels` by default.
        groups: groups of the 3x3 (cardinality).
        dilation: distance between the taps of the 3x3.
        stride_first: whether the stride is on the first 1x1 ("v1": the paper, Caffe and Keras).
        options: see :class:`ConvolutionBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        stride_first: bool = False,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__(in_channels, out_channels, activation=nn.ReLU(inplace=True), **options)
        width = out_channels // 4 if width is None else width
        strides = (self.stride, 1) if stride_first else (1, self.stride)
        self.conv1 = make_conv(self.rank, in_channels, width, 1, stride=strides[0])
        self.bn1 = make_norm(self.rank, width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = make_conv(
            self.rank, width, width, 3, stride=strides[1], dilation=dilation, groups=groups
        )
        self.bn2 = make_norm(self.rank, width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = make_conv(self.rank, width, out_channels, 1)
        self.bn3 = make_norm(self.rank, out_channels)
        if self.zero_init:
            zero_init_(self.bn3)

    def branch(self, x: Tensor) -> Tensor:
        """Return the three convolutions, each followed by its norm, rectified in between."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))  # type: ignore[no-any-return]


class CausalBlock(ConvolutionBlock):
    """Two dilated convolutions along time that never look ahead: output `t` depends on inputs up to `t`.

    Stack blocks with dilations 1, 2, 4, ... for a temporal network. Norms pool over time while training;
    in evaluation they are fixed and the block is causal exactly. Squeeze-excitation averages over all of
    time, so it is not on offer here. Differs from the paper in its norm (batch, not weight) and in having
    no rectifier right before the sum.

    Source: Bai et al., An Empirical Evaluation of Generic Convolutional and Recurrent
    Networks, 2018, figure 1b.

    Args:
        in_channels: channels in, `(N, in_channels, T)`.
        out_channels: channels out, `(N, out_channels, T)`.
        kernel_size: taps of each convolution.
        dilation: distance between the taps.
        dropout: probability of dropping a whole channel after the first convolution.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        residual: False builds the plain twin.
        stochastic_depth: probability of dropping a sample's `F(x)` while training.
        zero_init: whether `F` starts at zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        dropout: float = 0.0,
        shortcut: ShortcutKind = "B",
        residual: bool = True,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            activation=nn.ReLU(inplace=True),
            rank=1,
            shortcut=shortcut,
            residual=residual,
            stochastic_depth=stochastic_depth,
            zero_init=zero_init,
        )
        self.past = nn.ConstantPad1d(((kernel_size - 1) * dilation, 0), 0.0)
        self.conv1 = make_conv(1, in_channels, out_channels, kernel_size, dilation=dilation, padding=0)
        self.bn1 = make_norm(1, out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout1d(dropout) if dropout else nn.Identity()
        self.conv2 = make_conv(1, out_channels, out_channels, kernel_size, dilation=dilation, padding=0)
        self.bn2 = make_norm(1, out_channels)
        if zero_init:
            zero_init_(self.bn2)

    def branch(self, x: Tensor) -> Tensor:
        """Return two convolutions over the past, each with its norm, rectified in between."""
        x = self.dropout(self.relu1(self.bn1(self.conv1(self.past(x)))))
        return self.bn2(self.conv2(self.past(x)))  # type: ignore[no-any-return]
