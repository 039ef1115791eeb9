"""Masks: where they lie, what their values mean, and what is wrong with some."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from reskit.config import DataConfig
from reskit.data import Source
from reskit.data.coco_masks import CocoMasks
from reskit.data.images import IGNORED
from reskit.data.mask_sources import open_masks
from reskit.data.masks import MaskSplit, infer_coding
from reskit.errors import DataError

HEIGHT, WIDTH = 6, 8


def picture(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def classes(count: int, seed: int = 0) -> np.ndarray:
    """Return a mask in which every class is."""
    values = np.random.default_rng(seed).integers(0, count, (HEIGHT, WIDTH))
    values[0, :count] = range(count)
    return values.astype(np.uint8)


def write(
    root: Path, masks: list[Image.Image], *, images: str = "images", below: str = "masks", suffix: str = ""
) -> Path:
    for folder in (images, below):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        picture(number).save(root / images / f"{number}.png")
        mask.save(root / below / f"{number}{suffix}.png")
    return root


def opened(path: Path | str, **settings: Any) -> Source:
    return open_masks(DataConfig(path=str(path), draw="last", holdout=0.25, **settings), seed=0)


def mask_of(source: Source, row: int = 0, split: str = "train") -> np.ndarray:
    found = source[split]
    assert isinstance(found, MaskSplit)
    return found.mask(row, (HEIGHT, WIDTH)).numpy()


# What values mean.


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image


KINDS: dict[str, tuple[int, Callable[[np.ndarray], Image.Image], list[str]]] = {
    "indices": (3, Image.fromarray, ["class 0", "class 1", "class 2"]),
    "two": (2, Image.fromarray, ["background", "foreground"]),
    "palette": (4, palette, ["class 0", "class 1", "class 2", "class 3"]),
    "black_and_white": (2, lambda v: Image.fromarray(v * np.uint8(255)), ["background", "foreground"]),
    "one_bit": (2, lambda v: Image.fromarray(v * np.uint8(255)).convert("1"), ["background", "foreground"]),
    "sixteen_bits": (3, lambda v: Image.fromarray(v.astype(np.uint16)), ["class 0", "class 1", "class 2"]),
    "white_of_16": (2, lambda v: Image.fromarray(v.astype(np.uint16) * 65535), ["background", "foreground"]),
    "levels": (3, lambda v: Image.fromarray(np.array([0, 100, 200], np.uint8)[v]), ["0", "100", "200"]),
    "grey_in_rgb": (
        3,
        lambda v: Image.fromarray(np.repeat(v[..., None], 3, -1)),
        ["class 0", "class 1", "class 2"],
    ),
    "colours": (
        3,
        lambda v: Image.fromarray(np.array([[0, 0, 0], [0, 0, 255], [255, 0, 0]], np.uint8)[v]),
        ["0", "#0000ff", "#ff0000"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_becomes_classes(kind: str, tmp_path: Path) -> None:
    count, make, names = KINDS[kind]
    truth = [classes(count, seed) for seed in range(4)]
    source = opened(write(tmp_path, [make(values) for values in truth]))
    assert source.classes == names
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 3, "test": 1}
    for row, values in enumerate(truth[:3]):
        assert np.array_equal(mask_of(source, row), values)
    assert np.array_equal(mask_of(source, 0, "test"), truth[3])
    pixels = np.bincount(np.stack(truth[:3]).ravel(), minlength=count)
    assert source["train"].counts() == dict(zip(names, pixels.tolist(), strict=True))
    assert any(note.startswith("masks hold") for note in source.describe().notes)


def test_255_among_indices_is_no_label(tmp_path: Path) -> None:
    values = classes(3)
    values[-1] = 255
    source = opened(write(tmp_path, [Image.fromarray(values)] * 4))
    assert source.classes == ["class 0", "class 1", "class 2"]
    assert (mask_of(source)[-1] == IGNORED).all()
    assert np.array_equal(mask_of(source), values)


def test_a_file_of_classes_names_them_and_those_not_yet_seen(tmp_path: Path) -> None:
    write(tmp_path, [Image.fromarray(classes(2))] * 4)
    (tmp_path / "classes.txt").write_text("road\nhouse\n\ntree\n")
    source = opened(tmp_path)
    assert source.classes == ["road", "house", "tree"]
    assert np.array_equal(mask_of(source), classes(2))


def test_a_value_of_no_class_names_the_file(tmp_path: Path) -> None:
    bad = classes(3)
    bad[2, 2] = 7
    source = opened(write(tmp_path, [Image.fromarray(classes(3))] * 3 + [Image.fromarray(bad)]))
    with pytest.raises(DataError, match=r"masks/3\.png holds the value 7 in 1 pixels.*none of the 3 classes"):
        mask_of(source, 0, "test")


def test_pictures_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"different values.*JPEG"):
        opened(write(tmp_path, [picture(seed, (20, 20)) for seed in range(4)]))


def test_one_value_alone_is_no_classes() -> None:
    with pytest.raises(DataError, match="hold 0 only: two classes"):
        infer_coding({0: 100})


def test_a_mask_of_another_size_names_both_files(tmp_path: Path) -> None:
    masks = [Image.fromarray(classes(2)) for _ in range(4)]
    masks[1] = Image.fromarray(classes(2)[:, :5])
    source = opened(write(tmp_path, masks))
    with pytest.raises(DataError, match=r"masks/1\.png is 6x5 .*images/1\.png is 6x8"):
        mask_of(source, 1)


def test_an_unreadable_mask_names_the_file(tmp_path: Path) -> None:
    write(tmp_path, [Image.fromarray(classes(2)) for _ in range(4)])
    whole = (tmp_path / "masks" / "1.png").read_bytes()
    (tmp_path / "masks" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read mask masks/1\.png"):
        mask_of(opened(tmp_path), 1)


# Where they lie.


@pytest.mark.parametrize(("images", "below"), [("image", "label"), ("JPEGImages", "SegmentationClass")])
def test_folders_by_other_names(images: str, below: str, tmp_path: Path) -> None:
    source = opened(write(tmp_path, [Image.fromarray(classes(2))] * 4, images=images, below=below))
    assert np.array_equal(mask_of(source), classes(2))


def test_names_of_masks_may_end_in_mask(tmp_path: Path) -> None:
    source = opened(write(tmp_path, [Image.fromarray(classes(2))] * 4, suffix="_mask"))
    assert len(source["train"]) == 3


@pytest.mark.parametrize("above", [True, False])
def test_splits_above_or_below(above: bool, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        images, below = ("images", "masks") if above else (f"images/{split}", f"masks/{split}")
        write(
            tmp_path / split if above else tmp_path,
            [Image.fromarray(classes(2))] * count,
            images=images,
            below=below,
        )
    source = opened(tmp_path)
    found = {name: len(split) for name, split in source.splits.items()}
    assert found == {"train": 3, "validation": 2, "test": 1}
    assert source.held_out == "test"


def test_another_place_may_be_held_out(tmp_path: Path) -> None:
    write(tmp_path / "one", [Image.fromarray(classes(2))] * 3)
    write(tmp_path / "two", [Image.fromarray(classes(2, 9))] * 2)
    source = opened(tmp_path / "one", test=str(tmp_path / "two"))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 3, "test": 2}
    assert np.array_equal(mask_of(source, 1, "test"), classes(2, 9))


def test_an_image_without_a_mask_is_named(tmp_path: Path) -> None:
    write(tmp_path, [Image.fromarray(classes(2))] * 4)
    (tmp_path / "masks" / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images in .*images have no mask.*2\.png"):
        opened(tmp_path)


@pytest.mark.parametrize("nothing", ["empty", "only images", "missing"])
def test_no_masks_say_what_was_looked_for(nothing: str, tmp_path: Path) -> None:
    if nothing == "only images":
        (tmp_path / "images").mkdir()
        picture().save(tmp_path / "images" / "1.png")
    place = tmp_path / "gone" if nothing == "missing" else tmp_path
    with pytest.raises(
        DataError, match="no such file" if nothing == "missing" else "looked for a folder images"
    ):
        opened(place)


def test_two_columns_of_images(tmp_path: Path) -> None:
    def encoded(image: Image.Image) -> dict[str, Any]:
        data = io.BytesIO()
        image.save(data, format="PNG")
        return {"bytes": data.getvalue(), "path": None}

    truth = [classes(3, seed) for seed in range(4)]
    table = datasets.Dataset.from_dict(
        {
            "mask": [encoded(Image.fromarray(values)) for values in truth],
            "pixels": [encoded(picture(seed)) for seed in range(4)],
            "note": ["a", "b", "c", "d"],
        },
        features=datasets.Features(
            {"mask": datasets.Image(), "pixels": datasets.Image(), "note": datasets.Value("string")}
        ),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    source = opened(tmp_path / "saved")
    assert source.columns == {"image": "pixels", "mask": "mask"}
    assert np.array_equal(mask_of(source, 1), truth[1])
    with pytest.raises(DataError, match="no column 'labels' for the mask"):
        opened(tmp_path / "saved", label_column="labels")


def test_the_fingerprint_changes_with_a_mask(tmp_path: Path) -> None:
    write(tmp_path, [Image.fromarray(classes(2, seed)) for seed in range(4)])
    before = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == before
    Image.fromarray(classes(2, 7)).save(tmp_path / "masks" / "1.png")
    assert opened(tmp_path).fingerprint != before


# COCO.


def coco(root: Path, objects: list[dict[str, Any]], *, name: str = "instances_train2017.json") -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    images = []
    for number in range(4):
        picture(number, (40, 60)).save(root / "train2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 60})
    content = {
        "images": images,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": objects,
    }
    (root / "annotations" / name).write_text(json.dumps(content))
    return root


POLYGON = [5.0, 4.0, 44.5, 9.0, 38.0, 33.5, 12.0, 30.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_polygons_are_drawn_as_pycocotools_draws_them(tmp_path: Path) -> None:
    coder = pytest.importorskip("pycocotools.mask")
    objects = [{"id": 1, "image_id": 0, "category_id": 7, "segmentation": [POLYGON], "area": 900.0}]
    source = opened(coco(tmp_path, objects))
    assert source.classes == ["background", "cat", "dog"]
    split = source["train"]
    assert isinstance(split, MaskSplit)
    found = split.mask(0, (40, 60)).numpy()
    assert set(np.unique(found)) == {0, 2}
    expected = coder.decode(coder.merge(coder.frPyObjects([POLYGON], 40, 60))).astype(bool)
    assert ((found == 2) & expected).sum() / ((found == 2) | expected).sum() > 0.96
    assert (split.mask(1, (40, 60)) == 0).all()  # an image without objects


def test_small_objects_lie_on_large_ones_and_run_lengths_go_down(tmp_path: Path) -> None:
    inside = np.zeros((40, 60), np.uint8)
    inside[10:20, 30:40] = 1
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    large = [0.0, 0.0, 60.0, 0.0, 60.0, 40.0, 0.0, 40.0]
    objects = [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 3,
            "segmentation": {"size": [40, 60], "counts": counts},
            "area": 100,
        },
        {"id": 2, "image_id": 0, "category_id": 7, "segmentation": [large], "area": 2400},
    ]
    split = opened(coco(tmp_path, objects))["train"]
    assert isinstance(split, MaskSplit)
    assert np.array_equal(split.mask(0, (40, 60)).numpy(), np.where(inside == 1, 1, 2))


def test_compressed_run_lengths_are_those_of_pycocotools() -> None:
    coder = pytest.importorskip("pycocotools.mask")
    inside = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (40, 60), np.uint8))
    code = coder.encode(inside)
    shape = {"size": [40, 60], "counts": code["counts"].decode()}
    row = {
        "name": "a",
        "height": 40,
        "width": 60,
        "objects": [{"class": 1, "segmentation": shape, "area": 1}],
    }
    assert np.array_equal(CocoMasks([json.dumps(row)], None).values(0), inside)


def test_panoptic_pictures_number_segments(tmp_path: Path) -> None:
    numbers = np.zeros((40, 60), np.int64)
    numbers[:, 20:40], numbers[:, 40:] = 70000, 258
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    folder = coco(
        tmp_path,
        [
            {
                "image_id": number,
                "file_name": f"{number}.png",
                "segments_info": [{"id": 70000, "category_id": 7}, {"id": 258, "category_id": 3}],
            }
            for number in range(4)
        ],
        name="panoptic_train2017.json",
    )
    (folder / "annotations" / "panoptic_train2017").mkdir()
    for number in range(4):
        Image.fromarray(colours).save(folder / "annotations" / "panoptic_train2017" / f"{number}.png")
    source = opened(folder)
    assert source.classes == ["cat", "dog"]
    split = source["train"]
    assert isinstance(split, MaskSplit)
    expected = np.select([numbers == 70000, numbers == 258], [1, 0], IGNORED)
    assert np.array_equal(split.mask(2, (40, 60)).numpy(), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 9}, "annotation 1 is malformed"),
        ({"image_id": 99}, "annotation 1 is of image 99"),
        ({"segmentation": [[1.0, 2.0, 3.0]]}, "odd number of coordinates"),
    ],
)
def test_malformed_annotations_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    entry = {"id": 1, "image_id": 0, "category_id": 7, "segmentation": [POLYGON], "area": 1.0, **change}
    with pytest.raises(DataError, match=said):
        opened(coco(tmp_path, [entry]))


def test_the_membranes_as_they_lie(shared_data: Path) -> None:
    source = open_masks(DataConfig(path=str(shared_data / "isbi2012-membrane"), draw="last"), seed=0)
    assert source.classes == ["background", "foreground"]
    assert [source["test"].row_name(row) for row in (0, 5)] == ["image/24.png", "image/29.png"]
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "test": 6}
    split = source["test"]
    assert isinstance(split, MaskSplit)
    with Image.open(shared_data / "isbi2012-membrane" / "label" / "24.png") as mask:
        assert torch.equal(split.mask(0, (512, 512)), torch.from_numpy(np.asarray(mask) // 255))
