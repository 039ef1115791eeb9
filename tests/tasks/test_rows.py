"""Texts, rows and recordings as tasks: what recipes may say, where weights start, metrics of rare classes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import reskit
from reskit.data.tables import TablePreprocess
from reskit.errors import ConfigError
from reskit.recipes import load_recipe
from reskit.tasks import TASKS
from reskit.tasks.tabular import TabularSettings
from reskit.training.callbacks import Reporter

SMALL = {
    "text": ("text_resnet8", {"width": [8, 8, 8], "embedding": 8}),
    "tabular": ("tabular_resnet", {"depth": 1, "width": 8}),
}


class Silent(Reporter):
    def say(self, text: str) -> None:
        """Say nothing."""

    def on_step(self, **values: Any) -> None:
        """Say nothing."""


def table(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def texts(path: Path, *extra: str) -> Path:
    rows = [
        [f"{word} film {word}", label] for word in ("one", "two", *extra) for label in ("good", "bad")
    ] * 3
    return table(path, [["review", "label"], *rows])


def train(task: str, data: Path, out: Path, *overrides: str, **more: Any) -> reskit.Bundle:
    name, arguments = SMALL[task]
    recipe = {
        "name": "small",
        "task": task,
        "model": {"name": name, "arguments": arguments},
        "training": {"epochs": 1, "batch_size": 4},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    }
    result = reskit.train(recipe, data=data, out=out, overrides=overrides, reporter=Silent(), **more)
    return reskit.load(result.bundle)


# Recipes.


def test_a_setting_of_a_task_that_is_named_alone_keeps_its_name() -> None:
    recipe = load_recipe("tabular", ["task.arguments.false_negative_cost=50"])
    assert (recipe.task.name, recipe.task.arguments) == ("tabular", {"false_negative_cost": 50})


@pytest.mark.parametrize("task", ["text", "tabular"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("augment.flip=0.5", "augment.flip is for images"),
        ("preprocess.size=32", "preprocess.size is for images"),
        ("data.loading=stream", "kept in memory"),
        ("model={name: cifar_resnet8}", "cifar_resnet8 is made for classify"),
        ("task.arguments.lenght=3", "has no argument 'lenght'"),
        ("training.batch_size=99", "--set training.batch_size="),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, task: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(task, texts(tmp_path / "a.csv"), tmp_path / "run", override)


def test_images_take_no_network_for_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_resnet8 is made for text, not for the task classify"):
        reskit.train("digits-resnet8", out=tmp_path / "run", overrides=["model={name: text_resnet8}"])


@pytest.mark.parametrize(
    "override", ["augment.flip=true", "preprocess.resize=pad", "task.arguments.high=1e6"]
)
def test_a_recording_is_not_turned_round(tmp_path: Path, override: str) -> None:
    import soundfile

    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "data" / name / f"{number}.wav", np.ones(800) * 0.1, 8000)
    with pytest.raises(ConfigError, match=r"augment\.flip|preprocess\.resize|task\.arguments"):
        reskit.train(
            "audio", data=tmp_path / "data", out=tmp_path / "run", overrides=[override], reporter=Silent()
        )


# Weights to start from.


def test_a_bundles_words_and_column_stay_with_its_weights(tmp_path: Path) -> None:
    first = train(
        "text",
        texts(tmp_path / "a.csv"),
        tmp_path / "first",
        "task.arguments.least=1",
        "data.text_column=review",
    )
    assert first.task.preprocess.column == "review"  # type: ignore[attr-defined]
    other = texts(tmp_path / "b.csv", "three", "four")
    second = train("text", other, tmp_path / "second", "training.optimizer.lr=1e-6", weights=first.path)
    assert second.task.preprocess == first.task.preprocess
    table_of = "embedding.table.weight"
    moved = second.model.state_dict()[table_of] - first.model.state_dict()[table_of]
    assert moved.abs().max() < 1e-3
    read = reskit.predict(
        second, table(tmp_path / "c.csv", [["text", "review"], ["x", "one film"]]).resolve()
    )
    assert read[0]["confidence"] == pytest.approx(reskit.predict(second, "one film")[0]["confidence"])


def test_weights_that_know_no_words_are_refused(tmp_path: Path) -> None:
    torch.save(
        reskit.create_model("text_resnet8", in_channels=9, width=[8, 8, 8]).state_dict(), tmp_path / "w.pt"
    )
    with pytest.raises(ConfigError, match=r"w\.pt is no bundle of the task text"):
        train("text", texts(tmp_path / "a.csv"), tmp_path / "run", weights=tmp_path / "w.pt")


# Rare classes.


def rare(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(400, generator=generator) < 0.1).long()
    logits = torch.randn(400, 2, generator=generator) + torch.stack([1.5 - target, 1.5 * target], 1)
    return logits, target


def tabular(**settings: Any) -> Any:
    preprocess = TablePreprocess.learned({"a": [1, 2, 3]})
    labels = ["fine", "fraud"]
    asked = TabularSettings(**{"positive": "fraud", **settings})
    return TASKS.get("tabular")(preprocess=preprocess, labels=labels, settings=asked)


def test_metrics_are_those_of_scikit_learn() -> None:
    logits, target = rare()
    task = tabular(max_false_positives=0.05, false_positive_cost=2.0, false_negative_cost=6.0)
    metrics = task.metrics()
    for part in range(0, 400, 64):
        metrics.update(logits[part : part + 64], target[part : part + 64])
    found = {name: float(value) for name, value in metrics.compute().items()}
    probability, truth = logits.softmax(1)[:, 1].numpy(), target.numpy()
    assert found["roc_auc"] == pytest.approx(roc_auc_score(truth, probability), abs=1e-5)
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, probability), abs=1e-5)
    rates, recalls, _ = roc_curve(truth, probability, drop_intermediate=False)
    assert found["recall_at_fpr"] == pytest.approx(recalls[rates <= 0.05].max(), abs=1e-5)
    called = probability >= 2 / 8
    cost = 2 * (called & (truth == 0)).sum() + 6 * (~called & (truth == 1)).sum()
    assert found["expected_cost"] == pytest.approx(cost / 400)
    metrics.reset()
    metrics.update(logits, target)
    assert float(metrics.compute()["roc_auc"]) == pytest.approx(found["roc_auc"], abs=1e-6)


def test_more_than_two_classes_are_ordered_each_against_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (300,), generator=generator)
    logits = torch.randn(300, 3, generator=generator) / 50 + 0.5  # as if they were probabilities
    task = TASKS.get("tabular")(preprocess=TablePreprocess.learned({"a": [1, 2]}), labels=["a", "b", "c"])
    metrics = task.metrics()
    for part in range(300):
        metrics.update(logits[part : part + 1], target[part : part + 1])
    expected = roc_auc_score(target.numpy(), logits.softmax(1).double().numpy(), multi_class="ovr")
    assert float(metrics.compute()["roc_auc"]) == pytest.approx(expected, abs=1e-4)
    assert "expected_cost" not in metrics.compute()


def test_the_rarer_class_is_to_be_found_and_weights_are_settled(tmp_path: Path) -> None:
    rows = [[number, "rare" if number % 4 == 0 else "usual"] for number in range(40)]
    data = table(tmp_path / "a.csv", [["n", "label"], *rows])
    bundle = train("tabular", data, tmp_path / "run", "task.arguments.balanced=true")
    settings = bundle.task.settings
    assert settings.positive == "rare"  # type: ignore[attr-defined]
    assert settings.weights == pytest.approx((2.0, 2 / 3))  # type: ignore[attr-defined]
    for override, said in (
        ("task.arguments.positive=often", "no class 'often'"),
        ("task.arguments.weights=[1, 2, 3]", "give 2, one a class"),
        ("task.arguments.weights=[1, 0]", "greater than 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            train("tabular", data, tmp_path / "other", override)


def test_the_loss_weighs_classes_as_settings_say() -> None:
    logits, target = rare()
    plain = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 9.0]))
    assert float(tabular(weights=(1.0, 9.0)).loss(logits, target)) == pytest.approx(float(plain))


def test_the_curve_has_its_thresholds() -> None:
    logits, target = rare()
    task = tabular()
    examples = {name: value.numpy() for name, value in task.examples(logits, target).items()}
    curve = task.analyse(examples)["precision_recall"]
    assert len(curve["precision"]) == len(curve["recall"]) == len(curve["thresholds"]) == 200
    place = int(np.argmin(np.abs(np.array(curve["thresholds"]) - 0.5)))
    called = examples["probability"] >= curve["thresholds"][place]
    truth = examples["target"] == 1
    assert curve["recall"][place] == pytest.approx((called & truth).sum() / truth.sum(), abs=1e-6)
    assert curve["precision"][place] == pytest.approx((called & truth).sum() / called.sum(), abs=1e-6)
