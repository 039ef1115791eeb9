"""Rows, of tables, records, lists of records, folders and globs alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reskit.data.delimited import TABLE_SUFFIXES, read_table
from reskit.errors import DataError
from reskit.inputs.finding import Found, files_of, find

__all__ = ["find_rows"]

_SUFFIXES = TABLE_SUFFIXES | {".parquet"}
_WANTED = "tables (CSV, TSV, Parquet), a data frame, or rows as {column: value}"


def find_rows(inputs: Any, recursive: bool) -> Iterator[Found]:
    """Yield every row of `inputs`, in order.

    Args:
        inputs: what `reskit.predict` takes.
        recursive: whether a folder's sub-folders are searched too.

    Raises:
        DataError: not one row was found.
    """

    def expand(item: Any, name: str) -> Iterator[Found]:
        if isinstance(item, Mapping):
            yield Found(name, item)
        elif not isinstance(item, str | Path):  # pandas' data frame, or that of polars
            rows = item.to_dicts() if hasattr(item, "to_dicts") else item.to_dict("records")
            if not rows:
                raise DataError(f"{name} has no rows")
            yield from _numbered(name, rows)
        else:
            for found in files_of(item, what="table", suffixes=_SUFFIXES, recursive=recursive):
                yield from _rows_in(found)

    return find(inputs, expand, one=_is_one, wanted=_WANTED)


def _is_one(item: Any) -> bool:
    return isinstance(item, str | Path | Mapping) or type(item).__name__ == "DataFrame"


def _numbered(name: str, rows: list[dict[str, Any]]) -> Iterator[Found]:
    for number, row in enumerate(rows, 1):
        yield Found(f"{name} row {number}", row)


def _rows_in(found: Found) -> Iterator[Found]:
    """Yield the rows of a file, or the file itself with why it has none."""
    try:
        yield from [found] if found.error else _numbered(found.name, _rows_of(found.item))
    except DataError as error:
        yield Found(found.name, error=str(error))


def _rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    if path.suffix.lower() != ".parquet":
        return read_table(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows
