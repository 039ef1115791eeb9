"""Pictures beside each other: what was given, what is true, what was answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reskit.plots.house import STYLE, clean, new_figure, put_heading, save

__all__ = ["panels"]

_SIDE = 2.6


def panels(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path, *, heading: str) -> Path:
    """Draw titled pictures, a row an example; return `path`.

    Args:
        rows: titles and pictures, uint8 `(H, W)` or `(H, W, 3)`; as many in each row.
        path: the PNG.
        heading: over all.
    """
    across = len(rows[0])
    heights = [max(picture.shape[0] / picture.shape[1] for _, picture in row) for row in rows]
    figure = new_figure(_SIDE * across, 0.4 + sum(_SIDE * height + 0.3 for height in heights))
    grid = figure.subplots(len(rows), across, squeeze=False, height_ratios=heights)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(axes_row, row, strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(clean(title, 40), fontsize=9, color=STYLE["ink"])
            axes.axis("off")
    put_heading(figure, heading)
    return save(figure, path)
