"""Classification: figures held against scikit-learn and the formulas; decoding, loss, mixing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor, nn

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.info import ImageSizes, SplitInfo
from reskit.recipes import load_recipe
from reskit.tasks import TASKS, Classify, Task
from reskit.tasks.labelled import CALIBRATION_BINS

LABELS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
PREPROCESS = ImagePreprocess(size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe({"name": "small", "model": {"name": "cifar_resnet8"}}, overrides)


def info_of(labels: list[str]) -> DataInfo:
    counts = SplitInfo(count=len(labels), per_class=dict.fromkeys(labels, 1))
    return DataInfo(
        kind="folder",
        title="image folder",
        location="somewhere",
        columns={"image": "image", "label": "label"},
        classes=labels,
        splits={"train": counts, "test": counts},
        held_out="test",
        image_sizes=ImageSizes(min=(8, 8), median=(8, 8), max=(8, 8)),
        channels=3,
        corrupt=[],
        fingerprint="0" * 64,
    )


def make_task(*overrides: str, labels: list[str] = LABELS) -> Task:
    return TASKS.get("classify").from_recipe(recipe_of(*overrides), info_of(labels), PREPROCESS)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


# Figures against scikit-learn.


@pytest.fixture(params=["balanced", "skewed", "a class never said", "sure and right"])
def scored(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of 500 examples."""
    generator = np.random.default_rng(7)
    target = generator.integers(0, len(LABELS), 500)
    logits = generator.normal(size=(500, len(LABELS))) + 1.5 * np.eye(len(LABELS))[target]
    if request.param == "skewed":
        target = np.minimum(target, generator.integers(0, len(LABELS), 500))
    elif request.param == "a class never said":
        logits[:, [2, 5]] -= 15
        target[(target == 3) | (target == 5)] = 4  # one that never is, and one that is neither
    elif request.param == "sure and right":
        logits = 20 * np.eye(len(LABELS))[target] + 0.01 * logits
    return logits.astype(np.float32), target


def computed(logits: np.ndarray, target: np.ndarray, labels: list[str] = LABELS) -> dict[str, float]:
    metrics = make_task(labels=labels).metrics()
    for start in range(0, len(target), 64):
        metrics.update(
            torch.from_numpy(logits[start : start + 64]), torch.from_numpy(target[start : start + 64])
        )
    return {name: float(value) for name, value in metrics.compute().items()}


