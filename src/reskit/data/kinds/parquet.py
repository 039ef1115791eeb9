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
    # Hub layouts are at most data/x.parquet or default/train/0000.parquet deep.
    return [file for depth in ("*", "*/*", "*/*/*") for file in path.glob(f"{depth}.parquet")]


def open_parquet(location: str, cache_dir: Path | None) -> Found:
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
