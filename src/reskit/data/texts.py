"""Labelled texts, and from a text to a network's input."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reskit.data.preprocess import Preprocess
from reskit.errors import DataError

__all__ = ["TEXT_COLUMNS", "WORD", "TextPreprocess", "Tokens", "read_text"]

Unit = Literal["word", "character"]

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
TEXT_COLUMNS = (
    *("text", "sentence", "content", "review", "comment", "message", "utterance", "question", "query"),
    *("document", "title", "body", "tweet", "headline", "file"),
)
"""What a column of texts is usually called, in lower case, the most telling first."""
_LONGEST_WORD = 100
"""Characters, spaces around it included; of a text no more are looked at than so many a token."""
_MARKS = 30
"""Of one letter, as in Unicode's stream-safe text format (UAX 15, section 13)."""
_FIRST = 2
"""Tokens before those of the vocabulary: 0 for none, 1 for one that is not known."""
_SHOWN = "\u2423"  # an open box, for a token that is not known


def read_text(item: Any) -> str:
    """Return a text: of a `str` itself, of bytes and files what UTF-8 makes of them.

    Raises:
        DataError: it is no text.
    """
    name = str(item) if isinstance(item, Path) else "the text"
    if isinstance(item, Path):
        try:
            item = item.read_bytes()
        except OSError as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise DataError(f"cannot read {name}: {why}") from None
    if isinstance(item, bytes | bytearray):
        try:
            item = bytes(item).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"cannot read {name}: it is not UTF-8 ({error.reason} at byte {error.start})"
            ) from None
    if item is None:
        raise DataError("there is no text")
    if not isinstance(item, str):
        raise DataError(f"cannot read a text from {type(item).__name__}: give a string, or a file")
    return item


class TextPreprocess(Preprocess):
    """A text as whole numbers: each of its first `length` tokens by its place in the vocabulary.

    Letters are lowered and brought to Unicode's form NFC. 0 stands behind the last token, 1 for one that is
    not in the vocabulary.

    Attributes:
        unit: ``word``: words, apostrophes within them included, and single signs; or ``character``.
        length: tokens looked at; what follows is cut off.
        vocabulary: the tokens known.
        column: of the tables that the training texts were in.
    """

    unit: Unit
    length: int = Field(ge=1, le=65_536)
    vocabulary: tuple[str, ...] = Field(min_length=1)
    column: str | None = None

    @model_validator(mode="after")
    def _counted(self) -> TextPreprocess:
        if self.channels != _FIRST + len(self.vocabulary):
            raise ValueError(f"channels must be {_FIRST} more than the {len(self.vocabulary)} tokens known")
        return self

    @classmethod
    def learned(
        cls,
        texts: Iterable[str],
        *,
        unit: Unit,
        length: int | None = None,
        most: int = 20_000,
        least: int = 1,
        column: str | None = None,
    ) -> Self:
        """Return what suits texts.

        Args:
            texts: to learn from.
            unit: of what a text is made.
            length: tokens looked at; as many as 99 % of the texts have when absent, rounded up to eights, at
                most 256 words or 1,024 characters.
            most: tokens in the vocabulary, the most frequent.
            least: times a token must be there.
            column: of the tables they are in.

        Raises:
            DataError: there is no token.
        """
        counts: Counter[str] = Counter()
        lengths = []
        for text in texts:
            tokens = list(_split(text, unit))
            counts.update(tokens)
            lengths.append(len(tokens))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        vocabulary = tuple(token for token, count in ordered[:most] if count >= least)
        if not vocabulary:
            raise DataError(f"the texts hold no {unit} that is there {least} times")
        if length is None:
            usual = float(np.quantile(lengths, 0.99))
            length = min(256 if unit == "word" else 1024, max(8, 8 * -int(-usual // 8)))
        return cls(
            channels=_FIRST + len(vocabulary), unit=unit, length=length, vocabulary=vocabulary, column=column
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """How many tokens."""
        return (self.length,)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.vocabulary, _FIRST)}

    def read(self, item: Any) -> Tensor:
        """Return the tokens of a text, int32 `(length,)`; see `read_text` for what it may be.

        Raises:
            DataError: it is no text, or holds no token.
        """
        text = read_text(item)[: _LONGEST_WORD * self.length + _LONGEST_WORD]
        first = islice(_split(text, self.unit), self.length)
        tokens = [self._places.get(token, 1) for token in first]
        if not tokens:
            raise DataError("the text is empty")
        return torch.tensor(tokens + [0] * (self.length - len(tokens)), dtype=torch.int32)

    def column_in(self, header: Iterable[str], name: str) -> str:
        """Return which column of a table holds the texts: as in training, else the first of a usual name.

        Args:
            header: names of the columns.
            name: of the table, for people.

        Raises:
            DataError: there is none.
        """
        lowered = {column.lower(): column for column in header}
        usual = next((lowered[known] for known in TEXT_COLUMNS if known in lowered), None)
        if self.column in lowered.values():
            return str(self.column)
        if usual is None:
            wanted = f" {self.column!r}, as in training," if self.column else ""
            raise DataError(f"{name} has no column{wanted} of texts: it has {', '.join(lowered.values())}")
        return usual

    def words(self, tokens: Tensor) -> list[str]:
        """Return tokens `(length,)` as they are spelt, those that are not known as a sign for that."""
        known = [token for token in tokens.tolist() if token > 0]
        return [self.vocabulary[token - _FIRST] if token >= _FIRST else _SHOWN for token in known]

    def normalize(self) -> nn.Module:
        """Return the module that makes indices of tokens."""
        return Tokens(self.channels)

    def describe(self) -> str:
        """See `Preprocess.describe`."""
        return f"the first {self.length} {self.unit}s of a text, of {len(self.vocabulary):,} that are known"


class Tokens(nn.Module):
    """Tokens to indices: those outside of the vocabulary, which no text has, become the unknown one.

    Args:
        count: how many tokens there are.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, tokens: Tensor) -> Tensor:
        """Map whole numbers `(N, L)` to int64 `(N, L)`.

        Raises:
            DataError: another shape or dtype.
        """
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise DataError(
                f"expected tokens, whole numbers of shape (N, L), got {tokens.dtype} {tuple(tokens.shape)}"
            )
        index = tokens.to(torch.int64)
        return torch.where((index < 0) | (index >= self.count), 1, index)


def _split(text: str, unit: Unit) -> Iterator[str]:
    """Yield the tokens of a text as they come."""
    # Marks on one letter are put in order in quadratic time: more than any script has are left out.
    plain = unicodedata.normalize("NFC", _marks().sub(r"\1", text)).lower()
    if unit == "character":
        return iter(plain)
    return (found.group() for found in WORD.finditer(plain))


@cache
def _marks() -> re.Pattern[str]:
    """Return what matches more combining marks than one letter may have, the first of them a group."""
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code)))
    return re.compile(f"([{marks}]{{{_MARKS}}})[{marks}]+")
