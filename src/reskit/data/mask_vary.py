"""Images and their masks, cut and varied together."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reskit.data.augment import Augment
from reskit.data.batch_augment import ELASTIC_GRID, augment_batch, bent_grid, draw_boxes, turn
from reskit.data.images import IGNORED
from reskit.errors import ConfigError

__all__ = ["check_augment", "vary_masked"]

_ELASTIC_REACH = 2.0  # standard deviations of a shift, around a patch, that are cut with it


def check_augment(augment: Augment) -> None:
    """Refuse variation that is not made for masks.

    Raises:
        ConfigError: naming it.
    """
    for name in ("auto", "mixup", "cutmix"):
        if getattr(augment, name):
            raise ConfigError(
                f"augment.{name} is for images with one label: masks go with flip, dihedral, crop_padding,"
                " random_resized_crop, rotate, translate, elastic, color_jitter and erase"
            )


def vary_masked(
    image: Tensor, mask: Tensor, augment: Augment, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut a patch of an image and of its mask, varied in the same way.

    What moves pixels works on a larger window, of which the middle is kept; beyond the image lies its mirror
    image. What is shifted or turned in from further out is black and has no label. A random resized crop is
    of the whole image.

    Args:
        image: uint8 `(C, H, W)`, of any size.
        mask: uint8 `(H, W)`, classes or `IGNORED`.
        augment: what to do; see `check_augment`.
        size: `(h, w)` of the patch.
        generator: all that is random comes from it.

    Returns:
        The patch `(C, h, w)`, uint8 or after changes of colour float, and its mask `(h, w)`, uint8.
    """
    pair: list[Tensor] = [tv_tensors.Image(image), tv_tensors.Mask(mask[None])]
    if augment.random_resized_crop is not None:
        shape = (image.shape[-2], image.shape[-1])
        box = draw_boxes(1, shape, augment.random_resized_crop, augment.aspect, generator)[0].tolist()
        pair = _resized(pair, box, size)
    else:
        pair = _window(pair, augment, size, generator)
    pair = _moved(pair, augment, size, generator)
    if augment.crop_padding:
        pair = _padded_crop(pair, augment, size, generator)
    if float(torch.rand((), generator=generator)) < augment.flip:
        pair = [tv.horizontal_flip(part) for part in pair]
    cut, classes = (part.as_subclass(Tensor) for part in pair)
    if augment.dihedral:
        which = torch.randint(8, (1,), generator=generator)
        cut, classes = turn(cut[None], which)[0], turn(classes[None], which)[0]
    pixels = Augment(color_jitter=augment.color_jitter, erase=augment.erase)
    if pixels.changes_pixels:
        cut = augment_batch(cut[None], pixels, generator)[0]
    return cut.contiguous(), classes[0].contiguous()


def _resized(pair: list[Tensor], box: list[int], size: tuple[int, int]) -> list[Tensor]:
    """Take a box, top, left, height and width, and scale it."""
    image, mask = (tv.crop(part, *box) for part in pair)
    image = tv.resize(image, list(size), antialias=True)
    # What torchvision does to a mask rounds down: off by half a pixel from what it does to the image.
    nearest = tv.resize(mask.as_subclass(Tensor), list(size), interpolation=InterpolationMode.NEAREST_EXACT)
    return [image, tv_tensors.Mask(nearest)]


def _window(
    pair: list[Tensor], augment: Augment, size: tuple[int, int], generator: torch.Generator
) -> list[Tensor]:
    """Cut a window at random, with a margin for what moves pixels; beyond the image is its mirror image."""
    angle = math.radians(min(augment.rotate, 45.0))
    grown = math.cos(angle) + math.sin(angle) - 1  # by how much a square that is turned is wider
    for axis, side in ((-2, size[0]), (-1, size[1])):
        spare = pair[0].shape[axis] - side
        start = int(torch.randint(abs(spare) + 1, (), generator=generator)) + min(spare, 0)
        margin = math.ceil(_ELASTIC_REACH * augment.elastic + side * (grown / 2 + augment.translate))
        index = _mirrored(start - margin, start + side + margin, pair[0].shape[axis])
        pair = [tv_tensors.wrap(part.index_select(axis, index), like=part) for part in pair]
    return pair


def _mirrored(start: int, stop: int, length: int) -> Tensor:
    """Return indices from `start` to `stop`, folded back into `0 .. length - 1`, the border not repeated."""
    period = max(2 * length - 2, 1)
    index = torch.arange(start, stop).remainder(period)
    return torch.minimum(index, (period - index).remainder(period)) if length > 1 else index * 0


def _moved(
    pair: list[Tensor], augment: Augment, size: tuple[int, int], generator: torch.Generator
) -> list[Tensor]:
    """Turn, shift and bend, then keep the middle."""
    shape = (pair[0].shape[-2], pair[0].shape[-1])
    fills = (0, IGNORED)
    if augment.rotate or augment.translate:
        draws = (2 * torch.rand(3, generator=generator) - 1).tolist()
        shift = [
            round(draw * augment.translate * side) for draw, side in zip(draws[1:], size[::-1], strict=True)
        ]
        pair = [
            tv.affine(
                part,
                angle=draws[0] * augment.rotate,
                translate=shift,
                scale=1.0,
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
            for part, fill in zip(pair, fills, strict=True)
        ]
    if augment.elastic:
        grid = torch.randn(1, 2, ELASTIC_GRID, ELASTIC_GRID, generator=generator) * augment.elastic
        moved = bent_grid(grid, shape)
        pair = [tv.elastic(part, moved, fill=fill) for part, fill in zip(pair, fills, strict=True)]
    return pair if shape == size else [tv.center_crop(part, list(size)) for part in pair]


def _padded_crop(
    pair: list[Tensor], augment: Augment, size: tuple[int, int], generator: torch.Generator
) -> list[Tensor]:
    """Pad and cut again; padding has no label, unless it is a mirror image."""
    padding = [augment.crop_padding] * 4
    mode = "reflect" if augment.padding_mode == "reflect" else "constant"
    top, left = torch.randint(2 * augment.crop_padding + 1, (2,), generator=generator).tolist()
    return [
        tv.crop(tv.pad(part, padding, fill=fill, padding_mode=mode), top, left, *size)
        for part, fill in zip(pair, (0, IGNORED), strict=True)
    ]
