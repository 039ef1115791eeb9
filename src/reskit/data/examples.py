"""Examples of any make-up: images of their own size, and what belongs to them, cut and varied together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reskit.data.loading import Mode, batches
from reskit.data.memory import over_rows
from reskit.data.seeds import derive_seed
from reskit.data.split import Split
from reskit.errors import DataError

__all__ = ["Example", "ExampleSet", "Vary", "cut", "example_loader", "hold", "reader"]

Example: TypeAlias = Mapping[str, Tensor]
"""Tensors of one example by name, such as ``image`` `(C, H, W)` and ``mask`` `(H, W)`."""
Vary: TypeAlias = Callable[[Example, torch.Generator], Example]
"""Cuts and varies an example; all that is random comes from the generator."""


class ExampleSet(Dataset[dict[str, Tensor]]):
    """Rows of a split as examples, for the keys of `EpochSampler`.

    What is random is a function of ``(seed, epoch, place)``, whatever the number of workers and wherever
    a run resumes.

    Args:
        rows: row numbers.
        read: gives the example of a row.
        vary: of training; None hands examples out as they were read.
        views: times each row is seen in an epoch.
        seed: of `vary`.
    """

    def __init__(
        self,
        rows: Sequence[int],
        read: Callable[[int], Example],
        *,
        vary: Vary | None = None,
        views: int = 1,
        seed: int = 0,
    ) -> None:
        self.rows = [int(row) for row in rows]
        self.read, self.vary, self.views, self.seed = read, vary, views, seed

    def __len__(self) -> int:
        return len(self.rows) * self.views

    def __getitem__(self, key: int) -> dict[str, Tensor]:
        epoch, place = divmod(key, len(self))
        row = self.rows[place % len(self.rows)]
        example = self.read(row)
        if self.vary is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "example", epoch, place))
            example = self.vary(example, generator)
        return {**example, "index": torch.tensor(row)}

    def __getitems__(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of `keys`."""
        examples = [self[key] for key in keys]
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def hold(split: Split, read: Callable[[Any, int], Example]) -> Callable[[int], Example]:
    """Read every row of a split once, in threads, and return what gives them from memory.

    Unreadable rows are dealt with as the split says.

    Args:
        split: what to read.
        read: gives the example of an item and its row number.

    Raises:
        DataError: unreadable rows, and the split refuses them.
    """
    rows = split.rows.tolist()
    held: dict[int, Example] = {}

    def keep(place: int, item: Any) -> None:
        held[rows[place]] = read(item, rows[place])

    bad = over_rows(split, rows, keep, None)
    split.reject({rows[place]: reason for place, reason in bad.items()})
    return held.__getitem__


def reader(split: Split, read: Callable[[Any, int], Example], mode: Mode) -> Callable[[int], Example]:
    """Return what gives the example of a row: from memory, or read again each time.

    Every row is read once now in either mode, so that unreadable ones are known before training: the order of
    an epoch is a function of how many there are.

    Args:
        split: what to read.
        read: gives the example of an item and its row number.
        mode: whether examples are kept.

    Raises:
        DataError: unreadable rows, and the split refuses them.
    """
    if mode == "memory":
        return hold(split, read)
    rows = split.rows.tolist()

    def check(place: int, item: Any) -> None:
        read(item, rows[place])

    bad = over_rows(split, rows, check, None)
    split.reject({rows[place]: reason for place, reason in bad.items()})
    return lambda row: read(split.item(row), row)


def example_loader(
    dataset: ExampleSet,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return batches of examples; where nothing cuts them to one size, of one example each.

    Of varied examples a last smaller batch is left out.
    """
    return batches(
        dataset,
        batch_size=batch_size if dataset.vary is not None else 1,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        drop_last=dataset.vary is not None,
        pin_memory=pin_memory,
    )


def cut(
    example: Example,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    scales: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Cut the same window from all tensors of an example, at random.

    Args:
        example: tensors `(..., H, W)`.
        size: `(h, w)` of the window.
        generator: where the window lies.
        scales: by how much single tensors are larger than the others.

    Raises:
        DataError: the example is smaller than the window.
    """
    scales = scales or {}
    height, width = next(tuple(t.shape[-2:]) for name, t in example.items() if scales.get(name, 1) == 1)
    if height < size[0] or width < size[1]:
        raise DataError(f"an image of {height}x{width} is smaller than the patch of {size[0]}x{size[1]}")
    top = int(torch.randint(height - size[0] + 1, (), generator=generator))
    left = int(torch.randint(width - size[1] + 1, (), generator=generator))

    def window(tensor: Tensor, scale: int) -> Tensor:
        rows = slice(top * scale, (top + size[0]) * scale)
        return tensor[..., rows, left * scale : (left + size[1]) * scale]

    return {name: window(tensor, scales.get(name, 1)) for name, tensor in example.items()}
