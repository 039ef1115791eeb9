"""What a run tells, on a terminal and elsewhere."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from reskit.training.callbacks import CsvLog, Reporter


def row(epoch: int, **more: float) -> dict[str, float]:
    values = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1 / epoch, "test_top1": 0.5, "seconds": 1.0}
    return {**values, "images_per_second": 99.6, **more}


def run(reporter: Reporter) -> None:
    reporter.on_start(epochs=2, steps_per_epoch=3)
    history = []
    for epoch in (0, 1):
        for batch in (1, 2, 3):
            reporter.on_step(epoch=epoch, batch=batch, loss=0.25)
        history.append(row(epoch + 1))
        reporter.on_epoch(row=history[-1], history=history)
    reporter.on_end()


def test_without_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    run(Reporter(Console(file=out, width=200)))
    first, second = out.getvalue().splitlines()
    assert first == "epoch 1/2  loss 1.0000  test_top1 0.5000  100 examples/s  1.0 s"
    assert second.startswith("epoch 2/2  loss 0.5000")


def test_a_long_epoch_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=200))
    monkeypatch.setattr(Reporter, "SECONDS_BETWEEN_LINES", -1.0)
    run(reporter)
    assert "epoch 1/2 step 2/3 loss 0.250" in out.getvalue()


def test_on_a_terminal_there_is_a_bar_and_the_lines_stay() -> None:
    out = io.StringIO()
    run(Reporter(Console(file=out, width=120, force_terminal=True)))
    assert "epoch 2/2" in out.getvalue()
    assert "━" in out.getvalue()


def test_labels_in_brackets_are_not_taken_for_markup() -> None:
    out = io.StringIO()
    Reporter(Console(file=out, width=200)).say("classes [bold]cat[/bold], [dog]")
    assert out.getvalue() == "classes [bold]cat[/bold], [dog]\n"


def test_the_csv_has_a_row_an_epoch_and_every_column(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv")
    history = [row(1), row(2, gpu_utilisation=0.5)]
    log.on_epoch(history[0], history[:1])
    log.on_epoch(history[1], history)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(values["train_loss"]) for values in rows] == [1.0, 0.5]
    assert [values["gpu_utilisation"] for values in rows] == ["", "0.5"]
