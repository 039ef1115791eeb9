"""Pictures of what is inside a network: what its blocks are worth, and what is left when some go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reskit.plots.house import STYLE, clean, light_grid, new_figure, put_title, save

__all__ = ["lesions", "pruning"]

_MAX_NAMES = 60
_MARKERS = {"intact": "s", "removed": "X", "tuned": "D"}


def lesions(study: Mapping[str, Any], path: Path) -> Path:
    """Draw the loss without the `F` of each block, and how large that `F` is.

    Args:
        study: what `LesionStudy.as_dict` gives: loss, examples, split and a row a block.
        path: the PNG to write.

    Raises:
        OutputError: the file system refuses.
    """
    blocks = study["blocks"]
    figure = new_figure(max(6.0, 0.24 * min(len(blocks), _MAX_NAMES) + 1.5), 6.4)
    loss, ratio = figure.subplots(2, 1, sharex=True)
    measured = _bars(loss, blocks, "loss")
    loss.axhline(study["loss"], color=STYLE["muted"], linewidth=1.2, linestyle="--")
    if min([study["loss"], *measured]) > 0:  # some blocks cost a thousand times what others do
        loss.set_yscale("log")
        loss.tick_params(which="minor", length=0)
    facts = f"{study['examples']:,} examples of {clean(study['split'], 30)}; dashed: the intact network"
    put_title(loss, "Loss without F", facts)
    _bars(ratio, blocks, "ratio")
    put_title(ratio, "|F(x)| / |shortcut(x)|", "blue: can be left out; grey: cannot")
    step = -(-len(blocks) // _MAX_NAMES)
    names = [clean(block["name"], 24) for block in blocks[::step]]
    ratio.set_xticks(range(0, len(blocks), step), names, rotation=90)
    for axes in (loss, ratio):
        light_grid(axes)
    return save(figure, path)


def _bars(axes: Axes, blocks: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Draw a bar for each block that has the figure; return the figures."""
    found = [(place, block) for place, block in enumerate(blocks) if block[key] is not None]
    values = [block[key] for _, block in found]
    colours = [STYLE["first"] if block["removable"] else STYLE["muted"] for _, block in found]
    axes.bar([place for place, _ in found], values, width=0.7, color=colours)
    return values


def pruning(outcome: Mapping[str, Any], path: Path) -> Path:
    """Draw accuracy and latency against the number of blocks left out.

    Args:
        outcome: what `Pruned.as_dict` gives.
        path: the PNG to write.

    Raises:
        OutputError: the file system refuses.
    """
    steps, metric = outcome["steps"], outcome["metric_name"]
    gone = list(range(len(steps)))
    figure = new_figure(9.2, 3.7)
    accuracy, latency = figure.subplots(1, 2)
    label = f"{clean(outcome['chosen_on'], 20)}, {outcome['examples']:,} chosen by"
    accuracy.plot(
        gone,
        [step["metric"] for step in steps],
        color=STYLE["muted"],
        marker="o",
        markersize=3.5,
        label=label,
    )
    for stage, figures in outcome["metrics"].items():
        accuracy.plot(
            0 if stage == "intact" else gone[-1],
            figures[metric],
            color=STYLE["second"] if stage == "removed" else STYLE["first"],
            marker=_MARKERS[stage],
            linestyle="",
            label=f"{clean(outcome['split'], 20)}, {stage} {figures[metric]:.4f}",
        )
    accuracy.legend(frameon=False, fontsize=9)
    put_title(accuracy, metric, f"{steps[0]['blocks']} blocks to {steps[-1]['blocks']}")
    latency.plot(
        gone, [step["latency_ms"] for step in steps], color=STYLE["first"], marker="o", markersize=3.5
    )
    latency.set_ylim(bottom=0)
    put_title(
        latency, "milliseconds", f"one example in float32 eager; {outcome['latency_ratio']:.2f}x faster"
    )
    for axes in (accuracy, latency):
        axes.set_xlabel("blocks left out")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        light_grid(axes)
    return save(figure, path)
