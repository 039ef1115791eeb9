"""Where images with masks come from: folders of both, tables and the Hub, COCO's panoptic and polygons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import datasets

from reskit.data.coco_masks import CocoMasks, annotation_files, open_coco_masks
from reskit.data.column import IMAGES
from reskit.data.config import DataConfig
from reskit.data.kinds import SOURCES
from reskit.data.kinds.base import IMAGE_SUFFIXES, split_alias
from reskit.data.masks import MaskReader, MaskSplit, PictureMasks, count_values, infer_coding
from reskit.data.pictures import divide
from reskit.data.sources import Source, kind_of
from reskit.data.split import Split
from reskit.errors import DataError

__all__ = ["open_masks"]

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "inputs", "JPEGImages")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "targets", "segmentations"),
    *("SegmentationClass", "gt"),
)
MASK_COLUMNS = (
    *("mask", "masks", "label", "labels", "segmentation", "segmentation_mask", "annotation", "annotations"),
    *("semantic", "semantic_segmentation", "target", "gt"),
)
CLASS_FILES = ("classes.txt", "labels.txt")
_SUFFIX = re.compile(r"[_-](mask|masks|label|labels|seg|segmentation|gt)$", re.IGNORECASE)


class Masked(NamedTuple):
    """What a place holds, before anything is held out.

    Attributes:
        kind: name of the kind of place.
        title: that kind in words.
        tables: by split, with the columns `image` and `mask`.
        root: folder that paths start from, where they do.
        columns: of the place itself: which is the image, which the mask.
        classes: names, where the place knows them.
        notes: what was left aside or decided.
        coco: whether the masks are annotations of COCO, as JSON.
    """

    kind: str
    title: str
    tables: dict[str, datasets.Dataset]
    root: Path | None
    columns: dict[str, str]
    classes: list[str]
    notes: list[str]
    coco: bool = False


def open_masks(data: DataConfig, *, seed: int) -> Source:
    """Open images and their masks; what kind of place it is, is found out.

    A folder of images beside one of masks, as they are called in `IMAGE_FOLDERS` and `MASK_FOLDERS`, with
    files of the same stem, splits above or below; annotations of COCO; whatever else `open_source` reads,
    with a column of images and one of masks. The classes are those of COCO's categories or of a file
    ``classes.txt``, else they are found in the training masks; see `infer_coding`.

    Args:
        data: what a recipe says; ``loading`` and ``workers`` are not read.
        seed: of what is held out.

    Raises:
        DataError: there are no such images, an image has no mask, or masks hold no classes.
    """
    if data.path is None:
        raise DataError("this task has no embedded data: name images and their masks with --data")
    found = _open(data.path, data)
    tables, notes = dict(found.tables), list(found.notes)
    roots: dict[str, Path | None] = {}
    if data.test is not None:
        other = _open(data.test, data)
        if other.coco != found.coco or (other.classes and other.classes != found.classes):
            raise DataError(f"{data.test} has other classes or masks of another kind than {data.path}")
        tables["test"] = datasets.concatenate_datasets(list(other.tables.values()))
        roots["test"] = other.root
        notes.append(f"held out: all {len(tables['test'])} images of {data.test}")
    tables = divide(tables, data, seed=seed, notes=notes)
    roots = {name: roots.get(name, found.root) for name in tables}
    masks = {name: _reader(found, name, table, roots[name]) for name, table in tables.items()}
    if found.coco:
        coding = CocoMasks.coding(found.classes)
    else:
        first = next(iter(masks))  # train, where there is something to train on
        counts = count_values(masks[first], range(len(tables[first])))
        if not counts:
            masks[first].values(0)  # none can be read: say why of the first
        coding = infer_coding(counts, found.classes)
    splits = {
        name: MaskSplit(
            name,
            table,
            column="image",
            root=roots[name],
            on_corrupt=data.on_corrupt,
            masks=masks[name],
            coding=coding,
        )
        for name, table in tables.items()
    }
    return Source(found.kind, data.path, splits, found.columns, [*notes, coding.note], title=found.title)


def _reader(found: Masked, name: str, table: datasets.Dataset, root: Path | None) -> MaskReader:
    if found.coco:
        return CocoMasks(table["mask"], root)
    return PictureMasks(Split(name, table, column="mask", root=root))


def _open(place: str, data: DataConfig) -> Masked:
    path = Path(place).expanduser()
    if files := annotation_files(path):
        tables, classes, notes = open_coco_masks(path, files)
        root = path.parent if path.is_file() else path
        columns = {"image": "file_name", "mask": "annotations"}
        return Masked("coco", "COCO annotations", tables, root, columns, classes, notes, coco=True)
    kind = kind_of(str(path) if path.exists() else place)
    if kind == "folder":
        tables, notes = _pairs(path)
        columns = {"image": "image", "mask": "mask"}
        title = "folders of images and masks"
        return Masked("masks", title, tables, path, columns, _class_names(path), notes)
    opened = SOURCES.get(kind).open(str(path) if path.exists() else place, None, IMAGE_SUFFIXES)
    tables = {name: table for name, table in opened.splits.items() if len(table)}
    if not tables:
        raise DataError(f"{place} holds no rows")
    if "train" not in tables:
        tables = {"train": next(iter(tables.values()))}
    image, mask = _columns(tables["train"].features, data)
    tables = {
        name: table.select_columns([image, mask]).rename_columns({image: "image", mask: "mask"})
        for name, table in tables.items()
    }
    names = _class_names(path if path.is_dir() else path.parent)
    columns = {"image": image, "mask": mask}
    return Masked(kind, SOURCES.get(kind).title, tables, opened.root, columns, names, opened.notes)


def _columns(features: datasets.Features, data: DataConfig) -> tuple[str, str]:
    """Return the names of the column of images and of that of masks.

    Raises:
        DataError: one was named that is not there, or none looks like it.
    """
    mask = data.label_column
    if mask is None:
        lowered = {name.lower(): name for name in features}
        mask = next((lowered[word] for word in MASK_COLUMNS if word in lowered), None)
        if mask is None:
            raise DataError(
                f"cannot tell which column holds the mask: found {', '.join(features)}; say so with"
                " label_column"
            )
    if mask not in features:
        raise DataError(f"there is no column {mask!r} for the mask: found {', '.join(features)}")
    others = datasets.Features({name: kind for name, kind in features.items() if name != mask})
    if data.image_column is None and len(others) == 1:
        return next(iter(others)), mask
    image, _ = IMAGES.choose(
        datasets.Features({**others, mask: features[mask]}), data.image_column or _image_column(others), mask
    )
    return image, mask


def _image_column(features: Mapping[str, object]) -> str | None:
    """Return the first column of type Image: masks, of which there may be more, come after."""
    return next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)


def _class_names(folder: Path) -> list[str]:
    """Return the names in a file of classes, one a line; nothing where there is none."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice or len(names) < 2:
                said = f"names {twice[0]!r} twice" if twice else "has fewer than two lines"
                raise DataError(
                    f"{folder / name} {said}: it should name each class, the first having value 0"
                )
            return names
    return []


