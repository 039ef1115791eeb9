"""Folders written by `datasets` with ``save_to_disk``."""

from __future__ import annotations

from pathlib import Path

import datasets

from reskit.data.kinds.base import SOURCES, Found, SourceKind, first_line, quiet, split_alias
from reskit.errors import DataError

__all__ = ["open_arrow"]


def _matches(location: str) -> bool:
    path = Path(location)
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def open_arrow(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Map the Arrow files of a saved `Dataset` or `DatasetDict`.

    Raises:
        DataError: the folder is damaged.
    """
    with quiet():
        try:
            opened = datasets.load_from_disk(location)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"cannot read the saved data set {location}: {first_line(error)}") from error
    if isinstance(opened, datasets.Dataset):
        return Found({"train": opened})
    return Found(*named_splits(opened))


def named_splits(opened: datasets.DatasetDict) -> tuple[dict[str, datasets.Dataset], Path | None, list[str]]:
    """Return the splits under their usual names, no root, and a note for each other split."""
    known = {alias: split for name, split in opened.items() if (alias := split_alias(name))}
    others = [name for name in opened if split_alias(name) is None]
    if not known and len(opened) == 1:
        return {"train": next(iter(opened.values()))}, None, []
    return known, None, [f"split {name!r} was left aside" for name in others]


SOURCES.add(
    "arrow",
    SourceKind(
        title="saved data set",
        looks_like="a folder written by datasets' save_to_disk",
        order=20,
        matches=_matches,
        open=open_arrow,
    ),
)
