"""Parquet files, alone or in a folder laid out as on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from reskit.data.kinds.base import SOURCES, Found, SourceKind, group_by_split, load_files

__all__ = ["open_parquet"]


def _files(location: str) -> list[Path]:
    path = Path(location)
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    if not path.is_dir():
        return []
    # The Hub's layouts are data/train-x.parquet and default/train/0000.parquet; the third level is asked by
    # name, so that a large image folder is not listed whole.
    named = [f"*/{split}/*.parquet" for split in ("train", "validation", "test")]
    return [file for pattern in ("*.parquet", "*/*.parquet", *named) for file in path.glob(pattern)]


def open_parquet(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Open Parquet files; `datasets` keeps its Arrow copy in its own cache, never beside the data."""
    path = Path(location)
    root = path if path.is_dir() else path.parent
    groups, notes = group_by_split(_files(location), root)
    return Found(load_files("parquet", groups, cache_dir), root=root, notes=notes)


SOURCES.add(
    "parquet",
    SourceKind(
        title="Parquet",
        looks_like="a .parquet file or a folder of them",
        order=30,
        matches=lambda location: bool(_files(location)),
        open=open_parquet,
    ),
)
