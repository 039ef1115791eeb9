"""Pictures of an evaluation: confusion, calibration, the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import PercentFormatter

from reskit.plots.house import (
    STYLE,
    clean,
    fonts,
    light_grid,
    new_figure,
    put_heading,
    put_title,
    quiet,
    save,
    wrapped,
)

__all__ = ["confusion", "image_grid", "reliability", "threshold_curve"]

_SHADES = LinearSegmentedColormap.from_list("house", ["#ffffff", "#cfe3f1", "#6aaed6", "#0072B2", "#063b63"])
_MAX_CELLS_WITH_TEXT = 20
_MAX_TICKS = 25
_MAX_LABEL = 24
_MAX_IMAGES = 24
_TINY = 64  # pixels: below this, smoothing would hide what the network saw


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix, each row coloured by its shares.

    Args:
        matrix: counts `(classes, classes)`; rows are the truth, columns what was said.
        labels: class names.
        path: the PNG to write.

    Raises:
        OutputError: the file system refuses.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [clean(label, _MAX_LABEL) for label in labels]
    margin = 0.075 * max(map(len, names), default=0)  # inches a long label takes
    side = float(np.clip(0.46 * classes, 2.6, 9.0))
    figure = new_figure(side + margin + 1.5, side + margin + 1.0)
    axes = figure.add_subplot()
    # With many classes single confusions are a few per cent: a root scale lets them be seen.
    many = classes > _MAX_CELLS_WITH_TEXT
    image = axes.imshow(
        shares, cmap=_SHADES, norm=PowerNorm(0.4 if many else 1.0, 0, 1), interpolation="nearest"
    )
    if not many:
        _write_counts(axes, counts, shares)
    step = -(-classes // _MAX_TICKS)
    ticks = np.arange(0, classes, step)
    upright = classes > 12 or max((len(names[i]) for i in ticks), default=0) > 4
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if upright else 0, family=fonts())
    axes.set_yticks(ticks, [names[i] for i in ticks], family=fonts())
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, total = int(np.trace(counts)), int(counts.sum())
    put_title(axes, "Confusion matrix", f"{right:,} of {total:,} right")
    bar = figure.colorbar(
        image, ax=axes, format=PercentFormatter(1.0, decimals=0), shrink=0.8, aspect=30, pad=0.02
    )
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1.0] if many else [0, 0.25, 0.5, 0.75, 1.0])
    bar.set_label("share of the true class")
    quiet(bar.ax)
    quiet(axes)
    return save(figure, path)


def reliability(bins: Sequence[Mapping[str, Any]], path: Path, *, bin_count: int = 15) -> Path:
    """Draw accuracy against confidence, with the expected calibration error (Guo et al. 2017, equation 3).

    Args:
        bins: the non-empty bins of confidence: bin (its number), count, confidence (mean) and accuracy.
        path: the PNG to write.
        bin_count: equal bins of [0, 1] the numbers refer to.

    Raises:
        OutputError: the file system refuses.
    """
    centre = (np.array([row["bin"] for row in bins], dtype=float) + 0.5) / bin_count
    accuracy = np.array([row["accuracy"] for row in bins], dtype=float)
    confidence = np.array([row["confidence"] for row in bins], dtype=float)
    share = np.array([row["count"] for row in bins], dtype=float)
    share /= max(share.sum(), 1.0)
    error, lean = float(share @ abs(accuracy - confidence)), float(share @ (confidence - accuracy))
    width = 0.92 / bin_count
    figure = new_figure(5.2, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot(
        [0, 1],
        [0, 1],
        color=STYLE["muted"],
        linewidth=1.2,
        linestyle="--",
        label="perfectly calibrated",
        zorder=3,
    )
    upper.bar(centre, accuracy, width, color=STYLE["first"], label="accuracy", zorder=2)
    gap = {"facecolor": "none", "edgecolor": STYLE["second"], "hatch": "////", "linewidth": 0.8, "zorder": 3}
    low, high = np.minimum(accuracy, confidence), abs(accuracy - confidence)
    upper.bar(centre, high, width, bottom=low, label="gap to mean confidence", **gap)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.legend(loc="upper left", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
    lower.bar(centre, share, width, color=STYLE["muted"])
    lower.set(xlabel="confidence of the prediction", ylabel="share of examples")
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        light_grid(axes)
    lean_word = "overconfident" if lean > 0 else "underconfident"
    put_title(
        upper,
        "Reliability",
        f"expected calibration error {error:.1%}; {lean_word} by {abs(lean):.1%}",
    )
    return save(figure, path)


def threshold_curve(curve: Mapping[str, Any], path: Path, *, of: str) -> Path:
    """Draw precision over recall of one class; return `path`.

    Args:
        curve: thresholds, precision, recall and average_precision, thresholds falling.
        path: the PNG.
        of: whose class, for people.
    """
    figure = new_figure(5.6, 4.4)
    axes = figure.add_subplot()
    recall, precision = np.array(curve["recall"]), np.array(curve["precision"])
    axes.plot(recall, precision, color=STYLE["first"], linewidth=2.2)
    nearest = int(np.argmin(np.abs(np.array(curve["thresholds"]) - 0.5)))
    axes.plot(recall[nearest], precision[nearest], "o", color=STYLE["second"], markersize=7)
    axes.annotate(
        "threshold 0.5",
        (recall[nearest], precision[nearest]),
        (-8, -14),
        textcoords="offset points",
        ha="right",
        color=STYLE["second"],
        fontsize=9,
    )
    low = max(0.0, min(0.9, float(precision.min()) - 0.02))
    axes.set(xlim=(0, 1.01), ylim=(low, 1.005), xlabel="recall", ylabel="precision")
    light_grid(axes)
    said = f"{clean(of, 60)}; average precision {curve['average_precision']:.4f}"
    put_title(axes, "Precision and recall", said)
    return save(figure, path)


def image_grid(
    images: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], path: Path, heading: str = ""
) -> Path:
    """Draw up to 24 images with a title each; tiny ones are enlarged without smoothing.

    Args:
        images: uint8 `(H, W)` or `(H, W, C)`, of any sizes; one channel is grey, of more than three the first
            three are shown.
        titles: one for each.
        path: the PNG to write.
        heading: above all.

    Raises:
        OutputError: the file system refuses.
    """
    shown = list(zip(images, map(wrapped, titles), strict=True))[:_MAX_IMAGES]
    columns = min(6, len(shown)) or 1
    rows = -(-len(shown) // columns) or 1
    lines = max((title.count("\n") + 1 for _, title in shown), default=1)
    figure = new_figure(max(1.65 * columns, 3.2), (1.7 + 0.14 * lines) * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, (image, title) in zip(grid.flat, shown, strict=False):
        pixels = image[:, :, None] if image.ndim == 2 else image
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
        smoothing = "nearest" if max(pixels.shape[:2]) < _TINY else "auto"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=smoothing)
        axes.set_title(title, fontsize=8, color=STYLE["ink"], family=fonts(), pad=4)
    put_heading(figure, heading)
    return save(figure, path)


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    """Write each count in its cell; zeros stay faint so that the mistakes stand out."""
    longest = len(str(counts.max(initial=0)))
    size = float(np.clip(26 / max(longest, 2), 5, 10))
    for (row, column), count in np.ndenumerate(counts):
        colour = STYLE["faint"] if count == 0 else "white" if shares[row, column] > 0.45 else STYLE["ink"]
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)
