"""Deployments as metrics: how they ended, and who answers how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["DeploymentMetrics", "Shares"]

Shares = Callable[[], list[tuple[str, str, float]]]
"""Model, version and the part of the requests it answers, of every version that is loaded or on trial."""


class DeploymentMetrics:
    """Counts deployments.

    Args:
        registry: of the service.
        shares: asked when metrics are collected.
    """

    def __init__(self, registry: CollectorRegistry, shares: Shares) -> None:
        self._ended = Counter(
            "reskit_deployments", "Deployments, by outcome", ("model", "outcome"), registry=registry
        )
        registry.register(_Shares(shares))

    def ended(self, model: str, outcome: str) -> None:
        """Count a deployment that came to its end."""
        self._ended.labels(model, outcome).inc()


class _Shares(Collector):
    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        share = GaugeMetricFamily(
            "reskit_version_share",
            "Part of the requests that name no version which a version answers",
            labels=("model", "version"),
        )
        for model, version, part in self._shares():
            share.add_metric((model, version), part)
        yield share
