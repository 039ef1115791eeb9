"""What a service counts: for Prometheus, and for the statistics of the protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reskit.serving.batching import Answered
from reskit.serving.drift import DriftGauges, DriftState

__all__ = ["Metrics", "ModelMetrics", "State"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")


class State(NamedTuple):
    """What is so of a model at one moment."""

    model: str
    version: str
    architecture: str
    engine: str
    depth: int
    ready: bool
    drift: DriftState | None


@dataclass(slots=True)
class _Sum:
    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class Metrics:
    """The metrics of one service, in a registry of its own.

    Args:
        states: asked when metrics are collected: the state of every model that is loaded.
    """

    def __init__(self, states: Callable[[], list[State]]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.seconds = Histogram(
            "reskit_request_seconds",
            "Seconds a request took, by stage",
            (*_MODEL, "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "reskit_requests", "Requests, by outcome", (*_MODEL, "protocol", "outcome"), registry=registry
        )
        self.errors = Counter("reskit_errors", "Requests not answered, by kind", ("kind",), registry=registry)
        self.examples = Counter("reskit_examples", "Examples answered", _MODEL, registry=registry)
        self.rows = Histogram(
            "reskit_batch_size", "Examples computed at once", _MODEL, buckets=_ROWS, registry=registry
        )
        started = Gauge("reskit_start_time_seconds", "When the service started, Unix time", registry=registry)
        started.set_to_current_time()
        ProcessCollector(registry=registry)
        registry.register(_Gauges(states))
        registry.register(DriftGauges(states))

    def text(self) -> bytes:
        """Return all in the text format of Prometheus."""
        return generate_latest(self.registry)

    def failed(self, kind: str) -> None:
        """Count a request that was not answered."""
        self.errors.labels(kind).inc()


class _Gauges(Collector):
    """What is so now, of the models that are loaded now."""

    def __init__(self, states: Callable[[], list[State]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        depth = GaugeMetricFamily("reskit_queue_depth", "Examples that wait", labels=_MODEL)
        ready = GaugeMetricFamily("reskit_model_ready", "Whether a model answers", labels=_MODEL)
        info = GaugeMetricFamily(
            "reskit_model_info", "What answers", labels=(*_MODEL, "architecture", "engine")
        )
        for state in self._states():
            labels = (state.model, state.version)
            depth.add_metric(labels, state.depth)
            ready.add_metric(labels, state.ready)
            info.add_metric((*labels, state.architecture, state.engine), 1)
        yield from (depth, ready, info)


class ModelMetrics:
    """What is counted of one version of one model; used within the event loop only.

    Args:
        metrics: of the service.
        name: of the model.
        version: of the model.
    """

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self.name, self.version = name, version
        self._metrics = metrics
        labels = (name, version)
        self._stage = {
            stage: metrics.seconds.labels(*labels, stage)
            for stage in ("preprocess", "queue", "infer", "total")
        }
        self._rows = metrics.rows.labels(*labels)
        self._examples = metrics.examples.labels(*labels)
        self._last_ms = 0
        self._inferences = self._executions = 0
        self._sums = {
            name: _Sum()
            for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        }
        self._by_rows: dict[int, dict[str, _Sum]] = {}

    def batch(self, *, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a batch that was computed."""
        self._rows.observe(rows)
        self._examples.inc(rows)
        self._inferences += rows
        self._executions += 1
        self._last_ms = int(time.time() * 1000)
        sums = self._by_rows.setdefault(
            rows, {name: _Sum() for name in ("compute_input", "compute_infer", "compute_output")}
        )
        for name, ns in zip(sums, (input_ns, infer_ns, output_ns), strict=True):
            sums[name].add(ns)

    def preprocessed(self, seconds: float) -> None:
        """Count an upload that was read."""
        self._stage["preprocess"].observe(seconds)

    def answered(self, answer: Answered) -> None:
        """Count what was answered, stage by stage."""
        self._stage["queue"].observe(answer.queue_ns / 1e9)
        self._stage["infer"].observe(answer.infer_ns / 1e9)
        for name in ("queue", "input", "infer", "output"):
            sums = self._sums["queue" if name == "queue" else f"compute_{name}"]
            sums.add(getattr(answer, f"{name}_ns"))

    def finished(self, protocol: str, ns: int, kind: str | None) -> None:
        """Count a request that came to its end: of which kind its error was, or None."""
        self._sums["fail" if kind else "success"].add(ns)
        self._metrics.requests.labels(self.name, self.version, protocol, kind or "answered").inc()
        if kind is None:
            self._stage["total"].observe(ns / 1e9)

    def statistics(self) -> dict[str, Any]:
        """Return the statistics of the protocol, since the model was loaded."""
        nothing = {"cache_hit": _Sum().as_dict(), "cache_miss": _Sum().as_dict()}
        return {
            "name": self.name,
            "version": self.version,
            "last_inference": self._last_ms,
            "inference_count": self._inferences,
            "execution_count": self._executions,
            "inference_stats": {name: sums.as_dict() for name, sums in self._sums.items()} | nothing,
            "batch_stats": [
                {"batch_size": rows, **{name: value.as_dict() for name, value in sums.items()}}
                for rows, sums in sorted(self._by_rows.items())
            ],
            "memory_usage": [],
        }
