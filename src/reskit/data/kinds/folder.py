"""Folders of files: one sub-folder a class, with or without split folders above them."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from reskit.data.kinds.base import SOURCES, Found, SourceKind, split_alias
from reskit.errors import DataError

__all__ = ["FILE", "open_folder"]

FILE = "file"
"""The column with paths."""

_HIDDEN = {"thumbs.db", "desktop.ini", "__macosx"}


def open_folder(location: str, cache_dir: Path | None, suffixes: frozenset[str]) -> Found:
    """List the files of a folder that are examples; only paths are kept, their contents stay on disk.

    Raises:
        DataError: there is none, or they lie outside class sub-folders.
    """
    root = Path(location)
    folders = _subfolders(root)
    by_split: dict[str, list[Path]] = {}
    notes: list[str] = []
    if any(split_alias(folder.name) == "train" for folder in folders):
        for folder in folders:
            split = split_alias(folder.name)
            if split is None:
                notes.append(f"folder {folder.name!r} is beside the splits and was left aside")
            else:
                by_split.setdefault(split, []).append(folder)
    else:
        by_split["train"] = [root]
    strangers: list[str] = []
    splits = {name: _list_split(root, places, suffixes, strangers) for name, places in by_split.items()}
    notes += [
        f"split {name!r} has no class sub-folders with such files"
        for name, rows in splits.items()
        if not rows
    ]
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        notes.append(f"{len(strangers)} files of other kinds were left aside: {shown}")
    classes = sorted({name for rows in splits.values() for _, name in rows})
    if not classes:
        raise DataError(_nothing_found(root, suffixes))
    features = datasets.Features(
        {FILE: datasets.Value("string"), "label": datasets.ClassLabel(names=classes)}
    )
    tables = {
        name: datasets.Dataset.from_dict(
            {FILE: [path for path, _ in rows], "label": [label for _, label in rows]}, features=features
        )
        for name, rows in splits.items()
        if rows
    }
    return Found(tables, root=root, notes=notes, column=FILE, label_column="label")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name.lower() not in _HIDDEN
    )


def _list_split(
    root: Path, places: list[Path], suffixes: frozenset[str], strangers: list[str]
) -> list[tuple[str, str]]:
    """Return ``(path relative to root, class)`` of every example, sorted; note what is none."""
    rows: list[tuple[str, str]] = []
    for place in places:
        for folder in _subfolders(place):
            for here, inner, files in os.walk(folder):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                for file in sorted(files):
                    if file.startswith(".") or file.lower() in _HIDDEN:
                        continue
                    path = (Path(here) / file).relative_to(root).as_posix()
                    if Path(file).suffix.lower() in suffixes:
                        rows.append((path, folder.name))
                    else:
                        strangers.append(path)
    return rows


def _nothing_found(root: Path, suffixes: frozenset[str]) -> str:
    if not any(root.iterdir()):
        return f"{root} is empty: expected one sub-folder a class with files in it"
    flat = sum(entry.suffix.lower() in suffixes for entry in root.iterdir())
    if flat:
        return (
            f"{root} holds {flat} files but no class sub-folders: put each class in its own folder, "
            "or give a CSV file with their labels"
        )
    return (
        f"{root} holds no examples: looked for class sub-folders with "
        f"{', '.join(sorted(suffix[1:] for suffix in suffixes))} files, Parquet files, .tar shards, "
        "CSV files and a folder of save_to_disk"
    )


SOURCES.add(
    "folder",
    SourceKind(
        title="folder",
        looks_like="a folder with one sub-folder a class",
        order=90,
        matches=lambda location: Path(location).is_dir(),
        open=open_folder,
    ),
)
