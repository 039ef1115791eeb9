"""From a row of a table to a network's input."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from reskit.data.preprocess import Preprocess
from reskit.errors import ConfigError, DataError, did_you_mean

__all__ = ["Bent", "Categories", "Numbers", "TablePreprocess", "few"]

_MISSING = frozenset({"", "na", "n/a", "nan", "nat", "none", "null", "<na>", "?"})
_WHOLE = re.compile(r"(-?\d+)\.0+")
_NEARLY = 0.95
"""Part of a column's values that are numbers, above which the others are mistakes."""
_LARGEST = float(np.finfo(np.float32).max)
_MOST_VALUES = 255
"""Of a column of categories: with the place for all others they are counted exactly in bf16 too."""
_CLIP, _FAR = 3.0, 1e6
"""Where numbers are bent to, and beyond which nothing changes, so that squares are finite."""


class Numbers(BaseModel):
    """A column of numbers.

    Attributes:
        name: of the column.
        middle: the median of the training rows; stands for a missing number.
        spread: the distance of their quartiles, or where these are one half that of their extremes.
        gaps: whether numbers were missing among them; the network is then told where one is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    middle: float
    spread: float = Field(gt=0)
    gaps: bool = False


class Categories(BaseModel):
    """A column of categories.

    Attributes:
        name: of the column.
        values: of the training rows, the 255 most frequent, these first; any other is as one that is missing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    values: tuple[str, ...]


class TablePreprocess(Preprocess):
    """A row as numbers: those of its columns of numbers, where they have gaps, and places of its categories.

    Numbers are centred and scaled as they are read, in float64, for the difference of two dates in seconds is
    lost in float32; a missing one stands in the middle. The network's file bends them towards plus and minus
    3 by ``z / sqrt(1 + (z / 3) ** 2)``, so that a few extreme ones do not rule (Holzmueller et al., Better by
    Default, 2024, section 3).

    Attributes:
        numbers: columns of numbers, in the order of the input.
        categories: columns of categories, behind them.
    """

    numbers: tuple[Numbers, ...]
    categories: tuple[Categories, ...] = ()

    @model_validator(mode="after")
    def _counted(self) -> TablePreprocess:
        if self.channels != len(self.numbers) + len(self._gaps):
            raise ValueError("channels must be the columns of numbers and those of their gaps")
        if not self.numbers and not self.categories:
            raise ValueError("there is no column")
        return self

    @classmethod
    def learned(cls, columns: Mapping[str, Sequence[Any]], categorical: Sequence[str] = ()) -> Self:
        """Return what suits the training rows.

        A column is of numbers where every value is one, else of categories, as where `categorical` says so.

        Args:
            columns: values by name; text that is a number is one.
            categorical: columns of categories, whatever they hold.

        Raises:
            ConfigError: `categorical` names a column that is not there.
            DataError: a column has too many different values to be one of categories, or no value at all.
        """
        for name in categorical:
            if name not in columns:
                raise ConfigError(
                    f"task.arguments.categorical: no column {name!r}{did_you_mean(name, columns)}"
                )
        numbers, categories = [], []
        for name, values in columns.items():
            found = None if name in categorical else _all_numbers(name, values)
            if found is not None:
                numbers.append(_numbers(name, found))
            else:
                categories.append(_categories(name, values))
        count = len(numbers) + sum(column.gaps for column in numbers)
        return cls(channels=count, numbers=tuple(numbers), categories=tuple(categories))

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers, gaps and categories."""
        return (self.channels + len(self.categories),)

    @property
    def names(self) -> list[str]:
        """Of the columns a row must have."""
        return [column.name for column in self.numbers] + [column.name for column in self.categories]

    @property
    def _gaps(self) -> list[Numbers]:
        return [column for column in self.numbers if column.gaps]

    def read(self, item: Any) -> Tensor:
        """Return a row as float32, of `shape`.

        Args:
            item: its cells by name, numbers or text; others than those known are left alone. A missing one is
                None, not a number, empty or ``NA``.

        Raises:
            DataError: a column is not there, or a cell is no number where there should be one.
        """
        if not isinstance(item, Mapping):
            raise DataError(
                f"cannot read a row from {type(item).__name__}: give its cells by the columns' names"
            )
        known = self.names
        if missing := [name for name in known if name not in item]:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"the row has no column {missing[0]!r}{more}; the columns needed are {few(known)}"
            )
        values, gaps = [], []
        for column in self.numbers:
            number = _number(item[column.name])
            if number is None:
                raise DataError(f"column {column.name!r} is {_cut(item[column.name])}: a number is needed")
            if column.gaps:
                gaps.append(float(math.isnan(number)))
            values.append(0.0 if math.isnan(number) else (number - column.middle) / column.spread)
        codes = [float(_place(column, item[column.name])) for column in self.categories]
        raw = torch.tensor([*values, *gaps, *codes], dtype=torch.float64)
        return raw.clamp(-_FAR, _FAR).float()

    def normalize(self) -> nn.Module:
        """Return the module that bends numbers."""
        counts = [len(column.values) + 1 for column in self.categories]
        return Bent(len(self.numbers), len(self._gaps), counts)

    def describe(self) -> str:
        """See `Preprocess.describe`."""
        named = few([column.name for column in self.categories])
        categories = f"of categories {named}" if self.categories else "all of numbers"
        return f"a row of {len(self.names)} columns, {categories}"


class Bent(nn.Module):
    """Numbers bent, gaps as they are, categories within their range; see `TablePreprocess`.

    Args:
        numbers: columns of numbers.
        gaps: columns that say where one is missing.
        counts: how many places each column of categories has.
    """

    last: Tensor

    def __init__(self, numbers: int, gaps: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.numbers, self.gaps = numbers, gaps
        self.register_buffer("last", torch.tensor([count - 1.0 for count in counts]), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Map raw rows `(N, F)` to what the network takes, of the same shape.

        Raises:
            DataError: another shape or dtype.
        """
        width = self.numbers + self.gaps + len(self.last)
        if rows.ndim != 2 or rows.shape[1] != width or not rows.is_floating_point():
            raise DataError(f"expected rows, float (N, {width}), got {rows.dtype} {tuple(rows.shape)}")
        z = rows[:, : self.numbers].clamp(-_FAR, _FAR)
        parts = [z * torch.rsqrt(1 + z * z / _CLIP**2)] if self.numbers else []
        if self.gaps:
            parts.append(rows[:, self.numbers : self.numbers + self.gaps])
        if len(self.last):
            codes = rows[:, self.numbers + self.gaps :]
            # Whatever a client sends, also what is no number, is a place that there is.
            parts.append(torch.minimum(torch.where(codes > 0, codes, 0.0), self.last))
        return torch.cat(parts, 1)


