"""Bicubic upscaling by a whole factor, as plain sums that every engine runs."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from reskit.errors import ModelError

__all__ = ["BicubicUpscale", "cubic_weights"]

_REACH = 2  # pixels on either side that a cubic kernel sees


def cubic_weights(scale: int) -> list[list[float]]:
    """Return for each of `scale` new pixels in an old one the weights of the five pixels around it.

    New pixel `p` lies at `(p + 1/2) / scale - 1/2` from the old one's middle.

    Source: Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, equation 15 (a = -1/2).
    """

    def kernel(distance: float) -> float:
        t = abs(distance)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    places = [(phase + 0.5) / scale - 0.5 for phase in range(scale)]
    return [[kernel(place - tap) for tap in range(-_REACH, _REACH + 1)] for place in places]


class BicubicUpscale(nn.Module):
    """Bicubic interpolation as MATLAB's ``imresize(x, scale, "bicubic")`` gives it.

    Its a is -1/2 and the border is mirrored; PyTorch's own has -3/4. Written as sums of shifted images, it
    stays in float32 under autocast and quantisation, which an image that is only added to must, and needs no
    operator that an engine might lack.

    Args:
        scale: by how much both sides grow.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
            raise ModelError(f"scale is {scale!r}: give a whole number of at least 1")
        self.scale = scale
        self.weights = cubic_weights(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C, scale * H, scale * W)` of `(N, C, H, W)`."""
        return self._along(self._along(x, 2), 3)

    def _along(self, x: Tensor, axis: int) -> Tensor:
        size = x.shape[axis]
        second = min(1, size - 1)
        border = [x.narrow(axis, place, 1) for place in (second, 0, size - 1, size - 1 - second)]
        padded = torch.cat([*border[:2], x, *border[2:]], axis)
        phases = []
        for weights in self.weights:
            taps = [padded.narrow(axis, tap, size) * weight for tap, weight in enumerate(weights) if weight]
            phases.append(reduce(torch.add, taps))
        return torch.stack(phases, axis + 1).flatten(axis, axis + 1)

    def extra_repr(self) -> str:
        """Show the factor."""
        return f"scale={self.scale}"
