"""The house style: figures without global state, quiet axes, text the fonts at hand can show.

Everything is drawn on `Figure` objects with the Agg canvas: no display, any thread. Colours are those of
Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reskit.files import writing

__all__ = [
    "SERIES",
    "STYLE",
    "clean",
    "fonts",
    "light_grid",
    "new_figure",
    "put_heading",
    "put_title",
    "quiet",
    "save",
    "wrapped",
]

STYLE = {
    "ink": "#1f2933",
    "muted": "#6b7785",
    "faint": "#dde2e7",
    "first": "#0072B2",  # blue: what was measured on held-out data
    "second": "#D55E00",  # vermilion: what it is held against
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of things compared, in order."""
_DPI = 150

# DejaVu Sans comes with matplotlib; the others lend it the glyphs it has not, where they are installed.
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Microsoft YaHei")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def put_title(axes: Axes, title: str, subtitle: str) -> None:
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


def put_heading(figure: Figure, text: str) -> None:
    """Put a bold line above all panels."""
    if text:
        style = {"fontsize": 12, "fontweight": "bold", "color": STYLE["ink"], "family": fonts()}
        figure.suptitle(clean(text, 100), **style)


def light_grid(axes: Axes) -> None:
    """Draw faint horizontal lines behind the data."""
    axes.grid(axis="y", color=STYLE["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    quiet(axes)
    for side in ("left", "bottom"):
        axes.spines[side].set(visible=True, color=STYLE["faint"])


def quiet(axes: Axes) -> None:
    """Take frames and tick marks away: only what carries data stays dark."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=STYLE["ink"])
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=STYLE["muted"], fontsize=10)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG.

    Raises:
        OutputError: the file system refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tight: long labels are never cut. No software note: the same figures give the same file.
        figure.savefig(path, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return path


def clean(text: str, limit: int, *, markup: bool = True) -> str:
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


def wrapped(text: str) -> str:
    """Return a title on up to four short lines."""
    lines = textwrap.wrap(clean(text, 200, markup=False), width=24, max_lines=4, placeholder="…")
    return "\n".join(lines).replace("$", r"\$")


@lru_cache(maxsize=1)
def fonts() -> list[str]:
    """Return the families to draw with, those that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FAMILIES if name in installed]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """Return every code point that one of the fonts can draw; matplotlib warns of others."""
    files: Iterable[str] = (font_manager.findfont(name) for name in fonts())
    return frozenset(code for file in files for code in font_manager.get_font(file).get_charmap())
