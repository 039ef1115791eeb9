"""Runs side by side: what each reached, after how many epochs and seconds of training."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reskit.errors import DataError
from reskit.plots import convergence

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcome of `compare`.

    Attributes:
        key: the column compared, such as ``test_top1``.
        target: the value whose epoch and second are given: the best of the one that got least far.
        rows: one a thing compared: name, runs, final and best (means over its runs), spread (standard
            deviation of the final value), epochs, seconds, epochs_to_target, seconds_to_target.
        plot: the picture, where one was asked for.
    """

    key: str
    target: float
    rows: list[dict[str, Any]]
    plot: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "key": self.key,
            "target": self.target,
            "rows": self.rows,
            "plot": str(self.plot) if self.plot else None,
        }


def compare(
    runs: Mapping[str, Sequence[str | Path]], *, key: str | None = None, out: str | Path | None = None
) -> Comparison:
    """Compare training runs by what they reached on held-out data.

    Args:
        runs: name to the folders of its runs, several where they differ in their seed only.
        key: a column of ``log.csv``; the held-out top-1 when absent.
        out: a PNG of the convergence, by epoch and by second.

    Raises:
        DataError: a folder is no finished run, or has no such column.
        OutputError: the file system refuses.
    """
    histories = {name: [_history(Path(folder)) for folder in folders] for name, folders in runs.items()}
    first = next(iter(histories.values()))[0][0]
    if key is None:
        key = next((column for column in first if column.endswith("_top1")), "train_loss")
    for name, several in histories.items():
        if any(key not in row for history in several for row in history):
            raise DataError(f"the log of {name} has no column {key!r}; it has {', '.join(first)}")
    best = max if not key.endswith(("_loss", "_cross_entropy", "_ece")) else min
    worst = min if best is max else max
    bests = {n: [best(row[key] for row in h) for h in several] for n, several in histories.items()}
    target = worst(statistics.fmean(values) for values in bests.values())
    rows = [
        {
            "name": name,
            "runs": len(several),
            "final": statistics.fmean(history[-1][key] for history in several),
            "spread": statistics.pstdev(history[-1][key] for history in several),
            "best": statistics.fmean(bests[name]),
            "epochs": max(len(history) for history in several),
            "seconds": statistics.fmean(history[-1]["train_seconds"] for history in several),
            **_reached(several, key, target, rising=best is max),
        }
        for name, several in histories.items()
    ]
    plot = None
    if out is not None:
        plot = convergence(histories, Path(out), key=key, heading="Convergence")
    return Comparison(key=key, target=target, rows=rows, plot=plot)


def _reached(
    histories: Sequence[Sequence[Mapping[str, float]]], key: str, target: float, *, rising: bool
) -> dict[str, float | None]:
    """Return the mean epoch and second at which runs first reached the target; None if one did not."""
    sign = 1 if rising else -1
    firsts = [next((row for row in h if sign * row[key] >= sign * target), None) for h in histories]
    found = [row for row in firsts if row is not None]
    whole = len(found) == len(firsts)
    return {
        "epochs_to_target": statistics.fmean(row["epoch"] for row in found) if whole else None,
        "seconds_to_target": statistics.fmean(row["train_seconds"] for row in found) if whole else None,
    }


def _history(folder: Path) -> list[dict[str, float]]:
    """Read the log of a finished run.

    Raises:
        DataError: it is not one.
    """
    try:
        json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is not the folder of a finished run: {error}") from None
    if not rows:
        raise DataError(f"{folder}/log.csv is empty")
    return rows
