"""Masks as pictures: with a palette, over the image, beside the truth."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageColor

from reskit.plots.house import SERIES

__all__ = ["indexed", "mask_panels", "overlay", "palette"]

_UNLABELLED = (255, 255, 255)
_TINT = 0.4
_FALSE, _MISSED = ImageColor.getrgb("#D55E00"), ImageColor.getrgb("#0072B2")
_GOLDEN = 0.61803398875  # a turn of the colour wheel that never comes near where it was before


def palette(classes: int) -> np.ndarray:
    """Return a colour for each of 256 values, uint8 `(256, 3)`: the first class is dark, no label white."""
    colours = np.zeros((256, 3), np.uint8)
    for index in range(1, max(classes, 2)):
        if index <= len(SERIES):
            colours[index] = ImageColor.getrgb(SERIES[index - 1])[:3]
        else:
            hue, value = index * _GOLDEN % 1, 0.65 + 0.3 * (index % 2)
            colours[index] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.7, value)]
    colours[0], colours[255] = (32, 36, 41), _UNLABELLED
    return colours


def indexed(classes: np.ndarray, count: int) -> Image.Image:
    """Return class indices `(H, W)` as a picture whose pixels are the indices, shown in colours."""
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette(palette(count).tobytes())
    return picture


def overlay(image: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Return an image tinted by its classes, but for the first, with their borders drawn.

    Args:
        image: uint8 `(C, H, W)`.
        classes: indices `(H, W)`.
        count: how many classes there are.

    Returns:
        uint8 `(H, W, 3)`.
    """
    base = _rgb(image).astype(float)
    tint = palette(count)[classes].astype(float)
    share = np.where((classes == 0) | (classes == 255), 0.0, _TINT)
    edge = np.zeros(classes.shape, bool)
    edge[:-1] |= classes[:-1] != classes[1:]
    edge[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    share = np.where(edge & (share > 0), 1.0, share)[..., None]
    tinted: np.ndarray = np.round(base * (1 - share) + tint * share).astype(np.uint8)
    return tinted


def mask_panels(image: np.ndarray, truth: np.ndarray, said: np.ndarray, count: int) -> list[np.ndarray]:
    """Return an image, the truth, the answer, and where they differ, uint8 `(H, W)` or `(H, W, 3)` each.

    Of two classes what was said and is not is vermilion, what is and was not said is blue; of more, all that
    is wrong is vermilion. What has no label is never wrong.

    Args:
        image: uint8 `(C, H, W)`.
        truth: classes `(H, W)`, 255 where there is no label.
        said: classes `(H, W)`.
        count: how many classes there are.
    """
    colours = palette(count)
    rgb = _rgb(image)
    grey = 0.5 * rgb.mean(-1, keepdims=True) + 110
    difference = np.repeat(grey, 3, -1).clip(0, 255).astype(np.uint8)
    wrong = (said != truth) & (truth != 255)
    difference[wrong] = _FALSE
    if count == 2:
        difference[wrong & (truth == 1)] = _MISSED
    return [rgb, colours[truth], colours[said], difference]


def _rgb(image: np.ndarray) -> np.ndarray:
    """Return `(C, H, W)` as colours `(H, W, 3)`; alpha is left aside, a second channel too."""
    pixels = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, 0)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)
