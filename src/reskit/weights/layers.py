"""Layers that other libraries' networks need and PyTorch has not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import WeightsError
from reskit.nn import ZeroPad

__all__ = [
    "Affine",
    "BatchNorm",
    "Flatten",
    "PaddedAvgPool2d",
    "PaddedConv2d",
    "PaddedMaxPool2d",
    "Padding",
    "Scale",
    "Sizes",
    "Subsample",
    "Window",
]

Sizes: TypeAlias = Sequence[int]
Padding: TypeAlias = Sequence[int] | str


class Window:
    """The padding of a sliding window that PyTorch's layers cannot do themselves.

    Args:
        kernel_size: `[height, width]`.
        stride: `[height, width]`.
        dilation: `[height, width]`.
        padding: `[top, bottom, left, right]`, or ``"same"``: the output is the input over the stride,
            rounded up, and what is missing is split between both sides, an odd one behind (TensorFlow).
    """

    def __init__(self, kernel_size: Sizes, stride: Sizes, dilation: Sizes, padding: Padding) -> None:
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding

    def __call__(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Return `x` `(N, C, H, W)` with the border the window needs."""
        if not isinstance(self.padding, str):
            top, bottom, left, right = self.padding
            return F.pad(x, (left, right, top, bottom), value=value)
        top, bottom = self._same(x.shape[2], 0)
        left, right = self._same(x.shape[3], 1)
        return F.pad(x, (left, right, top, bottom), value=value)

    def _same(self, size: int, axis: int) -> tuple[int, int]:
        """Return what goes before and behind `size` positions."""
        step, reach = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        total = max((-(-size // step) - 1) * step + reach - size, 0)
        return total // 2, total - total // 2


def _pair(sizes: Sizes) -> tuple[int, int]:
    height, width = sizes
    return height, width


class PaddedConv2d(nn.Conv2d):
    """A convolution whose padding differs between the sides, or depends on the size of the input.

    Args:
        window: the padding.
        options: those of `nn.Conv2d`, without padding.
    """

    def __init__(self, *, window: Window, **options: Any) -> None:
        super().__init__(**options)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the padded `x` `(N, in_channels, H, W)`."""
        return super().forward(self.window(x))


class PaddedMaxPool2d(nn.MaxPool2d):
    """Max pooling that pads each side differently; positions that are not there never win.

    Args:
        window: the padding.
        ceil_mode: whether a last window that is not full counts.
    """

    def __init__(self, window: Window, *, ceil_mode: bool) -> None:
        super().__init__(window.kernel_size, window.stride, ceil_mode=ceil_mode)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the largest of each window of `x` `(N, C, H, W)`."""
        return super().forward(self.window(x, float("-inf")))  # type: ignore[no-any-return]


class PaddedAvgPool2d(nn.AvgPool2d):
    """Average pooling that pads each side differently.

    Args:
        window: the padding.
        ceil_mode: whether a last window that is not full counts.
        count_include_pad: whether the border's zeros count; TensorFlow takes the mean of what is there.
    """

    def __init__(self, window: Window, *, ceil_mode: bool, count_include_pad: bool) -> None:
        super().__init__(window.kernel_size, window.stride, ceil_mode=ceil_mode)
        self.window, self.with_border = window, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each window of `x` `(N, C, H, W)`."""
        means = super().forward(self.window(x))
        if self.with_border:
            return means
        there = super().forward(self.window(x.new_ones(1, 1, *x.shape[2:])))
        return means / there


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of maps `(N, C, H, W)` and of vectors `(N, C)`."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Refuse what has neither two nor four dimensions."""
        if input.dim() not in (2, 4):
            raise ValueError(f"batch normalisation of an input of {input.dim()} dimensions: expected 2 or 4")


class Scale(nn.Module):
    """``weight * x + bias``, a number each a channel.

    Args:
        channels: channels of `x`.
        bias: whether there is one.
    """

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `(N, C, ...)` scaled and shifted, same shape."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y: Tensor = x * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


class Affine(nn.Module):
    """``scale * x + shift`` with two numbers that are not learned.

    Args:
        scale: multiplies.
        shift: is added.
    """

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled and shifted, same shape."""
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        """Show both numbers."""
        return f"scale={self.scale:g}, shift={self.shift:g}"


class Flatten(nn.Module):
    """Maps `(N, C, H, W)` as vectors `(N, C H W)`; vectors stay.

    Args:
        order: ``"chw"``, or ``"hwc"`` for weights made with channels last.
    """

    def __init__(self, order: str) -> None:
        super().__init__()
        if order not in ("chw", "hwc"):
            raise WeightsError(f"flatten in the order {order!r} is not known: use 'chw' or 'hwc'")
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C H W)`."""
        if x.dim() == 4 and self.order == "hwc":
            x = x.permute(0, 2, 3, 1)
        return x.flatten(1)


class Subsample(ZeroPad):
    """:class:`~reskit.nn.ZeroPad` with any number of channels in front and behind.

    Args:
        stride: step in both directions.
        front: channels of zeros before the map's.
        back: channels of zeros behind them.
    """

    def __init__(self, stride: int | Sizes, front: int, back: int) -> None:
        steps = [stride] if isinstance(stride, int) else list(stride)
        if len(set(steps)) != 1:
            raise WeightsError(f"a subsampling shortcut of stride {steps}: both directions must be the same")
        super().__init__(0, front + back, steps[0])
        self.front, self.back = front, back
