"""Tables as text: CSV and TSV, compressed or not."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from pathlib import Path

from reskit.errors import DataError

__all__ = ["parse_table", "read_table", "separator_of"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def separator_of(file: Path) -> str | None:
    """Return what stands between the cells of a file, or None where it is no table; it may end in ``.gz``."""
    name = file.name.lower().removesuffix(".gz")
    return _SEPARATORS.get(Path(name).suffix)


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
    return parse_table(text, str(file), separator_of(file) or ",")


def parse_table(text: str, file: str, separator: str = ",") -> list[dict[str, str]]:
    """Return the rows of a table; see `read_table`.

    Args:
        text: its lines.
        file: what it is called, for people.
        separator: between cells.

    Raises:
        DataError: it is empty or ragged.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"cannot read {file}: {error}; expected UTF-8 text with a header line") from error
    if not rows:
        raise DataError(f"{file} has no rows below its header line")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{file} line {number} does not have the columns of the header line")
    return rows
