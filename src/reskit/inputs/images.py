"""Images, of files, folders, globs, arrays, tensors and PIL images alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from reskit.errors import DataError
from reskit.inputs.finding import Found, files_of, find

__all__ = ["find_images"]

_PICTURE_CHANNELS = {1, 3, 4}
_WANTED = "paths, folders, globs, encoded bytes, PIL images, NumPy arrays or tensors"


def find_images(inputs: Any, channels: int, recursive: bool) -> Iterator[Found]:
    """Yield every image of `inputs`, in order; nothing is read yet.

    One thing among others that holds no image is an entry with an error, in its place.

    Args:
        inputs: what `reskit.predict` takes.
        channels: accepted in arrays besides 1, 3 and 4.
        recursive: whether a folder's sub-folders are searched too.

    Raises:
        DataError: not one image was found.
    """

    def expand(item: Any, name: str) -> Iterator[Found]:
        from reskit.data.kinds.base import IMAGE_SUFFIXES

        if isinstance(item, str | Path):
            yield from files_of(item, what="image", suffixes=IMAGE_SUFFIXES, recursive=recursive)
        elif isinstance(item, np.ndarray | Tensor):
            images, batched = _images(item, name, channels)
            yield from (Found(f"{name}[{i}]" if batched else name, image) for i, image in enumerate(images))
        else:
            yield Found(str(item.get("path") or name) if isinstance(item, Mapping) else name, item)

    return find(inputs, expand, one=_is_one, wanted=_WANTED)


def _is_one(inputs: Any) -> bool:
    return isinstance(inputs, str | Path | bytes | bytearray | Mapping | Image.Image | np.ndarray | Tensor)


def _images(batch: np.ndarray | Tensor, name: str, channels: int) -> tuple[Sequence[Any], bool]:
    """Return the images of an array (channels last) or tensor (channels first), and whether it was a batch.

    Raises:
        DataError: dtype or shape do not say clearly what is meant.
    """
    first = isinstance(batch, Tensor)
    shape, dtype = tuple(batch.shape), str(batch.dtype).removeprefix("torch.")
    what = f"{name} is {'a tensor' if first else 'an array'} of {dtype} {shape}"
    if dtype != "uint8" and (first or dtype != "uint16"):
        raise DataError(
            f"{what}: raw pixels from 0 to 255 are needed, as uint8; the bundle scales them itself"
        )
    allowed = _PICTURE_CHANNELS | {channels}
    if len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[-3 if first else -1] not in allowed):
        counts = ", ".join(map(str, sorted(allowed)))
        forms = "(H, W), (C, H, W) or (N, C, H, W)" if first else "(H, W), (H, W, C) or (N, H, W, C)"
        rule = "a tensor has its channels first, a NumPy array last"
        raise DataError(f"{what}: expected {forms} with C one of {counts}; {rule}")
    if 0 in shape:
        raise DataError(f"{what}: it holds no image")
    images = batch.detach().cpu() if isinstance(batch, Tensor) else batch
    return (list(images), True) if len(shape) == 4 else ([images], False)
