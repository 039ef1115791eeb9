"""From an image to a network's input."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reskit.data.images import read_array
from reskit.data.info import DataInfo
from reskit.data.preprocess import Preprocess, Statistics
from reskit.errors import DataError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImagePreprocess", "Normalize", "measure_mean_std"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DEFAULT_SIDE = 224
PADDING = 128
"""The grey around an image that is padded, whatever its statistics, which are measured later."""
_INTERPOLATION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


class ImagePreprocess(Preprocess):
    """Everything needed to turn an image into a network's input, and nothing else.

    Attributes:
        size: ``(height, width)`` in pixels of the network's input.
        channels: 1 (grey), 3 (RGB), 4 (RGB and alpha); other counts for arrays and tensors only.
        resize: ``"squash"`` scales both sides to `size`; ``"crop"`` scales the image, its proportions kept,
            until it just covers ``size / crop_fraction``, then takes the centre; ``"pad"`` scales it, its
            proportions kept, until it just fits into `size`, and adds grey on the right or below.
        crop_fraction: part of the scaled image the centre crop keeps, 0.875 by ImageNet's convention.
        interpolation: both kinds are antialiased.
        mean: per channel, for pixels in ``[0, 1]``.
        std: per channel, for pixels in ``[0, 1]``.
        mean_image: a mean for each pixel instead of `mean`, as Caffe's networks have it: base64 of float32
            ``(channels, H, W)``, little-endian; see `with_mean_image`.
    """

    size: tuple[int, int]
    channels: int = Field(default=3, ge=1)
    resize: Literal["squash", "crop", "pad"] = "squash"
    crop_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    mean_image: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ImagePreprocess:
        if min(self.size) < 1:
            raise ValueError(f"size {self.size} must be positive")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        if self.mean_image is not None:
            found = len(base64.b64decode(self.mean_image, validate=True)) // 4
            if found != self.channels * self.size[0] * self.size[1]:
                raise ValueError(
                    f"mean_image has {found} values and does not fit {self.channels} x {self.size}"
                )
        return self

    @classmethod
    def from_info(
        cls,
        info: DataInfo,
        size: int | tuple[int, int] | None = None,
        *,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> ImagePreprocess:
        """Choose a preprocessing that suits the data.

        Images of one size up to 224 pixels are taken as they are. Others are scaled and centre-cropped, by
        default to a square of 224 pixels, or of their median short side where that is smaller.

        Args:
            info: what `Source.describe` returned.
            size: side, or ``(height, width)``, of the network's input.
            channels: as in the data by default.
            mean: ImageNet's for colour, 0.5 else; `with_statistics` puts measured ones in.
            std: likewise.
            interpolation: how to scale.
        """
        sizes = info.sizes
        depth = info.channels if channels is None else channels
        if size is None:
            small = max(sizes.max) <= _DEFAULT_SIDE
            side = min(_DEFAULT_SIDE, *sizes.median)
            size = sizes.min if sizes.uniform and small else (side, side)
        wanted = (size, size) if isinstance(size, int) else size
        crop = not sizes.uniform or (sizes.min != wanted and min(sizes.min) > min(wanted))
        colour = depth == 3
        return cls(
            size=wanted,
            channels=depth,
            resize="crop" if crop else "squash",
            crop_fraction=0.875 if crop else 1.0,
            interpolation=interpolation,
            mean=mean or (IMAGENET_MEAN if colour else (0.5,) * depth),
            std=std or (IMAGENET_STD if colour else (0.5,) * depth),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return (self.channels, *self.size)

    def describe(self) -> str:
        """See `Preprocess.describe`."""
        return f"{self.channels} channels of {self.size[0]} x {self.size[1]} pixels"

    def with_statistics(self, mean: Iterable[float], std: Iterable[float]) -> Self:
        """Return the same preprocessing with other per-channel statistics."""
        return type(self)(**{**self.model_dump(), "mean": tuple(mean), "std": tuple(std)})

    def measured(self, measure: Callable[[], Statistics]) -> Self:
        """See `Preprocess.measured`."""
        return self.with_statistics(*measure())

    def with_mean_image(self, image: Tensor) -> ImagePreprocess:
        """Return the same with a mean for each pixel, float ``(channels, H, W)`` in ``[0, 1]``."""
        data = base64.b64encode(image.numpy().astype("<f4").tobytes()).decode()
        return ImagePreprocess(**{**self.model_dump(), "mean_image": data})

    def read(self, item: Any) -> Tensor:
        """Read one image and bring it to shape.

        Args:
            item: a path, encoded bytes, a PIL image, a uint8 or uint16 array ``(H, W)`` or ``(H, W, C)``, or
                a uint8 tensor ``(H, W)`` or ``(C, H, W)``.

        Returns:
            uint8 ``(channels, H, W)`` with ``(H, W) = size``.

        Raises:
            DataError: the image cannot be read, or has a wrong type or shape.
        """
        return self.fit(self.decode(item))

    def decode(self, item: Any) -> Tensor:
        """Return `item` as uint8 ``(channels, h, w)`` at its own size; arguments and errors as `read`."""
        if isinstance(item, np.ndarray):
            item = _tensor_from_array(item)
        if isinstance(item, Tensor):
            return _to_channels(_checked(item), self.channels)
        array = read_array(item, self.channels)
        return torch.from_numpy(array.copy()).permute(2, 0, 1)

    def fit(self, image: Tensor) -> Tensor:
        """Scale and crop uint8 ``(C, h, w)`` to ``(C, H, W)``."""
        height, width = image.shape[-2:]
        if self.resize == "pad":
            return self._padded(image)
        if (height, width) == self.size and (self.resize == "squash" or self.crop_fraction == 1.0):
            return image
        method = _INTERPOLATION[self.interpolation]
        if self.resize == "squash":
            return tv.resize(image, list(self.size), interpolation=method, antialias=True)  # type: ignore[no-any-return]
        image = self._without_ends(image)
        height, width = image.shape[-2:]
        scale = max(self.size[0] / height, self.size[1] / width) / self.crop_fraction
        scaled = [max(side, round(old * scale)) for side, old in zip(self.size, (height, width), strict=True)]
        resized = tv.resize(image, scaled, interpolation=method, antialias=True)
        return tv.center_crop(resized, list(self.size))  # type: ignore[no-any-return]

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Return the size `(h, w)` that an image of `(height, width)` is scaled to when it is padded."""
        scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _padded(self, image: Tensor) -> Tensor:
        """Scale and pad `(..., C, h, w)` to `size`."""
        scaled = self.scaled(*image.shape[-2:])
        method = _INTERPOLATION[self.interpolation]
        resized = tv.resize(image, list(scaled), interpolation=method, antialias=True)
        rest = [0, 0, self.size[1] - scaled[1], self.size[0] - scaled[0]]
        return tv.pad(resized, rest, fill=PADDING)  # type: ignore[no-any-return]

    def _without_ends(self, image: Tensor) -> Tensor:
        """Cut an extreme strip to what the centre crop can reach: scaled whole, it could fill the memory."""
        height, width = image.shape[-2:]
        limit = math.ceil(8 * min(height, width) * max(self.size) / min(self.size))
        if max(height, width) <= limit:
            return image
        return tv.center_crop(image, [min(height, limit), min(width, limit)])  # type: ignore[no-any-return]

    def enlarged(self, factor: float = 1.15) -> Self:
        """Return the same reading with sides `factor` larger: room for random resized crops in memory.

        The crop keeps its share of the image, so what the network may see is unchanged at the centre and
        ``crop_fraction`` grows towards 1 at the border.
        """
        size = (round(self.size[0] * factor), round(self.size[1] * factor))
        return self.model_copy(update={"size": size, "crop_fraction": min(1.0, self.crop_fraction * factor)})

    def normalize(self) -> Normalize:
        """Return the module that makes network input of pixels."""
        if self.mean_image is None:
            return Normalize(self.mean, self.std)
        pixels = np.frombuffer(base64.b64decode(self.mean_image), dtype="<f4").copy()
        return Normalize(torch.from_numpy(pixels).view(self.channels, *self.size), self.std)


