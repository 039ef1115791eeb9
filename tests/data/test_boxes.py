"""Pictures with boxes in YOLO's and COCO's formats, right and wrong; boxes that follow their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reskit.data import ImagePreprocess, Source
from reskit.data.augment import Augment
from reskit.data.box_vary import fitted_boxes, vary_boxes
from reskit.data.boxes import BoxSplit, open_boxes
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError


def picture(path: Path, size: tuple[int, int] = (40, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    Image.fromarray(noise).save(path)


def yolo(root: Path, labels: dict[str, str], *, names: str = "names: [cat, dog]\n") -> Path:
    for name, text in labels.items():
        picture(root / "images" / f"{name}.png")
        if text is not None:
            (root / "labels" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
            (root / "labels" / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(names)
    return root


def coco(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
            {"id": 9, "file_name": "b.png", "height": 40, "width": 60},
        ],
        "annotations": [{"id": 100 + n, **entry} for n, entry in enumerate(annotations)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        **changes,
    }
    for name in ("a", "b"):
        picture(root / "train2017" / f"{name}.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (root / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return root


def opened(root: Path, **settings: Any) -> Source:
    return open_boxes(DataConfig(path=str(root), **settings), seed=0)


def found(source: Source) -> dict[str, list[list[float]]]:
    """Return the boxes of every picture in pixels, by file name."""
    boxes = {}
    for split in source.splits.values():
        assert isinstance(split, BoxSplit)
        for row in split.rows.tolist():
            boxes[Path(split.row_name(row)).name] = split.boxes(row, (40, 60)).round(6).tolist()
    return boxes


# YOLO.


def test_yolo_lines_are_boxes_in_pixels(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.5 0.25\n\n1 0.1 0.2 0.2 0.4\n"
    outline = "1 0.1 0.1 0.5 0.2 0.3 0.9"  # of a polygon: the box around it
    source = opened(yolo(tmp_path, {"a": text, "b": "", "c": outline}))
    assert source.classes == ["cat", "dog"]
    assert found(source) == {
        "a.png": [[15, 15, 45, 25, 0], [0, 0, 12, 16, 1]],
        "b.png": [],
        "c.png": [[6, 4, 30, 36, 1]],
    }


def test_names_may_be_numbered_or_lines(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yaml", {"a": "", "b": ""}, names="names: {0: cat, 1: dog}\n")
    assert opened(root).classes == ["cat", "dog"]
    root = yolo(tmp_path / "text", {"a": "", "b": ""})
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\ndog\n")
    assert opened(root).classes == ["cat", "dog"]


def test_splits_are_those_of_the_file_of_names(tmp_path: Path) -> None:
    names = "path: .\ntrain: images/one\nval: [images/two, more.txt]\nnames: [cat]\n"
    root = yolo(tmp_path, {"one/a": "0 .5 .5 .5 .5", "two/b": "", "three/c": ""}, names=names)
    (root / "more.txt").write_text("images/three/c.png\n")
    source = opened(root)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 1, "validation": 2}
    assert source["train"].counts() == {"cat": 1}


@pytest.mark.parametrize("layout", ["images/{}/{}.png", "{}/images/{}.png"])
def test_splits_are_those_of_the_folders(tmp_path: Path, layout: str) -> None:
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        path = tmp_path / layout.format(split, name)
        picture(path)
        label = Path(str(path).replace("images", "labels")).with_suffix(".txt")
        label.parent.mkdir(parents=True)
        label.write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    source = opened(tmp_path)
    assert list(source.splits) == ["train", "validation", "test"]
    assert set(map(str, found(source).values())) == {"[[0.0, 0.0, 60.0, 40.0, 0.0]]"}


def test_a_picture_without_a_label_file_shows_nothing_and_is_counted(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5", "b": "", "c": ""})
    (root / "labels" / "c.txt").unlink()
    source = opened(root)
    assert "1 pictures have no label file: taken to show no object" in source.notes
    assert found(source)["c.png"] == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.5", "line 2: 4 numbers; a box is 5"),
        ("0 0.5 x 0.5 0.5", "line 2: '0 0.5 x 0.5 0.5' are not numbers"),
        ("2 0.5 0.5 0.5 0.5", r"line 2: class 2 is beyond the 2 names \(0 to 1\)"),
        ("0.5 0.5 0.5 0.5 0.5", "line 2: '0.5 .* is no class number"),
        ("-1 0.5 0.5 0.5 0.5", "line 2: '-1 .* is no class number"),
        ("0 nan 0.5 0.5 0.5", "line 2: .* finite"),
        ("0 0.5 0.5 -0.5 0.5", "line 2: the box has a negative side"),
        ("0 30 20 10 10", "a.txt, line 2: the box lies outside of its picture images/a.png"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(yolo(tmp_path, {"a": f"1 .5 .5 .5 .5\n{line}\n", "b": ""}))


def test_boxes_beyond_the_picture_are_cut_or_left_out_and_told(tmp_path: Path) -> None:
    text = "0 0.5 0.5 2 0.5\n1 3 3 0.5 0.5\n0 0.5 0.5 0 0.5\n0 0.998 0.5 0.005 0.5\n"
    source = opened(yolo(tmp_path, {"a": text, "b": ""}), on_corrupt="skip")
    assert found(source)["a.png"] == [[0, 10, 60, 30, 0], [59.73, 10, 60, 30, 0]]
    for note in (
        "1 boxes that stick out of their picture were cut: (labels/a.txt, line 1)",
        "1 boxes outside of their picture were left out: (labels/a.txt, line 2)",
        "1 boxes without an area were left out: (labels/a.txt, line 3)",
    ):
        assert note in source.notes  # the fourth was rounded


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("names: 3\n", "names must be a list"),
        ("names: [cat, cat]\n", "a class name is there twice"),
        ("names: {0: cat, 2: dog}\n", "numbers 0 to 1"),
        ("nc: 2\n", "does not say what its classes are called"),
        ("names: [cat\n", "cannot read .*data.yaml"),
    ],
)
def test_wrong_names(tmp_path: Path, names: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(yolo(tmp_path, {"a": "", "b": ""}, names=names))


def test_no_such_place_and_nothing_known_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "nowhere")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"looked for COCO's JSON .* and for YOLO's folders"):
        opened(tmp_path)
    with pytest.raises(DataError, match="no embedded data"):
        open_boxes(DataConfig(), seed=0)


# COCO.


def test_coco_boxes_are_left_top_width_height(tmp_path: Path) -> None:
    root = coco(
        tmp_path,
        [
            {"image_id": 7, "category_id": 18, "bbox": [6, 4, 12, 20]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 0},
            {"image_id": 9, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    )
    source = opened(root)
    assert source.classes == ["cat", "dog"]  # in the order of their ids
    assert found(source) == {"a.png": [[6, 4, 18, 24, 1], [0, 0, 60, 40, 0]], "b.png": []}
    assert "1 crowds of instances_train2017.json were left out" in source.notes
    assert found(opened(root / "annotations" / "instances_train2017.json")) == found(source)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9]}, "annotation 100 is of image 8"),
        ({"image_id": 7, "category_id": 4, "bbox": [0, 0, 9, 9]}, "annotation 100 is of category 4"),
        ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 9]}, "annotation 100 lacks"),
        ({"image_id": 7, "category_id": 3}, "annotation 100 lacks .*bbox"),
        ({"image_id": 7, "category_id": 3, "bbox": [0, 0, -9, 9]}, "annotation 100 has the bbox"),
        ({"image_id": 7, "category_id": 3, "bbox": [99, 0, 9, 9]}, "annotation 100: the box lies outside"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        opened(coco(tmp_path, [entry]))


def test_a_picture_of_another_size_than_its_annotations(tmp_path: Path) -> None:
    source = opened(coco(tmp_path, []))
    split = next(iter(source.splits.values()))
    assert isinstance(split, BoxSplit)
    with pytest.raises(DataError, match=r"for 40x60 pixels .* the picture has 60x40"):
        split.boxes(0, (60, 40))


def test_coco_pictures_that_are_nowhere(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "z.png", "height": 40, "width": 60}]
    with pytest.raises(DataError, match=r"names 'z.png', which is in none of .*train2017"):
        opened(coco(tmp_path, [], images=images))


# Splits.


def test_held_out_by_name_by_chance_or_elsewhere(tmp_path: Path) -> None:
    root = yolo(tmp_path, {f"{n}": "" for n in range(10)})
    last = opened(root, draw="last", holdout=0.2)
    assert [last["test"].row_name(row) for row in (0, 1)] == ["images/8.png", "images/9.png"]
    assert len(opened(root, holdout=0.3, validation=0.3)["validation"]) == 2
    both = opened(root, test=str(root))
    assert len(both["train"]) == len(both["test"]) == 10


def test_the_fingerprint_knows_the_boxes(tmp_path: Path) -> None:
    root = yolo(tmp_path, {"a": "0 .5 .5 .5 .5", "b": ""})
    before = opened(root).fingerprint
    (root / "labels" / "a.txt").write_text("0 .5 .5 .5 .4")
    assert opened(root).fingerprint != before


def test_folders_of_one_split_go_together_and_a_test_is_not_trained_on(tmp_path: Path) -> None:
    names = ("train/a", "val/b", "validation/c", "test/d")
    found = opened(yolo(tmp_path / "all", dict.fromkeys(names, "0 0.5 0.5 0.5 0.5\n")))
    assert {name: len(split) for name, split in found.splits.items()} == {
        "train": 1,
        "validation": 2,
        "test": 1,
    }
    with pytest.raises(DataError, match="no 'train'"):
        opened(yolo(tmp_path / "held", dict.fromkeys(names[1:], "")))


def test_coco128(shared_data: Path) -> None:
    source = opened(shared_data / "coco128")
    assert len(source.classes) == 80
    assert sum(len(split) for split in source.splits.values()) == 128
    assert sum(len(picture.boxes) for split in source.splits.values() for picture in split.pictures) == 929


# Boxes follow their pictures.


def marked() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a dark picture with one bright rectangle, and its box."""
    image = torch.zeros(1, 90, 120, dtype=torch.uint8)
    image[:, 30:60, 40:90] = 255
    return image, torch.tensor([[40.0, 30, 90, 60, 1]])


