"""Rows of tables with a label each, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import pyarrow as pa

from reskit.data.column import Column
from reskit.data.labels import guess_label
from reskit.data.split import LabelledSplit, Split
from reskit.data.tables import few
from reskit.errors import DataError, did_you_mean

__all__ = ["ROWS", "RowSplit"]


class RowSplit(LabelledSplit):
    """Rows with one class each."""

    what: ClassVar[str] = "row"

    @classmethod
    def undecoded(cls, dataset: datasets.Dataset, column: str) -> datasets.Dataset:
        """See `Split.undecoded`."""
        return dataset

    @property
    def names_files(self) -> bool:
        """See `Split.names_files`."""
        return False

    def resolve(self, value: Any) -> Any:
        """Return the cells of a row by name."""
        return value

    def _names_and_sizes(self) -> Iterator[tuple[list[str], list[int]]]:
        yield [], [self.dataset.data.nbytes]

    def row_name(self, row: int) -> str:
        """See `Split.row_name`."""
        return f"{self.name} row {row}"

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the rows in use, by name."""
        rows = self.dataset.select(self.rows).with_format("arrow")[:][self.column].combine_chunks()
        return {field.name: rows.field(field.name).to_pylist() for field in rows.type}

    @staticmethod
    def measured(splits: Sequence[Split]) -> dict[str, Any]:
        """See `Split.measured`."""
        (columns,) = {tuple(split.dataset.features[split.column]) for split in splits}
        return {"extent": f"rows of {len(columns)} columns ({few(columns)})"}


@dataclass(frozen=True)
class _Rows(Column):
    """All columns of a table but the label, or those that are named, as one."""

    def choose(
        self, features: Mapping[str, Any], column: str | Sequence[str] | None, label: str | None
    ) -> tuple[tuple[str, ...], str]:
        """See `Column.choose`."""
        named = (column,) if isinstance(column, str) else tuple(column or ())
        for name in named:
            if name not in features:
                raise DataError(f"no column {name!r}{did_you_mean(name, features)}")
        if label in named:
            raise DataError(f"data.columns holds the label, {label!r}: leave it out")
        rest = {name: feature for name, feature in features.items() if name not in named}
        if not rest:
            raise DataError("data.columns holds every column, the label too: leave that out")
        found = guess_label(rest, label)
        chosen = named or tuple(name for name in features if name not in (found, "split"))
        if not chosen:
            raise DataError(f"there is no column but the label, {found!r}")
        return chosen, found

    def taken(self, table: datasets.Dataset, chosen: Any) -> tuple[datasets.Dataset, str]:
        """See `Column.taken`."""
        if missing := [name for name in chosen if name not in table.column_names]:
            raise DataError(f"a split has no column {missing[0]!r}: it has {few(table.column_names)}")
        cells = table.with_format("arrow")[:]
        columns = [cells[name].combine_chunks() for name in chosen]
        joined = pa.StructArray.from_arrays(columns, names=list(chosen))
        return datasets.Dataset(pa.table({"row": joined})), "row"


ROWS = _Rows(what="row", names=(), suffixes=frozenset(), split=RowSplit)
