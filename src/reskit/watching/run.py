"""Looking at a service again and again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from reskit.errors import ServiceError
from reskit.watching.figures import Figures
from reskit.watching.scrape import Scrape, Scraper

__all__ = ["watch"]

WINDOW = 30.0
"""Seconds that rates and latencies are told of."""


def watch(
    scraper: Scraper, *, interval: float = 2.0, sleep: Callable[[float], Any] = time.sleep
) -> Iterator[tuple[Figures, str]]:
    """Yield the figures of a service at every interval, and why there are no newer ones where there are none.

    The first come after one interval; later ones tell of the last 30 seconds.

    Args:
        scraper: of the service.
        interval: seconds between looks.
        sleep: waits.

    Raises:
        ServiceError: it cannot be reached at the first look, or is not a service of reskit.
    """
    looks = deque([scraper.fetch()])
    figures: Figures | None = None
    while True:
        sleep(interval)
        try:
            _add(looks, scraper.fetch())
        except ServiceError as error:
            if figures is None:
                raise
            yield figures, f"{error} (trying on)"
            continue
        if len(looks) > 1:
            figures = Figures.between(scraper.url, looks[0], looks[-1])
            yield figures, ""


def _add(looks: deque[Scrape], new: Scrape) -> None:
    if new.started != looks[-1].started:  # it was started again, and counts from zero
        looks.clear()
    looks.append(new)
    while len(looks) > 2 and new.at - looks[1].at >= WINDOW:
        looks.popleft()