def _pairs(root: Path) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Return the images of a folder and their masks, by split.

    Raises:
        DataError: there are no such folders, or an image has no mask.
    """
    notes: list[str] = []
    splits = {}
    for name, (images, masks) in _places(root).items():
        pairs = _paired(images, masks, notes)
        splits[name] = datasets.Dataset.from_dict(
            {
                "image": [image.relative_to(root).as_posix() for image, _ in pairs],
                "mask": [mask.relative_to(root).as_posix() for _, mask in pairs],
            },
            features=datasets.Features({"image": datasets.Value("string"), "mask": datasets.Value("string")}),
        )
    return splits, notes


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of masks by split.

    Raises:
        DataError: there are none.
    """
    if both := _both(root):
        below = {alias: folder for folder in _folders(both[0]) if (alias := split_alias(folder.name))}
        if "train" not in below:
            return {"train": both}
        masks = {alias: folder for folder in _folders(both[1]) if (alias := split_alias(folder.name))}
        missing = [name for name in below if name not in masks]
        if missing:
            raise DataError(f"{both[1]} has no folder for the split {missing[0]!r} that {both[0]} has")
        return {name: (folder, masks[name]) for name, folder in below.items()}
    above = {alias: folder for folder in _folders(root) if (alias := split_alias(folder.name))}
    found = {name: both for name, folder in above.items() if (both := _both(folder))}
    if "train" not in found:
        raise DataError(
            f"{root} holds no images with masks: looked for a folder {', '.join(IMAGE_FOLDERS[:2])}, ..."
            f" beside one {', '.join(MASK_FOLDERS[:4])}, ... (splits above or below), and for COCO's"
            " annotations"
        )
    return found


def _both(folder: Path) -> tuple[Path, Path] | None:
    """Return the folder of images and that of masks in a folder, if it has both."""
    inside = {entry.name.lower(): entry for entry in _folders(folder)}
    images, masks = (
        next((inside[name.lower()] for name in known if name.lower() in inside), None)
        for known in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _paired(images: Path, masks: Path, notes: list[str]) -> list[tuple[Path, Path]]:
    """Return every image with its mask, sorted.

    Raises:
        DataError: an image has none, or two files have one stem.
    """
    of_images, of_masks = _by_stem(images), _by_stem(masks)
    if not set(of_images) & set(of_masks):  # 01_mask.png belongs to 01.png
        of_masks = {_SUFFIX.sub("", stem): path for stem, path in of_masks.items()}
    alone = [path for stem, path in of_images.items() if stem not in of_masks]
    if not of_images:
        raise DataError(f"{images} holds no pictures")
    if alone:
        listed = ", ".join(path.name for path in alone[:5]) + (", ..." if len(alone) > 5 else "")
        raise DataError(
            f"{len(alone)} of {len(of_images)} images in {images} have no mask of the same name in {masks}:"
            f" {listed}"
        )
    left = len(of_masks) - len(of_images)
    if left > 0:
        notes.append(f"{left} masks in {masks.name} belong to no image and were left aside")
    return [(path, of_masks[stem]) for stem, path in of_images.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the pictures below a folder by their path without the ending, sorted."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{found[stem]} and {path} have one name: which of them is meant?")
        found[stem] = path
    return found
