"""Texts, of strings, files, tables, folders and globs alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reskit.data.delimited import TABLE_SUFFIXES, read_table, separator_of
from reskit.data.texts import TextPreprocess
from reskit.errors import DataError
from reskit.inputs.finding import Found, files_of, find

__all__ = ["find_texts"]

_WANTED = "texts, bytes, or as pathlib.Path: .txt files, tables with a column of texts, folders, globs"
_SUFFIXES = TABLE_SUFFIXES | {".txt"}
_SHOWN = 60


def find_texts(inputs: Any, recursive: bool, preprocess: TextPreprocess) -> Iterator[Found]:
    """Yield every text of `inputs`, in order.

    A string is a text, whatever it says; a `Path` names a file, a folder or a glob. A table holds one text in
    each row, any other file is one.

    Args:
        inputs: what `reskit.predict` takes.
        recursive: whether a folder's sub-folders are searched too.
        preprocess: says which column of a table holds the texts.

    Raises:
        DataError: not one text was found.
    """

    def expand(item: Any, name: str) -> Iterator[Found]:
        if isinstance(item, str):
            yield Found(item if len(item) <= _SHOWN else f"{item[: _SHOWN - 4]} ...", item)
        elif not isinstance(item, Path):
            yield Found(name, item)
        else:
            for found in files_of(item, what="text", suffixes=_SUFFIXES, recursive=recursive):
                yield from _texts_in(found, preprocess)

    return find(inputs, expand, one=_is_one, wanted=_WANTED)


def _is_one(item: Any) -> bool:
    return isinstance(item, str | Path | bytes | bytearray)


def _texts_in(found: Found, preprocess: TextPreprocess) -> Iterator[Found]:
    """Yield the texts of a file: itself, or a row of a table each; or why it has none."""
    if found.error is not None or not separator_of(found.item.name):
        yield found
        return
    try:
        rows = read_table(found.item)
        column = preprocess.column_in(rows[0], found.name)
    except DataError as error:
        yield Found(found.name, error=str(error))
        return
    for number, row in enumerate(rows, 1):
        yield Found(f"{found.name} row {number}", row[column])
