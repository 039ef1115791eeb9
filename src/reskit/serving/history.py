"""What a service did in the last minutes: for the charts of its page."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

from reskit.serving.metrics import Metrics
from reskit.watching.figures import quantile

__all__ = ["History", "Point"]

_EVERY = 2.0
_KEPT = 151


@dataclass(frozen=True, slots=True)
class Point:
    """What was done between two looks; latencies in seconds, None where nothing was answered."""

    requests_per_s: float
    errors_per_s: float
    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    answered: float
    failed: float
    buckets: dict[float, float]


class History:
    """Points of the last five minutes, the oldest first.

    Args:
        metrics: of the service.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.points: deque[Point] = deque(maxlen=_KEPT - 1)
        self._last = self._look()

    @property
    def seconds(self) -> float:
        """How long the whole history is."""
        return _EVERY * (_KEPT - 1)

    @property
    def capacity(self) -> int:
        """How many points it can hold."""
        return _KEPT - 1

    async def keep(self) -> None:
        """Add a point every two seconds, for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            self.add()

    def add(self) -> None:
        """Add what was done since the last point."""
        old, new = self._last, self._look()
        seconds = max(new.at - old.at, 1e-9)
        buckets = [(edge, count - old.buckets.get(edge, 0.0)) for edge, count in sorted(new.buckets.items())]
        self.points.append(
            Point(
                requests_per_s=(new.answered - old.answered) / seconds,
                errors_per_s=(new.failed - old.failed) / seconds,
                p50=quantile(buckets, 0.5),
                p95=quantile(buckets, 0.95),
            )
        )
        self._last = new

    def _look(self) -> _Look:
        buckets: dict[float, float] = {}
        answered = 0.0
        for family in self._metrics.seconds.collect():
            for sample in family.samples:
                if sample.labels.get("stage") != "total":
                    continue
                if sample.name.endswith("_bucket"):
                    edge = math.inf if sample.labels["le"] == "+Inf" else float(sample.labels["le"])
                    buckets[edge] = buckets.get(edge, 0.0) + sample.value
                elif sample.name.endswith("_count"):
                    answered += sample.value
        failed = sum(
            sample.value
            for family in self._metrics.errors.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )
        return _Look(time.monotonic(), answered, failed, buckets)
