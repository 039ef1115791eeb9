"""Pictures with boxes around objects: where they lie, in YOLO's or COCO's format, and one split of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from reskit.data.config import DataConfig
from reskit.data.pictures import divide
from reskit.data.sources import Source
from reskit.data.split import OnCorrupt, Split
from reskit.errors import DataError

__all__ = ["Annotated", "BoxSplit", "Boxes", "Found", "open_boxes"]

Boxes = npt.NDArray[np.float64]
"""Objects of one picture `(n, 5)`: left, top, right and bottom as parts of its sides, and the class index."""

_EVERYWHERE = 1e-9  # a box thinner than this part of a side is none


@dataclass(frozen=True)
class Annotated:
    """One picture of a data set.

    Attributes:
        path: the picture, relative to the root of its split.
        boxes: as they were written; `cleaned` cuts them to the picture.
        where: what each box is to a person, such as ``labels/a.txt, line 3``.
        size: `(height, width)` that the annotations are for, where they say it.
    """

    path: str
    boxes: Boxes
    where: Sequence[str]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Found:
    """What a format found in a folder.

    Attributes:
        classes: names of the classes.
        splits: pictures by split.
        root: what their paths are relative to.
        notes: what was decided or left aside, in words.
    """

    classes: list[str]
    splits: Mapping[str, list[Annotated]]
    root: Path
    notes: list[str] = field(default_factory=list)


class BoxSplit(Split):
    """Pictures with boxes.

    Args:
        pictures: of every row, the boxes cleaned.
        *args, **settings: as `Split`.
    """

    def __init__(self, *args: Any, pictures: Sequence[Annotated], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.pictures = list(pictures)

    def counts(self) -> dict[str, int]:
        """Return how many pictures in use show each class."""
        shown = [set(self.pictures[row].boxes[:, 4].astype(int).tolist()) for row in self.rows]
        return {name: sum(place in found for found in shown) for place, name in enumerate(self.classes)}

    def target_bytes(self) -> bytes:
        """See `Split.target_bytes`."""
        counts = np.array([len(picture.boxes) for picture in self.pictures], dtype=np.int64)
        return counts.tobytes() + b"".join(picture.boxes.tobytes() for picture in self.pictures)

    def boxes(self, row: int, size: tuple[int, int]) -> Boxes:
        """Return the boxes of a row in pixels of its picture.

        Args:
            row: its number.
            size: `(height, width)` of the picture as it was read.

        Raises:
            DataError: the boxes were drawn on a picture of another size.
        """
        picture = self.pictures[row]
        if picture.size is not None and picture.size != size:
            said, true = ("x".join(map(str, sides)) for sides in (picture.size, size))
            raise DataError(
                f"{self.row_name(row)}: the annotations are for {said} pixels (height x width), the picture"
                f" has {true}"
            )
        height, width = size
        return picture.boxes * (width, height, width, height, 1)


def open_boxes(data: DataConfig, *, seed: int) -> Source:
    """Open pictures with boxes; which format they are in is found by looking.

    Args:
        data: ``path``, ``test``, ``on_corrupt``, ``holdout``, ``draw`` and ``validation`` are read.
        seed: of what is held out.

    Raises:
        DataError: there are no such data, or they are wrong; it says in which file and where.
    """
    if data.path is None:
        raise DataError(
            "this task has no embedded data: name a folder in YOLO's or COCO's format with --data"
        )
    found, title = _look(Path(data.path).expanduser())
    roots = dict.fromkeys(found.splits, found.root)
    pictures, notes = dict(found.splits), list(found.notes)
    if data.test is not None:
        other, _ = _look(Path(data.test).expanduser())
        if other.classes != found.classes:
            raise DataError(f"{data.test} has other classes than {data.path}: {other.classes[:5]}, ...")
        pictures["test"] = [picture for several in other.splits.values() for picture in several]
        roots["test"] = other.root
        notes.append(f"held out: all {len(pictures['test'])} pictures of {data.test}")
    if len(pictures) == 1:  # one split, whatever it is called, is divided
        pictures, roots = {"train": next(iter(pictures.values()))}, {"train": found.root}
    if "train" not in pictures:
        raise DataError(f"{data.path} has the splits {', '.join(pictures)} but no 'train'")
    pictures = {
        name: [_cleaned(picture, data.on_corrupt, notes) for picture in several]
        for name, several in pictures.items()
    }
    splits = _splits(pictures, roots, found.classes, data, seed=seed, notes=notes)
    return Source(
        "boxes", str(data.path), splits, {"image": "image", "boxes": "boxes"}, _merged(notes), title=title
    )


def _look(root: Path) -> tuple[Found, str]:
    """Open a place in whichever format it is.

    Raises:
        DataError: it is in none.
    """
    from reskit.data import boxes_coco, boxes_yolo

    if not root.exists():
        raise DataError(f"no such folder: {root}")
    if files := boxes_coco.annotation_files(root):
        return boxes_coco.open_coco(root, files), "pictures with boxes (COCO)"
    if root.is_dir() and boxes_yolo.looks_like(root):
        return boxes_yolo.open_yolo(root), "pictures with boxes (YOLO)"
    raise DataError(
        f"cannot tell what {root} is; looked for COCO's JSON with images, annotations and categories (in the"
        " folder, in annotations/ or in a folder a split), and for YOLO's folders images/ and labels/ with a"
        " data.yaml that names the classes"
    )


def _splits(
    pictures: Mapping[str, list[Annotated]],
    roots: Mapping[str, Path],
    classes: list[str],
    data: DataConfig,
    *,
    seed: int,
    notes: list[str],
) -> dict[str, Split]:
    """Return the splits, drawing those that are missing."""
    for name, several in pictures.items():
        if not several:
            raise DataError(f"split {name!r} of {data.path} holds no pictures")
    tables = {
        name: datasets.Dataset.from_dict(
            {"image": [picture.path for picture in several]},
            features=datasets.Features({"image": datasets.Value("string")}),
        )
        for name, several in pictures.items()
    }
    tables = divide(tables, data, seed=seed, notes=notes)
    known = {
        (root, picture.path): picture
        for name, several in pictures.items()
        for root in [roots[name]]
        for picture in several
    }
    splits: dict[str, Split] = {}
    for name, table in tables.items():
        root = roots.get(name, roots["train"])
        splits[name] = BoxSplit(
            name,
            table,
            column="image",
            classes=classes,
            root=root,
            on_corrupt=data.on_corrupt,
            pictures=[known[root, path] for path in table["image"]],
        )
    return splits


def _cleaned(picture: Annotated, on_corrupt: OnCorrupt, notes: list[str]) -> Annotated:
    """Return a picture with its boxes cut to it, those without an area left out.

    Raises:
        DataError: a box lies outside altogether, and such are refused.
    """
    boxes, kept = picture.boxes.copy(), []
    boxes[:, :4] = boxes[:, :4].clip(0, 1)
    for place, (raw, cut) in enumerate(zip(picture.boxes, boxes, strict=True)):
        where = picture.where[place]
        if (cut[2:4] - cut[:2] > _EVERYWHERE).all():
            kept.append(place)
            # A box written with few digits sticks out by less than this, which needs no words.
            if np.abs(raw[:4] - cut[:4]).max() > 5e-3:
                notes.append(f"boxes that stick out of their picture were cut: {where}")
        elif (raw[2:4] - raw[:2] > _EVERYWHERE).all():
            if on_corrupt == "refuse":
                raise DataError(
                    f"{where}: the box lies outside of its picture {picture.path}; coordinates are from 0 to"
                    " 1 in YOLO's format and pixels in COCO's; mend it, or leave such boxes out:"
                    " --set data.on_corrupt=skip in train, --skip-corrupt in evaluate"
                )
            notes.append(f"boxes outside of their picture were left out: {where}")
        else:
            notes.append(f"boxes without an area were left out: {where}")
    return Annotated(picture.path, boxes[kept], [picture.where[place] for place in kept], picture.size)


def _merged(notes: Sequence[str]) -> list[str]:
    """Return notes, those of one kind (what stands before the colon) as one with the first places."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kind, colon, where = note.partition(": ")
        several = kind.startswith("boxes ") and colon
        kinds.setdefault(kind if several else note, []).append(where if several else "")
    merged = []
    for kind, places in kinds.items():
        shown = ", ".join(f"({place})" for place in places[:3]) + (", ..." if len(places) > 3 else "")
        merged.append(f"{len(places)} {kind}: {shown}" if places[0] else kind)
    return merged
