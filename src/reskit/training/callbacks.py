"""What a run tells while it goes: a bar or lines for people, CSV and trackers for tools."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reskit.files import write_text

__all__ = ["Callback", "CsvLog", "Reporter", "Trackers"]


class Callback:
    """Called by the training loop in the main process; every hook may be left out."""

    def on_start(self, *, epochs: int, steps_per_epoch: int) -> None:
        """Training begins or goes on."""

    def on_step(self, *, epoch: int, batch: int, loss: float) -> None:
        """An optimiser step is done; `loss` may be a few steps old on a GPU."""

    def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """An epoch is trained and evaluated; `row` is the last of `history`."""

    def on_end(self) -> None:
        """Training is over, whether well or not."""


class Reporter(Callback):
    """A progress bar on a terminal, one line an epoch (and one a half minute) elsewhere.

    Args:
        console: where to print; standard error unless given, so that standard output stays for results.
    """

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, soft_wrap=True, markup=False)

    def on_start(self, *, epochs: int, steps_per_epoch: int) -> None:
        """See `Callback`."""
        self._epochs, self._steps = epochs, steps_per_epoch
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(
                *columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True
            )
            self._task = self._bar.add_task("training", total=epochs * steps_per_epoch, note="")
            self._bar.start()

    def on_step(self, *, epoch: int, batch: int, loss: float) -> None:
        """See `Callback`."""
        if self._bar is not None:
            done = epoch * self._steps + batch
            title = f"epoch {epoch + 1}/{self._epochs}"
            self._bar.update(self._task, completed=done, description=title, note=f"loss {loss:.3f}")
        elif time.monotonic() - self._last > self.SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"epoch {epoch + 1}/{self._epochs} step {batch}/{self._steps} loss {loss:.3f}")

    def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """See `Callback`."""
        self._last = time.monotonic()
        held_out = "".join(f"  {name} {value:.4f}" for name, value in row.items() if name in self._shown(row))
        self.say(
            f"epoch {row['epoch']}/{self._epochs}  loss {row['train_loss']:.4f}{held_out}"
            f"  {row['images_per_second']:.0f} examples/s  {row['seconds']:.1f} s"
        )

    def on_end(self) -> None:
        """See `Callback`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def _shown(row: dict[str, Any]) -> list[str]:
        return [name for name in row if name.endswith(("_top1", "_cross_entropy"))]


class CsvLog(Callback):
    """One row an epoch in a CSV file, written anew each time: a resumed run leaves no gap and no double."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """See `Callback`."""
        columns = list(dict.fromkeys(name for past in history for name in past))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.path, text.getvalue())


class Trackers(Callback):
    """Hand every epoch to the trackers Accelerate was started with (TensorBoard, and others as installed)."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def on_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """See `Callback`."""
        self.accelerator.log(
            {name: value for name, value in row.items() if value is not None}, step=row["step"]
        )
