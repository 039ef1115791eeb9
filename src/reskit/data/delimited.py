"""Tables as text: CSV and TSV, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from reskit.errors import DataError

__all__ = ["TABLE_SUFFIXES", "iter_table", "read_table", "separator_of"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset(_SEPARATORS) | {f"{suffix}.gz" for suffix in _SEPARATORS}


def separator_of(name: str) -> str | None:
    """Return what stands between the cells of a file of this name; None of one that is no table."""
    return _SEPARATORS.get(Path(name.lower().removesuffix(".gz")).suffix)


def read_table(file: Path) -> list[dict[str, str]]:
    """Return the rows of a table by the names in its header line, every cell as text.

    Raises:
        DataError: it is not there, empty, ragged or not text.
    """
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix.lower() == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"cannot read {file}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}; expected UTF-8 text with a header line") from error
    return list(iter_table(text, str(file), separator_of(file.name) or ","))


def iter_table(text: str, name: str, separator: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a table, one at least; see `read_table`.

    Args:
        text: its lines.
        name: what it is called, for people.
        separator: between cells.

    Raises:
        DataError: it is empty or ragged, or two columns have one name.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next((row for row in reader if row), [])
        if twice := next((column for column in header if header.count(column) > 1), None):
            raise DataError(f"{name} has two columns {twice!r}")
        if len(header) == 1 and ";" in header[0]:
            raise DataError(
                f"{name} has semicolons between its cells: save it with commas, or as .tsv with tabs"
            )
        found = False
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{name} line {reader.line_num} does not have the columns of the header line: it has"
                    f" {len(row)} cells, the header line {len(header)}"
                )
            found = True
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"cannot read {name}, line {reader.line_num}: {error}") from error
    if not found:
        raise DataError(f"{name} has no rows below its header line")
