"""Contenders timed in turns."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil  # type: ignore[import-untyped]

from reskit.backends.worker import Worker, WorkerError
from reskit.benchmarking.contenders import Contender
from reskit.optimization.candidates import Skipped

__all__ = ["Timing", "race"]

_SPARE = 2**30  # bytes: with less, starting one more process could end another


@dataclass(kw_only=True)
class Timing:
    """What a contender did at one batch size.

    Attributes:
        name: the contender's.
        batch: images a call.
        precision: what it computed in.
        streams: calls, or parts of a call, that it worked on at once.
        callers: threads that called at once.
        rounds: seconds of single calls, round by round.
    """

    name: str
    batch: int
    precision: str
    streams: int
    callers: int
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def images_per_s_by_round(self) -> list[float]:
        """Images a second, round by round: callers are always busy, so it is what they hold by how long."""
        return [self.callers * self.batch / statistics.fmean(seconds) for seconds in self.rounds]

    @property
    def images_per_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.images_per_s_by_round)

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile of the milliseconds of all calls."""
        return 1e3 * float(np.percentile([s for seconds in self.rounds for s in seconds], percentile))


def race(
    contenders: Sequence[Contender],
    *,
    batches: Sequence[int],
    rounds: int,
    seconds: float,
    step: Callable[[str, float], None],
) -> tuple[list[Timing], list[Skipped]]:
    """Start every contender in its process and let them take turns, one at a time.

    Each has one turn a round, and another begins each round: what else the machine does meets all alike.

    Args:
        contenders: who takes part.
        batches: batch sizes.
        rounds: turns of each at each batch size.
        seconds: length of a turn; at least one call is timed.
        step: told what is done next and which part of the race is behind.

    Returns:
        What was timed, and who failed.
    """
    failed: dict[str, str] = {}
    turns: list[tuple[Worker, Timing]] = []
    with contextlib.ExitStack() as stack:
        for place, contender in enumerate(contenders):
            step(f"starting {contender.name}", 0.5 * place / len(contenders))
            if psutil.virtual_memory().available < _SPARE:
                failed[contender.name] = "less than 1 GiB of memory was left beside the others"
                continue
            try:
                turns += _started(contender, stack, batches)
            except WorkerError as error:
                failed[contender.name] = error.reason
        for number in range(rounds):
            step(f"round {number + 1} of {rounds}", 0.5 + 0.5 * number / rounds)
            first = number % len(turns) if turns else 0
            for worker, timing in turns[first:] + turns[:first]:
                if timing.name in failed:
                    continue
                try:
                    timed = worker.time(timing.batch, seconds=seconds, streams=timing.callers)
                except WorkerError as error:
                    failed[timing.name] = error.reason
                else:
                    timing.rounds.append(timed)
    skipped = [Skipped(name=name, reason=reason) for name, reason in failed.items()]
    return [timing for _, timing in turns if timing.name not in failed], skipped


def _started(
    contender: Contender, stack: contextlib.ExitStack, batches: Sequence[int]
) -> list[tuple[Worker, Timing]]:
    """Start a contender and warm it up at every batch size.

    Raises:
        WorkerError: it cannot run; its process has ended.
    """
    worker = Worker(
        contender.build, *contender.arguments, name=contender.name, environment=contender.environment
    )
    with contextlib.ExitStack() as own:
        own.enter_context(worker).wait_ready()
        turns = []
        for batch in batches:
            callers = worker.facts.get("streams", {}).get(batch, 1)
            timing = Timing(
                name=contender.name,
                batch=batch,
                precision=contender.precision or worker.facts["precision"],
                streams=max(contender.streams, callers),
                callers=callers,
            )
            worker.time(batch, calls=1, streams=callers)
            turns.append((worker, timing))
        stack.push(own.pop_all())
    return turns