class Normalize(nn.Module):
    """Pixels to normalised values: ``(x / 255 - mean) / std``.

    Uint8 and float input both hold pixel values from 0 to 255, so one exported graph serves both. The memory
    layout (channels last or first) is kept. The buffers are not part of the state dict: they belong to
    the preprocessing, which is stored beside the weights.

    Args:
        mean: per channel, or per pixel ``(C, H, W)``, for pixels in ``[0, 1]``.
        std: per channel, for pixels in ``[0, 1]``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Iterable[float] | Tensor, std: Iterable[float]) -> None:
        super().__init__()
        spread = torch.tensor(list(std), dtype=torch.float64).view(-1, 1, 1)
        if not isinstance(mean, Tensor):
            mean = torch.tensor(list(mean), dtype=torch.float64).view(-1, 1, 1)
        self.register_buffer("scale", (1 / (255 * spread)).float()[None], persistent=False)
        self.register_buffer("shift", (-mean.double() / spread).float()[None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` uint8 or float in ``[0, 255]`` to normalised ``(N, C, H, W)``.

        Raises:
            DataError: another shape, channel count or dtype.
        """
        channels = self.scale.shape[1]
        if not isinstance(images, Tensor):
            raise DataError(f"expected a tensor (N, {channels}, H, W), got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != channels:
            raise DataError(f"expected images of shape (N, {channels}, H, W), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DataError(f"expected uint8 or float pixels from 0 to 255, got {images.dtype}")
        return images.to(self.scale.dtype) * self.scale + self.shift


def measure_mean_std(images: Tensor | Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the per-channel mean and (population) standard deviation of pixels in ``[0, 1]``.

    Counts each of the 256 levels, so the answer is exact and does not depend on the order of the images.

    Args:
        images: uint8 ``(N, C, H, W)``, or an iterable of such batches.

    Raises:
        DataError: there is no image, or the dtype is not uint8.
    """
    histogram: Tensor | None = None
    chunks = images
    if isinstance(images, Tensor):
        chunks = (images[start : start + 4096] for start in range(0, len(images), 4096))
    for chunk in chunks:
        if chunk.dtype != torch.uint8 or chunk.ndim != 4:
            raise DataError(f"expected uint8 (N, C, H, W), got {chunk.dtype} {tuple(chunk.shape)}")
        levels = [torch.bincount(channel.reshape(-1), minlength=256) for channel in chunk.unbind(1)]
        counts = torch.stack(levels).double()
        histogram = counts if histogram is None else histogram + counts
    if histogram is None or histogram.sum() == 0:
        raise DataError("cannot measure mean and std: no image was given")
    level = torch.arange(256, dtype=torch.float64) / 255
    share = histogram / histogram.sum(1, keepdim=True)
    mean = (share * level).sum(1)
    variance = (share * (level - mean[:, None]) ** 2).sum(1)
    # A constant channel would divide by zero; leave its scale alone.
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def _tensor_from_array(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.uint16:
        array = ((array.astype(np.int64) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"expected a uint8 or uint16 array (H, W) or (H, W, C), got {array.dtype} of shape {array.shape}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(array).copy())
    return tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _checked(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8 or image.ndim not in (2, 3):
        raise DataError(
            f"expected a uint8 tensor (H, W) or (C, H, W), got {image.dtype} of shape {tuple(image.shape)}"
        )
    image = image[None] if image.ndim == 2 else image
    if image.numel() == 0:
        raise DataError(f"the image is empty: shape {tuple(image.shape)}")
    return image


def _to_channels(image: Tensor, channels: int) -> Tensor:
    """Bring uint8 ``(c, h, w)`` to `channels`, by the same rules as a picture file."""
    have = image.shape[0]
    if have == channels:
        return image
    if have in (1, 3, 4) and channels in (1, 3, 4):
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).contiguous().numpy())
        return torch.from_numpy(read_array(picture, channels).copy()).permute(2, 0, 1)
    raise DataError(f"expected an image of {channels} channels, got {have}; tensors are (C, H, W)")
