"""Random variation of a whole batch at once, without a loop over its images.

Each operation is a plain function of its drawn parameters, so that it can be checked image by image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reskit.data.augment import Augment
from reskit.errors import ConfigError

__all__ = [
    "ELASTIC_GRID",
    "adjust_color",
    "augment_batch",
    "bend",
    "bent_grid",
    "crop_flip",
    "draw_boxes",
    "erase_boxes",
    "turn",
    "warp",
]

ELASTIC_GRID = 3
"""Shifts along each side of an image that is bent."""

_ERASE_AREA = (0.02, 0.33)  # the ranges of Zhong et al. 2017
_ERASE_ASPECT = (0.3, 3.3)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def augment_batch(
    images: Tensor, augment: Augment, generator: torch.Generator, *, size: tuple[int, int] | None = None
) -> Tensor:
    """Vary every image of a batch at random.

    Args:
        images: uint8 ``(N, C, H, W)``; fastest when stored channels last, and returned so.
        augment: what to do.
        generator: all that is random comes from it, so a batch is a function of its seed.
        size: ``(h, w)`` of the result of a random resized crop; that of `images` by default.

    Returns:
        ``(N, C, h, w)``, channels last: uint8 after crops and flips, float32 in ``[0, 255]`` after anything
        that interpolates or changes colour.

    Raises:
        ConfigError: `auto` is set; it works image by image.
    """
    if not augment.vectorised:
        raise ConfigError(f"augment.auto={augment.auto!r} works image by image: use the streaming loader")
    count, _, height, width = images.shape
    size = size or (height, width)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    boxes = None
    if augment.random_resized_crop is not None:
        boxes = draw_boxes(count, (height, width), augment.random_resized_crop, augment.aspect, generator)
    if boxes is not None or augment.rotate or augment.translate or size != (height, width):
        angle = uniform(-augment.rotate, augment.rotate)
        shift = torch.stack([uniform(-augment.translate, augment.translate) for _ in range(2)], 1)
        images = warp(images, boxes=boxes, angle=angle, shift=shift, size=size)
    if augment.elastic:
        shifts = torch.randn(count, 2, ELASTIC_GRID, ELASTIC_GRID, generator=generator) * augment.elastic
        images = bend(images, shifts)
    if augment.flip or augment.crop_padding:
        span = 2 * augment.crop_padding + 1
        offset = torch.randint(span, (count, 2), generator=generator)
        flip = torch.rand(count, generator=generator) < augment.flip
        images = crop_flip(images, offset, flip, augment.crop_padding, augment.padding_mode)
    if augment.dihedral:
        images = turn(images, torch.randint(8, (count,), generator=generator))
    if any(augment.color_jitter):
        factors = torch.stack([uniform(1 - most, 1 + most) for most in augment.color_jitter])
        images = adjust_color(images, *factors)
    if augment.erase:
        chosen = torch.rand(count, generator=generator) < augment.erase
        boxes = draw_boxes(count, size, _ERASE_AREA, _ERASE_ASPECT, generator)
        images = erase_boxes(images, torch.where(chosen[:, None], boxes, torch.zeros_like(boxes)))
    return images


def turn(images: Tensor, which: Tensor) -> Tensor:
    """Mirror and turn each square image: `which` `(N,)` is the number of quarter turns, and 4 more to mirror.

    Args:
        images: `(N, ..., H, H)`.
        which: from 0 to 7.

    Raises:
        ConfigError: the images are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ConfigError(f"augment.dihedral is for square images, these are {tuple(images.shape[-2:])}")
    turned = images.clone()
    for kind in range(1, 8):
        chosen = which == kind
        if chosen.any():
            part = images[chosen]
            turned[chosen] = torch.rot90(part.flip(-1) if kind >= 4 else part, kind % 4, (-2, -1))
    return turned


def crop_flip(images: Tensor, offset: Tensor, flip: Tensor, padding: int, mode: str = "zero") -> Tensor:
    """Pad each image, cut a window of its old size, and mirror the window left-right.

    One gather of whole pixels.

    Args:
        images: ``(N, C, H, W)``.
        offset: top and left of each window in the padded image ``(N, 2)``, from 0 to ``2 * padding``.
        flip: which to mirror ``(N,)``.
        padding: pixels on each side.
        mode: ``"zero"`` or ``"reflect"``.

    Raises:
        ConfigError: a reflected border wider than the image.
    """
    count, channels, height, width = images.shape
    stored = images.permute(0, 2, 3, 1)
    across = torch.arange(width)
    rows = offset[:, :1] + torch.arange(height)
    columns = offset[:, 1:] + torch.where(flip[:, None], across.flip(0), across)
    if mode == "reflect":
        if padding >= min(height, width):
            raise ConfigError(f"crop_padding {padding} must be smaller than the image to reflect it")
        rows, columns = _reflect(rows - padding, height), _reflect(columns - padding, width)
        stored = stored.contiguous()
    else:
        stored = F.pad(stored, (0, 0, padding, padding, padding, padding)).contiguous()
    tall, wide = stored.shape[1:3]
    first = torch.arange(count)[:, None, None] * tall
    index = (first + rows[:, :, None]) * wide + columns[:, None, :]
    picked = stored.view(-1, channels).index_select(0, index.view(-1))
    return picked.view(count, height, width, channels).permute(0, 3, 1, 2)


