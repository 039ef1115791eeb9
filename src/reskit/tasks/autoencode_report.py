"""Tables and pictures of an evaluation of `Autoencode`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reskit import plots
from reskit.tasks.base import Answered
from reskit.tasks.restoration import to_pixels

if TYPE_CHECKING:
    from reskit.tasks.autoencode import Autoencode

__all__ = ["per_class", "pictures", "spread"]

SHOWN = 6


def spread(score: np.ndarray) -> dict[str, float]:
    """Return how scores are spread; a high percentile serves as the threshold of an alarm."""
    middle, high, higher = np.percentile(score, [50, 95, 99]).tolist()
    return {
        "count": len(score),
        "mean": float(score.mean()),
        "median": middle,
        "p95": high,
        "p99": higher,
        "max": float(score.max()),
    }


def per_class(examples: Mapping[str, np.ndarray], names: Sequence[str], *, seen: int) -> list[dict[str, Any]]:
    """Return the figures of each class that has images.

    Args:
        examples: the columns of `Autoencode.examples`.
        names: of the classes, those trained on first.
        seen: how many of them were.
    """
    rows = []
    for code in np.unique(examples["class"][examples["class"] >= 0]).tolist():
        chosen = examples["class"] == code
        rows.append(
            {
                "label": _class_name(code, names),
                "trained on": "yes" if code < seen else "no",
                "mse": float(examples["score"][chosen].mean()),
                "psnr": float(examples["psnr"][chosen].mean()),
                "support": int(chosen.sum()),
            }
        )
    return rows


def pictures(
    task: Autoencode,
    examples: Mapping[str, np.ndarray],
    answered: Callable[[int], Answered],
    folder: Path,
) -> dict[str, Path]:
    """Draw originals, reconstructions and errors, and the scores; arguments as of `Task.draw`."""
    score, unseen = examples["score"], examples["unseen"].astype(bool)
    rows = []
    for row in _spaced(score, unseen):
        batch, outputs = answered(row)
        image = batch["image"][0]
        made, error = task.pictures(image, outputs).values()
        name = _class_name(int(examples["class"][row]), task.class_names)
        name += " (never seen)" if unseen[row] else ""
        titles = (f"given {name}".strip(), f"made again, {examples['psnr'][row]:.1f} dB", "error")
        shown = (to_pixels(image[None] / 255), made, plots.heat(error))
        rows.append(list(zip(titles, shown, strict=True)))
    heading = "From the smallest error to the largest"
    return {
        "reconstructions": plots.panels(rows, folder / "reconstructions.png", heading=heading),
        "scores": plots.score_histogram(score, unseen, folder / "scores.png"),
    }


def _class_name(code: int, names: Sequence[str]) -> str:
    """Return the name of a class, "another" behind the last, nothing for -1."""
    return "" if code < 0 else names[code] if code < len(names) else "another"


def _spaced(score: np.ndarray, unseen: np.ndarray) -> list[int]:
    """Return up to `SHOWN` rows evenly spaced in score, half of them unseen where there are such."""
    groups = [np.flatnonzero(~unseen), np.flatnonzero(unseen)]
    groups = [rows[np.argsort(score[rows], kind="stable")] for rows in groups if len(rows)]
    chosen = {
        int(rows[round(part * (len(rows) - 1))])
        for rows in groups
        for part in np.linspace(0, 1, SHOWN // len(groups))
    }
    return sorted(chosen, key=lambda row: float(score[row]))
