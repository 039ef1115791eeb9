"""What Caffe does to an image before its network does: means, factors and crops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.building import blaming
from reskit.weights.caffe.layers import read_blob
from reskit.weights.caffe.schema import parse_binary

__all__ = ["mean_size", "preprocessing", "read_mean"]


def read_mean(path: Path) -> Tensor:
    """Return a mean as (C, H, W) or (C, 1, 1), of pixels from 0 to 255."""
    with blaming(path):
        mean = (
            _read_npy(path) if path.suffix.lower() == ".npy" else read_blob(parse_binary(path, "BlobProto"))
        )
        if mean.dim() == 4 and mean.shape[0] == 1:
            mean = mean[0]
        if mean.dim() == 1:
            mean = mean[:, None, None]
        if mean.dim() != 3 or not mean.numel() or not bool(mean.isfinite().all()):
            raise WeightsError(f"a mean of shape {list(mean.shape)}: give one image, or a value per channel")
        return mean


def _read_npy(path: Path) -> Tensor:
    if path.read_bytes()[:6] != b"\x93NUMPY":
        raise WeightsError("this is no NumPy array: save it with numpy.save")
    try:
        # A mapped file cannot claim to be larger than it is, and nothing is unpickled.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "fiu":
            raise WeightsError(f"an array of {array.dtype} is no mean image")
        return torch.from_numpy(np.array(array, dtype=np.float32))
    except (ValueError, TypeError, OverflowError, EOFError, SyntaxError, MemoryError) as error:
        raise WeightsError("this is not a whole NumPy array: save it again") from error


def mean_size(mean: Tensor | None) -> tuple[int, int] | None:
    """Return height and width of a mean image; None if it is no image."""
    if mean is None or mean.shape[1:] == (1, 1):
        return None
    return mean.shape[1], mean.shape[2]


def preprocessing(
    transform: Any,
    mean: Tensor | None,
    channels: int,
    size: tuple[int, int] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return the fields of `ImagePreprocess` that the files tell.

    Caffe computes ``(pixel - mean) * scale`` of pixels from 0 to 255; here it is ``(pixel - mean) / std`` of
    pixels in [0, 1].
    """
    found: dict[str, Any] = {"channels": channels}
    if size is not None:
        found["size"] = size
    if transform is None and mean is None:
        notes.append("The files do not say how pixels are scaled: give mean and std.")
        return found
    factor = 1.0 if transform is None else transform.scale
    if not (math.isfinite(factor) and factor > 0):
        raise WeightsError(f"the data layer multiplies pixels by {factor}: give a .prototxt with its factor")
    found["std"] = (1 / 255 / factor,) * channels
    if mean is None and transform.mean_file and not transform.mean_value:
        notes.append(
            f"The network subtracts the mean in {transform.mean_file}, which was not given: give that file"
            " too, or the mean."
        )
        return found
    if mean is None:
        values = list(transform.mean_value) or [0.0]
        mean = torch.tensor(values * channels if len(values) == 1 else values)[:, None, None]
    if mean.shape[0] != channels:
        raise WeightsError(f"a mean of {mean.shape[0]} channels for a network of {channels}")
    mean = mean / 255
    found["mean"] = tuple(mean.mean((1, 2)).tolist())
    if mean_size(mean) is not None:
        found["mean_image"] = _centre(mean, size or (mean.shape[1], mean.shape[2]))
    return found


def _centre(mean: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the part of a mean image that lies under the centre crop."""
    top, left = (mean.shape[1] - size[0]) // 2, (mean.shape[2] - size[1]) // 2
    if top < 0 or left < 0:
        raise WeightsError(f"the mean image, {tuple(mean.shape[1:])}, is smaller than the input, {size}")
    return mean[:, top : top + size[0], left : left + size[1]].contiguous()
