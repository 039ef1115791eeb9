"""What examples are of, and where in a table they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from reskit.data.kinds.base import IMAGE_SUFFIXES
from reskit.data.labels import guess_label, pick_column
from reskit.data.split import LabelledSplit

__all__ = ["IMAGES", "Column"]


@dataclass(frozen=True)
class Column:
    """One kind of example: a column of a table, or files in folders.

    Attributes:
        what: one of them, for people.
        names: what the column is usually called, in lower case, the most telling first.
        suffixes: of files that are examples.
        split: what reads them.
        feature: the type that `datasets` has for them, if it has one.
        sample: the source that is taken where none is named.
    """

    what: str
    names: tuple[str, ...]
    suffixes: frozenset[str]
    split: type[LabelledSplit]
    feature: type | None = None
    sample: str | None = None

    def choose(
        self, features: Mapping[str, Any], column: str | Sequence[str] | None, label: str | None
    ) -> tuple[Any, str]:
        """Return what `taken` is to take, and the label's column; given names are used, others guessed.

        Raises:
            DataError: a given column is not there, or none fits.
        """
        assert column is None or isinstance(column, str)
        chosen = pick_column(self.what, features, column, self.feature, self.names)
        return chosen, guess_label({name: features[name] for name in features if name != chosen}, label)

    def taken(self, table: datasets.Dataset, chosen: Any) -> tuple[datasets.Dataset, str]:
        """Return a table and the column of it that the examples are, by what `choose` chose."""
        return table, chosen


IMAGES = Column(
    what="image",
    names=(
        *("image", "img", "pixels", "picture", "photo", "jpg", "jpeg", "png", "webp", "bmp", "image_path"),
        *("img_path", "image_file", "filename", "file_name", "filepath", "file_path", "file", "path"),
    ),
    suffixes=IMAGE_SUFFIXES,
    split=LabelledSplit,
    feature=datasets.Image,
    sample="digits",
)
