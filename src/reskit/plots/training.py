"""Pictures of training: one run's curves, several runs' convergence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reskit.plots.house import SERIES, STYLE, clean, light_grid, new_figure, put_heading, put_title, save

__all__ = ["convergence", "training_curves"]


def training_curves(
    history: Sequence[Mapping[str, Any]],
    path: Path,
    title: str | None = None,
    *,
    metric: str = "top1",
    higher_is_better: bool = True,
) -> Path:
    """Draw loss, main metric and learning rate over the epochs; what the history lacks is left out.

    Args:
        history: one row an epoch: epoch, train_loss, lr, and `<split>_<metric>` of the held-out split.
        path: the PNG to write.
        title: above all; none when absent.
        metric: the main metric, without its split.
        higher_is_better: which end of the metric is its best.

    Raises:
        OutputError: the file system refuses.
    """
    names = list(dict.fromkeys(name for row in history for name in row))
    panels = {
        "loss": [name for name in names if name.endswith(("_loss", "_cross_entropy"))],
        metric: [name for name in names if name.endswith(f"_{metric}")],
        "learning rate": [name for name in names if name == "lr"],
    }
    panels = {panel: found for panel, found in panels.items() if found}
    figure = new_figure(4.3 * max(len(panels), 1), 3.5)
    for place, (panel, found) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in found:
            _curve(axes, history, name)
        best = min if panel == "loss" or not higher_is_better else max
        put_title(axes, panel, "" if found == ["lr"] else _last_and_best(history, found[-1], best))
        _epoch_axis(axes, [row["epoch"] for row in history])
        if panel == "loss":
            axes.legend(frameon=False, fontsize=9)
        light_grid(axes)
    put_heading(figure, title or "")
    return save(figure, path)


def convergence(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    path: Path,
    *,
    key: str,
    heading: str = "",
) -> Path:
    """Draw how things compared get better, by epoch and by second of training.

    Args:
        runs: name to the histories of its runs (seeds); each is drawn faintly, their mean by epoch boldly.
        path: the PNG to write.
        key: the column of the histories to draw, such as ``test_top1``.
        heading: above both panels.

    Raises:
        OutputError: the file system refuses.
    """
    figure = new_figure(9.2, 3.7)
    panels = zip(figure.subplots(1, 2, sharey=True), ("epoch", "train_seconds"), strict=True)
    for axes, across in panels:
        for (name, histories), colour in zip(runs.items(), SERIES * len(runs), strict=False):
            points = [np.array([[row[across], row[key]] for row in history]) for history in histories]
            for line in points if len(points) > 1 else ():
                axes.plot(*line.T, color=colour, linewidth=0.8, alpha=0.35)
            mean = np.mean([line[: min(map(len, points))] for line in points], axis=0)
            axes.plot(*mean.T, color=colour, linewidth=2, label=clean(name, 40))
        axes.set_xlabel("epoch" if across == "epoch" else "seconds of training")
        light_grid(axes)
    panel = figure.axes[0]
    panel.set_ylabel(clean(key.replace("_", " "), 40))
    panel.legend(frameon=False, fontsize=9)
    put_heading(figure, heading)
    return save(figure, path)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of a column where it has a finite value."""
    points = [
        (float(row["epoch"]), float(row[name]))
        for row in history
        if row.get(name) is not None and np.isfinite(row[name])
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    epochs, values = _series(history, name)
    colour = STYLE["second"] if name == "train_loss" else STYLE["muted"] if name == "lr" else STYLE["first"]
    marker = "o" if len(epochs) <= 15 else ""
    label = "train" if name == "train_loss" else clean(name.replace("_", " "), 40)
    axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)


def _last_and_best(
    history: Sequence[Mapping[str, Any]], name: str, best: Callable[[Iterable[float]], float]
) -> str:
    """Say where a curve ends and, if that is elsewhere, where it was best."""
    epochs, values = _series(history, name)
    if not values:
        return ""
    where = values.index(best(values))
    peak = f"; best {values[where]:.4f} in epoch {epochs[where]:.0f}" if where < len(values) - 1 else ""
    return f"{name.split('_')[0]} {values[-1]:.4f} at the end{peak}"


def _epoch_axis(axes: Axes, epochs: Sequence[float]) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(min(epochs) - 0.3, max(epochs) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_ymargin(0.08)
