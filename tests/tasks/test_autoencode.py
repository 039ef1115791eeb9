"""Autoencoding: the bound and the figures against other implementations, and classes that are left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

import reskit
from reskit.config import Recipe
from reskit.data import ImagePreprocess, Source
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError
from reskit.evaluation import measure
from reskit.prediction import Predictions
from reskit.recipes import load_recipe
from reskit.tasks import Autoencode, Feeding
from reskit.training.feed import Feed

SIZE, LATENT = (5, 4), 3
PIXELS = SIZE[0] * SIZE[1]


def recipe_of(arguments: Mapping[str, Any], **rest: Any) -> Recipe:
    model = {"name": "residual_vae", "arguments": {"depths": [1], "width": 4}}
    task = {"name": "autoencode", "arguments": {"latent": LATENT, **arguments}}
    return load_recipe({"name": "small", "task": task, "model": model, **rest})


def task_of(labels: tuple[str, ...] = (), **arguments: Any) -> Autoencode:
    preprocess = ImagePreprocess(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))
    settings = Autoencode.Settings.model_validate({"latent": LATENT, **arguments})
    return Autoencode(preprocess=preprocess, labels=labels, settings=settings)


def outputs_of(count: int, *, variational: bool = True, seed: int = 0) -> Tensor:
    """Return outputs that are no network's: the parts are independent, the score is negative."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, PIXELS, generator=generator) * 0.98 + 0.01
    vectors = torch.randn(count, LATENT * (2 if variational else 1), generator=generator)
    return torch.cat([images, vectors, -torch.ones(count, 1)], dim=1)


def batch_of(count: int, labels: list[int] | None = None, *, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (count, 1, *SIZE), dtype=torch.uint8, generator=generator),
        "label": torch.full((count,), -1) if labels is None else torch.tensor(labels),
        "index": torch.arange(count),
    }


# The bound.


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_is_the_bound(likelihood: str, beta: float) -> None:
    task, outputs, batch = task_of(likelihood=likelihood, beta=beta, sigma=0.2), outputs_of(6), batch_of(6)
    made, pixels = outputs[:, :PIXELS], batch["image"].flatten(1) / 255
    given = (
        Bernoulli(made, validate_args=False) if likelihood == "bernoulli" else Normal(made, torch.tensor(0.2))
    )
    mean, log_variance = outputs[:, PIXELS:-1].chunk(2, dim=1)
    apart = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    expected = (beta * apart - given.log_prob(pixels).sum(1)).mean() / PIXELS
    torch.testing.assert_close(task.loss(outputs, task.target(batch)), expected)
    columns = task.examples(outputs, task.target(batch))
    torch.testing.assert_close(columns["kl"], apart.double())
    torch.testing.assert_close(columns["elbo"].float(), given.log_prob(pixels).sum(1) - apart)


def test_without_a_distribution_only_the_reconstruction_counts() -> None:
    task, outputs, batch = task_of(beta=7.0), outputs_of(6, variational=False), batch_of(6)
    pixels = batch["image"].flatten(1) / 255
    expected = -Bernoulli(outputs[:, :PIXELS], validate_args=False).log_prob(pixels).mean()
    torch.testing.assert_close(task.loss(outputs, task.target(batch)), expected)
    assert "kl" not in task.examples(outputs, task.target(batch))
    assert set(task_metrics(task, outputs, batch)) == {"mse", "psnr"}


def test_noise_is_on_what_is_encoded_and_not_on_the_target() -> None:
    task, batch = task_of(noise=0.3), batch_of(400)
    torch.manual_seed(0)
    inputs, target = task.mix(task.inputs(batch), task.target(batch))
    assert torch.equal(target, task.target(batch))
    assert (inputs - task.inputs(batch)).std() == pytest.approx(0.3, rel=0.03)
    assert task_of().mix(task.inputs(batch), target)[0].equal(task.inputs(batch))


# Figures.