def bright(image: torch.Tensor) -> list[float]:
    """Return the box around what is bright."""
    rows, columns = (image[0] > 192).nonzero(as_tuple=True)
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 100), (200, 160)])
def test_a_fitted_picture_takes_its_boxes_along(resize: Any, size: tuple[int, int]) -> None:
    preprocess = ImagePreprocess(size=size, channels=1, resize=resize, mean=(0.5,), std=(0.5,))
    image, boxes = marked()
    fitted, placed = preprocess.fit(image), fitted_boxes(boxes, (90, 120), preprocess)
    assert fitted.shape == (1, *size)
    assert placed[0, :4].tolist() == pytest.approx(bright(fitted), abs=1.01)


@pytest.mark.parametrize(
    ("augment", "scale"),
    [
        ({"flip": 1.0}, None),
        ({"random_resized_crop": (0.5, 1.0), "flip": True}, None),
        ({"flip": True, "color_jitter": (0.1, 0.1, 0.1)}, (0.5, 1.5)),
    ],
)
def test_a_varied_picture_takes_its_boxes_along(augment: dict[str, Any], scale: Any) -> None:
    preprocess = ImagePreprocess(size=(64, 64), channels=1, resize="pad", mean=(0.5,), std=(0.5,))
    image, boxes = marked()
    seen, kept = set(), 0
    for seed in range(30):
        varied, placed = vary_boxes(
            image,
            boxes,
            preprocess=preprocess,
            augment=Augment(**augment),
            scale=scale,
            generator=torch.Generator().manual_seed(seed),
        )
        assert varied.shape == (1, 64, 64)
        if len(placed):
            kept += 1
            assert placed[0, 4] == 1
            assert placed[0, :4].tolist() == pytest.approx(bright(varied), abs=1.6)
            seen.add(tuple(placed[0].tolist()))
    assert kept > 20
    assert len(seen) > (1 if augment["flip"] is True else 0)


