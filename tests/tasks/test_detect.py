"""Detection: COCO's figures against pycocotools, places in images of any size, and what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import reskit
from reskit.data import ImagePreprocess
from reskit.errors import ConfigError, DataError, MissingExtraError
from reskit.plots import draw_boxes
from reskit.recipes import load_recipe
from reskit.tasks import Detect
from reskit.tasks.boxes import coco_tables, held_against
from reskit.tasks.detect_settings import DetectSettings
from reskit.tasks.fcos import grid_points
from reskit.training.callbacks import Reporter
from reskit.training.feed import Feed

LABELS = ["ant", "bee", "cat"]
LEVELS = (8, 16)


def boxes_around(true: Tensor, random: np.random.Generator) -> Tensor:
    """Return detections `(P, 6)` near some of the true boxes `(M, 5)`, and others anywhere, best first."""
    near = true[torch.from_numpy(random.random(len(true)) < 0.8)]
    corners = near[:, :4] + torch.from_numpy(random.normal(0, 4, (len(near), 4))).float()
    label = torch.where(torch.from_numpy(random.random(len(near)) < 0.9), near[:, 4], 2.0)
    start = torch.from_numpy(random.uniform(0, 150, (6, 2))).float()
    anywhere = torch.cat([start, start + torch.from_numpy(random.uniform(5, 60, (6, 2))).float()], 1)
    corners, label = torch.cat([corners, anywhere]), torch.cat([label, torch.arange(6.0) % 3])
    score = torch.from_numpy(random.uniform(0.05, 1, len(label))).float()
    rows = torch.cat([corners, score[:, None], label[:, None]], 1)
    return rows[score.argsort(descending=True)]


def made(images: int = 12, most: int = 9) -> tuple[Tensor, Tensor]:
    """Return padded detections and true boxes; the second shows nothing, of the third nothing is said."""
    random = np.random.default_rng(0)
    outputs, target = torch.zeros(images, 100, 6), torch.zeros(images, most, 5)
    outputs[..., 5], target[..., 4] = -1, -1
    for image in range(images):
        count = 0 if image == 1 else int(random.integers(1, most + 1))
        start = random.uniform(0, 150, (count, 2))
        corners = np.concatenate([start, start + random.uniform(8, 120, (count, 2))], 1)
        target[image, :count] = torch.from_numpy(
            np.concatenate([corners, random.integers(0, 3, (count, 1))], 1)
        ).float()
        if image != 2:
            rows = boxes_around(target[image, :count], random)
            outputs[image, : len(rows)] = rows
    return outputs, target


def by_pycocotools(outputs: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return COCO's twelve figures and its precisions, from JSON records and nothing of ours."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    annotations, results = [], []
    for image, (said, true) in enumerate(zip(outputs.tolist(), target.tolist(), strict=True)):
        for x1, y1, x2, y2, label in true:
            if label >= 0:
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3]}
                annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **entry})
        for x1, y1, x2, y2, score, label in said:
            if label >= 0:
                box = [x1, y1, x2 - x1, y2 - y1]
                results.append({"image_id": image, "category_id": int(label), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(outputs))],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(LABELS)],
        }
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, 2]


def task(size: tuple[int, int] = (64, 64), resize: Any = "pad", **settings: Any) -> Detect:
    preprocess = ImagePreprocess(size=size, channels=3, resize=resize, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Detect(preprocess=preprocess, labels=LABELS, settings=DetectSettings(levels=LEVELS, **settings))


# Figures.


@pytest.mark.parametrize("size", [1, 5, 12])
def test_the_figures_are_those_of_pycocotools(size: int) -> None:
    outputs, target = made()
    metrics = task().metrics()
    for start in range(0, len(outputs), size):
        metrics.update(outputs[start : start + size], target[start : start + size])
    found = {name: float(value) for name, value in metrics.compute().items()}
    stats, _ = by_pycocotools(outputs, target)
    assert found == pytest.approx({"map": stats[0], "map50": stats[1], "map75": stats[2]}, abs=1e-6)
    assert 0.1 < found["map"] < found["map50"] < 0.95


def test_the_tables_are_those_of_pycocotools() -> None:
    outputs, target = made()
    tables = coco_tables(outputs, target, LABELS)
    stats, precision = by_pycocotools(outputs, target)
    for number, row in enumerate(tables["per_class"]):
        assert row["label"] == LABELS[number]
        assert row["map"] == pytest.approx(precision[:, :, number].mean(), abs=1e-6)
        assert row["map50"] == pytest.approx(precision[0, :, number].mean(), abs=1e-6)
        assert row["support"] == int((target[..., 4] == number).sum())
        curve = tables["precision_recall"][number]
        np.testing.assert_allclose(curve["at_75"], precision[5, :, number], atol=1e-6)
    assert np.mean([row["map"] for row in tables["per_class"]]) == pytest.approx(stats[0], abs=1e-6)


def test_classes_that_are_not_there_have_no_row() -> None:
    outputs, target = made()
    target[..., 4] = torch.where(target[..., 4] == 1, 2.0, target[..., 4])
    assert [row["label"] for row in coco_tables(outputs, target, LABELS)["per_class"]] == ["ant", "cat"]


def test_pictures_without_any_box_count_as_nothing() -> None:
    nothing, none = torch.full((3, 100, 6), -1.0), torch.full((3, 2, 5), -1.0)
    metrics = task().metrics()
    metrics.update(nothing, none)
    assert {float(value) for value in metrics.compute().values()} == {0.0}
    assert coco_tables(nothing, none, LABELS) == {"per_class": [], "precision_recall": []}


def test_what_is_found_missed_and_false_in_a_picture() -> None:
    true = torch.tensor([[[0.0, 0, 10, 10, 0], [20, 20, 30, 30, 0], [40, 40, 60, 60, 1], [0, 0, 0, 0, -1]]])
    said = torch.tensor(
        [
            [
                [0.0, 0, 10, 9, 0.9, 0],  # found
                [0, 0, 10, 10, 0.8, 0],  # the same again: false
                [40, 40, 60, 60, 0.7, 2],  # of another class: false
                [20, 20, 30, 30, 0.2, 0],  # not sure enough
                [0, 0, 0, 0, 0, -1],
            ]
        ]
    )
    counts = {name: int(value) for name, value in held_against(said, true, 0.3).items()}
    assert counts == {"objects": 3, "found": 1, "missed": 2, "false": 2}


# Places.


class Saying(torch.nn.Module):
    """A network that says one box, given in pixels of its input, by the point nearest to its centre."""

    def __init__(self, box: list[float], label: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.box, self.label, self.size = torch.tensor(box), label, size

    def forward(self, images: Tensor) -> Tensor:
        assert tuple(images.shape[-2:]) == self.size
        points = grid_points(self.size, LEVELS)
        centre = (self.box[:2] + self.box[2:]) / 2
        place = int((points[:, :2] - centre).square().sum(1).argmin())
        x, y, stride = points[place]
        outputs = torch.full((len(images), len(points), len(LABELS) + 5), -9.0)
        distances = torch.stack([x - self.box[0], y - self.box[1], self.box[2] - x, self.box[3] - y])
        outputs[:, place, self.label] = 5.0
        outputs[:, place, -5:-1] = distances / stride
        outputs[:, place, -1] = 5.0
        return outputs


@pytest.mark.parametrize(
    ("resize", "image", "expected"),
    [
        # The image of 30 x 60 (height x width) fills 32 x 64 of the input where it is padded.
        ("pad", (30, 60), [15, 7.5, 45, 30]),
        ("pad", (128, 128), [32, 16, 96, 80]),
        ("squash", (30, 60), [15, 3.75, 45, 18.75]),
    ],
)
def test_boxes_are_in_pixels_of_the_image_and_end_with_it(
    resize: Any, image: tuple[int, int], expected: list[float]
) -> None:
    detect = task(resize=resize)
    said = Saying([16, 8, 48, 40], 1, (64, 64))
    outputs = detect.outputs(said, torch.zeros(2, 3, *image, dtype=torch.uint8))
    assert outputs.shape == (2, 100, 6)
    for rows in outputs:
        assert rows[0, :4].tolist() == pytest.approx(expected, abs=1e-3)
        assert (rows[0, 5], len(rows[rows[:, 5] >= 0])) == (1, 1)
    record = detect.decode(outputs)[0]["boxes"][0]
    assert record["label"] == "bee"
    assert record["score"] == pytest.approx(torch.sigmoid(torch.tensor(5.0)).item(), abs=1e-5)
    assert [record[name] for name in ("x1", "y1", "x2", "y2")] == pytest.approx(expected, abs=1e-3)


def test_words_and_what_is_too_weak_to_be_reported() -> None:
    rows = torch.full((1, 100, 6), -1.0)
    rows[0, :4] = torch.tensor([[0, 0, 9, 9, s, c] for s, c in ((0.9, 0), (0.8, 2), (0.5, 0), (0.1, 1))])
    detect = task(score=0.4)
    record = detect.decode(rows)[0]
    assert len(record["boxes"]) == 3
    assert detect.words(record) == {"found": "2 ant, 1 cat", "surest": "ant 90.0%", "drawn": ""}
    assert detect.words({"boxes": []})["found"] == "nothing"
    agreed = detect.agreement(rows)["boxes"]
    assert (agreed[..., 4] >= 0).sum() == 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_boxes_are_drawn_where_they_are(channels: int) -> None:
    image = torch.zeros(channels, 60, 80, dtype=torch.uint8)
    drawn = draw_boxes(image, torch.tensor([[20.0, 30, 60, 50]]), ["bee 90%"], [0])
    assert drawn.shape == (60, 80, 3)
    assert drawn[50, 40].tolist() == [0, 114, 178]  # the lower side, in the first colour of the house
    assert not drawn[:15].any()


# From files.


class Silent(Reporter):
    def say(self, text: str) -> None:
        """Say nothing."""

    def on_step(self, **values: Any) -> None:
        """Say nothing."""


def recipe(data: Path, *overrides: str, **parts: Any) -> Any:
    values = {
        "name": "small",
        "task": {"name": "detect"},
        "data": {"path": str(data), "test": str(data)},
        "model": {
            "name": "fcos_resnet18_fpn",
            "arguments": {"backbone_arguments": {"depths": [1, 1], "width": 8}, "width": 64, "convs": 1},
        },
        "preprocess": {"size": 64},
        "training": {"epochs": 1, "batch_size": 2, "optimizer": {"name": "adam", "lr": 0.001}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
        **parts,
    }
    return load_recipe(values, overrides)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write four pictures of different kinds: grey, palette, 16 bits, transparent; one shows nothing."""
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    grey = Image.fromarray(noise)
    kinds = [grey, grey.convert("P"), Image.fromarray(noise.astype(np.uint16) * 257), grey.convert("RGBA")]
    for number, picture in enumerate(kinds):
        picture.save(root / "images" / f"{number}.png")
        lines = "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.2 0.2\n" if number else ""
        (root / "labels" / f"{number}.txt").write_text(lines)
    (root / "data.yaml").write_text("names: [cat, dog, eel]\n")
    return root


