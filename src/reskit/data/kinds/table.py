"""CSV files: they name images or recordings and their labels, or hold texts or rows."""

from __future__ import annotations

from pathlib import Path

import datasets

from reskit.data.delimited import read_table, separator_of
from reskit.data.kinds.base import SOURCES, Found, SourceKind, group_by_split, split_alias
from reskit.errors import DataError

__all__ = ["open_table"]


def _files(location: str) -> list[Path]:
    path = Path(location)
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file() and separator_of(file.name)]
    return [path] if path.is_file() and separator_of(path.name) else []


def _matches(location: str) -> bool:
    files = _files(location)
    path = Path(location)
    # A folder counts only if its tables are named by split: image folders often carry a stray CSV.
    return bool(files) and (
        path.is_file() or any(split_alias(file.name.partition(".")[0]) == "train" for file in files)
    )


def open_table(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Read tables; image paths are relative to the table, and a column ``split`` may give the splits.

    Every cell stays text: a file called ``0012`` is not the number 12.

    Raises:
        DataError: a table is empty, ragged or not text.
    """
    path = Path(location)
    root = path if path.is_dir() else path.parent
    groups, notes = group_by_split(_files(location), root)
    splits: dict[str, list[dict[str, str]]] = {}
    for name, files in groups.items():
        for row in (row for file in files for row in read_table(Path(file))):
            splits.setdefault(_split_of(row, name), []).append(row)
    tables = {
        name: datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in rows[0]})
        for name, rows in splits.items()
    }
    return Found(tables, root=root, notes=notes)


def _split_of(row: dict[str, str], default: str) -> str:
    if "split" not in row:
        return default
    split = split_alias(row["split"])
    if split is None:
        raise DataError(f"column 'split' holds {row['split']!r}; use train, validation or test")
    return split


SOURCES.add(
    "csv",
    SourceKind(
        title="CSV",
        looks_like="a .csv or .tsv file with a column of image paths and one of labels",
        order=50,
        matches=_matches,
        open=open_table,
    ),
)
