"""One split of a source: rows of examples and what is known of each."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reskit.data.images import HEADER_ERRORS, header_size, is_grey, open_image
from reskit.data.info import ImageSizes
from reskit.data.labels import Labels
from reskit.data.seeds import derive_seed
from reskit.errors import DataError

__all__ = ["Headers", "LabelledSplit", "OnCorrupt", "Split"]

OnCorrupt = Literal["refuse", "skip"]
Headers = tuple[list[tuple[int, int]], bool]  # sizes (height, width), whether all are grey

_SAMPLE = 2000
_FULL_HASH_BYTES = 256 * 2**20
_CHUNK = 4096


class Split:
    """Examples of one split, read on demand from a `datasets.Dataset`; images, unless a child says otherwise.

    Args:
        name: ``train``, ``validation`` or ``test``.
        dataset: the rows; only the column of the examples is kept.
        column: its name.
        classes: class names, where there are classes.
        root: folder that relative paths start from.
        on_corrupt: whether an unreadable example is an error or is left out.
        cache_dir: where the record of a verification is kept; the cache of `datasets` by default.

    Attributes:
        rows: row numbers in use; unreadable ones leave it when `on_corrupt` is ``"skip"``.
        corrupt: name of each row left out.
    """

    what: ClassVar[str] = "image"
    """One example, for people."""

    def __init__(
        self,
        name: str,
        dataset: datasets.Dataset,
        *,
        column: str,
        classes: Sequence[str] = (),
        root: Path | None,
        on_corrupt: OnCorrupt = "refuse",
        cache_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.dataset = self.undecoded(dataset.select_columns([column]), column)
        self.column = column
        self.classes = list(classes)
        self.root = root
        self.on_corrupt = on_corrupt
        self.cache_dir = cache_dir or Path(datasets.config.HF_DATASETS_CACHE)
        self.rows: Labels = np.arange(len(dataset), dtype=np.int64)
        self.corrupt: dict[int, str] = {}

    @classmethod
    def undecoded(cls, dataset: datasets.Dataset, column: str) -> datasets.Dataset:
        """Return rows whose examples are files as they were stored."""
        if isinstance(dataset.features[column], datasets.Image):
            return dataset.cast_column(column, datasets.Image(decode=False))
        return dataset

    @staticmethod
    def measured(splits: Sequence[Split]) -> dict[str, Any]:
        """Return the fields of `DataInfo` that say what the examples of splits are like.

        Raises:
            DataError: there is no example, or one cannot be read.
        """
        headers = [split.headers for split in splits]
        sizes = np.array([size for found, _ in headers for size in found])
        if not len(sizes):
            raise DataError("the data hold no readable image")
        low, middle, high = sizes.min(0).tolist(), np.median(sizes, axis=0).tolist(), sizes.max(0).tolist()
        return {
            "image_sizes": ImageSizes(min=low, median=[int(side) for side in middle], max=high),
            "channels": 1 if all(grey for _, grey in headers) else 3,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, count: int) -> Self:
        """Return up to `count` rows in use, evenly spread, as a split of their own."""
        part = copy.copy(self)
        part.corrupt = dict(self.corrupt)
        part.rows = self.rows[np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)]
        return part

    @property
    def labels(self) -> Labels:
        """Class indices of the rows in use ``(len(self),)``; -1 where rows have no class."""
        return np.full(len(self), -1, dtype=np.int64)

    def counts(self) -> dict[str, int]:
        """Return how many rows in use have each class; nothing where rows have none."""
        return {}

    def target_bytes(self) -> bytes:
        """Return what is known of all rows but their examples, for the fingerprint."""
        return b""

    def item(self, row: int) -> Any:
        """Return what `Preprocess.read` takes, for a row number of the split."""
        return self.resolve(self.dataset[int(row)][self.column])

    def items(self, rows: Sequence[int] | Labels) -> list[Any]:
        """Return `item` of several rows at once."""
        return [self.resolve(value) for value in self.dataset[[int(row) for row in rows]][self.column]]

    @property
    def names_files(self) -> bool:
        """Whether rows hold paths of files, as strings, instead of examples."""
        feature = self.dataset.features[self.column]
        return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")

    def paths(self) -> list[str | None]:
        """Return the paths that all rows name; nothing where they hold the examples themselves."""
        if not self.names_files:
            return []
        named: list[str | None] = self.dataset[:][self.column]
        return named

    def row_name(self, row: int) -> str:
        """Return the file name of a row where it has one, else its number."""
        value = self.dataset[int(row)][self.column]
        path = value.get("path") if isinstance(value, Mapping) else value
        return str(path) if isinstance(path, str) and path else f"{self.name} row {row}"

    def reject(self, reasons: Mapping[int, str]) -> None:
        """Deal with unreadable rows as `on_corrupt` says.

        Args:
            reasons: what is wrong with each row.

        Raises:
            DataError: `on_corrupt` is ``"refuse"``, or nothing is left.
        """
        bad = {row: reason for row, reason in reasons.items() if row not in self.corrupt}
        if not bad:
            return
        names = {row: self.row_name(row) for row in sorted(bad)}
        if self.on_corrupt == "refuse":
            first = next(iter(names))
            shown = ", ".join(list(names.values())[:5]) + (", ..." if len(names) > 5 else "")
            several = f"{self.what}s" if len(bad) > 1 else self.what
            raise DataError(
                f"split {self.name!r} has {len(bad)} unreadable {several}: {shown} ({bad[first]});"
                " mend or remove them, or leave them out: --set data.on_corrupt=skip in train,"
                " --skip-corrupt in evaluate"
            )
        self.corrupt.update(names)
        self.rows = self.rows[~np.isin(self.rows, list(bad))]
        if not len(self.rows):
            raise DataError(f"split {self.name!r} has no readable {self.what} left")

    def sampled(self) -> Labels:
        """Return the rows in use, or a seeded sample of 2,000 of them."""
        if len(self.rows) <= _SAMPLE:
            return self.rows
        generator = np.random.default_rng(derive_seed(0, "headers"))
        return np.sort(generator.choice(self.rows, _SAMPLE, replace=False))

    @cached_property
    def headers(self) -> Headers:
        """Sizes and greyness from the headers of all images, or of a seeded sample of 2,000."""
        rows = self.sampled()
        sizes: list[tuple[int, int]] = []
        grey = True
        bad: dict[int, str] = {}
        for row, item in zip(rows.tolist(), self.items(rows), strict=True):
            if isinstance(item, np.ndarray):
                sizes.append((item.shape[0], item.shape[1]))
                grey = grey and (item.ndim == 2 or item.shape[2] == 1)
                continue
            try:
                with open_image(item) as image:
                    sizes.append(header_size(image))
                    grey = grey and is_grey(image)
            except (DataError, *HEADER_ERRORS) as error:
                bad[row] = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.reject(bad)
        return sizes, grey

    @cached_property
    def fingerprint(self) -> str:
        """Hash of targets, names and examples, the same wherever the data lie.

        Above 256 MiB the bytes of a seeded sample of 2,000 examples stand for all; every length still counts.
        """
        digest = hashlib.sha256(json.dumps([self.name, self.classes]).encode())
        digest.update(self.target_bytes())
        lengths: list[int] = []
        for names, sizes in self._names_and_sizes():
            digest.update("\0".join(names).encode())
            lengths.extend(sizes)
        digest.update(np.array(lengths, dtype=np.int64).tobytes())
        chosen = np.arange(len(self.dataset))
        if sum(lengths) > _FULL_HASH_BYTES and len(chosen) > _SAMPLE:
            generator = np.random.default_rng(derive_seed(0, "fingerprint"))
            chosen = np.sort(generator.choice(chosen, _SAMPLE, replace=False))
        for start in range(0, len(chosen), _CHUNK):
            for item in self.items(chosen[start : start + _CHUNK]):
                digest.update(_content(item))
        return digest.hexdigest()

    def _names_and_sizes(self) -> Iterator[tuple[list[str], list[int]]]:
        arrow = self.dataset.with_format("arrow")
        for start in range(0, len(self.dataset), _CHUNK):
            column = arrow[start : start + _CHUNK][self.column]
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            if pa.types.is_struct(column.type):
                # Where `datasets` put a file is no part of the data: only its name is.
                names = [Path(path).name if path else "" for path in column.field("path").to_pylist()]
                stored = pc.fill_null(pc.binary_length(column.field("bytes")), 0).to_pylist()
                yield names, stored
            elif self.names_files:
                names = column.to_pylist()
                yield names, [self.resolve(name).stat().st_size for name in names]
            else:
                yield [], [column.nbytes]

    def resolve(self, value: Any) -> Any:
        """Return what a stored value stands for: bytes as they are, a path made absolute, a list as array."""
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return value["bytes"]
            value = value.get("path")
        if isinstance(value, str):
            path = Path(value)
            return path if path.is_absolute() or self.root is None else self.root / path
        if isinstance(value, list):
            array = np.asarray(value)
            fits = array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255
            return array.astype(np.uint8) if fits else array
        return value


class LabelledSplit(Split):
    """Examples with one class each.

    Args:
        labels: class index of every row ``(N,)``.
        *args, **settings: as `Split`.
    """

    def __init__(self, *args: Any, labels: Labels, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.all_labels = labels

    @property
    def labels(self) -> Labels:
        """Class indices of the rows in use ``(len(self),)``."""
        return self.all_labels[self.rows]

    def counts(self) -> dict[str, int]:
        """See `Split.counts`."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, (int(n) for n in found), strict=True))

    def target_bytes(self) -> bytes:
        """See `Split.target_bytes`."""
        return self.all_labels.tobytes()

    def reject(self, reasons: Mapping[int, str]) -> None:
        """See `Split.reject`; also refuses that a class of the training split has none left."""
        before = set(np.unique(self.labels).tolist())
        super().reject(reasons)
        gone = sorted(before - set(np.unique(self.labels).tolist()))
        if gone and self.name == "train":
            raise DataError(f"class {self.classes[gone[0]]!r} has no readable training {self.what}")


def _content(item: Any) -> bytes:
    if isinstance(item, Path):
        return item.read_bytes()
    if isinstance(item, str | dict):
        return json.dumps(item, default=str).encode()
    return item.tobytes() if isinstance(item, np.ndarray) else bytes(item or b"")
