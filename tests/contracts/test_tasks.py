"""One set of promises over every registered task; figures are held against scikit-learn and the formulas."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from torch import Tensor, nn

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.info import ImageSizes, SplitInfo
from reskit.evaluation import measure, network_answers
from reskit.recipes import load_recipe
from reskit.tasks import TASKS, Batch, Classify, Task
from reskit.tasks.classify import CALIBRATION_BINS

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


def make_task(name: str, *overrides: str, labels: list[str] = LABELS) -> Task:
    return TASKS.get(name).from_recipe(recipe_of(f"task={name}", *overrides), info_of(labels), PREPROCESS)


def make_batch(count: int = 32, *, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    return {
        "image": torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "label": torch.randint(0, len(LABELS), (count,), generator=generator),
        "index": torch.arange(first, first + count),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def loop(model: nn.Module, batches: list[Batch], task: Task, **values: Any) -> Any:
    return measure(network_answers(model, task, torch.device("cpu")), batches, task, **values)


class Logits(nn.Module):
    """Answers with the first row of the first channel: what goes in is what is scored."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, 0, 0, : len(LABELS)]


@pytest.fixture(params=TASKS.names())
def task(request: pytest.FixtureRequest) -> Task:
    return make_task(request.param)


# Promises of every task.


def test_steps_lower_the_loss_on_a_fixed_batch(task: Task) -> None:
    torch.manual_seed(0)
    model, batch = task.build_model(recipe_of()), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = task.loss(model(task.inputs(batch)), task.target(batch))
        assert loss.shape == ()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < losses[0]
    assert losses[-1] < 0.9 * losses[0]


def test_inputs_are_the_normalised_pixels(task: Task) -> None:
    batch = make_batch(4)
    expected = (batch["image"].double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(task.inputs(batch).double(), expected, rtol=0, atol=1e-6)


def test_what_a_bundle_stores_makes_the_same_task(task: Task) -> None:
    again = TASKS.get(task.name).from_config(json.loads(json.dumps(task.config())))
    assert type(again) is type(task)
    assert again.config() == task.config()
    assert again.config()["name"] == task.name
    outputs, batch = torch.randn(5, len(LABELS)), make_batch(5)
    assert again.decode(outputs) == task.decode(outputs)
    assert torch.equal(again.inputs(batch), task.inputs(batch))


def test_settings_of_training_leave_no_trace_in_decoding() -> None:
    for name in TASKS:
        rough = make_task(name, "training.label_smoothing=0.3", "augment.mixup=1.0", "augment.cutmix=1.0")
        assert rough.config() == make_task(name).config()


def test_the_main_metric_is_among_the_metrics(task: Task) -> None:
    metrics, _ = loop(Logits(), [make_batch()], task)
    assert task.main_metric in metrics
    assert isinstance(task.higher_is_better, bool)


def test_fresh_metrics_remember_nothing(task: Task) -> None:
    first = task.metrics()
    first.update(torch.eye(7), torch.arange(7))
    second = task.metrics()
    second.update(torch.eye(7), torch.arange(7).flip(0))
    assert float(first.compute()[task.main_metric]) == 1
    assert float(second.compute()[task.main_metric]) == pytest.approx(1 / 7)


# Evaluation.


@pytest.mark.parametrize("size", [1, 7, 32, 100])
def test_figures_do_not_depend_on_the_batch_size(task: Task, size: int) -> None:
    whole = make_batch(100)
    parts = [{name: value[i : i + size] for name, value in whole.items()} for i in range(0, 100, size)]
    metrics, examples = loop(Logits(), parts, task)
    expected, rows = loop(Logits(), [whole], task)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert examples.keys() == rows.keys()
    for name, values in rows.items():
        np.testing.assert_allclose(examples[name], values, rtol=1e-6)
        assert values.shape == (100,)
    assert examples["index"].tolist() == list(range(100))


@pytest.mark.parametrize("processes", [2, 3])
def test_padded_samples_are_not_counted_twice(task: Task, processes: int) -> None:
    """As `gather_for_metrics`: the last batch comes back padded with early samples, and they are dropped."""
    whole = make_batch(101)
    starts = range(0, 101, 10 * processes)
    padded, real = [], []
    for start in starts:
        places = torch.arange(start, start + 10 * processes)
        real.append(int((places < 101).sum()))
        padded.append({name: value[places % 101] for name, value in whole.items()})
    left = iter(real)

    def gather(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        count = next(left)
        return tuple(value[:count] for value in values)

    metrics, examples = loop(Logits(), padded, task, gather=gather)
    expected, _ = loop(Logits(), [whole], task)
    assert sorted(examples["index"].tolist()) == list(range(101))
    assert metrics == pytest.approx(expected, rel=1e-5)
    uncorrected, _ = loop(Logits(), padded, task)
    assert uncorrected != pytest.approx(expected, rel=1e-5)


def test_measuring_changes_no_weight_and_no_statistics(task: Task) -> None:
    torch.manual_seed(0)
    model = task.build_model(recipe_of())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop(model, [make_batch(8)], task)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# Classification against scikit-learn.


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
    metrics = make_task("classify", labels=labels).metrics()
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
    task = make_task("classify")
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
    records = make_task("classify").decode(logits)
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
    record = make_task("classify").decode(torch.tensor([[0.0, 8.0, 0, 0, 0, 0, 0]], dtype=dtype))[0]
    assert record["label"] == "bee"
    assert record["confidence"] == pytest.approx(np.exp(8) / (np.exp(8) + 6), rel=1e-4)


def test_decode_of_two_classes_and_of_nothing() -> None:
    task = make_task("classify", labels=LABELS[:2])
    assert len(task.decode(torch.zeros(1, 2))[0]["top"]) == 2
    assert task.decode(torch.zeros(0, 2)) == []


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_the_formula(smoothing: float) -> None:
    """`L = -sum_i q_i log p_i` with `q = (1 - s) onehot + s / K` (Szegedy et al. 2016, section 7)."""
    task = make_task("classify", f"training.label_smoothing={smoothing}")
    logits, target = torch.randn(16, 7, dtype=torch.float64), torch.arange(16) % 7
    smooth = (1 - smoothing) * np.eye(7)[target.numpy()] + smoothing / 7
    expected = -(smooth * np.log(softmax(logits.numpy()))).sum(1).mean()
    assert float(task.loss(logits, target)) == pytest.approx(expected, rel=1e-10)


def test_the_loss_takes_probabilities_too() -> None:
    task = make_task("classify", "training.label_smoothing=0.1")
    logits = torch.randn(16, 7, dtype=torch.float64)
    shares = torch.rand(16, 7, dtype=torch.float64).softmax(1)
    smooth = 0.9 * shares.numpy() + 0.1 / 7
    expected = -(smooth * np.log(softmax(logits.numpy()))).sum(1).mean()
    assert float(task.loss(logits, shares)) == pytest.approx(expected, rel=1e-10)


def mixed(*overrides: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield mixed images, mixed targets and one-hot targets; every pixel of an image holds its class."""
    task = make_task("classify", *overrides)
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
    task, batch = make_task("classify"), make_batch(4)
    inputs = task.inputs(batch)
    same, target = task.mix(inputs, task.target(batch))
    assert same is inputs
    assert target is batch["label"]


def test_the_network_has_a_head_for_the_labels() -> None:
    task = make_task("classify", labels=LABELS[:4])
    assert isinstance(task, Classify)
    model = task.build_model(recipe_of("model.arguments={depths: [1, 1]}"))
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