def calibration_error(logits: np.ndarray, target: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, over 15 bins of equal width."""
    probabilities = softmax(logits)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == target
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    return total / len(target)


def test_metrics_agree_with_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits, target = scored
    probabilities, said = softmax(logits), logits.argmax(1)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        target, said, average="macro", zero_division=0.0
    )
    classes = np.arange(len(LABELS))
    assert computed(logits, target) == pytest.approx(
        {
            "top1": reference.accuracy_score(target, said),
            "top5": reference.top_k_accuracy_score(target, probabilities, k=5, labels=classes),
            "cross_entropy": reference.log_loss(target, probabilities, labels=classes),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "ece": calibration_error(logits, target),
        },
        rel=2e-5,
        abs=1e-7,
    )


def test_top5_is_left_out_where_it_means_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    target = np.arange(40) % 5
    assert "top5" not in computed(logits, target, LABELS[:5])
    assert "top5" in computed(np.pad(logits, ((0, 0), (0, 1))), target, LABELS[:6])


def test_two_classes_and_certain_mistakes_stay_finite() -> None:
    logits = np.array([[200.0, 0.0], [0.0, 200.0]], dtype=np.float32)
    found = computed(logits, np.array([1, 0]), LABELS[:2])
    assert found["top1"] == 0
    assert found["cross_entropy"] == 200
    assert found["ece"] == 1


def test_rows_and_tables_agree_with_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    logits, target = scored
    task = make_task()
    rows = task.examples(torch.from_numpy(logits), torch.from_numpy(target))
    examples = {name: value.numpy() for name, value in rows.items()}
    probabilities, said = softmax(logits), logits.argmax(1)
    assert list(examples) == ["target", "prediction", "confidence", "loss"]
    assert examples["target"].tolist() == target.tolist()
    assert examples["prediction"].tolist() == said.tolist()
    np.testing.assert_allclose(examples["confidence"], probabilities.max(1), rtol=1e-5)
    likelihood = probabilities[np.arange(500), target]
    np.testing.assert_allclose(examples["loss"], -np.log(likelihood), rtol=1e-4, atol=1e-6)

    analysis = task.analyse(examples)
    assert json.loads(json.dumps(analysis)) == analysis
    classes = range(len(LABELS))
    table = reference.classification_report(
        target, said, labels=classes, target_names=LABELS, output_dict=True, zero_division=0.0
    )
    for row in analysis["per_class"]:
        expected = table[row["label"]]
        assert row["precision"] == pytest.approx(expected["precision"])
        assert row["recall"] == pytest.approx(expected["recall"])
        assert row["f1"] == pytest.approx(expected["f1-score"])
        assert row["support"] == expected["support"]
    assert [row["label"] for row in analysis["per_class"]] == LABELS
    assert analysis["confusion"] == reference.confusion_matrix(target, said, labels=classes).tolist()
    bins = analysis["reliability"]
    assert sum(row["count"] for row in bins) == 500
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / 500
    assert error == pytest.approx(calibration_error(logits, target), rel=1e-4, abs=1e-6)
    assert error == pytest.approx(computed(logits, target)["ece"], rel=1e-4, abs=1e-6)


# Classification: decoding, loss, mixing.


def test_decode_gives_the_documented_columns() -> None:
    logits = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6], [9.0, 1, 2, 3, 4, 5, 6]])
    probabilities = softmax(logits.numpy())
    records = make_task().decode(logits)
    assert [list(record) for record in records] == [["label", "confidence", "top"]] * 2
    assert [record["label"] for record in records] == ["gnu", "ant"]
    for record, row in zip(records, probabilities, strict=True):
        order = np.argsort(-row)[:5]
        assert record["confidence"] == pytest.approx(row.max(), rel=1e-5)
        assert [item["label"] for item in record["top"]] == [LABELS[i] for i in order]
        assert [item["probability"] for item in record["top"]] == pytest.approx(row[order].tolist(), rel=1e-5)
        assert record["top"][0] == {"label": record["label"], "probability": record["confidence"]}
    assert json.loads(json.dumps(records)) == records


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decode_takes_any_precision(dtype: torch.dtype) -> None:
    record = make_task().decode(torch.tensor([[0.0, 8.0, 0, 0, 0, 0, 0]], dtype=dtype))[0]
    assert record["label"] == "bee"
    assert record["confidence"] == pytest.approx(np.exp(8) / (np.exp(8) + 6), rel=1e-4)


def test_decode_of_two_classes_and_of_nothing() -> None:
    task = make_task(labels=LABELS[:2])
    assert len(task.decode(torch.zeros(1, 2))[0]["top"]) == 2
    assert task.decode(torch.zeros(0, 2)) == []


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_the_formula(smoothing: float) -> None:
    """`L = -sum_i q_i log p_i` with `q = (1 - s) onehot + s / K` (Szegedy et al. 2016, section 7)."""
    task = make_task(f"training.label_smoothing={smoothing}")
    logits, target = torch.randn(16, 7, dtype=torch.float64), torch.arange(16) % 7
    smooth = (1 - smoothing) * np.eye(7)[target.numpy()] + smoothing / 7
    expected = -(smooth * np.log(softmax(logits.numpy()))).sum(1).mean()
    assert float(task.loss(logits, target)) == pytest.approx(expected, rel=1e-10)


def test_the_loss_takes_probabilities_too() -> None:
    task = make_task("training.label_smoothing=0.1")
    logits = torch.randn(16, 7, dtype=torch.float64)
    shares = torch.rand(16, 7, dtype=torch.float64).softmax(1)
    smooth = 0.9 * shares.numpy() + 0.1 / 7
    expected = -(smooth * np.log(softmax(logits.numpy()))).sum(1).mean()
    assert float(task.loss(logits, shares)) == pytest.approx(expected, rel=1e-10)


def mixed(*overrides: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield mixed images, mixed targets and one-hot targets; every pixel of an image holds its class."""
    task = make_task(*overrides)
    target = torch.arange(14) % 7
    images = (target.float() + 1)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    for seed in range(12):
        torch.manual_seed(seed)
        inputs, shares = task.mix(images, target)
        yield inputs, shares, nn.functional.one_hot(target, 7).float()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_are_the_shares_of_the_pixels(name: str) -> None:
    """A pixel holds its class number plus one, so the mean pixel must be the mean class of the target."""
    changed = 0
    for inputs, shares, plain in mixed(f"augment.{name}=1.0"):
        torch.testing.assert_close(shares.sum(1), torch.ones(14))
        assert ((shares > 0).sum(1) <= 2).all()
        assert (shares >= 0).all()
        expected = shares @ torch.arange(1.0, 8.0)
        torch.testing.assert_close(inputs.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-4)
        whole = inputs.flatten(1) == inputs.flatten(1).round()
        if name == "cutmix":
            assert whole.all()  # pixels are moved, never blended
        changed += not torch.equal(shares, plain)
    assert changed > 6


def test_with_both_each_batch_draws_one() -> None:
    kinds = set()
    for inputs, shares, _ in mixed("augment.mixup=1.0", "augment.cutmix=1.0"):
        torch.testing.assert_close(shares.sum(1), torch.ones(14))
        kinds.add(bool((inputs == inputs.round()).all()))
    assert kinds == {True, False}


def test_without_mixing_nothing_changes() -> None:
    inputs, label = torch.rand(4, 3, 8, 8), torch.arange(4)
    same, target = make_task().mix(inputs, label)
    assert same is inputs
    assert target is label


def test_the_network_has_a_head_for_the_labels() -> None:
    task = make_task(labels=LABELS[:4])
    assert isinstance(task, Classify)
    model = task.build_model(recipe_of("model.arguments={depths: [1, 1]}"))
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_settings_of_training_leave_no_trace_in_decoding() -> None:
    rough = make_task("training.label_smoothing=0.3", "augment.mixup=1.0", "augment.cutmix=1.0")
    assert rough.config() == make_task().config()
