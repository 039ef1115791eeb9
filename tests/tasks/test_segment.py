"""Segmentation: losses, figures and tables against other implementations; pictures; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

import reskit
from reskit.data import ImagePreprocess
from reskit.data.images import IGNORED
from reskit.errors import ConfigError, DataError
from reskit.evaluation import measure
from reskit.plots import overlay
from reskit.recipes import load_recipe
from reskit.tasks.pixel_losses import cross_entropy, focal, overlap
from reskit.tasks.segment import LEVELS, Segment
from reskit.tasks.segment_settings import SegmentSettings, added_losses, balanced, supervised
from reskit.training.callbacks import Reporter
from reskit.training.feed import Feed

SIDE = 12


def batch_of(
    count: int = 3, classes: int = 3, *, seed: int = 0, unlabelled: bool = True
) -> tuple[Tensor, Tensor]:
    """Return logits that are somewhat right, and classes."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (count, SIDE, SIDE), generator=generator)
    logits = torch.randn(count, classes, SIDE, SIDE, generator=generator)
    logits += 1.5 * F.one_hot(target, classes).permute(0, 3, 1, 2)
    if unlabelled:
        target[:, :3] = IGNORED
    return logits, target


def task_of(labels: tuple[str, ...] = ("road", "house", "tree"), **settings: Any) -> Segment:
    preprocess = ImagePreprocess(size=(SIDE, SIDE), channels=1, mean=(0.0,), std=(1.0,))
    return Segment(preprocess=preprocess, labels=labels, settings=SegmentSettings.model_validate(settings))


