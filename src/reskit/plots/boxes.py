"""Boxes drawn into pictures, and how precision falls as more objects are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reskit.plots.house import SERIES, STYLE, clean, fonts, light_grid, new_figure, put_title, save

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw_boxes", "precision_recall"]

_MOST_CURVES = 6
_LEGIBLE = 20  # pixels: what is written into a lower box would hide it
_LINE = 200  # a line is one pixel wide for so many of the picture's longer side


def draw_boxes(image: Tensor, boxes: Tensor, names: Sequence[str], classes: Sequence[int]) -> np.ndarray:
    """Draw named boxes into a picture.

    Args:
        image: uint8 `(C, h, w)`, grey or colour; alpha is left aside.
        boxes: `(n, 4)` as x1, y1, x2, y2 in pixels.
        names: what is written into each that is not too low for it.
        classes: numbers, which choose the colours.

    Returns:
        uint8 `(h, w, 3)`.
    """
    import torch
    from torchvision.utils import draw_bounding_boxes

    picture = image[:1].expand(3, -1, -1) if len(image) < 3 else image[:3]
    picture = picture.to(torch.uint8).contiguous().cpu()
    if len(boxes):
        tall = (boxes[:, 3] - boxes[:, 1] >= _LEGIBLE).tolist()
        colours = [SERIES[number % len(SERIES)] for number in classes]
        picture = draw_bounding_boxes(
            picture,
            boxes.cpu(),
            labels=[
                clean(name, 24, markup=False) if legible else None
                for name, legible in zip(names, tall, strict=True)
            ],
            colors=colours,
            width=1 + max(picture.shape[-2:]) // _LINE,
            label_colors="white",
            label_background_colors=colours,
            fill_labels=True,
        )
    return picture.permute(1, 2, 0).numpy()


def precision_recall(curves: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw precision over recall at IoU 0.50 (solid) and 0.75 (dashed), of up to six classes and their mean.

    Args:
        curves: label, at_50 and at_75 of each class: precision at evenly spaced recalls from 0 to 1.
        path: the PNG.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    means = {name: np.mean([curve[name] for curve in curves], 0) for name in ("at_50", "at_75")}
    recall = np.linspace(0, 1, len(means["at_50"]))
    if len(curves) > 1:
        axes.plot(recall, means["at_50"], color=STYLE["ink"], linewidth=2.4, label="mean of all")
        axes.plot(recall, means["at_75"], color=STYLE["ink"], linewidth=1.6, linestyle="--")
    for curve, colour in zip(curves[:_MOST_CURVES], SERIES, strict=False):
        axes.plot(recall, curve["at_50"], color=colour, linewidth=1.6, label=clean(curve["label"], 24))
        axes.plot(recall, curve["at_75"], color=colour, linewidth=1.0, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    light_grid(axes)
    left = len(curves) - _MOST_CURVES
    put_title(
        axes,
        "Precision and recall",
        f"IoU 0.50 solid: {means['at_50'].mean():.3f}; 0.75 dashed: {means['at_75'].mean():.3f}"
        + (f"; {left} more classes are in the mean" if left > 0 else ""),
    )
    axes.legend(frameon=False, fontsize=9, prop={"family": fonts(), "size": 9})
    return save(figure, path)