def task_metrics(task: Autoencode, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Score in parts of five, as a loader would give them."""
    left = iter(outputs.split(5))
    columns = zip(*(value.split(5) for value in batch.values()), strict=True)
    parts = [dict(zip(batch, rows, strict=True)) for rows in columns]
    return measure(lambda _: next(left), parts, task)[0]


@pytest.fixture
def marked() -> tuple[Autoencode, Tensor, dict[str, Tensor]]:
    """200 images; of the classes a and b one was trained on, and a third is not known at all."""
    labels = np.random.default_rng(0).integers(0, 3, 200).tolist()
    return task_of(("a",), leave_out=["b"]), outputs_of(200), batch_of(200, labels)


def test_figures_agree_with_scikit_learn(marked: tuple[Autoencode, Tensor, dict[str, Tensor]]) -> None:
    task, outputs, batch = marked
    outputs[batch["label"] > 0, :PIXELS] *= 0.3
    error = (outputs[:, :PIXELS].double() - batch["image"].flatten(1).double() / 255).square().mean(1).numpy()
    unseen = batch["label"].numpy() > 0
    found = task_metrics(task, outputs, batch)
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(unseen, error), abs=1e-6)
    assert found["average_precision"] == pytest.approx(
        reference.average_precision_score(unseen, error), abs=1e-6
    )
    assert 0.5 < found["roc_auc"] < 0.999
    assert found["mse"] == pytest.approx(error[~unseen].mean())
    assert found["psnr"] == pytest.approx((-10 * np.log10(error[~unseen])).mean())
    assert found["unseen_mse"] == pytest.approx(error[unseen].mean())
    assert set(found) == set(task.meanings)


def test_tables_tell_classes_apart(marked: tuple[Autoencode, Tensor, dict[str, Tensor]]) -> None:
    task, outputs, batch = marked
    rows = {name: value.numpy() for name, value in task.examples(outputs, task.target(batch)).items()}
    analysis = task.analyse(rows)
    table = {row["label"]: row for row in analysis["per_class"]}
    assert [(name, row["trained on"]) for name, row in table.items()] == [
        ("a", "yes"),
        ("b", "no"),
        ("another", "no"),
    ]
    counts = np.bincount(batch["label"])
    assert [row["support"] for row in table.values()] == counts.tolist()
    assert table["b"]["mse"] == pytest.approx(rows["score"][batch["label"].numpy() == 1].mean())
    assert analysis["scores"]["seen"]["count"] == counts[0]
    assert analysis["scores"]["unseen"]["p95"] == pytest.approx(
        np.percentile(rows["score"][rows["unseen"] > 0], 95)
    )


def test_without_labels_nothing_is_unseen() -> None:
    task, outputs, batch = task_of(), outputs_of(8), batch_of(8)
    rows = {name: value.numpy() for name, value in task.examples(outputs, task.target(batch)).items()}
    assert not rows["unseen"].any()
    analysis = task.analyse(rows)
    assert analysis["per_class"] == []
    assert list(analysis["scores"]) == ["seen"]
    assert not {"roc_auc", "unseen_mse"} & set(task_metrics(task, outputs, batch))


def test_engines_are_held_against_the_networks_own_answer() -> None:
    task, outputs = task_of(("a",)), outputs_of(8)
    batch = {**batch_of(8), **task.agreement(outputs)}
    assert task_metrics(task, outputs, batch)["mse"] == pytest.approx(0, abs=1e-12)
    other = outputs.clone()
    other[:, :PIXELS] += 0.1  # beyond 1, as engines of 8 bits may go
    assert task_metrics(task, other, batch)["mse"] == pytest.approx(0.01, rel=1e-4)
    assert np.isfinite(task_metrics(task, other, batch)["elbo"])


# Predictions.


def test_rows_have_a_score_and_the_latent_vector(tmp_path: Path) -> None:
    task, outputs = task_of(), outputs_of(2)
    records = task.decode(outputs)
    assert [record["score"] for record in records] == [-1.0, -1.0]
    assert records[1]["latent"] == outputs[1, PIXELS : PIXELS + LATENT].tolist()
    assert task_of(latent_in_rows=False).decode(outputs)[0] == {"score": -1.0, "latent": []}

    rows = [{"input": name, **record, "error": None} for name, record in zip("ab", records, strict=True)]
    saved = [{**row, "error_map": f"{row['input']}.png"} for row in rows]
    table = Predictions([{"input": "c", **task.blank, "error": "broken"}, *saved], task)
    table.write(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["input", "score", "latent1", "latent2", "latent3", "error", "error_map"]
    assert [row["error_map"] for row in read] == ["", "a.png", "b.png"]
    assert float(read[1]["latent2"]) == records[0]["latent"][1]
    assert read[0]["latent1"] == ""
    assert table.to_table()["latent"].to_pylist()[1:] == [record["latent"] for record in records]


def test_pictures_are_the_reconstruction_and_its_error() -> None:
    task, outputs, image = task_of(), outputs_of(1), batch_of(1)["image"][0]
    made = outputs[0, :PIXELS].reshape(SIZE).numpy() * 255
    pictures = task.pictures(image, outputs)
    assert np.abs(pictures["reconstruction"] - made).max() <= 0.5
    assert np.abs(pictures["error_map"] - np.abs(made - image[0].numpy())).max() <= 0.5
    assert pictures["error_map"].dtype == np.uint8


# Classes that are left out.


def feed_of(arguments: Mapping[str, Any], **rest: Any) -> Feed:
    return Feed(recipe_of(arguments, **rest), processes=1, say=lambda _: None)


@pytest.mark.parametrize(
    "arguments", [{"leave_out": [3, 7]}, {"train_classes": ["0", "1", "2", "4", "5", "6", "8", "9"]}]
)
def test_classes_left_out_are_not_trained_on_but_measured(arguments: dict[str, Any]) -> None:
    feed = feed_of(arguments)
    task = feed.task
    assert isinstance(task, Autoencode)
    assert task.labels == ["0", "1", "2", "4", "5", "6", "8", "9"]
    assert task.settings.leave_out == ("3", "7")
    trained = torch.cat([batch["label"] for batch in feed.loaders["train"]])
    assert set(trained.tolist()) == set(range(8))
    tested = torch.cat([batch["label"] for batch in feed.loaders["test"]])
    assert set(tested.tolist()) == set(range(10))
    assert len(tested) == 359
    source = reskit.open_source("digits")
    assert (tested >= 8).sum() == sum(source["test"].counts()[name] for name in ("3", "7"))
    assert feed.info.splits["train"].per_class["3"] == 0  # what is reported is what was trained on
    assert feed.info.fingerprint == source.fingerprint


def test_a_class_that_is_only_tested_is_unseen(tmp_path: Path) -> None:
    write(tmp_path, {"train/good": 6, "test/good": 2, "test/crack": 3, "ground_truth/crack": 1})
    feed = feed_of({}, data={"path": str(tmp_path)}, training={"batch_size": 2})
    assert feed.task.labels == ["good"]
    assert feed.task.settings.leave_out == ("crack",)  # type: ignore[attr-defined]
    labels = torch.cat([batch["label"] for batch in feed.loaders["test"]])
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_pictures_need_no_labels(tmp_path: Path, loading: str) -> None:
    write(tmp_path, {".": 10})
    data = {"path": str(tmp_path), "loading": loading, "workers": 0}
    feed = feed_of({}, data=data, training={"batch_size": 4})
    assert feed.task.labels == []
    (first, *_) = feed.loaders["train"]
    assert first["image"].shape == (4, 1, *SIZE)
    assert first["label"].tolist() == [-1] * 4
    assert sum(len(batch["index"]) for batch in feed.loaders["test"]) == 2
    with pytest.raises(ConfigError, match="has no class 'cat'"):
        feed_of({"leave_out": "cat"}, data=data)


def test_sub_folders_that_share_no_name_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, {"train/2019": 4, "train/2020": 4, "test/2021": 2})
    feed = feed_of({}, data={"path": str(tmp_path)}, training={"batch_size": 2})
    assert feed.task.labels == []
    assert "no sub-folder of test is one of train" in "".join(feed.info.notes)


def test_each_class_is_held_out_in_part(tmp_path: Path) -> None:
    write(tmp_path, {"a": 20, "b": 5, "c": 2})
    source = Autoencode.open(DataConfig(path=str(tmp_path)), seed=0)
    assert source["test"].counts() == {"a": 4, "b": 1, "c": 1}
    write(tmp_path, {"alone": 1})  # cannot be divided
    source = Autoencode.open(DataConfig(path=str(tmp_path)), seed=0)
    assert source.classes == ["a", "alone", "b", "c"]
    assert len(source["test"]) == round(0.2 * 28)


def test_other_data_are_measured_by_the_classes_trained_on(tmp_path: Path) -> None:
    write(tmp_path, {"good": 2, "crack": 3})
    data = DataConfig(path=str(tmp_path)).model_copy(update={"holdout": 0.0})  # as evaluate asks
    task = task_of(("good", "fine"), leave_out=["torn"])
    source = Autoencode.open(data, seed=0)
    task.check(source)
    labels = torch.cat([batch["label"] for batch in task.loader(source["test"], Feeding(batch_size=2))])
    assert sorted(labels.tolist()) == [0, 0, 3, 3, 3]  # the place behind good, fine and torn
    with pytest.raises(DataError, match="no class of"):
        task_of(("whole",)).check(source)


def write(root: Path, counts: Mapping[str, int]) -> None:
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, SIZE, dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"leave_out: digits has no class 'three'"):
        feed_of({"leave_out": ["three"]})
    with pytest.raises(ConfigError, match="3 cannot be both"):
        feed_of({"leave_out": ["3"], "train_classes": ["3", "4"]})
    with pytest.raises(ConfigError, match="no class with training images"):
        feed_of({"leave_out": [str(digit) for digit in range(10)]})
    with pytest.raises(ConfigError, match=r"no argument 'latnet'.*latent"):
        feed_of({"latnet": 4})
    with pytest.raises(ConfigError, match=r"resnet18 is no network to autoencode with.*residual_vae"):
        task_of().build_model(recipe_of({}, model={"name": "resnet18"}))
    task = task_of(("cat", "dog"))
    with pytest.raises(DataError, match="no class of digits is one the bundle was trained on"):
        task.check(Autoencode.open(DataConfig(), seed=0))


@pytest.mark.parametrize(
    ("argument", "key"), [("latent", "task.arguments.latent"), ("size", "preprocess.size")]
)
def test_what_data_and_task_settle_is_not_said_of_the_model(argument: str, key: str) -> None:
    recipe = recipe_of({}, model={"name": "residual_vae", "arguments": {argument: [8, 8]}})
    with pytest.raises(ConfigError, match=f"{argument} is settled by {key}"):
        task_of().build_model(recipe)


# The whole.


def test_an_unseen_digit_is_told_by_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The contract of tasks looks at the pictures; drawing them takes longer than all else.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
    recipe = {
        "name": "small",
        "task": {"name": "autoencode", "arguments": {"latent": 4, "train_classes": ["0"]}},
        "model": {"name": "residual_autoencoder", "arguments": {"depths": [1, 1], "width": 8}},
        "training": {"epochs": 12, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    }
    result = reskit.train(recipe, out=tmp_path / "run")
    assert result.metrics["roc_auc"] > 0.95
    assert result.metrics["unseen_mse"] > 2 * result.metrics["mse"]
    bundle = reskit.load(result.bundle)
    assert isinstance(bundle.task, Autoencode)
    source: Source = bundle.task.open(DataConfig(), seed=0)
    rows = bundle.predict([bundle.task.read(source["test"].item(row)) for row in range(20)])
    scores = reskit.evaluate(bundle).examples["score"][:20]
    np.testing.assert_allclose([row["score"] for row in rows], scores, rtol=1e-4, atol=1e-7)
