"""From two looks at the metrics of a service to what it did in between."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reskit.watching.scrape import Scrape

__all__ = [
    "DriftFigures",
    "DriftScore",
    "ErrorFigures",
    "Figures",
    "ModelFigures",
    "StageFigures",
    "quantile",
]

STAGES = ("preprocess", "queue", "infer", "total")
STATISTICS = ("input", "classes")
_MODEL = ("model", "version")


@dataclass(frozen=True, slots=True)
class StageFigures:
    """How long one stage took, in seconds; None where nothing was done."""

    per_s: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class DriftScore:
    """One score of the last window, None before there is one, and what it is held against."""

    score: float | None
    threshold: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """How the traffic of a model compares with its profile.

    Attributes:
        examples: looked at since the model was loaded.
        windows: filled since then.
        scores: by statistic.
    """

    examples: int
    windows: int
    scores: Mapping[str, DriftScore]


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What one version of a model did.

    Attributes:
        model: its name.
        version: of it.
        ready: whether it answers.
        architecture: its network.
        engine: what runs it.
        requests_per_s: answered.
        errors_per_s: not answered.
        examples_per_s: computed.
        batch_size: of the batches computed, on average; None where there was none.
        queue_depth: examples that wait now.
        stages: by name.
        drift: of its traffic; None where that is not watched.
    """

    model: str
    version: str
    ready: bool
    architecture: str
    engine: str
    requests_per_s: float
    errors_per_s: float
    examples_per_s: float
    batch_size: float | None
    queue_depth: int
    stages: Mapping[str, StageFigures]
    drift: DriftFigures | None


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """Requests refused or failed, of one kind."""

    kind: str
    per_s: float
    total: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What a service did between two looks, and how it is at the second.

    Attributes:
        url: of the service.
        up_seconds: since it started.
        window_seconds: between the looks.
        memory_bytes: resident memory; None where the system does not tell.
        cores: processors it kept busy, on average.
        models: those that are loaded.
        errors: by kind, all since the start.
    """

    url: str
    up_seconds: float
    window_seconds: float
    memory_bytes: float | None
    cores: float | None
    models: list[ModelFigures] = field(default_factory=list)
    errors: list[ErrorFigures] = field(default_factory=list)

    @classmethod
    def between(cls, url: str, before: Scrape, after: Scrape) -> Figures:
        """Return the figures of the time between two looks at one run of a service."""
        seconds = max(after.at - before.at, 1e-9)
        processor = after.value("process_cpu_seconds_total")
        earlier = before.value("process_cpu_seconds_total")
        return cls(
            url=url,
            up_seconds=max(0.0, after.clock - after.started),
            window_seconds=seconds,
            memory_bytes=after.value("process_resident_memory_bytes"),
            cores=None if processor is None or earlier is None else (processor - earlier) / seconds,
            models=_models(before, after, seconds),
            errors=_errors(before, after, seconds),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return asdict(self)


def _models(before: Scrape, after: Scrape, seconds: float) -> list[ModelFigures]:
    def rates(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        old = before.values(name, *labels)
        return defaultdict(
            float,
            {key: (new - old.get(key, 0.0)) / seconds for key, new in after.values(name, *labels).items()},
        )

    outcomes = rates("reskit_requests_total", *_MODEL, "outcome")
    examples = rates("reskit_examples_total", *_MODEL)
    rows, batches = rates("reskit_batch_size_sum", *_MODEL), rates("reskit_batch_size_count", *_MODEL)
    ready, depth = after.values("reskit_model_ready", *_MODEL), after.values("reskit_queue_depth", *_MODEL)
    buckets = rates("reskit_request_seconds_bucket", *_MODEL, "stage", "le")
    counts = rates("reskit_request_seconds_count", *_MODEL, "stage")
    return [
        ModelFigures(
            model=key[0],
            version=key[1],
            ready=bool(ready.get(key)),
            architecture=said[2],
            engine=said[3],
            requests_per_s=outcomes[*key, "answered"],
            errors_per_s=sum(
                rate for (*owner, how), rate in outcomes.items() if tuple(owner) == key and how != "answered"
            ),
            examples_per_s=examples[key],
            batch_size=rows[key] / batches[key] if batches[key] else None,
            queue_depth=int(depth.get(key, 0)),
            stages={stage: _stage(buckets, counts[*key, stage], (*key, stage)) for stage in STAGES},
            drift=_drift(after, key),
        )
        for said in sorted(after.values("reskit_model_info", *_MODEL, "architecture", "engine"))
        for key in [said[:2]]
    ]


def _stage(buckets: Mapping[tuple[str, ...], float], per_s: float, key: tuple[str, ...]) -> StageFigures:
    of_it = sorted(
        (math.inf if edge == "+Inf" else float(edge), rate)
        for (*owner, edge), rate in buckets.items()
        if tuple(owner) == key
    )
    return StageFigures(per_s, *(quantile(of_it, share) for share in (0.5, 0.95, 0.99)))


def _drift(now: Scrape, key: tuple[str, ...]) -> DriftFigures | None:
    def of(name: str) -> float:
        return now.values(f"reskit_drift_{name}", *_MODEL).get(key, 0.0)

    def by_statistic(name: str) -> dict[tuple[str, ...], float]:
        return now.values(f"reskit_drift_{name}", *_MODEL, "statistic")

    if not of("watched"):
        return None
    scores, thresholds, alarms = map(by_statistic, ("score", "threshold", "alarm"))
    return DriftFigures(
        examples=int(of("examples_total")),
        windows=int(of("windows_total")),
        scores={
            one: DriftScore(scores.get((*key, one)), thresholds[*key, one], bool(alarms.get((*key, one))))
            for one in STATISTICS
        },
    )


def _errors(before: Scrape, after: Scrape, seconds: float) -> list[ErrorFigures]:
    old = before.values("reskit_errors_total", "kind")
    return [
        ErrorFigures(kind, (total - old.get((kind,), 0.0)) / seconds, int(total))
        for (kind,), total in sorted(after.values("reskit_errors_total", "kind").items())
    ]


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return a quantile of a histogram as `histogram_quantile` of Prometheus does.

    Values are taken to be spread evenly within a bucket; beyond the last edge, that edge is told.

    Args:
        buckets: upper edges in order, the last infinite, each with the count of what is not above.
        share: between 0 and 1.

    Returns:
        None where nothing was counted.
    """
    total = buckets[-1][1] if buckets else 0.0
    if not total > 0:
        return None
    wanted, low, below = share * total, 0.0, 0.0
    for edge, count in buckets:
        if count >= wanted and count > below:
            return low if math.isinf(edge) else low + (edge - low) * (wanted - below) / (count - below)
        low, below = (low if math.isinf(edge) else edge), count
    return low
