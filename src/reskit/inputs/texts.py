"""Texts, of strings, files, tables, folders and globs alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reskit.inputs.finding import Found, files_of, find

__all__ = ["find_texts"]

_WANTED = "texts, .txt files, tables (CSV, TSV) with a column of texts, folders, globs or bytes"
_SHOWN = 60


def find_texts(inputs: Any, recursive: bool) -> Iterator[Found]:
    """Yield every text of `inputs`, in order.

    A string that names a file, or as a glob names several, stands for them; any other is a text itself. A
    ``.txt`` file is one text, a table one in each row.

    Args:
        inputs: what `reskit.predict` takes.
        recursive: whether a folder's sub-folders are searched too.

    Raises:
        DataError: not one text was found.
    """

    def expand(item: Any, name: str) -> Iterator[Found]:
        if isinstance(item, str) and not _names_a_file(item):
            yield Found(item if len(item) <= _SHOWN else f"{item[: _SHOWN - 4]} ...", item)
            return
        if not isinstance(item, str | Path):
            yield Found(name, item)
            return
        for found in files_of(item, what="text", suffixes={".txt"}, recursive=recursive):
            yield from _texts_of(found)

    return find(
        inputs, expand, one=lambda item: isinstance(item, str | Path | bytes | bytearray), wanted=_WANTED
    )


def _names_a_file(text: str) -> bool:
    if not text or "\n" in text or len(text) > 4096:
        return False
    if any(sign in text for sign in "*?[") and Path(text).suffix:
        import glob

        return any(True for _ in glob.iglob(text, recursive=True))  # noqa: PTH207 - as `files_of`
    return os.path.lexists(text)


def _texts_of(found: Found) -> Iterator[Found]:
    """Yield the texts of a file: itself, or a row of a table each."""
    from reskit.data.delimited import read_table, separator_of
    from reskit.data.labels import pick_column
    from reskit.data.texts import TEXT_COLUMNS

    path = found.item
    if found.error is not None or not separator_of(path):
        yield found
        return
    rows = read_table(path)
    column = pick_column("text", dict.fromkeys(rows[0]), None, None, TEXT_COLUMNS)
    for number, row in enumerate(rows, 1):
        yield Found(f"{path} row {number}", row[column])
