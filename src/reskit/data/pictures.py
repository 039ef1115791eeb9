"""Pictures without labels: a folder, or the image column of whatever else `open_source` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from reskit.data.config import DataConfig
from reskit.data.kinds.base import IMAGE_SUFFIXES, split_alias
from reskit.data.seeds import derive_seed
from reskit.data.sources import Source
from reskit.data.split import Split
from reskit.errors import DataError

__all__ = ["below", "divide", "list_pictures", "open_pictures", "split_folders"]


def open_pictures(data: DataConfig, *, seed: int) -> Source:
    """Open a folder of pictures.

    Sub-folders called train, validation and test (or as one usually writes them) are splits; else all
    pictures below the folder are training ones, and those of `data.test`, or a part of them, are held out.

    Args:
        data: ``path``, ``test``, ``on_corrupt``, ``holdout`` and ``validation`` are read.
        seed: of what is held out.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    if data.path is None:
        raise DataError("this task has no embedded data: name a folder of pictures with --data")
    root = Path(data.path).expanduser()
    found, roots, notes = list_pictures(root), {}, []
    if data.test is not None:
        roots["test"] = Path(data.test).expanduser()
        found["test"] = [path for paths in list_pictures(roots["test"]).values() for path in paths]
        notes.append(f"held out: all {len(found['test'])} pictures of {data.test}")
    tables = {
        name: datasets.Dataset.from_dict(
            {"image": [path.relative_to(roots.get(name, root)).as_posix() for path in paths]},
            features=datasets.Features({"image": datasets.Value("string")}),
        )
        for name, paths in found.items()
    }
    tables = divide(tables, data, seed=seed, notes=notes)
    splits = {
        name: Split(name, table, column="image", root=roots.get(name, root), on_corrupt=data.on_corrupt)
        for name, table in tables.items()
    }
    return Source("pictures", str(root), splits, {"image": "image"}, notes, title="folder of pictures")


def list_pictures(root: Path) -> dict[str, list[Path]]:
    """Return the picture files of a folder by split, sorted; all are ``train`` where no folder names one.

    Raises:
        DataError: it is no folder, or holds none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder" if root.exists() else f"no such folder: {root}")
    places = split_folders(root)
    found = {name: [path for folder in folders for path in below(folder)] for name, folders in places.items()}
    for name, folders in places.items():
        if not found[name]:
            suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise DataError(f"{folders[0]} holds no pictures: looked for {suffixes} files")
    return found


def split_folders(root: Path) -> dict[str, list[Path]]:
    """Return the sub-folders that are called as splits; the folder itself as ``train`` where none is.

    Raises:
        DataError: several are, and none is for training.
    """
    named: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and (name := split_alias(folder.name)):
            named.setdefault(name, []).append(folder)
    if len(named) > 1 and "train" not in named:
        raise DataError(f"{root} has the splits {', '.join(sorted(named))} but no 'train'")
    return named if "train" in named else {"train": [root]}


def divide(
    tables: dict[str, datasets.Dataset], data: DataConfig, *, seed: int, notes: list[str]
) -> dict[str, datasets.Dataset]:
    """Draw what is held out, and what epochs are chosen by, from ``train`` where there are no such splits.

    With nothing to hold out (`data.holdout` is 0), examples that are not split are all taken for ``test``.

    Raises:
        DataError: nothing would be left to train on.
    """
    tables = dict(tables)
    if not data.holdout and set(tables) == {"train"}:
        return {"test": tables["train"]}
    for name, part in (("test", data.holdout), ("validation", data.validation)):
        if not part or name in tables or (name == "test" and len(tables) > 1):
            continue
        count = len(tables["train"])
        drawn = round(part * count) or 1
        if drawn >= count:
            raise DataError(f"{count} examples are too few to hold out {part:.0%} of them as {name}")
        order = _order(count, data, derive_seed(seed, name))
        notes.append(f"no {name} split was found: {drawn} of {count} examples were held out ({data.draw})")
        tables[name] = tables["train"].select(sorted(order[-drawn:]))
        tables["train"] = tables["train"].select(sorted(order[:-drawn]))
    return {name: tables[name] for name in ("train", "validation", "test") if name in tables}


def _order(count: int, data: DataConfig, seed: int) -> Sequence[int]:
    if data.draw == "last":
        return range(count)
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def below(folder: Path) -> list[Path]:
    """Return the picture files at any depth of a folder, sorted; hidden ones and hidden folders left out."""

    def visible(path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(folder).parts)

    paths: Any = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in paths if visible(path) and path.is_file())
