"""CSV files that name images and their labels."""

from __future__ import annotations

import csv
from pathlib import Path

import datasets

from reskit.data.kinds.base import SOURCES, Found, SourceKind, group_by_split, split_alias
from reskit.errors import DataError

__all__ = ["open_table"]

_SUFFIXES = {".csv": ",", ".tsv": "\t"}


def _files(location: str) -> list[Path]:
    path = Path(location)
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _SUFFIXES]
    return [path] if path.is_file() and path.suffix.lower() in _SUFFIXES else []


def _matches(location: str) -> bool:
    files = _files(location)
    path = Path(location)
    # A folder counts only if its tables are named by split: image folders often carry a stray CSV.
    return bool(files) and (path.is_file() or any(split_alias(file.stem) == "train" for file in files))


def open_table(location: str, cache_dir: Path | None) -> Found:
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
        for row in (row for file in files for row in _rows(Path(file))):
            splits.setdefault(_split_of(row, name), []).append(row)
    tables = {
        name: datasets.Dataset.from_dict({key: [row.get(key) for row in rows] for key in rows[0]})
        for name, rows in splits.items()
    }
    return Found(tables, root=root, notes=notes)


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, delimiter=_SUFFIXES[file.suffix.lower()], strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}; expected UTF-8 text with a header line") from error
    if not rows:
        raise DataError(f"{file} has no rows below its header line")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{file} line {number} does not have the columns of the header line")
    return rows


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
