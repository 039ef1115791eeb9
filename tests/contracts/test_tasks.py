"""One set of promises over every registered task, each trained on small files of its own kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import CASES, TaskCase
from PIL import Image
from torch import Tensor

import reskit
from reskit.backends import BACKENDS
from reskit.backends.writing import write_checked
from reskit.bundle import Bundle
from reskit.evaluation import held_out_loader, measure, network_answers, open_as_trained
from reskit.recipes import load_recipe
from reskit.tasks import TASKS, Batch, Task
from reskit.training import TrainResult
from reskit.training.callbacks import Reporter
from reskit.training.feed import Feed
from reskit.training.loop import training_loss
from reskit.training.runtime import Runtime


class Trained(NamedTuple):
    """A task's smallest run."""

    case: TaskCase
    data: Path
    result: TrainResult
    bundle: Bundle
    task: Task
    batches: list[Batch]


class Silent(Reporter):
    def say(self, text: str) -> None:
        """Say nothing."""

    def on_step(self, **values: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module", params=sorted(CASES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    data = folder / "data"
    data.mkdir()
    case.write(data)
    result = reskit.train(case.recipe, data=data, out=folder / "run", reporter=Silent())
    bundle = reskit.load(result.bundle)
    loader, _ = held_out_loader(bundle.task, open_as_trained(bundle), batch_size=1)
    return Trained(case, data, result, bundle, bundle.task, list(loader))


def scored(trained: Trained, batches: list[Batch], **values: Any) -> Any:
    answer = network_answers(trained.bundle.model, trained.task, torch.device("cpu"))
    return measure(answer, batches, trained.task, **values)


# Learning.


def test_steps_lower_the_loss_on_a_fixed_batch(trained: Trained) -> None:
    recipe = load_recipe({**trained.case.recipe, "data": {"path": str(trained.data)}})
    feed = Feed(recipe, processes=1, say=lambda _: None)
    torch.manual_seed(0)
    model, batch = feed.task.build_model(recipe), next(iter(feed.loaders["train"]))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    runtime = Runtime(device="cpu", precision="fp32", layout="nchw", compile=False)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)  # of noise, dropout and mixing: the same batch every time
        loss = training_loss(feed.task, model, batch, runtime)
        assert loss.shape == ()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


def test_a_resumed_run_is_the_uninterrupted_one(trained: Trained, tmp_path: Path) -> None:
    class Crash(Silent):
        def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
            if len(history) == 2:
                raise SystemExit("the power went out")

    def run(*, reporter: Reporter, resume: bool = False) -> TrainResult:
        recipe = None if resume else trained.case.recipe
        data = None if resume else trained.data
        return reskit.train(recipe, data=data, out=tmp_path / "run", resume=resume, reporter=reporter)

    with pytest.raises(SystemExit, match="power"):
        run(reporter=Crash())  # the second epoch is trained, but not saved
    again = reskit.load(run(reporter=Silent(), resume=True).bundle)
    for name, value in trained.bundle.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


# The bundle.


def test_what_a_bundle_stores_makes_the_same_task(trained: Trained) -> None:
    again = TASKS.get(trained.task.name).from_config(json.loads(json.dumps(trained.task.config())))
    assert type(again) is type(trained.task)
    assert again.config() == trained.task.config()


def test_evaluating_the_bundle_gives_the_figures_of_the_run(trained: Trained) -> None:
    found = reskit.evaluate(trained.bundle)
    assert found.split == trained.result.split == "test"
    assert found.metrics == pytest.approx(trained.result.metrics, abs=1e-5)


def test_the_main_metric_is_among_the_metrics_and_all_have_a_meaning(trained: Trained) -> None:
    assert trained.task.main_metric in trained.result.metrics
    assert trained.result.metrics.keys() <= trained.task.meanings.keys()
    assert all(np.isfinite(value) for value in trained.result.metrics.values())


def test_the_report_shows_pictures(trained: Trained) -> None:
    pictures = [path for path in trained.result.files.values() if path.suffix == ".png"]
    assert len(pictures) > 1  # the curves, and what the task draws
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 8


# Evaluation.


def test_measuring_changes_no_weight_and_no_statistics(trained: Trained) -> None:
    model = trained.bundle.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scored(trained, trained.batches)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fresh_metrics_remember_nothing(trained: Trained) -> None:
    first, _ = scored(trained, trained.batches)
    again, _ = scored(trained, trained.batches)
    assert first == again


