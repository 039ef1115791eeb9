"""Pictures and their boxes, brought to the network's size and varied together."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area, clip_boxes_to_image
from torchvision.transforms import v2

from reskit.data.augment import Augment
from reskit.data.batch_augment import augment_batch
from reskit.data.transforms import PADDING, ImagePreprocess
from reskit.errors import ConfigError

__all__ = ["Placed", "check_augment", "fitted_boxes", "vary_boxes"]

VISIBLE = 0.25
"""Part of an object that must be left in a cut picture for it to be looked for there."""
LEAST_SIDE = 1.0
"""Pixels a box must be wide and high."""
_KNOWN = frozenset({"flip", "random_resized_crop", "aspect", "color_jitter", "erase", "padding_mode"})

Placed = tuple[Tensor, Tensor]
"""A picture `(C, H, W)` and its boxes `(n, 5)`: x1, y1, x2, y2, class."""


def check_augment(augment: Augment) -> None:
    """Refuse variation that boxes cannot follow.

    Raises:
        ConfigError: naming it, and what there is.
    """
    for name in set(Augment.model_fields) - _KNOWN:
        if getattr(augment, name) != Augment.model_fields[name].default:
            raise ConfigError(
                f"augment.{name} does not move boxes: use flip, random_resized_crop, color_jitter, erase,"
                " and task.arguments.scale"
            )


def fitted_boxes(boxes: Tensor, size: tuple[int, int], preprocess: ImagePreprocess) -> Tensor:
    """Return boxes `(n, 5)` where `preprocess.fit` puts them, of a picture of `size` `(height, width)`."""
    placed = boxes.clone()
    placed[:, :4] = boxes[:, :4] * boxes.new_tensor(factors(size, preprocess) * 2)
    return placed


def factors(size: tuple[int, int], preprocess: ImagePreprocess) -> tuple[float, float]:
    """Return by how much `preprocess.fit` scales x and y of a picture of `size` `(height, width)`."""
    height, width = preprocess.scaled(*size) if preprocess.resize == "pad" else preprocess.size
    return width / size[1], height / size[0]


def vary_boxes(
    image: Tensor,
    boxes: Tensor,
    *,
    preprocess: ImagePreprocess,
    augment: Augment,
    scale: tuple[float, float] | None,
    generator: torch.Generator,
) -> Placed:
    """Bring a picture to the network's size, varied at random.

    Args:
        image: uint8 `(C, h, w)`.
        boxes: `(n, 5)` in its pixels.
        preprocess: gives the size, and how a picture that is not cut is scaled.
        augment: flip, random resized crop, colour, erasing.
        scale: range of factors around the size that just fits (scale jitter); then a window is cut, or grey
            added. Source: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method, 2021.
        generator: all that is random comes from it.

    Returns:
        The picture `(C, H, W)`, and those of its boxes of which enough is left.
    """
    height, width = image.shape[-2:]
    sample = {
        "image": tv_tensors.Image(image),
        # Boxes are cut below, where it is known how large they were.
        "boxes": tv_tensors.BoundingBoxes(
            boxes[:, :4], format="XYXY", canvas_size=(height, width), clamping_mode=None
        ),
    }
    steps = _steps(preprocess, augment, scale)
    if not steps[0]:
        sample["image"] = tv_tensors.Image(preprocess.fit(image))
        sample["boxes"] = tv_tensors.BoundingBoxes(
            fitted_boxes(boxes, (height, width), preprocess)[:, :4],
            format="XYXY",
            canvas_size=preprocess.size,
            clamping_mode=None,
        )
    # torchvision's transforms draw from the global generator: lend it a keyed state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for step in (*steps[0], *steps[1]):
            sample = step(sample)
    pixels = augment_batch(sample["image"].as_subclass(Tensor)[None], _of_pixels(augment), generator)[0]
    whole = sample["boxes"].as_subclass(Tensor)
    cut = clip_boxes_to_image(whole, preprocess.size)
    sides = cut[:, 2:] - cut[:, :2]
    kept = (box_area(cut) >= VISIBLE * box_area(whole)) & (sides >= LEAST_SIDE).all(1)
    return pixels, torch.cat([cut[kept], boxes[kept, 4:]], 1)


def _steps(
    preprocess: ImagePreprocess, augment: Augment, scale: tuple[float, float] | None
) -> tuple[list[v2.Transform], list[v2.Transform]]:
    """Return the transforms that bring a picture to its size, none where it is fitted, and the others."""
    size = list(preprocess.size)
    to_size: list[v2.Transform] = []
    if scale is not None:
        to_size = [
            v2.ScaleJitter(size, scale, antialias=True),
            v2.RandomCrop(size, pad_if_needed=True, fill=PADDING),
        ]
    elif augment.random_resized_crop is not None:
        to_size = [
            v2.RandomResizedCrop(size, augment.random_resized_crop, augment.aspect, antialias=True),
        ]
    return to_size, [v2.RandomHorizontalFlip(augment.flip)] if augment.flip else []


def _of_pixels(augment: Augment) -> Augment:
    """Return what of an augmentation changes pixels where they are."""
    return augment.model_copy(update={"flip": 0.0, "random_resized_crop": None})
