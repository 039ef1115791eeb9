"""Candidates timed in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from reskit.backends.plan import BatchFigures, Engine
from reskit.backends.worker import Worker, WorkerError
from reskit.optimization.candidates import Candidate, Skipped, start_worker

__all__ = ["race"]

SECONDS, CALLS = (0.03, 0.5), 4
"""Time of a turn (one candidate, one batch size, one round), at least and at most; so many calls between."""
TRIAL_ROUNDS, ROUNDS = 2, 6
SLOW = 1.5
"""What is so much slower than the fastest at every batch size has no turn in the last rounds."""
FINALISTS = 2
"""So many of the fastest, at the smallest and at the largest batch, also try other threads and streams."""


@dataclass(kw_only=True, eq=False)
class _Runner:
    """A candidate with its threads and streams, and the seconds of its calls by batch size."""

    candidate: Candidate
    threads: int
    streams: int
    worker: Worker
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def warm_up(self, batches: Sequence[int]) -> None:
        self.worker.wait_ready()
        for batch in batches:
            self.worker.time(batch, calls=1)

    def turn(self, batch: int) -> None:
        known = self.seconds.setdefault(batch, [])
        seconds = min(max(CALLS * self.median(batch) if known else 0.0, SECONDS[0]), SECONDS[1])
        known.extend(self.worker.time(batch, seconds=seconds))

    def median(self, batch: int) -> float:
        return statistics.median(self.seconds[batch])


def race(
    candidates: Sequence[Candidate],
    *,
    batches: Sequence[int],
    threads: int,
    say: Callable[[str], None],
    step: Callable[[str, float], None],
) -> tuple[list[Engine], list[Skipped]]:
    """Time candidates; the fastest also on fewer threads and, where they can, in several streams.

    Rounds are interleaved (every runner has a turn in each): what else the machine does meets all alike.

    Args:
        candidates: what to time, each in the process that it has.
        batches: batch sizes, rising.
        threads: processors to use; those of the candidates' processes.
        say: told of runners that failed.
        step: told what is done next and which part of the race is behind.

    Returns:
        The engines measured, without the choice of a Pareto front, and those that failed, at any time.
    """
    with contextlib.ExitStack() as stack:
        failed: list[Skipped] = []

        def start(candidate: Candidate, threads: int, streams: int) -> _Runner:
            worker = start_worker(candidate.backend, candidate.written.path, threads, streams)
            stack.callback(worker.close)
            return _Runner(candidate=candidate, threads=threads, streams=streams, worker=worker)

        def each(runners: Sequence[_Runner], call: Callable[[_Runner], object]) -> list[_Runner]:
            """Return those that do it; the others are left out."""
            able = []
            for runner in runners:
                try:
                    call(runner)
                except WorkerError as error:
                    failed.append(Skipped(name=runner.candidate.name, reason=error.reason))
                    say(f"{runner.candidate.name} was left out: {error.reason}")
                else:
                    able.append(runner)
            return able

        def rounds(runners: list[_Runner], count: int, step: Callable[[float], None]) -> list[_Runner]:
            for done in range(count):
                step(done / count)
                for batch in batches:
                    runners = each(runners, partial(_Runner.turn, batch=batch))
            return runners

        step("warming up", 0.0)
        runners = [
            _Runner(candidate=candidate, threads=threads, streams=1, worker=candidate.worker)
            for candidate in candidates
        ]
        runners = each(runners, partial(_Runner.warm_up, batches=batches))
        runners = rounds(runners, TRIAL_ROUNDS, lambda part: step("timing all", 0.3 + 0.2 * part))
        variants = [
            start(runner.candidate, fewer, streams)
            for runner in _leaders(runners, batches)
            for fewer, streams in _others(runner, threads)
        ]
        variants = each(variants, partial(_Runner.warm_up, batches=batches))
        runners += rounds(variants, 1, lambda part: step("timing other threads", 0.5 + 0.1 * part))
        quick = _quick(runners, batches)
        slow = [runner for runner in runners if runner not in quick]
        quick = rounds(quick, ROUNDS, lambda part: step("timing the fastest", 0.6 + 0.4 * part))
        engines: list[Engine] = []
        each(
            [runner for runner in runners if runner in slow or runner in quick],
            lambda runner: engines.append(_engine(runner, batches)),
        )
        return engines, failed


def _leaders(runners: Sequence[_Runner], batches: Sequence[int]) -> list[_Runner]:
    """Return the fastest at the smallest and at the largest batch."""
    fastest = [
        sorted(runners, key=lambda r: r.median(batch))[:FINALISTS] for batch in {batches[0], batches[-1]}
    ]
    return [runner for runner in runners if any(runner in leaders for leaders in fastest)]


def _quick(runners: Sequence[_Runner], batches: Sequence[int]) -> list[_Runner]:
    """Return those that are not far behind at every batch size."""
    best = {batch: min((runner.median(batch) for runner in runners), default=0.0) for batch in batches}
    return [r for r in runners if any(r.median(batch) < SLOW * best[batch] for batch in batches)]


def _others(runner: _Runner, threads: int) -> list[tuple[int, int]]:
    """Return other pairs of threads and streams; small networks may lose more to waiting than they gain."""
    if threads == 1:
        return []
    return [(1, 1), *([(threads, threads)] if runner.candidate.backend.splits else [])]


def _engine(runner: _Runner, batches: Sequence[int]) -> Engine:
    candidate, written = runner.candidate, runner.candidate.written
    return Engine(
        name=candidate.name,
        backend=candidate.backend.name,
        precision=written.metadata.precision,
        threads=runner.threads,
        streams=runner.streams,
        keep=candidate.keep,
        file=written.path.name,
        batches=tuple(_figures(batch, runner.seconds[batch]) for batch in batches),
        memory_mib=runner.worker.peak_memory() / 2**20,
        file_mib=written.size_mib,
        difference=max(written.differences.values()),
        metric=candidate.metric,
    )


def _figures(batch: int, seconds: Sequence[float]) -> BatchFigures:
    p50, p95 = np.percentile(seconds, (50, 95))
    return BatchFigures(batch=batch, p50_ms=1e3 * p50, p95_ms=1e3 * p95, images_per_s=batch / p50)
