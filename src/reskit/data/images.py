"""One way to read an image, whatever holds it: file, bytes, PIL image or array."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from reskit.errors import DataError

__all__ = ["HEADER_ERRORS", "IGNORED", "header_size", "is_grey", "item_name", "open_image", "read_array"]

Array = npt.NDArray[np.uint8]

IGNORED = 255
"""The class of pixels that are not labelled."""

# What Pillow raises on broken files: OSError when truncated, SyntaxError and ValueError from some
# plug-ins, the next four from cut headers, and its guard against decompression bombs.
HEADER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"}
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L"}
_ALPHA_MODES = {"RGBA", "RGBa", "LA", "La", "PA"}
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


def item_name(item: Any) -> str:
    """Return a short name of `item` for a message."""
    if isinstance(item, str | Path):
        return str(item)
    if isinstance(item, Mapping) and item.get("path"):
        return str(item["path"])
    return f"<{type(item).__name__}>"


def open_image(item: Any) -> Image.Image:
    """Open `item` without decoding its pixels.

    Args:
        item: path, encoded bytes, PIL image, or a ``{"bytes", "path"}`` record of `datasets`.

    Raises:
        DataError: `item` is none of these.
        OSError, ValueError, ...: one of `HEADER_ERRORS`, the file is not a readable image.
    """
    item = _held(item)
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, bytes | bytearray | memoryview):
        image = Image.open(io.BytesIO(item))
    elif isinstance(item, str | Path):
        image = Image.open(item)
    else:
        raise DataError(
            f"cannot read an image from {type(item).__name__}: give a path, encoded bytes, a PIL image, an "
            "array or a tensor"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, more than {limit:,}")
    return image


def header_size(image: Image.Image) -> tuple[int, int]:
    """Return ``(height, width)`` as the image will be seen, its EXIF rotation applied."""
    turned = _has_exif(image) and image.getexif().get(_ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def is_grey(image: Image.Image) -> bool:
    """Whether the file stores one colour channel."""
    return image.mode in _GREY_MODES


def read_array(item: Any, channels: int) -> Array:
    """Decode `item` into uint8 ``(H, W, channels)``.

    EXIF rotation is applied; palettes, CMYK and the like become RGB; 16-bit samples are scaled to 8 bits;
    transparency is composited onto black; colour becomes grey by ITU-R 601 luma.

    Args:
        item: what `open_image` accepts.
        channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).

    Raises:
        DataError: the image is missing, truncated, oversized or of a kind that cannot be read.
    """
    try:
        held = _held(item)
        # The whole file is wanted, and a file read is a file closed, whatever its pixels turn out to be.
        image = open_image(Path(held).read_bytes() if isinstance(held, str | Path) else held)
        if _has_exif(image):
            image = ImageOps.exif_transpose(image)
        converted = _convert(image, channels)
    except HEADER_ERRORS as error:
        raise DataError(f"cannot read image {item_name(item)}: {_reason(item, error)}") from error
    array = np.asarray(converted, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _held(item: Any) -> Any:
    """Return what a record of `datasets` holds: bytes where it has them, else its path."""
    if not isinstance(item, Mapping):
        return item
    return item["bytes"] if item.get("bytes") is not None else item.get("path")


def _has_exif(image: Image.Image) -> bool:
    # Pillow parses EXIF lazily and slowly; most images of a data set have none.
    return "exif" in image.info or "Raw profile type exif" in image.info or image.format == "TIFF"


def _reason(item: Any, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow knows"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if channels not in (1, 3, 4):
        raise ValueError(f"a picture gives 1, 3 or 4 channels, not {channels}; pass an array or a tensor")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert to 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        image = _eight_bit(image)
    target = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if image.mode == target:
        image.load()
        return image
    if channels != 4 and (image.mode in _ALPHA_MODES or "transparency" in image.info):
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, (0, 0, 0, 255)), colour).convert("RGB")
    if image.mode == "P" and target == "L":
        image = image.convert("RGB")
    return image.convert(target)


def _eight_bit(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.int64)
    if samples.size and (samples.min() < 0 or samples.max() > 65535):
        raise ValueError("32-bit pixels have no agreed range; convert to 8 or 16 bits")
    return Image.fromarray(((samples + 128) // 257).astype(np.uint8))  # 65535 -> 255, rounded
