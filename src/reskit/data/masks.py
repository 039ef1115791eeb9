"""Masks: a class for every pixel of an image, as files and data sets store them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from reskit.data.images import HEADER_ERRORS, IGNORED, open_image
from reskit.data.memory import processors
from reskit.data.seeds import derive_seed
from reskit.data.split import Split
from reskit.errors import DataError

__all__ = ["MaskCoding", "MaskReader", "MaskSplit", "PictureMasks", "Values", "infer_coding"]

MOST_CLASSES = 255
Values = npt.NDArray[np.int64]

_WHITE = (255, 65535)
_COLOUR = 1 << 24  # added to colours, so that they are none of the greys
_SAMPLE = 2000
_DENSE = 32  # values up to here are indices, whichever of them are there
_MOST_VALUES = 64


class MaskReader(Protocol):
    """Gives the mask of each row of a split."""

    def values(self, row: int) -> Values:
        """Return what is stored for each pixel, int64 `(H, W)`.

        Raises:
            DataError: the mask cannot be read; it says which.
        """

    def name(self, row: int) -> str:
        """Return what a person calls the mask."""

    def content(self, row: int) -> bytes:
        """Return bytes that change with the mask."""


class PictureMasks:
    """Masks that are pictures: grey levels, indices of a palette, 16 bits, or colours.

    Args:
        pictures: the rows, with the masks as their images.
    """

    def __init__(self, pictures: Split) -> None:
        self.pictures = pictures

    def values(self, row: int) -> Values:
        """See `MaskReader.values`; a colour `#rrggbb` that is no grey is `0x1rrggbb`."""
        item = self.pictures.item(row)
        if isinstance(item, np.ndarray):
            return _as_values(item, self.name(row))
        try:
            with open_image(item) as image:
                return _as_values(_pixels(image), self.name(row))
        except HEADER_ERRORS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"cannot read mask {self.name(row)}: {reason}") from error

    def name(self, row: int) -> str:
        """See `MaskReader.name`."""
        return self.pictures.row_name(row)

    def content(self, row: int) -> bytes:
        """See `MaskReader.content`."""
        item = self.pictures.item(row)
        if isinstance(item, np.ndarray):
            return item.tobytes()
        return bytes(item.read_bytes() if hasattr(item, "read_bytes") else item or b"")


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the stored pixels: a palette's indices, not its colours; without transparency."""
    if image.mode in ("LA", "La"):
        image = image.convert("L")
    elif image.mode not in ("1", "L", "P", "I", "RGB") and not image.mode.startswith("I;16"):
        if image.mode == "F":
            raise ValueError("floating-point pixels are no classes")
        image = image.convert("RGB")
    return np.asarray(image)


def _as_values(pixels: np.ndarray, name: str) -> Values:
    values = pixels.astype(np.int64)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 2:
        return values
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"mask {name} has the shape {pixels.shape}: (H, W) is wanted, or colours (H, W, 3)")
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    colour = _COLOUR | red << 16 | green << 8 | blue
    return np.where((red == green) & (green == blue), red, colour)


