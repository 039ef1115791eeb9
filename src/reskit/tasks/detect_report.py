"""The pictures of an evaluation of detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from reskit.tasks.base import Answered, shown_of

__all__ = ["draw_report"]


def draw_report(
    analysis: Mapping[str, Any],
    examples: Mapping[str, np.ndarray],
    answered: Callable[[int], Answered],
    folder: Path,
    *,
    boxed: Callable[[Tensor, Tensor], np.ndarray],
    reported: Callable[[Tensor], Tensor],
) -> dict[str, Path]:
    """Draw precision over recall, and images from most to fewest mistakes; return the files by name.

    Args:
        analysis: with the table precision_recall.
        examples: columns of `Detect.examples`.
        answered: reads and answers a row again.
        folder: where the files go.
        boxed: draws boxes into a picture.
        reported: of the detections of an image those that are sure enough.
    """
    from reskit import plots

    drawn = {}
    if analysis["precision_recall"]:
        path = folder / "precision_recall.png"
        drawn["precision_recall"] = plots.precision_recall(analysis["precision_recall"], path)
    rows = []
    for row in _chosen(examples):
        batch, outputs = answered(row)
        image, there = batch["image"][0], batch["boxes"][0]
        objects, found, false = (int(examples[name][row]) for name in ("objects", "found", "false"))
        rows.append(
            [
                (f"true: {objects}", boxed(image, there[there[:, 4] >= 0])),
                (f"found: {found}, and {false} false", boxed(image, reported(outputs[0]))),
            ]
        )
    if rows:
        path = folder / "detections.png"
        drawn["detections"] = plots.panels(rows, path, heading="Most to fewest mistakes")
    return drawn


def _chosen(examples: Mapping[str, np.ndarray]) -> list[int]:
    """Return rows from the one with the most mistakes to one with the fewest, of those with any box."""
    wrong = examples["missed"] + examples["false"]
    rows = np.flatnonzero(examples["objects"] + examples["false"])
    if not len(rows):
        return []
    order = rows[np.argsort(-wrong[rows], kind="stable")]
    return shown_of(order)