def _reflect(index: Tensor, length: int) -> Tensor:
    """Fold indices outside ``0 .. length - 1`` back, the border pixel not repeated."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)


def draw_boxes(
    count: int,
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw rectangles inside an image: area uniform, aspect log-uniform, place uniform.

    A rectangle too long for the image is cut to it (torchvision draws again, up to ten times).

    Args:
        count: N.
        size: ``(H, W)`` of the image.
        area: range, as part of the image.
        aspect: range of width / height.
        generator: source of the draws.

    Returns:
        ``(N, 4)`` int64: top, left, height, width.
    """
    draws = torch.rand(4, count, generator=generator, dtype=torch.float64)
    target = (draws[0] * (area[1] - area[0]) + area[0]) * (size[0] * size[1])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = torch.exp(draws[1] * (high - low) + low)
    height = (target / ratio).sqrt().round().clamp(1, size[0])
    width = (target * ratio).sqrt().round().clamp(1, size[1])
    top = (draws[2] * (size[0] - height + 1)).floor()
    left = (draws[3] * (size[1] - width + 1)).floor()
    return torch.stack([top, left, height, width], 1).long()


def warp(
    images: Tensor, *, boxes: Tensor | None, angle: Tensor, shift: Tensor, size: tuple[int, int]
) -> Tensor:
    """Take a box of each image, turn and shift it, and scale it to `size`: one bilinear sampling in all.

    What comes from outside the image is black. There is no antialiasing: keep stored images within about
    twice the size asked for.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        boxes: ``(N, 4)`` top, left, height, width in pixels; the whole image if None.
        angle: clockwise, degrees ``(N,)``.
        shift: to the right and down, as part of the box ``(N, 2)``.
        size: ``(h, w)`` of the result.

    Returns:
        float32 ``(N, C, h, w)``, channels last.
    """
    count, channels, height, width = images.shape
    if boxes is None:
        boxes = torch.tensor([[0, 0, height, width]]).expand(count, 4)
    top, left, tall, wide = boxes.float().unbind(1)
    turn = torch.deg2rad(angle)
    cos, sin = turn.cos(), turn.sin()
    # From output to input in the [-1, 1] coordinates of grid_sample: undo the shift, turn back in pixels,
    # then move to the box.
    xx, xy = cos * wide / width, sin * tall / width
    yx, yy = -sin * wide / height, cos * tall / height
    x0 = (2 * left + wide) / width - 1 - 2 * (xx * shift[:, 0] + xy * shift[:, 1])
    y0 = (2 * top + tall) / height - 1 - 2 * (yx * shift[:, 0] + yy * shift[:, 1])
    theta = torch.stack([xx, xy, x0, yx, yy, y0], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, channels, *size], align_corners=False)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)


def bend(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the pixels of each image by shifts that change smoothly over it; borders are mirrored.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        shifts: see `bent_grid`.

    Returns:
        float32 ``(N, C, H, W)``, channels last.
    """
    height, width = images.shape[-2:]
    y, x = (
        (torch.arange(side, dtype=torch.float32) * 2 + 1) / side - 1 for side in (height, width)
    )  # centres of pixels in the [-1, 1] of grid_sample
    straight = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
    grid = straight + bent_grid(shifts, (height, width))
    bent = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return bent.contiguous(memory_format=torch.channels_last)


def bent_grid(shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how far each pixel is moved, by bicubic interpolation of shifts on a coarse grid.

    Source: Ronneberger et al., U-Net, 2015, section 3.1.

    Args:
        shifts: ``(N, 2, g, g)``: right and down in pixels, corner to corner of the image.
        size: ``(H, W)`` of the image.

    Returns:
        ``(N, H, W, 2)``: right and down, sides being 2 long as in `grid_sample`.
    """
    fine = F.interpolate(shifts, size=size, mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1) * torch.tensor([2 / size[1], 2 / size[0]])


def adjust_color(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, each image by its own factors ``(N,)``.

    A factor of 1 changes nothing. Contrast moves towards the mean grey of the image, saturation towards
    the grey of each pixel; an image of other than three channels has no saturation.

    Returns:
        float32 ``(N, C, H, W)`` in ``[0, 255]``.
    """
    image = images.float()
    image = (image * brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    mean = _grey(image).mean((1, 2, 3), keepdim=True)
    image = torch.lerp(mean, image, contrast.view(-1, 1, 1, 1)).clamp(0, 255)
    if image.shape[1] == 3:
        image = torch.lerp(_grey(image), image, saturation.view(-1, 1, 1, 1)).clamp(0, 255)
    return image


def _grey(image: Tensor) -> Tensor:
    if image.shape[1] != 3:
        return image.mean(1, keepdim=True)
    weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def erase_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Fill a rectangle of each image with the image's own mean colour.

    Args:
        images: ``(N, C, H, W)``.
        boxes: ``(N, 4)`` top, left, height, width; nothing happens where height or width is 0.
    """
    height, width = images.shape[-2:]
    top, left, tall, wide = (side[:, None] for side in boxes.unbind(1))
    y, x = torch.arange(height), torch.arange(width)
    rows = (y >= top) & (y < top + tall)
    columns = (x >= left) & (x < left + wide)
    mask = (rows[:, :, None] & columns[:, None, :])[:, None]
    mean = images.float().mean((2, 3), keepdim=True).to(images.dtype)
    return torch.where(mask, mean, images)
