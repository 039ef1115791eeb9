"""Images to learn from without labels, with the classes the place happens to know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from reskit.data.config import DataConfig
from reskit.data.kinds.base import split_alias
from reskit.data.pictures import list_pictures, open_pictures
from reskit.data.sources import Source, kind_of, open_labelled
from reskit.data.split import LabelledSplit, Split

__all__ = ["open_classed"]


def open_classed(data: DataConfig, *, seed: int) -> Source:
    """Open images that need no labels.

    A folder of pictures gives all of them, as `open_pictures` does. Where every picture lies in a sub-folder
    of its split, the name of the sub-folder is its class, and held-out splits may have classes that
    ``train`` has not. What is held out of classes at random is drawn from each, as `open_source` does, which
    also opens any other place.

    Args:
        data: what a recipe says of data.
        seed: of what is held out.

    Raises:
        DataError: the place is not there, not understood, or holds no pictures.
    """
    if data.path is None or not _is_picture_folder(data.path) or _to_draw_by_class(data):
        return open_labelled(data, seed=seed)
    source = open_pictures(data, seed=seed)
    found = {name: _classes_of(split) for name, split in source.splits.items()}
    if None in set().union(*found.values()):
        return source
    if "train" in found and set(found["train"]).isdisjoint(found[source.held_out]):
        source.notes.append(
            f"no sub-folder of {source.held_out} is one of train: they are not taken for classes"
        )
        return source
    names = sorted(str(name) for name in set().union(*found.values()))
    splits = {name: _labelled(split, found[name], names) for name, split in source.splits.items()}
    columns = {**source.columns, "label": "sub-folder"}
    return Source(source.kind, source.location, splits, columns, source.notes, title=source.title)


def _is_picture_folder(path: str) -> bool:
    """Tell whether a place is a folder of none but pictures.

    Raises:
        DataError: it is not there, or of no kind.
    """
    return kind_of(str(Path(path).expanduser())) == "folder"


def _to_draw_by_class(data: DataConfig) -> bool:
    """Tell whether a folder is of classes that must be divided, and each of them can be.

    Raises:
        DataError: it holds no pictures.
    """
    root = Path(str(data.path)).expanduser()
    if data.test is not None or not data.holdout or data.draw != "random":
        return False
    found = list_pictures(root)
    counts = Counter(_class_of(PurePosixPath(path.relative_to(root))) for path in found["train"])
    fewest = 3 if data.validation else 2
    return len(found) == 1 and None not in counts and len(counts) > 1 and min(counts.values()) >= fewest


def _classes_of(split: Split) -> list[str | None]:
    """Return the sub-folder of the split that each row lies in; None for a row that lies in none."""
    names: list[str] = split.dataset[split.column][:]
    return [_class_of(PurePosixPath(name)) for name in names]


def _class_of(path: PurePosixPath) -> str | None:
    folders = path.parts[:-1]
    if folders and split_alias(folders[0]) is not None:
        folders = folders[1:]
    return folders[0] if folders else None


def _labelled(split: Split, classes: list[str | None], names: list[str]) -> LabelledSplit:
    """Return a split with the classes of its rows."""
    index = {name: place for place, name in enumerate(names)}
    return LabelledSplit(
        split.name,
        split.dataset,
        column=split.column,
        classes=names,
        root=split.root,
        on_corrupt=split.on_corrupt,
        cache_dir=split.cache_dir,
        labels=np.array([index[str(name)] for name in classes], dtype=np.int64),
    )
