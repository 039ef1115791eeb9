"""WebDataset: .tar shards in which files of one sample share a name."""

from __future__ import annotations

from pathlib import Path

from reskit.data.kinds.base import SOURCES, Found, SourceKind, group_by_split, load_files

__all__ = ["open_webdataset"]


def _shards(location: str) -> list[Path]:
    path = Path(location)
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    return [*path.glob("*.tar"), *path.glob("*/*.tar")] if path.is_dir() else []


def open_webdataset(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """Open .tar shards; the label is the ``cls`` member of a sample unless another column is named."""
    path = Path(location)
    root = path if path.is_dir() else path.parent
    groups, notes = group_by_split(_shards(location), root)
    return Found(load_files("webdataset", groups, cache_dir), notes=notes)


SOURCES.add(
    "webdataset",
    SourceKind(
        title="WebDataset",
        looks_like="a .tar shard or a folder of them",
        order=40,
        matches=lambda location: bool(_shards(location)),
        open=open_webdataset,
    ),
)