@dataclass(frozen=True)
class MaskCoding:
    """Which stored value is which class.

    Attributes:
        names: of the classes.
        values: the stored value of each class.
        ignored: stored values of pixels without a label.
        note: what was found, in words.
        guessed: whether names and number of the classes come from the values that were found.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    note: str = ""
    guessed: bool = True

    @property
    def may_lack_classes(self) -> bool:
        """Whether there may be more classes than were found: values are indices, and nobody named them."""
        return self.guessed and self.values == tuple(range(len(self.values)))

    def classes(self, values: Values, name: str) -> Tensor:
        """Return class indices, uint8 `(H, W)`, `IGNORED` where there is no label.

        Raises:
            DataError: a value is of no class.
        """
        known = np.array([*self.values, *self.ignored])
        index = np.array([*range(len(self.values)), *[IGNORED] * len(self.ignored)], dtype=np.uint8)
        order = np.argsort(known)
        place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
        found = order[place]
        wrong = known[found] != values
        if wrong.any():
            value = int(values[wrong][0])
            raise DataError(
                f"mask {name} holds the value {shown(value)} in {int(wrong.sum()):,} pixels, which is none"
                f" of the {len(self.values)} classes ({_listed(self.values)}); mend it, or name all classes"
                " in a file classes.txt beside the data, one a line"
            )
        return torch.from_numpy(index[found])


def infer_coding(counts: Mapping[int, int], names: Sequence[str] = ()) -> MaskCoding:
    """Return which stored value is which class, from the values that training masks hold.

    Black and white alone are two classes. Small values are indices of classes, and 255 (65535 of 16 bits)
    among them is no label. Other levels, and colours, are a class each, in order.

    Args:
        counts: pixels of each stored value.
        names: of the classes, where they are known.

    Raises:
        DataError: the values are no classes.
    """
    found = sorted(counts)
    white = next((value for value in _WHITE if value in counts), None)
    binary = white is not None and set(found) <= {0, white}
    if names:
        if len(names) > MOST_CLASSES:
            raise DataError(f"{len(names)} classes are more than {MOST_CLASSES}, which masks can hold here")
        if binary and len(names) == 2:
            note = f"masks hold 0 and {white}, two classes"
            return MaskCoding(tuple(names), (0, int(white or 0)), note=note, guessed=False)
        note = f"masks hold indices of {len(names)} classes"
        return MaskCoding(tuple(names), tuple(range(len(names))), _WHITE, note, guessed=False)
    if len(found) > _MOST_VALUES:
        raise DataError(
            f"the masks hold {len(found)} different values, such as {_listed(found[:8])}: they look like"
            " pictures, or were saved as JPEG; masks hold one value a class and are stored without loss,"
            " as PNG"
        )
    if binary and len(found) == 2:
        note = f"masks hold 0 (background) and {white} (foreground)"
        return MaskCoding(("background", "foreground"), (0, int(white or 0)), note=note)
    indices = [value for value in found if value not in _WHITE]
    if indices and max(indices) < _DENSE + 2 * len(indices):
        count = max(indices) + 1
        names = ("background", "foreground") if count == 2 else [f"class {index}" for index in range(count)]
        note = f"masks hold indices of {count} classes" + (f", and {white}: no label" if white else "")
        coding = MaskCoding(tuple(names), tuple(range(count)), _WHITE, note)
    else:
        listed = tuple(shown(value) for value in found)
        coding = MaskCoding(listed, tuple(found), note=f"masks hold {_listed(found)}, a class each")
    if len(coding.names) < 2:
        raise DataError(
            f"the masks hold {_listed(found)} only: two classes are needed at least; where another class is"
            " rare, name all in a file classes.txt beside the data, one a line"
        )
    return coding


def shown(value: int) -> str:
    """Return a stored value as a person writes it."""
    return f"#{value - _COLOUR:06x}" if value >= _COLOUR else str(value)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(shown(value) for value in values[:12]) + (", ..." if len(values) > 12 else "")


class MaskSplit(Split):
    """Images with a class for every pixel.

    Args:
        masks: gives them, by row.
        coding: what they hold.
        *args, **settings: as `Split`.
    """

    def __init__(self, *args: Any, masks: MaskReader, coding: MaskCoding, **settings: Any) -> None:
        super().__init__(*args, classes=coding.names, **settings)
        self.masks, self.coding = masks, coding

    def mask(self, row: int, size: tuple[int, int]) -> Tensor:
        """Return the classes of a row's pixels, uint8 `(H, W)`, `IGNORED` where there is no label.

        Args:
            row: number of the row.
            size: `(H, W)` of its image.

        Raises:
            DataError: it cannot be read, is of another size than its image, or holds a value of no class.
        """
        values = self.masks.values(row)
        if values.shape != size:
            raise DataError(
                f"mask {self.masks.name(row)} is {values.shape[0]}x{values.shape[1]} (height x width), its"
                f" image {self.row_name(row)} is {size[0]}x{size[1]}: they must be of one size"
            )
        return self.coding.classes(values, self.masks.name(row))

    def counts(self) -> dict[str, int]:
        """Return the pixels of each class, of all masks or a seeded sample of 2,000; see `Split.counts`."""
        counts = self.value_counts
        return {
            name: counts.get(value, 0)
            for name, value in zip(self.coding.names, self.coding.values, strict=True)
        }

    @cached_property
    def value_counts(self) -> dict[int, int]:
        """Pixels of each stored value; masks that cannot be read are passed over, here."""
        return count_values(self.masks, self.rows.tolist())

    def target_bytes(self) -> bytes:
        """See `Split.target_bytes`: the masks, or of many a seeded sample of 2,000."""
        rows = _sampled(range(len(self.dataset)), "mask fingerprint")
        head = json.dumps([self.coding.names, self.coding.values, self.coding.ignored]).encode()
        return b"\0".join([head, *(self.masks.content(row) for row in rows)])


def count_values(masks: MaskReader, rows: Sequence[int]) -> dict[int, int]:
    """Return the pixels of each stored value in all masks, or of many in a seeded sample of 2,000."""

    def count(row: int) -> tuple[Values, Values] | None:
        try:
            return np.unique(masks.values(row), return_counts=True)
        except DataError:
            return None

    totals: dict[int, int] = {}
    with ThreadPoolExecutor(processors()) as pool:
        for found in pool.map(count, _sampled(rows, "mask values")):
            for value, pixels in zip(*(found or ((), ())), strict=True):
                totals[int(value)] = totals.get(int(value), 0) + int(pixels)
    return totals


def _sampled(rows: Sequence[int], key: str) -> list[int]:
    if len(rows) <= _SAMPLE:
        return list(rows)
    chosen = np.random.default_rng(derive_seed(0, key)).choice(len(rows), _SAMPLE, replace=False)
    return [rows[int(place)] for place in np.sort(chosen)]
