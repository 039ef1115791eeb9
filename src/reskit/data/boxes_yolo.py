"""YOLO's format: a text file a picture, a line an object: class, centre x, y, width, height from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reskit.data.boxes import Annotated, Found
from reskit.data.kinds.base import IMAGE_SUFFIXES, split_alias
from reskit.data.pictures import below, split_folders
from reskit.errors import DataError

__all__ = ["looks_like", "open_yolo"]

_KEYS = ("train", "val", "test")


def looks_like(root: Path) -> bool:
    """Tell whether a folder has a file of names, or labels beside images."""
    return _names_file(root) is not None or any(
        (root / folder).is_dir() for folder in ("labels", "train/labels")
    )


def open_yolo(root: Path) -> Found:
    """Read a folder.

    Which pictures are of which split, the file of names says (``train``, ``val``, ``test``: a folder, a text
    file of paths, or a list of either), else the folders do: ``images/train`` or ``train/images``; else all
    are training ones. The labels of ``images/a.jpg`` are in ``labels/a.txt``, or beside it.

    Raises:
        DataError: a file is malformed; it names file and line.
    """
    names_file = _names_file(root)
    if names_file is None:
        raise DataError(
            f"{root} does not say what its classes are called: add a data.yaml with `names:`, a list in the"
            " order of their numbers, or a classes.txt with a name a line"
        )
    classes, config = _names(names_file)
    notes: list[str] = []
    listed = _listed(root, names_file, config, notes)
    splits, without = {}, 0
    for split, pictures in (listed or _by_folder(root)).items():
        read = [_annotated(path, root, classes) for path in pictures]
        without += sum(picture is None for _, picture in read)
        splits[split] = [found or Annotated(path, np.zeros((0, 5)), []) for path, found in read]
    if not any(splits.values()):
        suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise DataError(f"{root} holds no pictures: looked for {suffixes} files")
    if without:
        notes.append(f"{without} pictures have no label file: taken to show no object")
    return Found(classes, splits, root, notes)


def _names_file(root: Path) -> Path | None:
    """Return the file that names the classes: YAML with ``names``, or ``classes.txt``."""
    if not root.is_dir():
        return None
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        config = _yaml(path)
        if isinstance(config, Mapping) and "names" in config:
            return path
    path = root / "classes.txt"
    return path if path.is_file() else None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _names(path: Path) -> tuple[list[str], Mapping[str, Any]]:
    """Return the class names in the order of their numbers, and all else the file says."""
    if path.suffix == ".txt":
        return [line.strip() for line in _lines(path) if line.strip()], {}
    config = _yaml(path)
    names = config["names"]
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise DataError(
                f"{path}: names must have the numbers 0 to {len(names) - 1}, has {sorted(names)[:9]}"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names must be a list of class names, or numbers with names")
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class name is there twice")
    return names, config


def _listed(root: Path, file: Path, config: Mapping[str, Any], notes: list[str]) -> dict[str, list[Path]]:
    """Return the pictures of the splits a file of names lists; nothing where it lists none that is there."""
    base = root / str(config.get("path") or ".")
    base = base if base.is_dir() else root
    found: dict[str, list[Path]] = {}
    missing = []
    for key in _KEYS:
        entries = config.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            places = [base / str(entry), root / str(entry), root / str(entry).removeprefix("../")]
            place = next((place for place in places if place.exists()), None)
            if place is None:
                missing.append(f"{key}: {entry}")
            else:
                found.setdefault(str(split_alias(key)), []).extend(_pictures(place))
    if missing:
        what = "pictures were looked for in its folder" if not found else "left aside"
        notes.append(f"{file.name} names what is not there ({', '.join(missing)}): {what}")
    if found and "train" not in found:
        raise DataError(
            f"{file} lists no training pictures that are there: {', '.join(missing) or 'no train'}"
        )
    return found


def _pictures(place: Path) -> list[Path]:
    """Return the pictures of a folder, or those a text file names, a path a line."""
    if place.is_dir():
        return below(place)
    lines = (line.strip() for line in _lines(place))
    return [place.parent / line for line in lines if line]


def _by_folder(root: Path) -> dict[str, list[Path]]:
    """Return the pictures of a folder by split, as folders of it are called."""
    images = root / "images" if (root / "images").is_dir() else root
    folders = split_folders(images)
    return {split: [path for place in places for path in below(place)] for split, places in folders.items()}


def _annotated(path: Path, root: Path, classes: list[str]) -> tuple[str, Annotated | None]:
    """Return the path of a picture from `root`, and what its label file says, where it has one."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    file = _label_file(path)
    if file is None:
        return name, None
    shown = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
    boxes, where = [], []
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            where.append(f"{shown}, line {number}")
            boxes.append(_box(line.split(), f"{file}, line {number}", classes))
    return name, Annotated(name, np.array(boxes, dtype=np.float64).reshape(-1, 5), where)


def _label_file(path: Path) -> Path | None:
    """Return the label file of a picture: in ``labels`` instead of the last ``images``, or beside it."""
    parts = list(path.with_suffix(".txt").parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    candidates: Iterable[Path] = (Path(*parts), path.with_suffix(".txt"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _box(values: list[str], where: str, classes: list[str]) -> list[float]:
    """Return left, top, right, bottom and class of a line; an outline of points becomes the box around it.

    Raises:
        DataError: it is no such line.
    """
    try:
        number, *rest = (float(value) for value in values)
    except ValueError:
        raise DataError(f"{where}: {' '.join(values)[:60]!r} are not numbers") from None
    outline = len(rest) >= 6 and len(rest) % 2 == 0
    if len(rest) != 4 and not outline:
        raise DataError(
            f"{where}: {len(values)} numbers; a box is 5: class, centre x, centre y, width, height"
        )
    if not np.isfinite([number, *rest]).all() or number != int(number) or number < 0:
        raise DataError(f"{where}: {' '.join(values)[:60]!r} is no class number and finite coordinates")
    if number >= len(classes):
        raise DataError(
            f"{where}: class {int(number)} is beyond the {len(classes)} names (0 to {len(classes) - 1})"
        )
    if outline:
        return [min(rest[::2]), min(rest[1::2]), max(rest[::2]), max(rest[1::2]), number]
    x, y, width, height = rest
    if width < 0 or height < 0:
        raise DataError(f"{where}: the box has a negative side ({width:g} x {height:g})")
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2, number]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
