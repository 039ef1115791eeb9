"""Luminance and chroma as image restoration counts them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_ycbcr", "luminance", "to_ycbcr"]

# ITU-R BT.601 for pixels in [0, 1], in the range of studios: Y from 16 to 235 of 255, chroma around 128.
_MATRIX = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


def to_ycbcr(image: Tensor) -> Tensor:
    """Return `(N, 3, H, W)` of RGB in [0, 1] as Y, Cb and Cr in [0, 1], as MATLAB's ``rgb2ycbcr`` does."""
    matrix, offset = (torch.tensor(v, dtype=torch.float64) / 255 for v in (_MATRIX, _OFFSET))
    return _mixed(image, matrix, offset)


def from_ycbcr(image: Tensor) -> Tensor:
    """Undo `to_ycbcr`."""
    matrix, offset = (torch.tensor(v, dtype=torch.float64) / 255 for v in (_MATRIX, _OFFSET))
    inverse = torch.linalg.inv(matrix)
    return _mixed(image, inverse, -inverse @ offset)


def luminance(image: Tensor) -> Tensor:
    """Return the Y `(N, 1, H, W)` of RGB `(N, 3, H, W)` in [0, 1]: what super-resolution is measured on."""
    return to_ycbcr(image)[:, :1]


def _mixed(image: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    matrix, offset = (value.to(image.device, image.dtype) for value in (matrix, offset))
    return torch.einsum("kc,nchw->nkhw", matrix, image) + offset.view(1, 3, 1, 1)
