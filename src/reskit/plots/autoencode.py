"""Pictures of autoencoding: errors as heat, many small images side by side, scores of known and unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from reskit.plots.house import STYLE, light_grid, new_figure, put_heading, put_title, save

__all__ = ["heat", "score_histogram", "tiles"]

_BINS = 40
_HOTTEST = 128  # grey levels of error: half of what is possible
_INCHES = 6.4


def heat(error: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return errors, uint8 `(H, W)`, as colours `(H, W, 3)`, the same for the same error in any picture."""
    shares = np.clip(error.astype(float) / _HOTTEST, 0, 1)
    colours: npt.NDArray[np.uint8] = matplotlib.colormaps["inferno"](shares, bytes=True)[..., :3]
    return colours


def score_histogram(scores: npt.NDArray[np.floating[Any]], unseen: npt.NDArray[np.bool_], path: Path) -> Path:
    """Draw how scores are spread over images of seen classes and of unseen ones; return `path`.

    Args:
        scores: of each image `(N,)`.
        unseen: which of them are of a class that was not trained on.
        path: the PNG.

    Raises:
        OutputError: the file system refuses.
    """
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    bins = np.linspace(float(scores.min()), float(scores.max()) or 1.0, _BINS + 1)
    groups = [("trained on", ~unseen, STYLE["first"]), ("never seen", unseen, STYLE["second"])]
    shown = [(name, chosen, colour) for name, chosen, colour in groups if chosen.any()]
    for name, chosen, colour in shown:
        label = f"{name} ({int(chosen.sum()):,})"
        shares = np.full(int(chosen.sum()), 1 / chosen.sum())
        axes.hist(scores[chosen], bins.tolist(), weights=shares, color=colour, alpha=0.6, label=label)
    axes.set(xlabel="score: mean squared error of the reconstruction", ylabel="share of images")
    axes.legend(frameon=False, fontsize=9)
    light_grid(axes)
    middles = ", ".join(f"{name} {np.median(scores[chosen]):.4f}" for name, chosen, _ in shown)
    put_title(axes, "Scores", f"median {middles}")
    return save(figure, path)


def tiles(images: Sequence[npt.NDArray[np.uint8]], path: Path, *, heading: str, columns: int = 0) -> Path:
    """Draw images of one size side by side, without titles; return `path`.

    Args:
        images: uint8 `(H, W)` or `(H, W, 3)`, as many as you like.
        path: the PNG.
        heading: above all.
        columns: images in a row; about as many as rows by default.

    Raises:
        OutputError: the file system refuses.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    shape = (rows * (height + 1) + 1, columns * (width + 1) + 1, *images[0].shape[2:])
    canvas = np.full(shape, 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1) + 1, (place % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    figure = new_figure(_INCHES, _INCHES * canvas.shape[0] / canvas.shape[1] + 0.4)
    axes = figure.add_subplot()
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    put_heading(figure, heading)
    return save(figure, path)
