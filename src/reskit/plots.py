"""Pictures of an evaluation and of a training run, in one house style.

Everything is drawn on `Figure` objects with the Agg canvas: no global state, no display, any thread. Colours
are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reskit.files import writing

__all__ = ["confusion", "image_grid", "reliability", "training_curves"]

STYLE = {
    "ink": "#1f2933",
    "muted": "#6b7785",
    "faint": "#dde2e7",
    "first": "#0072B2",  # blue: what was measured on held-out data
    "second": "#D55E00",  # vermilion: what it is held against
}
_SHADES = LinearSegmentedColormap.from_list("house", ["#ffffff", "#cfe3f1", "#6aaed6", "#0072B2", "#063b63"])
_DPI = 150
_MAX_CELLS_WITH_TEXT = 20
_MAX_TICKS = 25
_MAX_LABEL = 24
_MAX_IMAGES = 24
_TINY = 64  # pixels: below this, smoothing would hide what the network saw

# DejaVu Sans comes with matplotlib; the others lend it the glyphs it has not, where they are installed.
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Microsoft YaHei")


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
    names = [_clean(label, _MAX_LABEL) for label in labels]
    margin = 0.075 * max(map(len, names), default=0)  # inches a long label takes
    side = float(np.clip(0.46 * classes, 2.6, 9.0))
    figure = _figure(side + margin + 1.5, side + margin + 1.0)
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
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90 if upright else 0, family=_fonts())
    axes.set_yticks(ticks, [names[i] for i in ticks], family=_fonts())
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, total = int(np.trace(counts)), int(counts.sum())
    _title(axes, "Confusion matrix", f"{right:,} of {total:,} right")
    bar = figure.colorbar(
        image, ax=axes, format=PercentFormatter(1.0, decimals=0), shrink=0.8, aspect=30, pad=0.02
    )
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1.0] if many else [0, 0.25, 0.5, 0.75, 1.0])
    bar.set_label("share of the true class")
    _quiet(bar.ax)
    _quiet(axes)
    return _save(figure, path)


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
    figure = _figure(5.2, 6.0)
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
        _grid(axes)
    lean_word = "overconfident" if lean > 0 else "underconfident"
    _title(
        upper,
        "Reliability",
        f"expected calibration error {error:.1%}; {lean_word} by {abs(lean):.1%}",
    )
    return _save(figure, path)


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
    shown = list(zip(images, map(_wrapped, titles), strict=True))[:_MAX_IMAGES]
    columns = min(6, len(shown)) or 1
    rows = -(-len(shown) // columns) or 1
    lines = max((title.count("\n") + 1 for _, title in shown), default=1)
    figure = _figure(max(1.65 * columns, 3.2), (1.7 + 0.14 * lines) * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")
    for axes, (image, title) in zip(grid.flat, shown, strict=False):
        pixels = image[:, :, None] if image.ndim == 2 else image
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
        smoothing = "nearest" if max(pixels.shape[:2]) < _TINY else "auto"
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=smoothing)
        axes.set_title(title, fontsize=8, color=STYLE["ink"], family=_fonts(), pad=4)
    _heading(figure, heading)
    return _save(figure, path)


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
    figure = _figure(4.3 * max(len(panels), 1), 3.5)
    for place, (panel, found) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in found:
            _curve(axes, history, name)
        best = min if panel == "loss" or not higher_is_better else max
        _title(axes, panel, "" if found == ["lr"] else _last_and_best(history, found[-1], best))
        _epoch_axis(axes, [row["epoch"] for row in history])
        if panel == "loss":
            axes.legend(frameon=False, fontsize=9)
        _grid(axes)
    _heading(figure, title or "")
    return _save(figure, path)


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    """Write each count in its cell; zeros stay faint so that the mistakes stand out."""
    longest = len(str(counts.max(initial=0)))
    size = float(np.clip(26 / max(longest, 2), 5, 10))
    for (row, column), count in np.ndenumerate(counts):
        colour = STYLE["faint"] if count == 0 else "white" if shares[row, column] > 0.45 else STYLE["ink"]
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)


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
    label = "train" if name == "train_loss" else _clean(name.replace("_", " "), 40)
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


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(axes: Axes, title: str, subtitle: str) -> None:
    """Put a bold title and a quieter line of facts over the axes, flush left."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=STYLE["ink"], pad=20)
    axes.annotate(
        subtitle,
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=STYLE["muted"],
    )


def _heading(figure: Figure, text: str) -> None:
    if text:
        style = {"fontsize": 12, "fontweight": "bold", "color": STYLE["ink"], "family": _fonts()}
        figure.suptitle(_clean(text, 100), **style)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color=STYLE["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    _quiet(axes)
    for side in ("left", "bottom"):
        axes.spines[side].set(visible=True, color=STYLE["faint"])


def _quiet(axes: Axes) -> None:
    """Take frames and tick marks away: only what carries data stays dark."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=STYLE["ink"])
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=STYLE["muted"], fontsize=10)


def _save(figure: Figure, path: Path) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tight: long labels are never cut. No software note: the same figures give the same file.
        figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return path


def _clean(text: str, limit: int, *, markup: bool = True) -> str:
    """Return one line of at most `limit` characters that the fonts at hand can show.

    Args:
        text: what a data set calls something: may hold anything.
        limit: characters, an ellipsis included.
        markup: escape the dollar signs that would begin a formula.
    """
    glyphs = _glyphs()
    line = "".join(char if ord(char) in glyphs else "\ufffd" for char in " ".join(text.split()))
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return line.replace("$", r"\$") if markup else line


def _wrapped(text: str) -> str:
    """Return a title on up to four short lines."""
    lines = textwrap.wrap(_clean(text, 200, markup=False), width=24, max_lines=4, placeholder="…")
    return "\n".join(lines).replace("$", r"\$")


@lru_cache(maxsize=1)
def _fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FAMILIES if name in installed]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """Return every code point that one of the fonts can draw; matplotlib warns of others."""
    files: Iterable[str] = (font_manager.findfont(name) for name in _fonts())
    return frozenset(code for file in files for code in font_manager.get_font(file).get_charmap())
