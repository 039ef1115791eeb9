"""Numbers of a service in words for people."""

from __future__ import annotations

import math

__all__ = ["duration", "rate", "seconds"]


def rate(value: float) -> str:
    """Return how often a second, in few digits."""
    if value == 0:
        return "0"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Return a time in two digits that count: buckets tell no more."""
    if value is None:
        return "-"
    unit, scaled = ("s", value) if value >= 1 else ("ms", value * 1000)
    digits = max(0, 1 - math.floor(math.log10(scaled))) if scaled > 0 else 0
    return f"{scaled:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Return how long something lasted, in its two largest units."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