def test_what_is_random_comes_from_the_generator() -> None:
    preprocess = ImagePreprocess(size=(64, 64), channels=1, resize="pad", mean=(0.5,), std=(0.5,))

    def varied(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(np.random.default_rng().integers(1000))
        generator = torch.Generator().manual_seed(seed)
        settings = {"augment": Augment(flip=True), "scale": (0.5, 2.0)}
        return vary_boxes(*marked(), preprocess=preprocess, generator=generator, **settings)

    for one, other in zip(varied(5), varied(5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(varied(5)[0], varied(6)[0])


def test_an_object_cut_to_a_sliver_is_no_object() -> None:
    preprocess = ImagePreprocess(size=(64, 64), channels=1, resize="pad", mean=(0.5,), std=(0.5,))
    for seed in range(40):
        _, placed = vary_boxes(
            *marked(),
            preprocess=preprocess,
            augment=Augment(),
            scale=(3.0, 3.0),
            generator=torch.Generator().manual_seed(seed),
        )
        # At three times 0.533 the whole is 80 x 48 pixels, of which a window shows a part.
        for box in placed[:, :4]:
            assert float((box[2] - box[0]) * (box[3] - box[1])) >= 0.25 * 80 * 48 - 1e-2


def test_variation_that_boxes_cannot_follow_is_refused() -> None:
    from reskit.data.box_vary import check_augment

    check_augment(Augment(flip=True, erase=0.1))
    for wrong in ({"rotate": 5.0}, {"dihedral": True}, {"mixup": 0.2}, {"auto": "trivial"}):
        with pytest.raises(ConfigError, match=f"augment.{next(iter(wrong))} does not move boxes"):
            check_augment(Augment(**wrong))
