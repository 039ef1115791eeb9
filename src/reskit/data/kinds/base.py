"""What a kind of source promises, and what the kinds share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from reskit.errors import DataError
from reskit.registry import Registry

__all__ = ["IMAGE_SUFFIXES", "SOURCES", "Found", "SourceKind", "group_by_split", "load_files", "split_alias"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Found:
    """What a kind found: the splits, still with their own columns.

    Attributes:
        splits: by normalised name (``train``, ``validation``, ``test``).
        root: folder that relative paths start from.
        notes: what was left aside, in words.
        column: of the examples, set by a kind that knows; guessed else.
        label_column: likewise.
    """

    splits: dict[str, datasets.Dataset]
    root: Path | None = None
    notes: list[str] = field(default_factory=list)
    column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class SourceKind:
    """One kind of place examples come from.

    Attributes:
        title: the kind in words.
        looks_like: what a location must look like, for the message when nothing fits.
        order: lower is asked first.
        matches: whether a location is of this kind; must be cheap.
        open: reads it, given a cache folder (None: the `datasets` default) and the suffixes of files that are
            examples.
    """

    title: str
    looks_like: str
    order: int
    matches: Callable[[str], bool]
    open: Callable[[str, Path | None, frozenset[str]], Found]


SOURCES: Registry[SourceKind] = Registry("source kind")


def split_alias(name: str) -> str | None:
    """Return ``train``, ``validation`` or ``test`` for the usual spellings, None for any other word."""
    return _ALIASES.get(name.lower())


def group_by_split(files: Iterable[Path], root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Sort data files into splits by file name (``train-00000-of-00005``) or by folder (``train/0000``).

    Returns:
        the files of each split, all of them under ``train`` when no name says otherwise; and notes.
    """
    groups: dict[str, list[str]] = {}
    unnamed: list[str] = []
    for file in sorted(files):
        split = _split_of(file, root)
        groups.setdefault(split, []).append(str(file)) if split else unnamed.append(str(file))
    if not groups:
        return {"train": unnamed}, []
    if not unnamed:
        return groups, []
    return groups, [f"{len(unnamed)} files named after no split were left aside: {Path(unnamed[0]).name}"]


def load_files(
    builder: str, files: dict[str, list[str]], cache_dir: Path | None
) -> dict[str, datasets.Dataset]:
    """Open data files with one of the builders of `datasets`, quietly.

    Raises:
        DataError: the files cannot be read.
    """
    with quiet():
        try:
            opened = datasets.load_dataset(
                builder, data_files=files, cache_dir=str(cache_dir) if cache_dir else None
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
            cause = error.__cause__ or error
            first = next(iter(files.values()))[0]
            raise DataError(f"cannot read {builder} data {first}: {first_line(cause)}") from error
    return dict(opened)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars of `datasets` unless a person watches."""
    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def first_line(error: Any) -> str:
    """Return the first line of an error, or its type when it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _split_of(file: Path, root: Path) -> str | None:
    word = re.match(r"[A-Za-z]+", file.stem)
    found = split_alias(word.group()) if word else None
    folders = reversed(file.relative_to(root).parts[:-1])
    return found or next((alias for folder in folders if (alias := split_alias(folder))), None)
