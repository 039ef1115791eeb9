"""Objects drawn into a mask, of polygons or of lengths of runs, as COCO's annotations give them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from reskit.errors import DataError, MissingExtraError

__all__ = ["draw_object"]

_FINER = 4


def draw_object(
    canvas: Image.Image, index: int, shape: Sequence[Sequence[float]] | Mapping[str, Any], name: str
) -> None:
    """Draw one object with the index of its class.

    Args:
        canvas: what is drawn into, of mode L.
        index: of the class.
        shape: polygons, ``[x, y, x, y, ...]`` each, in pixels from the corner of the image; or ``size`` and
            ``counts`` of runs down the columns.
        name: what a person calls the mask.

    Raises:
        DataError: runs do not fill the image.
        MissingExtraError: runs are compressed, and pycocotools is not installed.
    """
    if isinstance(shape, Mapping):
        inside = Image.fromarray(_run_lengths(shape, (canvas.height, canvas.width), name))
        canvas.paste(index, mask=inside)
        return
    polygons = [list(zip(line[::2], line[1::2], strict=True)) for line in shape if len(line) > 4]
    points = [point for polygon in polygons for point in polygon]
    if not points:
        return
    left, top = (max(0, math.floor(min(point[axis] for point in points))) for axis in (0, 1))
    right, bottom = (
        min(side, math.ceil(max(point[axis] for point in points))) for axis, side in enumerate(canvas.size)
    )
    if left >= right or top >= bottom:
        return
    # Pillow draws the outline too, half a pixel wide: in a finer picture it is next to nothing.
    fine = Image.new("L", ((right - left) * _FINER, (bottom - top) * _FINER))
    draw = ImageDraw.Draw(fine)
    for polygon in polygons:
        # COCO's numbers are of pixels' corners, Pillow's of their centres.
        draw.polygon([((x - left) * _FINER - 0.5, (y - top) * _FINER - 0.5) for x, y in polygon], fill=255)
    canvas.paste(index, (left, top), fine.reduce(_FINER).point(lambda share: 255 * (share > 127)))


def _run_lengths(shape: Mapping[str, Any], size: tuple[int, int], name: str) -> np.ndarray:
    """Return where an object is, uint8 `(H, W)` of 0 and 255, of lengths of runs down the columns."""
    counts = shape["counts"]
    if isinstance(counts, str):
        try:
            from pycocotools import mask as coco
        except ImportError:
            raise MissingExtraError("pycocotools", "detect") from None
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # its own, of NumPy
            found = coco.decode({"size": list(shape["size"]), "counts": counts.encode()})
        return np.ascontiguousarray(found * np.uint8(255))
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    if len(flat) != size[0] * size[1]:
        raise DataError(f"mask {name} holds runs of {len(flat)} pixels, the image has {size[0] * size[1]}")
    return np.ascontiguousarray(flat.reshape(size[::-1]).T.astype(np.uint8) * 255)
