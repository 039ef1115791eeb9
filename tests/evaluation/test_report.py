"""The report holds the figures it was given and names every example."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from reskit.data import ImagePreprocess, Source, open_source
from reskit.errors import OutputError
from reskit.evaluation.report import metrics_table, write_report
from reskit.tasks import Answered, Classify

SIZE = 12


@pytest.fixture
def source(tmp_path: Path) -> Source:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("0 plain", "1 com,ma", "2_under|bar"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(generator.integers(0, 256, (SIZE, 9, 3), dtype=np.uint8)).save(
                    folder / f'{i} "x".png'
                )
    return open_source(tmp_path / "data")


@pytest.fixture
def task(source: Source) -> Classify:
    preprocess = ImagePreprocess(size=(10, 10), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Classify(preprocess=preprocess, labels=list(source.classes))


def evaluation(task: Classify, rows: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    logits = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(0))
    columns = task.examples(logits, torch.from_numpy(target))
    examples = {"index": rows, **{name: values.numpy() for name, values in columns.items()}}
    metrics = task.metrics()
    metrics.update(logits, torch.from_numpy(target))
    figures = {name: float(value) for name, value in metrics.compute().items()}
    return {"metrics": figures, "analysis": task.analyse(examples), "examples": examples}


def write(folder: Path, *, task: Classify, split: str, source: Source, **found: Any) -> dict[str, Path]:
    """`write_report`, with rows read again as an evaluation reads them."""

    def answered(place: int) -> Answered:
        image = task.preprocess.read(source[split].item(found["examples"]["index"][place]))
        return Answered({"image": image[None]}, torch.zeros(1, 3))

    return write_report(folder, task=task, split=split, answered=answered, source=source, **found)


@pytest.fixture
def written(task: Classify, source: Source, tmp_path: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    rows = source["test"].rows[::-1].copy()
    found = evaluation(task, rows, source["test"].all_labels[rows])
    return write(tmp_path / "out", task=task, split="test", source=source, **found), found


def test_every_file_is_there(written: tuple[dict[str, Path], dict[str, Any]], tmp_path: Path) -> None:
    files, _ = written
    assert set(files) == {"report", "metrics", "examples", "confusion", "reliability", "mistakes"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in files.values()}


def test_metrics_json_holds_the_figures(written: tuple[dict[str, Path], dict[str, Any]]) -> None:
    files, found = written
    read = json.loads(files["metrics"].read_text())
    assert read == {
        "task": "classify",
        "split": "test",
        "count": 12,
        "metrics": found["metrics"],
        **found["analysis"],
    }


def test_examples_are_named(written: tuple[dict[str, Path], dict[str, Any]], source: Source) -> None:
    files, found = written
    with files["examples"].open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["index", "target", "prediction", "confidence", "loss", "file"]
    assert [int(row["index"]) for row in rows] == list(range(11, -1, -1))
    for place, row in enumerate(rows):
        split, folder, name = Path(row["file"]).parts
        assert (split, folder) == ("test", row["target"])  # the folder a file lies in is its class
        assert name.endswith('"x".png')
        assert row["prediction"] == source.classes[found["examples"]["prediction"][place]]
        assert float(row["loss"]) == pytest.approx(found["examples"]["loss"][place])


def test_page_is_sound_markdown(written: tuple[dict[str, Path], dict[str, Any]]) -> None:
    files, found = written
    page = files["report"].read_text(encoding="utf-8")
    assert f"**top1 {found['metrics']['top1']:.4f}** on the 12 examples of `test`" in page
    for name, value in found["metrics"].items():
        assert f"| {name} | {value:.4f} |" in page
    for name in ("confusion", "reliability", "mistakes"):
        assert f"({files[name].name})" in page
    assert r"2_under\|bar" in page
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1  # no cell breaks its row


def test_frequent_mistakes_are_those_of_the_matrix(task: Classify, source: Source, tmp_path: Path) -> None:
    target = np.array([0] * 6 + [1] * 4)
    examples = {
        "index": np.arange(10),
        "target": target,
        "prediction": np.array([1, 1, 1, 0, 0, 2, 1, 1, 1, 0]),
        "confidence": np.full(10, 0.5),
        "loss": np.linspace(0, 1, 10),
    }
    analysis = task.analyse(examples)
    files = write(
        tmp_path / "out",
        task=task,
        split="test",
        metrics={"top1": 0.5},
        analysis=analysis,
        examples=examples,
        source=source,
    )
    section = files["report"].read_text().split("## Most frequent mistakes\n\n")[1].split("\n\n")[0]
    assert section.splitlines()[2:] == [
        "| 0 plain | 1 com,ma | 3 | 50.0% |",
        r"| 0 plain | 2_under\|bar | 1 | 16.7% |",
        "| 1 com,ma | 0 plain | 1 | 25.0% |",
    ]


def test_a_faultless_model_has_no_mistakes(task: Classify, source: Source, tmp_path: Path) -> None:
    labels = source["test"].labels
    examples = {
        "index": np.arange(12),
        "target": labels,
        "prediction": labels,
        "confidence": np.ones(12),
        "loss": np.zeros(12),
    }
    files = write(
        tmp_path / "out",
        task=task,
        split="test",
        metrics={"top1": 1.0, "odd": float("nan")},
        analysis=task.analyse(examples),
        examples=examples,
        source=source,
    )
    assert "mistakes" not in files
    assert "mistakes" not in files["report"].read_text()
    assert json.loads(files["metrics"].read_text())["metrics"]["odd"] is None


def test_mistakes_show_what_the_network_saw(
    task: Classify, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []

    def grid(images: list[np.ndarray], titles: list[str], path: Path, heading: str) -> Path:
        shown.extend(images)
        return path

    monkeypatch.setattr("reskit.plots.image_grid", grid)
    examples = {
        "index": np.array([7, 2]),
        "target": np.array([1, 0]),
        "prediction": np.array([0, 0]),
        "confidence": np.array([0.9, 0.8]),
        "loss": np.array([2.0, 0.1]),
    }
    found = {"metrics": {"top1": 0.5}, "analysis": task.analyse(examples), "examples": examples}
    write(tmp_path / "out", task=task, split="test", source=source, **found)
    seen = task.preprocess.read(source["test"].item(7)).permute(1, 2, 0).numpy()
    assert len(shown) == 1
    np.testing.assert_array_equal(shown[0], seen)


def test_unwritable_place(task: Classify, source: Source, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    found = evaluation(task, np.arange(12), source["test"].labels)
    with pytest.raises(OutputError):
        write(tmp_path / "out", task=task, split="test", source=source, **found)


def test_table_for_the_terminal() -> None:
    stream = io.StringIO()
    Console(width=120, file=stream).print(
        metrics_table("classify", {"f1": 0.25, "top1": 0.5, "own": 1.0}, "test")
    )
    text = stream.getvalue()
    assert text.index("top1") < text.index("f1") < text.index("own")
    assert "0.2500" in text
