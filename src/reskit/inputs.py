"""From what a user names or holds to single images: files, folders, globs, arrays, tensors, PIL images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from reskit.errors import DataError

__all__ = ["FoundImage", "find_images"]

_PICTURE_CHANNELS = {1, 3, 4}


class FoundImage(NamedTuple):
    """One image to be: its name, and what to read it from or why it cannot be."""

    name: str
    item: Any = None
    error: str | None = None


def find_images(inputs: Any, channels: int, recursive: bool) -> Iterator[FoundImage]:
    """Yield every image of `inputs`, in order; nothing is read yet.

    One thing among others that holds no image is an entry with an error, in its place.

    Args:
        inputs: what `reskit.predict` takes.
        channels: accepted in arrays besides 1, 3 and 4.
        recursive: whether a folder's sub-folders are searched too.

    Raises:
        DataError: not one image was found.
    """
    if _is_one(inputs):
        yield from _expand(inputs, "inputs", channels, recursive)
        return
    if not isinstance(inputs, Iterable):
        raise DataError(_no_input(inputs))
    found = False
    waiting: list[FoundImage] = []  # what held no image, until something else does
    for place, item in enumerate(inputs):
        name = f"inputs[{place}]"
        try:
            for entry in _expand(item, name, channels, recursive):
                yield from waiting
                waiting, found = [], True
                yield entry
        except DataError as error:
            waiting.append(FoundImage(str(item) if isinstance(item, str | Path) else name, error=str(error)))
        if found:
            yield from waiting
            waiting = []
    if not found:
        raise DataError(waiting[0].error if waiting else "there are no inputs: the list is empty")


def _is_one(inputs: Any) -> bool:
    return isinstance(inputs, str | Path | bytes | bytearray | Mapping | Image.Image | np.ndarray | Tensor)


def _expand(item: Any, name: str, channels: int, recursive: bool) -> Iterator[FoundImage]:
    """Yield the images of one thing; raises DataError, before any other, when it holds none."""
    if isinstance(item, str | Path):
        yield from _files(item, recursive)
    elif isinstance(item, np.ndarray | Tensor):
        images, batched = _images(item, name, channels)
        yield from (FoundImage(f"{name}[{i}]" if batched else name, image) for i, image in enumerate(images))
    elif _is_one(item):
        yield FoundImage(str(item.get("path") or name) if isinstance(item, Mapping) else name, item)
    else:
        raise DataError(_no_input(item))


def _no_input(item: Any) -> str:
    return (
        f"cannot predict for {type(item).__name__}: give paths, folders, globs, encoded bytes, PIL images, "
        "NumPy arrays or tensors"
    )


def _files(place: str | Path, recursive: bool) -> Iterator[FoundImage]:
    """Yield the file, the images of the folder, or what the glob matches; a missing file is left to fail."""
    path = Path(place)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on a name too long for the system
        entries = _images_below(path, recursive, frozenset())
        nothing = f"{path} holds no image files{'' if recursive else ' (sub-folders were not searched)'}"
    elif glob.has_magic(str(place)) and not os.path.lexists(path):
        matches = sorted(map(Path, glob.iglob(str(place), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        entries = (FoundImage(str(match), match) for match in matches if not match.is_dir())
        nothing = f"no file matches {str(place)!r}"
    else:
        entries, nothing = iter([FoundImage(str(place), path)]), ""
    first = next(entries, None)
    if first is None:
        raise DataError(nothing)
    yield first
    yield from entries


def _images_below(folder: Path, recursive: bool, above: frozenset[Path]) -> Iterator[FoundImage]:
    """Yield image files sorted by path, folder by folder, so that no listing of all is ever held."""
    from reskit.data.kinds.base import IMAGE_SUFFIXES

    real = folder.resolve()
    if real in above:  # a link back to a folder it lies in
        return
    try:
        with os.scandir(folder) as listing:
            inside = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield FoundImage(str(folder), error=f"cannot list the folder {folder}: {error.strerror}")
        return
    for entry in inside:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            if recursive:
                yield from _images_below(path, recursive, above | {real})
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield FoundImage(str(path), path)


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