def _number(value: Any) -> float | None:
    """Return a cell as a number, not a number where it is missing, None where it is none."""
    if _is_missing(value):
        return math.nan
    if isinstance(value, bytes | bytearray | bool | np.bool_):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isinf(number) or abs(number) > _LARGEST else number


def _is_missing(value: Any) -> bool:
    # Those of pandas and NumPy say so in words.
    return value is None or (not isinstance(value, list | dict) and str(value).strip().lower() in _MISSING)


def _all_numbers(name: str, values: Sequence[Any]) -> list[float] | None:
    """Return a column as numbers, or None of one that is of categories.

    Raises:
        DataError: nearly all are numbers, and some are not.
    """
    if any(isinstance(value, bool | np.bool_) for value in values):
        return None
    found = [_number(value) for value in values]
    wrong = [row for row, number in enumerate(found) if number is None]
    known = sum(number is not None and not math.isnan(number) for number in found)
    if not wrong:
        return [number for number in found if number is not None]
    if known <= _NEARLY * (known + len(wrong)):
        return None
    raise DataError(
        f"column {name!r} is {_cut(values[wrong[0]])} in training row {wrong[0]}, where {known:,} others are"
        f" numbers ({len(wrong):,} are not): mend it, or name the column in task.arguments.categorical"
    )


def _numbers(name: str, values: list[float]) -> Numbers:
    array = np.array(values)
    known = array[~np.isnan(array)]
    if not len(known):
        raise DataError(f"column {name!r} is empty: leave it out by data.leave_out")
    low, first, middle, third, high = np.quantile(known, [0, 0.25, 0.5, 0.75, 1])
    spread = (third - first) or (high - low) / 2 or 1.0
    return Numbers(name=name, middle=float(middle), spread=float(spread), gaps=bool(len(known) < len(array)))


def _categories(name: str, values: Sequence[Any]) -> Categories:
    counts = Counter(text for value in values if (text := _text(value)) is not None)
    if len(counts) > 50 and len(counts) > len(values) / 2:
        raise DataError(
            f"column {name!r} has {len(counts):,} different values in {len(values):,} rows, which is no"
            " category: leave it out by data.leave_out; of a date make a number"
        )
    if not counts:
        raise DataError(f"column {name!r} is empty: leave it out by data.leave_out")
    frequent = sorted(counts, key=lambda value: (-counts[value], value))[:_MOST_VALUES]
    return Categories(name=name, values=tuple(frequent))


def _text(value: Any) -> str | None:
    """Return a cell as the name of a category, None where it is missing.

    3, 3.0 and "3.0" are one; so are True and "true".
    """
    if _is_missing(value):
        return None
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    if whole:
        return whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


def _cut(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" ...")


def _place(column: Categories, value: Any) -> int:
    text = _text(value)
    return 0 if text is None or text not in column.values else 1 + column.values.index(text)


def few(names: Sequence[str]) -> str:
    """Return the first of many names, and how many there are."""
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
