"""Masks of COCO's annotations: polygons and run lengths of objects, or panoptic pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from reskit.data.coco import categories_of, looks_like_coco, read_annotations, split_of
from reskit.data.images import IGNORED, read_array
from reskit.data.kinds.base import split_alias
from reskit.data.mask_drawing import draw_object
from reskit.data.masks import MOST_CLASSES, MaskCoding, Values
from reskit.errors import DataError

__all__ = ["CocoMasks", "annotation_files", "open_coco_masks"]

_OTHERS = ("captions", "keypoints", "image_info")
BACKGROUND = "background"


class CocoMasks:
    """Masks drawn from annotations, an image a row.

    Objects are drawn from large to small, so that what is small stays visible on what is large.

    Args:
        annotations: JSON of each row, as `open_coco_masks` writes it.
        root: folder that the pictures of panoptic annotations start from.
    """

    def __init__(self, annotations: Sequence[str], root: Path | None) -> None:
        self.annotations, self.root = annotations, root

    @staticmethod
    def coding(classes: Sequence[str]) -> MaskCoding:
        """Return what `values` gives: indices of classes."""
        note = f"masks are drawn from annotations of {len(classes)} classes"
        return MaskCoding(tuple(classes), tuple(range(len(classes))), (IGNORED,), note, guessed=False)

    def values(self, row: int) -> Values:
        """See `MaskReader.values`."""
        found = json.loads(self.annotations[row])
        if "picture" in found:
            return self._panoptic(found, row)
        canvas = Image.new("L", (found["width"], found["height"]), 0)
        for part in sorted(found["objects"], key=lambda part: -part["area"]):
            draw_object(canvas, part["class"], part["segmentation"], self.name(row))
        return np.asarray(canvas).astype(np.int64)

    def name(self, row: int) -> str:
        """See `MaskReader.name`."""
        return f"of {json.loads(self.annotations[row])['name']}"

    def content(self, row: int) -> bytes:
        """See `MaskReader.content`."""
        found = json.loads(self.annotations[row])
        picture = self._place(found["picture"]).read_bytes() if "picture" in found else b""
        return self.annotations[row].encode() + picture

    def _place(self, picture: str) -> Path:
        return Path(picture) if self.root is None else self.root / picture

    def _panoptic(self, found: Mapping[str, Any], row: int) -> Values:
        """Return the classes of a picture whose colours are numbers: red + 256 green + 65536 blue."""
        pixels = read_array(self._place(found["picture"]), 3).astype(np.int64)
        numbers = pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16
        values = np.full(numbers.shape, IGNORED, dtype=np.int64)  # 0 is no segment
        classes = {int(number): int(index) for number, index in found["segments"].items()}
        for number in np.unique(numbers).tolist():
            if number and number not in classes:
                raise DataError(
                    f"mask {self.name(row)}: {found['picture']} holds segment {number}, not listed"
                )
            if number:
                values[numbers == number] = classes[number]
        return values


def annotation_files(root: Path) -> dict[str, Path]:
    """Return the files of annotations by split: a file itself, or those of a folder.

    Looked for are ``*.json``, also in ``annotations`` and in a folder a split, whose name or folder says the
    split; objects come before panoptic ones. One alone is for training.
    """
    if root.is_file():
        return {"train": root} if root.suffix.lower() == ".json" else {}
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    files = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    files = [path for path in files if looks_like_coco(path, others=_OTHERS)]
    files.sort(key=lambda path: "panoptic" in path.stem.lower())
    named: dict[str, Path] = {}
    for path in files:
        if split := split_of(path, root):
            named.setdefault(split, path)
    return named or ({"train": files[0]} if len(files) == 1 else {})


def open_coco_masks(
    root: Path, files: Mapping[str, Path]
) -> tuple[dict[str, datasets.Dataset], list[str], list[str]]:
    """Read files of annotations.

    Returns:
        tables by split with the columns ``image`` and ``mask`` (JSON), the classes, and notes. Objects have
        the class ``background`` around them; what panoptic annotations leave out has no label.

    Raises:
        DataError: a file is malformed, or splits have different categories.
    """
    root = root.parent if root.is_file() else root
    tables: dict[str, datasets.Dataset] = {}
    known: dict[int, str] | None = None
    panoptic = False
    for split, path in files.items():
        content = read_annotations(path, what="annotations")
        categories = categories_of(content, path)
        if known is not None and categories != known:
            raise DataError(f"{path} has other categories than the other splits")
        known = categories
        panoptic = any("segments_info" in entry for entry in content["annotations"])
        rows = _rows(content, path, root, list(categories), panoptic=panoptic)
        columns = {"image": [image for image, _ in rows], "mask": [mask for _, mask in rows]}
        tables[split] = datasets.Dataset.from_dict(columns)
    assert known is not None
    classes = list(known.values()) if panoptic else [BACKGROUND, *known.values()]
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{len(classes)} classes are more than {MOST_CLASSES}, which masks can hold here")
    return tables, classes, [f"annotations: {', '.join(str(path.name) for path in files.values())}"]


def _rows(
    content: Mapping[str, Any], path: Path, root: Path, ids: Sequence[int], *, panoptic: bool
) -> list[tuple[str, str]]:
    """Return the path of each image and its annotations as JSON.

    Raises:
        DataError: an entry is malformed; it says which.
    """
    images: dict[Any, dict[str, Any]] = {}
    for entry in content["images"]:
        try:
            images[entry["id"]] = {
                "name": str(entry["file_name"]),
                "height": int(entry["height"]),
                "width": int(entry["width"]),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: an image lacks id, file_name, height or width ({error!r})") from None
    number = {category: place + (not panoptic) for place, category in enumerate(ids)}
    found: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry.get('id') if isinstance(entry, dict) else entry!r}"
        try:
            image = entry["image_id"]
            part = _segments(entry, number) if panoptic else _object(entry, number)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{where} is malformed ({error!r})") from None
        if image not in images:
            raise DataError(f"{where} is of image {image!r}, which is not among the images")
        found[image].append(part)
    base = _folder(path, root, [image["name"] for image in images.values()])
    if not panoptic:
        return [
            (_relative(base / image["name"], root), json.dumps({**image, "objects": found[key]}))
            for key, image in images.items()
        ]
    pictures = {key: parts[0] for key, parts in found.items()}  # an image without any is left aside
    labels = _folder(path, root, [part["picture"] for part in pictures.values()], [path.stem])
    return [
        (
            _relative(base / images[key]["name"], root),
            json.dumps({**images[key], **part, "picture": _relative(labels / part["picture"], root)}),
        )
        for key, part in pictures.items()
    ]


def _object(entry: Mapping[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """Return one object: its class, its shape, and its area, which orders the drawing."""
    shape = entry["segmentation"]
    if isinstance(shape, Mapping):
        counts = shape["counts"]
        counts = counts if isinstance(counts, str) else [int(count) for count in counts]
        shape = {"size": [int(side) for side in shape["size"]], "counts": counts}
    else:
        shape = [[float(value) for value in polygon] for polygon in shape]
        if any(len(polygon) % 2 for polygon in shape):
            raise ValueError("a polygon has an odd number of coordinates")
    area = float(entry.get("area") or 0.0)
    return {"class": number[int(entry["category_id"])], "segmentation": shape, "area": area}


def _segments(entry: Mapping[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """Return the picture of an image's segments, and the class of each."""
    segments = {str(int(part["id"])): number[int(part["category_id"])] for part in entry["segments_info"]}
    return {"picture": str(entry["file_name"]), "segments": segments}


def _folder(path: Path, root: Path, names: Sequence[str], words: Sequence[str] = ()) -> Path:
    """Return the folder that pictures are named from: the first in which the first one is.

    Raises:
        DataError: it is in none.
    """
    if not names:
        raise DataError(f"{path} lists no pictures")
    own = path.parent.name if path.parent != root else ""
    split = [word for word in path.stem.split("_") if split_alias(word.rstrip("0123456789"))]
    below = [word for word in (*words, *split, own) if word]
    tried = [path.parent, *(path.parent / word for word in words), *(root / word for word in below)]
    tried += [root / "images" / word for word in below] + [root / "images", root]
    for folder in tried:
        if (folder / names[0]).is_file():
            return folder
    looked = ", ".join(dict.fromkeys(str(folder) for folder in tried))
    raise DataError(f"{path} names {names[0]!r}, which is in none of {looked}")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.resolve())