def test_padded_samples_are_not_counted_twice(trained: Trained) -> None:
    """As `gather_for_metrics`: the last batch comes back padded with early samples, and they are dropped."""
    expected, rows = scored(trained, trained.batches)
    doubled = [
        {name: torch.cat([value, value]) for name, value in batch.items()} for batch in trained.batches
    ]

    def gather(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value[:1] for value in values)

    metrics, examples = scored(trained, doubled, gather=gather)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert examples["index"].tolist() == rows["index"].tolist()
    assert all(len(values) == len(trained.batches) for values in examples.values())


# Prediction.


def test_predictions_have_the_documented_columns(trained: Trained, tmp_path: Path) -> None:
    found = reskit.predict(trained.bundle, trained.data / trained.case.given, save=tmp_path / "saved")
    assert len(found) == 5
    assert tuple(trained.task.blank) == trained.case.columns
    for row in found:
        assert row["error"] is None
        assert row.keys() == {"input", *trained.case.columns, *trained.case.saved, "error"}
        for name in trained.case.saved:
            with Image.open(row[name]) as picture:
                assert min(picture.size) > 1
    assert found.to_table().num_rows == 5
    for suffix in (".csv", ".json", ".jsonl", ".parquet"):
        assert found.write(tmp_path / f"table{suffix}").stat().st_size > 0
    assert "5 of 5" in repr(found)


def test_a_picture_of_any_kind_is_answered(trained: Trained) -> None:
    """Larger, smaller, of another shape, in colour, with a palette, of 16 bits."""
    if trained.task.takes != "image":
        pytest.skip(f"takes a {trained.task.takes}")
    noise = np.random.default_rng(0).integers(0, 256, (70, 45, 3), np.uint8)
    colour = Image.fromarray(noise)
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    pictures = [colour, colour.convert("P"), colour.convert("L"), colour.resize((19, 21)), deep]
    rows = reskit.predict(trained.bundle, pictures)
    assert [row["error"] for row in rows] == [None] * 5


def test_a_corrupt_file_is_a_row_with_an_error(trained: Trained, tmp_path: Path) -> None:
    if trained.task.takes in ("text", "table"):
        pytest.skip("a file of these is many examples, or any bytes that are text")
    good = next(iter(sorted(trained.data.glob(trained.case.given))))
    shutil.copy(good, tmp_path / f"good{good.suffix}")
    (tmp_path / f"bad{good.suffix}").write_bytes(good.read_bytes()[:40])
    bad, fine = reskit.predict(trained.bundle, tmp_path)
    assert f"bad{good.suffix}" in bad["error"]
    assert {name: bad[name] for name in trained.case.columns} == dict(trained.task.blank)
    assert fine["error"] is None


def test_what_is_no_example_is_a_row_with_an_error(trained: Trained) -> None:
    good = next(trained.task.find(trained.data / trained.case.given, recursive=True)).item
    bad, fine = reskit.predict(trained.bundle, [object(), good])
    assert "cannot predict for object" in bad["error"]
    assert {name: bad[name] for name in trained.case.columns} == dict(trained.task.blank)
    assert fine["error"] is None


def test_an_answer_does_not_depend_on_its_neighbours(trained: Trained) -> None:
    found = list(trained.task.find(trained.data / trained.case.given, recursive=True))
    rows = reskit.predict(trained.bundle, [entry.item for entry in found])
    assert len(rows) == 5
    for entry, row in zip(found, rows, strict=True):
        alone = reskit.predict(trained.bundle, entry.item)[0]
        assert list(numbers(row)) == pytest.approx(list(numbers(alone)), abs=1e-3)


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in a row."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


# Elsewhere.


def test_it_runs_elsewhere_as_here(trained: Trained, tmp_path: Path) -> None:
    """`write_checked` holds the file against eager at two batch sizes."""
    backend = BACKENDS.get("onnxruntime")
    written = write_checked(trained.bundle, backend, "fp32", tmp_path / "network.onnx")
    assert len(written.differences) == 2
    assert max(written.differences.values()) < 1e-4


def test_no_output_is_nan_for_extreme_input(trained: Trained) -> None:
    """Black and white, tokens that no text has, numbers that are as large as they can be."""
    task = trained.task
    levels = (0.0, 255.0) if task.takes in ("image", "audio") else (0.0, -(2.0**30), 2.0**30)
    if task.dtype == "float32" and task.takes == "table":
        levels = (*levels, torch.finfo(torch.float32).max)
    for level in levels:
        raw = torch.full((1, *task.preprocess.shape), level).to(getattr(torch, task.dtype))
        with torch.inference_mode():
            outputs = trained.bundle.model.eval()(task.inputs({task.raw: raw}))
        assert outputs.isfinite().all()
