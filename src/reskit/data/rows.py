"""Examples that are small: a whole split as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reskit.data.loading import batches
from reskit.data.memory import over_rows
from reskit.data.preprocess import Preprocess
from reskit.data.split import Split

__all__ = ["MemoryRows", "row_loader"]


class MemoryRows(Dataset[dict[str, Tensor]]):
    """A split read; a batch is one gather.

    Args:
        name: of the raw input.
        raw: of all examples, `(N, ...)`.
        labels: int64 `(N,)`.
        rows: row number in the split of each, int64 `(N,)`.
    """

    def __init__(self, name: str, raw: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.name, self.raw, self.labels, self.rows = name, raw, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of `keys`."""
        index = torch.tensor(keys, dtype=torch.int64) % len(self)
        return {self.name: self.raw[index], "label": self.labels[index], "index": self.rows[index]}


def row_loader(
    split: Split,
    *,
    name: str,
    preprocess: Preprocess,
    batch_size: int,
    shuffle: bool,
    seed: int,
    pin_memory: bool,
    drop_last: bool,
) -> DataLoader[Any]:
    """Read a split and return its batches: raw input by its `name`, `label` and `index` (row numbers).

    Raises:
        DataError: an example cannot be read, and the split refuses that.
    """
    rows = split.rows.tolist()
    found: dict[int, Tensor] = {}

    def keep(place: int, item: Any) -> None:
        found[place] = preprocess.read(item)

    bad = over_rows(split, rows, keep, None)
    split.reject({rows[place]: reason for place, reason in bad.items()})
    raw = torch.stack([found[place] for place in sorted(found)])
    dataset = MemoryRows(name, raw, torch.from_numpy(split.labels), torch.from_numpy(split.rows.copy()))
    return batches(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        pin_memory=pin_memory,
    )
