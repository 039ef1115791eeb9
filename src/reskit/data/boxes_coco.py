"""COCO's format: JSON of images, annotations and categories; a box is left, top, width, height in pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reskit.data.boxes import Annotated, Found
from reskit.data.coco import categories_of, looks_like_coco, read_annotations, split_of
from reskit.data.kinds.base import split_alias
from reskit.errors import DataError

__all__ = ["annotation_files", "open_coco"]

_OTHERS = ("captions", "keypoints", "panoptic", "image_info")


def annotation_files(root: Path) -> dict[str, Path]:
    """Return the files of annotations by split: a file itself, those of a folder, or one in a folder a split.

    Looked for are ``*.json`` of which the name, or the folder, says the split (``instances_train2017.json``,
    ``train/_annotations.coco.json``); one alone is for training. Captions and key points are left aside.
    """
    if root.is_file():
        return {"train": root} if root.suffix.lower() == ".json" else {}
    files = [path for pattern in ("*.json", "annotations/*.json", "*/*.json") for path in root.glob(pattern)]
    files = [path for path in dict.fromkeys(sorted(files)) if looks_like_coco(path, others=_OTHERS)]
    named = {split: path for path in files if (split := split_of(path, root))}
    return named if named else {"train": files[0]} if len(files) == 1 else {}


def open_coco(root: Path, files: Mapping[str, Path]) -> Found:
    """Read files of annotations.

    Categories are numbered anew in the order of their ids. Crowds (``iscrowd``) are left out. Pictures are
    looked for where the file is, and in folders named as its split, ``images`` or both.

    Raises:
        DataError: a file is malformed; it says at which entry.
    """
    if root.is_file():
        root = root.parent.parent if root.parent.name == "annotations" else root.parent
    notes: list[str] = []
    read = {split: read_annotations(path, what="boxes") for split, path in files.items()}
    categories = {split: categories_of(content, files[split]) for split, content in read.items()}
    first = next(iter(categories.values()))
    for split, found in categories.items():
        if found != first:
            raise DataError(f"{files[split]} has other categories than {next(iter(files.values()))}")
    splits = {
        split: _pictures(content, files[split], root, list(first), notes) for split, content in read.items()
    }
    return Found(list(first.values()), splits, root, notes)


def _pictures(
    content: Mapping[str, Any], path: Path, root: Path, ids: Sequence[int], notes: list[str]
) -> list[Annotated]:
    """Return the pictures of one file with their boxes."""
    number = {category: place for place, category in enumerate(ids)}
    sizes: dict[Any, tuple[int, int]] = {}
    files: dict[Any, str] = {}
    for entry in content["images"]:
        try:
            files[entry["id"]] = str(entry["file_name"])
            sizes[entry["id"]] = (int(entry["height"]), int(entry["width"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: an image lacks id, file_name, height or width ({error!r})") from None
        if min(sizes[entry["id"]]) < 1:
            raise DataError(f"{path}: image {entry['id']} has no size")
    boxes, where, crowds = defaultdict(list), defaultdict(list), 0
    for entry in content["annotations"]:
        crowds += bool(isinstance(entry, dict) and entry.get("iscrowd"))
        if not isinstance(entry, dict) or not entry.get("iscrowd"):
            image, box = _box(entry, path, sizes, number)
            boxes[image].append(box)
            where[image].append(f"{path.name}, annotation {entry.get('id')}")
    if crowds:
        notes.append(f"{crowds} crowds of {path.name} were left out")
    base = _folder(path, root, next(iter(files.values()), ""))
    return [
        Annotated(
            (base / name).relative_to(root).as_posix()
            if (base / name).is_relative_to(root)
            else str(base / name),
            np.array(boxes[image], dtype=np.float64).reshape(-1, 5),
            where[image],
            sizes[image],
        )
        for image, name in files.items()
    ]


def _box(
    entry: Any, path: Path, sizes: Mapping[Any, tuple[int, int]], number: Mapping[int, int]
) -> tuple[Any, list[float]]:
    """Return the image of an annotation and its box, as parts of the image's sides, with its class."""
    where = f"{path}: annotation {entry.get('id') if isinstance(entry, dict) else entry!r}"
    try:
        image, category = entry["image_id"], int(entry["category_id"])
        x, y, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} lacks image_id, category_id or a bbox of four numbers ({error!r})"
        ) from None
    if image not in sizes:
        raise DataError(f"{where} is of image {image}, which is not among the images")
    if category not in number:
        raise DataError(f"{where} is of category {category}, which is not among the categories")
    if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
        raise DataError(f"{where} has the bbox {entry['bbox']}: left, top, width and height are wanted")
    tall, wide = sizes[image]
    return image, [x / wide, y / tall, (x + width) / wide, (y + height) / tall, number[category]]


def _folder(path: Path, root: Path, first: str) -> Path:
    """Return the folder that pictures are named from: the first in which the first one is."""
    own = path.parent.name if path.parent != root else ""
    words = [word for word in path.stem.split("_") if split_alias(word.rstrip("0123456789"))] + [own]
    tried = [path.parent, *(root / word for word in words if word)]
    tried += [root / "images" / word for word in words if word] + [root / "images", root]
    found = next((folder for folder in tried if (folder / first).is_file()), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(str(folder) for folder in tried))
        raise DataError(f"{path} names {first!r}, which is in none of {looked}")
    return found
