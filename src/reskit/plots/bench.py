"""Pictures of a bench: who is how fast, and layers under the roof of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reskit.plots.house import SERIES, STYLE, clean, fonts, light_grid, new_figure, put_title, quiet, save

__all__ = ["roofline", "speeds"]

_ROOFS = ("int8", "bf16", "fp32")


def speeds(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """Draw images a second as bars, a panel a batch size, the fastest on top.

    Args:
        rows: name, batch, images_per_s, images_per_s_by_round and peak_fraction (or None).
        path: the PNG to write.
        title: over the panels.

    Raises:
        OutputError: the file system refuses.
    """
    batches = sorted({row["batch"] for row in rows})
    most = max(sum(row["batch"] == batch for row in rows) for batch in batches)
    figure = new_figure(5.4 * len(batches), 0.3 * most + 1.5)
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False).flat, batches, strict=True):
        shown = sorted((r for r in rows if r["batch"] == batch), key=lambda row: row["images_per_s"])
        places = np.arange(len(shown))
        values = np.array([row["images_per_s"] for row in shown])
        spread = [
            [value - min(row["images_per_s_by_round"]) for row, value in zip(shown, values, strict=True)],
            [max(row["images_per_s_by_round"]) - value for row, value in zip(shown, values, strict=True)],
        ]
        ours = [row["name"].startswith("reskit/") for row in shown]
        axes.barh(places, values, 0.72, color=[STYLE["first"] if own else STYLE["muted"] for own in ours])
        axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=STYLE["ink"], elinewidth=1)
        for place, row in zip(places, shown, strict=True):
            part = "" if row["peak_fraction"] is None else f"  {row['peak_fraction']:.0%} of peak"
            axes.annotate(
                f"{row['images_per_s']:,.4g}{part}",
                (max(row["images_per_s_by_round"]), place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=STYLE["ink"],
            )
        axes.set_yticks(places, [clean(row["name"], 40) for row in shown], family=fonts())
        axes.set_xlim(0, 1.45 * max(max(row["images_per_s_by_round"]) for row in shown))
        axes.set_ylim(-0.6, most - 0.4)
        axes.set_xlabel("images/s")
        quiet(axes)
        put_title(axes, f"Batch {batch}", f"{clean(title, 60)}; bars are medians, lines least and most")
    return save(figure, path)


def roofline(
    layers: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    gflops: Mapping[str, float],
    copy_gb_s: float | None,
    title: str,
) -> Path:
    """Draw layers by intensity and rate, under the measured roofs (Williams et al. 2009).

    Args:
        layers: engine, intensity (operations a byte), gflops and ms; those without operations are left out.
        path: the PNG to write.
        gflops: precision to the peak, G operations a second.
        copy_gb_s: memory bandwidth, GB a second; None draws no slope.
        title: over the panel.

    Raises:
        OutputError: the file system refuses.
    """
    drawn = [layer for layer in layers if layer["gflops"] > 0 and layer["intensity"] > 0]
    figure = new_figure(7.2, 4.8)
    axes = figure.add_subplot()
    reach = [layer["intensity"] for layer in drawn] or [1.0]
    x = np.geomspace(min(reach) / 2, max(reach) * 4, 200)
    for name in (name for name in _ROOFS if name in gflops):
        roof = np.minimum(gflops[name], x * copy_gb_s) if copy_gb_s else np.full_like(x, gflops[name])
        axes.plot(x, roof, color=STYLE["ink"], linewidth=1)
        axes.annotate(
            f"{name}: {gflops[name]:,.0f}",
            (x[-1], roof[-1]),
            (-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=STYLE["ink"],
        )
    slowest = max((layer["ms"] for layer in drawn), default=1.0)
    for colour, engine in zip(SERIES, dict.fromkeys(layer["engine"] for layer in drawn), strict=False):
        own = [layer for layer in drawn if layer["engine"] == engine]
        axes.scatter(
            [layer["intensity"] for layer in own],
            [layer["gflops"] for layer in own],
            [10 + 90 * layer["ms"] / slowest for layer in own],
            color=colour,
            alpha=0.6,
            linewidth=0,
            label=clean(engine, 40),
            zorder=3,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="G operations a second")
    light_grid(axes)
    axes.tick_params(which="minor", length=0)
    if drawn:
        axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
    slope = f"memory copied at {copy_gb_s:.1f} GB/s; " if copy_gb_s else ""
    put_title(axes, "Layers under the roof", f"{clean(title, 60)}; {slope}the larger, the more time")
    return save(figure, path)
