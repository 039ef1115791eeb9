"""Lines over time as SVG that needs no script and no style of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HEIGHT", "WIDTH", "Chart", "chart"]

WIDTH, HEIGHT = 300, 80


@dataclass(frozen=True, slots=True)
class Chart:
    """What a template draws.

    Attributes:
        top: value at the upper edge.
        lines: for each series the `points` of polylines, one for every stretch without gaps.
        latest: newest value of each series; None where there is none.
    """

    top: float
    lines: list[list[str]]
    latest: list[float | None]


def chart(series: Sequence[Sequence[float | None]], *, capacity: int) -> Chart:
    """Return lines whose newest points are at the right edge.

    Args:
        series: values, the oldest first; None leaves a gap.
        capacity: points that fill the width.
    """
    highest = max((value for values in series for value in values if value is not None), default=0.0)
    top = _round_up(highest)
    return Chart(
        top=top,
        lines=[_stretches(values, top, capacity) for values in series],
        latest=[values[-1] if values else None for values in series],
    )


def _stretches(values: Sequence[float | None], top: float, capacity: int) -> list[str]:
    step = WIDTH / max(1, capacity - 1)
    first = WIDTH - step * (len(values) - 1)
    stretches: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{first + place * step:.1f},{HEIGHT * (1 - value / top):.1f}")
    # A point alone is drawn as a line to itself: round caps make it a dot.
    return [" ".join(points * 2 if len(points) == 1 else points) for points in stretches if points]


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... of any power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= value)