def labelled(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and answers of the labelled pixels."""
    kept = target != IGNORED
    return target[kept].numpy(), logits.argmax(1)[kept].numpy()


# Losses.


def test_cross_entropy_is_that_of_pytorch() -> None:
    logits, target = batch_of()
    weights = torch.tensor([0.2, 1.0, 3.0])
    for weight in (None, weights):
        expected = F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORED)
        torch.testing.assert_close(cross_entropy(logits, target, weights=weight), expected)
    smooth = F.cross_entropy(logits, target, ignore_index=IGNORED, label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, target, smoothing=0.1), smooth)


def test_focal_is_that_of_torchvision_and_of_gamma_0_the_cross_entropy() -> None:
    logits, target = batch_of(classes=2, unlabelled=False)
    difference = logits[:, 1] - logits[:, 0]
    expected = sigmoid_focal_loss(difference, target.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal(logits, target, gamma=2.0), expected)
    logits, target = batch_of()
    weights = torch.tensor([0.2, 1.0, 3.0])
    expected = cross_entropy(logits, target, weights=weights)
    torch.testing.assert_close(focal(logits, target, gamma=0.0, weights=weights), expected)


def test_dice_and_tversky_are_those_of_the_formulas() -> None:
    logits, target = batch_of()
    kept = target != IGNORED
    p = logits.softmax(1).permute(0, 2, 3, 1)[kept].double().numpy()
    y = np.eye(3)[target[kept].numpy()]
    both, only_said, only_true = (p * y).sum(0), (p * (1 - y)).sum(0), ((1 - p) * y).sum(0)
    dice = 1 - (2 * both + 1) / (2 * both + only_said + only_true + 1)
    assert float(overlap(logits, target)) == pytest.approx(dice.mean(), rel=1e-5)
    tversky = 1 - (both + 0.5) / (both + 0.3 * only_said + 0.7 * only_true + 0.5)
    found = overlap(logits, target, false_positive=0.3, false_negative=0.7)
    assert float(found) == pytest.approx(tversky.mean(), rel=1e-5)
    weights = torch.tensor([1.0, 2.0, 5.0])
    found = overlap(logits, target, weights=weights)
    assert float(found) == pytest.approx(np.average(dice, weights=weights), rel=1e-5)


def test_dice_is_that_of_segmentation_models_pytorch() -> None:
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, target = batch_of()
    theirs = losses.DiceLoss("multiclass", smooth=0.5, ignore_index=IGNORED)(logits, target)
    torch.testing.assert_close(overlap(logits, target), theirs)


def test_classes_that_are_not_in_the_batch_have_no_part_in_dice() -> None:
    logits, target = batch_of(classes=2)
    wide = torch.cat([logits, torch.full_like(logits[:, :1], -40.0)], 1)
    torch.testing.assert_close(overlap(wide, target), overlap(logits, target))


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "tversky"])
def test_pixels_without_a_label_have_no_gradient_and_none_at_all_no_loss(name: str) -> None:
    logits, target = batch_of()
    settings = SegmentSettings.model_validate({"losses": name})
    logits.requires_grad_()
    added_losses(logits, target, settings).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).eq(target != IGNORED).all()
    nothing = added_losses(logits, torch.full_like(target, IGNORED), settings)
    assert float(nothing.detach()) == pytest.approx(0.0, abs=1e-6)


def test_losses_are_added_by_their_weights() -> None:
    logits, target = batch_of()
    task = task_of(losses={"cross_entropy": 0.5, "tversky": 2}, class_weights=[1, 2, 3])
    weights = torch.tensor([1.0, 2.0, 3.0])
    expected = 0.5 * cross_entropy(logits, target, weights=weights) + 2 * overlap(
        logits, target, false_positive=0.3, false_negative=0.7, weights=weights
    )
    torch.testing.assert_close(task.loss(logits, target), expected)


def test_coarser_levels_count_half_as_much_each() -> None:
    assert float(supervised([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)])) == pytest.approx(
        (1 + 2 / 2 + 4 / 4) / 1.75
    )
    logits, target = batch_of()
    task = task_of()
    torch.testing.assert_close(task.loss(torch.cat([logits] * 3, 1), target), task.loss(logits, target))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    truth = np.repeat([0, 1, 2], [70, 20, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    assert balanced([70, 20, 10]) == pytest.approx(expected)
    assert balanced([5, 0])[1] == 1.0


# Figures.


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_are_those_of_scikit_learn_over_all_pixels(classes: int) -> None:
    labels = ("a", "b", "c")[:classes]
    task = task_of(labels)
    batches = [batch_of(1, classes, seed=seed) for seed in range(4)]
    metrics, rows = measure(
        lambda batch: batch["image"],
        [
            {"image": logits, "mask": target.to(torch.uint8), "index": torch.tensor([place])}
            for place, (logits, target) in enumerate(batches)
        ],
        task,
    )
    pairs = [labelled(*batch) for batch in batches]
    truth, said = (np.concatenate(values) for values in zip(*pairs, strict=True))
    expected = {
        "dice": reference.f1_score(truth, said, average="macro"),
        "iou": reference.jaccard_score(truth, said, average="macro"),
        "pixel_error": 1 - reference.accuracy_score(truth, said),
    }
    if classes == 2:
        expected["foreground_dice"] = reference.f1_score(truth, said)
    assert metrics == pytest.approx(expected, rel=1e-5)
    for place, (true, answer) in enumerate(pairs):
        assert rows["dice"][place] == pytest.approx(reference.f1_score(true, answer, average="macro"))
        assert rows["iou"][place] == pytest.approx(reference.jaccard_score(true, answer, average="macro"))
        assert rows["pixel_error"][place] == pytest.approx(1 - reference.accuracy_score(true, answer))
    table = task.analyse(rows)["per_class"]
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, said)
    for place, row in enumerate(table):
        assert row == pytest.approx(
            {
                "label": labels[place],
                "dice": f1[place],
                "iou": reference.jaccard_score(truth, said, average=None)[place],
                "precision": precision[place],
                "recall": recall[place],
                "share": support[place] / len(truth),
                "pixels": support[place],
            }
        )


def test_a_class_that_is_nowhere_has_no_part_in_the_means() -> None:
    logits, target = batch_of(2, 2)
    wide = torch.cat([logits, torch.full_like(logits[:, :1], -40.0)], 1)
    metrics = task_of().metrics()
    metrics.update(wide, target)
    truth, said = labelled(logits, target)
    assert float(metrics.compute()["dice"]) == pytest.approx(reference.f1_score(truth, said, average="macro"))
    row = task_of().examples(wide, target)
    assert float(row["dice"].mean()) == pytest.approx(
        np.mean(
            [
                reference.f1_score(*labelled(logits[i : i + 1], target[i : i + 1]), average="macro")
                for i in (0, 1)
            ]
        )
    )


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    logits, target = batch_of(4, 2)
    task = task_of(("out", "in"))
    rows = {name: value.numpy() for name, value in task.examples(logits, target).items()}
    curve = task.analyse(rows)["precision_recall"]
    kept = target != IGNORED
    truth, probability = target[kept].numpy(), logits.double().softmax(1)[:, 1][kept].numpy()
    rounded = np.floor(probability * LEVELS) / LEVELS
    precision, recall, thresholds = reference.precision_recall_curve(truth, rounded)
    assert curve["thresholds"] == pytest.approx(thresholds[::-1])
    assert curve["precision"] == pytest.approx(precision[:-1][::-1])
    assert curve["recall"] == pytest.approx(recall[:-1][::-1])
    assert curve["average_precision"] == pytest.approx(reference.average_precision_score(truth, rounded))


# Answers.


def test_areas_are_those_of_the_mask() -> None:
    logits, _ = batch_of(2)
    for record, classes in zip(task_of().decode(logits), logits.argmax(1).numpy(), strict=True):
        assert (record["height"], record["width"]) == (SIDE, SIDE)
        assert [area["label"] for area in record["areas"]] == ["road", "house", "tree"]
        assert [area["pixels"] for area in record["areas"]] == np.bincount(classes.ravel()).tolist()
        assert sum(area["share"] for area in record["areas"]) == pytest.approx(1)


def test_a_mask_is_saved_as_indices_with_a_palette(tmp_path: Path) -> None:
    logits, _ = batch_of(1)
    made = task_of().pictures(torch.full((1, SIDE, SIDE), 100, dtype=torch.uint8), logits)
    mask = made["mask"]
    assert isinstance(mask, Image.Image)
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as again:
        assert again.mode == "P"
        assert np.array_equal(np.asarray(again), logits[0].argmax(0).numpy())
        assert len(np.unique(np.asarray(again.convert("RGB")).reshape(-1, 3), axis=0)) == 3
    tinted = np.asarray(made["overlay"])
    assert tinted.shape == (SIDE, SIDE, 3)


def test_an_overlay_leaves_the_first_class_alone_and_draws_borders() -> None:
    classes = np.zeros((6, 6), np.uint8)
    classes[1:5, 1:5] = 1
    tinted = overlay(np.full((1, 6, 6), 100, np.uint8), classes, 2)
    assert (tinted[classes == 0] == 100).all()
    inside, border = tinted[2, 2], tinted[4, 4]
    assert (inside != 100).any()
    assert (inside != border).any()


# A run from files.

RECIPE: dict[str, Any] = {
    "name": "small",
    "task": {"name": "segment", "arguments": {"patch": 16, "patches": 2}},
    "model": {"name": "unet_cifar_resnet20", "arguments": {"encoder": "cifar_resnet8"}},
    "preprocess": {"size": 32},
    "augment": {"dihedral": True, "elastic": 1.0},
    "training": {"epochs": 1, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.003}},
    "runtime": {"precision": "fp32", "layout": "nchw"},
}
SIZES = [(32, 24), (36, 32), (40, 32), (32, 32), (36, 32)]


def write(folder: Path) -> None:
    """Write pictures in which brightness tells one of three classes, and in which two rows have no label."""
    for split, count in (("train", 8), ("test", 5)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for number in range(count):
            random = np.random.default_rng([count, number])
            mask = random.integers(0, 3, (5, 4), np.uint8).repeat(8, 0).repeat(8, 1)
            height, width = SIZES[number % 5]
            mask = mask[:height, :width].copy()
            pixels = (40 + 80 * mask + random.integers(0, 20, mask.shape)).astype(np.uint8)
            mask[:2] = IGNORED
            Image.fromarray(pixels).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")


class Silent(Reporter):
    def say(self, text: str) -> None:
        """Say nothing."""

    def on_step(self, **values: Any) -> None:
        """Say nothing."""


def settled(data: Path, *overrides: str) -> Feed:
    recipe = load_recipe({**RECIPE, "data": {"path": str(data)}}, overrides)
    return Feed(recipe, processes=1, say=lambda _: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def test_patches_and_masks_are_of_one_size_and_the_truth_is_whole(data: Path) -> None:
    feed = settled(data)
    batch = next(iter(feed.loaders["train"]))
    assert batch["image"].shape == (8, 1, 16, 16)
    assert batch["mask"].shape == (8, 16, 16)
    shapes = {
        (tuple(batch["image"].shape[2:]), tuple(batch["mask"].shape[1:])) for batch in feed.loaders["test"]
    }
    assert shapes == {((32, 24), (32, 24)), ((36, 32), (36, 32)), ((40, 32), (40, 32)), ((32, 32), (32, 32))}
    with Image.open(data / "test" / "masks" / "0.png") as mask:
        first = next(iter(feed.loaders["test"]))
        assert np.array_equal(first["mask"][0].numpy(), np.asarray(mask))


def test_streamed_and_held_examples_are_the_same(data: Path) -> None:
    held, streamed = settled(data), settled(data, "data.loading=stream", "data.workers=0")
    for split in ("train", "test"):
        for one, other in zip(held.loaders[split], streamed.loaders[split], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_of_one_size_are_answered_whole_others_in_tiles(data: Path) -> None:
    assert settled(data, "preprocess.size=null").task.preprocess.size == (256, 256)
    for folder in ("images", "masks"):
        for split in ("train", "test"):
            for path in (data / split / folder).iterdir():
                with Image.open(path) as picture:
                    picture.resize((40, 30), Image.Resampling.NEAREST).save(path)
    assert settled(data, "preprocess.size=null").task.preprocess.size == (30, 40)


def test_classes_are_named_and_balanced_by_the_recipe(data: Path) -> None:
    feed = settled(data, "task.arguments.classes=[sky, hill, sun]", "task.arguments.class_weights=balanced")
    assert feed.task.labels == ["sky", "hill", "sun"]
    counts = feed.source["train"].counts()
    assert feed.task.settings.class_weights == pytest.approx(balanced(list(counts.values())))
    feed.task.check(feed.source)
    again = Segment.from_config(feed.task.config())
    assert again.config() == feed.task.config()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.arguments.classes=[a, b]", "names 2 classes, the data have 3"),
        ("task.arguments.class_weights=[1, 2]", "2 values for 3 classes"),
        ("task.arguments.losses={dize: 1}", r"task\.arguments\.losses"),
        ("task.arguments.losses={dice: 0}", "greater than 0"),
        ("task.arguments.losses={}", "at least 1 item"),
        ("task.arguments.false_positve=1", "no argument 'false_positve'; did you mean 'false_positive'"),
        ("augment.mixup=0.2", "augment.mixup is for images with one label"),
        ("transfer.trained=head", "know no places"),
    ],
)
def test_what_does_not_go_together_is_refused(override: str, said: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        settled(data, override)


def test_a_patch_too_small_for_the_network_is_refused(data: Path) -> None:
    recipe = load_recipe({**RECIPE, "model": {"name": "unet_resnet18"}})
    with pytest.raises(ConfigError, match=r"patch 16 is too small .*stride is 32: set it to 64"):
        settled(data).task.build_model(recipe)


@pytest.mark.parametrize("wrong", ["size", "value", "broken"])
def test_a_bad_mask_ends_the_run_or_is_left_out(wrong: str, data: Path) -> None:
    path = data / "test" / "masks" / "3.png"
    if wrong == "broken":
        path.write_bytes(path.read_bytes()[:60])
    else:
        with Image.open(path) as mask:
            values = np.asarray(mask).copy()
        values[5, 5] = 77
        Image.fromarray(values if wrong == "value" else values[:-1] % 3).save(path)
    said = {"size": "must be of one size", "value": "holds the value 77", "broken": "cannot read mask"}[wrong]
    with pytest.raises(DataError, match=rf"1 unreadable image: .*images/3\.png .*{said}"):
        settled(data)
    feed = settled(data, "data.on_corrupt=skip")
    assert len(feed.loaders["test"].dataset) == 4  # type: ignore[arg-type]
    assert feed.info.corrupt == ["test/images/3.png"]


def test_other_data_are_whole_and_may_lack_classes_but_not_have_more(data: Path, tmp_path: Path) -> None:
    bundle = reskit.train(RECIPE, data=data, out=tmp_path / "run", reporter=Silent()).bundle
    fewer, more = tmp_path / "fewer", tmp_path / "more"
    for folder, change in ((fewer, lambda v: np.minimum(v, 1)), (more, lambda v: np.where(v == 1, 5, v))):
        shutil.copytree(data / "test", folder)
        for path in (folder / "masks").iterdir():
            with Image.open(path) as mask:
                values = np.asarray(mask)
            Image.fromarray(change(values).astype(np.uint8)).save(path)
    found = reskit.evaluate(bundle, fewer)
    assert len(found.examples["index"]) == 5
    assert found.analysis["per_class"][2]["pixels"] == 0
    with pytest.raises(DataError, match=r"classes class 0, class 1, .*the bundle was trained on"):
        reskit.evaluate(bundle, more)
