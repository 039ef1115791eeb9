"""Labelled texts, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from reskit.data.column import Column
from reskit.data.kinds.folder import FILE
from reskit.data.split import LabelledSplit, Split
from reskit.data.texts import TEXT_COLUMNS, WORD, read_text
from reskit.errors import DataError

__all__ = ["TEXTS", "TextSplit"]


class TextSplit(LabelledSplit):
    """Texts with one class each: the cells of a column, or files."""

    what: ClassVar[str] = "text"

    @property
    def names_files(self) -> bool:
        """See `Split.names_files`; only folders of files are so."""
        return self.column == FILE

    def resolve(self, value: Any) -> Any:
        """Return a text, or the file it is in."""
        return super().resolve(value) if self.names_files else value

    def row_name(self, row: int) -> str:
        """See `Split.row_name`."""
        return super().row_name(row) if self.names_files else f"{self.name} row {row}"

    def texts(self) -> Iterator[str]:
        """Yield the texts that can be read, of the rows in use."""
        for item in self.items(self.rows):
            try:
                yield read_text(item)
            except DataError:
                continue

    @cached_property
    def lengths(self) -> list[int]:
        """Words and signs of each text that can be read."""
        return [sum(1 for _ in WORD.finditer(text)) for text in self.texts()]

    @staticmethod
    def measured(splits: Sequence[Split]) -> dict[str, Any]:
        """See `Split.measured`."""
        lengths = [length for split in splits if isinstance(split, TextSplit) for length in split.lengths]
        if not lengths:
            raise DataError("the data hold no text")
        return {
            "extent": f"texts of {min(lengths):,} to {max(lengths):,} words and signs, half of them below"
            f" {np.median(lengths):,.0f}"
        }


TEXTS = Column(what="text", names=TEXT_COLUMNS, suffixes=frozenset({".txt"}), split=TextSplit)