def fed(asked: Any) -> Feed:
    return Feed(asked, processes=1, say=lambda _: None)


def test_batches_have_pictures_and_padded_boxes(data: Path) -> None:
    feed = fed(recipe(data, "task.arguments.views=3"))
    batches = list(feed.loaders["train"])
    assert len(batches) == 4 * 3 / 2
    assert batches[0]["image"].shape == (2, 3, 64, 64)
    assert batches[0]["boxes"].shape == (2, 2, 5)
    shown = sum(int((batch["boxes"][..., 4] >= 0).sum()) for batch in batches)
    assert shown == 3 * 3 * 2
    first, second = list(feed.loaders["test"])[:2]
    assert first["image"].shape == (1, 3, 40, 60)
    assert first["boxes"][0, :, 4].tolist() == [-1, -1]
    torch.testing.assert_close(second["boxes"][0], torch.tensor([[15.0, 10, 45, 30, 0], [9, 6, 21, 14, 1]]))


def test_streamed_batches_are_those_from_memory(data: Path) -> None:
    asked = ("augment.flip=true", "task.arguments.scale=[0.7, 1.4]")
    memory = fed(recipe(data, "data.loading=memory", *asked)).loaders["train"]
    stream = fed(recipe(data, "data.loading=stream", *asked)).loaders["train"]
    for one, other in zip(memory, stream, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_some_of_the_classes(data: Path) -> None:
    feed = fed(recipe(data, "task.arguments.classes=dog"))
    assert feed.task.labels == ["dog"]
    boxes = [batch["boxes"][0] for batch in feed.loaders["test"]]
    assert [rows[rows[:, 4] >= 0][:, 4].tolist() for rows in boxes] == [[], [0], [0], [0]]
    with pytest.raises(ConfigError, match="has no class 'dgo'; did you mean 'dog'"):
        fed(recipe(data, "task.arguments.classes=[dgo]"))


def test_a_bundle_refuses_data_without_its_classes(data: Path, tmp_path: Path) -> None:
    result = reskit.train(recipe(data).model_dump(), out=tmp_path / "run", reporter=Silent())
    assert {"precision_recall", "detections"} <= result.files.keys()
    (data / "data.yaml").write_text("names: [cat, dogs, eel]\n")
    with pytest.raises(DataError, match="has no class 'dog', which the bundle was trained on; did you mean"):
        reskit.evaluate(result.bundle, data)
    rows = reskit.predict(result.bundle, data / "images", save=tmp_path / "drawn")
    assert [row["error"] for row in rows] == [None] * 4
    with Image.open(rows[0]["drawn"]) as drawn:
        assert drawn.size == (60, 40)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("transfer.trained=head", "keeps pooled features"),
        ("preprocess.resize=crop", "crop cuts objects off"),
        ("augment.rotate=5", "augment.rotate does not move boxes"),
        ("task.arguments.scale=[2, 1]", "a rising pair"),
        ("task.arguments.scor=0.5", "no argument 'scor'; did you mean 'score'"),
    ],
)
def test_what_is_refused(data: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fed(recipe(data, override))


def test_a_network_without_boxes_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="resnet18 finds no boxes"):
        fed(recipe(data, model={"name": "resnet18"}))


def test_a_picture_that_cannot_be_read_is_refused_or_left_out(data: Path) -> None:
    (data / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"unreadable image: images/1.png"):
        fed(recipe(data))
    assert len(fed(recipe(data, "data.on_corrupt=skip")).loaders["test"]) == 3


def test_without_pycocotools_the_extra_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pycocotools" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'reskit\[detect\]'"):
        fed(recipe(data))
