"""The limit of this machine, measured: arithmetic by precision, and memory.

The limit is the best of several libraries, each in a process of its own: a single one may miss it, then a
fraction of it says little (roofline model: Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reskit.backends.worker import Worker, WorkerError, thread_environment
from reskit.benchmarking.probes import COPY, PROBES
from reskit.environment import usable_cores

__all__ = ["Peak", "Reading", "measure_peak"]

_TRIAL_SECONDS, _SECONDS, _ROUNDS, _FINALISTS = 0.15, 0.25, 5, 2
_LONGEST_CALL = 0.4  # seconds; what would take longer is left out
_UNIT = {"int8": "Gop/s", COPY: "GB/s"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one library reached in one case.

    Attributes:
        label: library, operation and size.
        precision: what it computed in, or ``copy``.
        rate: G operations a second (a multiply-add is two), for ``copy`` GB read and written a second.
        sustained: whether it is the median of several rounds; a short trial otherwise.
    """

    label: str
    precision: str
    rate: float
    sustained: bool


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What this machine can do at most.

    Attributes:
        threads: processors used.
        gflops: precision to G operations a second.
        copy_gb_s: GB read and written a second while copying; None where nothing could be timed.
        by: precision, or ``copy``, to the label of what reached it.
        readings: all that was tried.
        skipped: library or case to why it was not.
    """

    threads: int
    gflops: dict[str, float]
    copy_gb_s: float | None
    by: dict[str, str]
    readings: tuple[Reading, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    def of(self, precision: str) -> float | None:
        """Return the limit of a precision, or None where nothing reached any.

        fp16 is held against fp32: processors without fp16 arithmetic compute such files in it.
        """
        return self.gflops.get("fp32" if precision == "fp16" else precision)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Timed:
    """A case and the worker that runs it."""

    worker: Worker
    number: int
    label: str
    kind: str
    precision: str
    work: float

    def seconds(self, seconds: float) -> list[float]:
        return self.worker.time(self.number, seconds=seconds)

    def reading(self, seconds: Sequence[float], *, sustained: bool) -> Reading:
        rate = self.work / statistics.median(seconds) / 1e9
        return Reading(label=self.label, precision=self.precision, rate=rate, sustained=sustained)


def measure_peak(
    threads: int | None = None,
    *,
    sides: Sequence[int] | None = None,
    libraries: Iterable[str] = PROBES,
    say: Callable[[str], None] = lambda _: None,
) -> Peak:
    """Measure what this machine can do at most; takes about half a minute.

    Every library gets a short turn at each size; then the best two of a precision take turns, and the better
    median is the peak. Sizes that would take long are left out.

    Args:
        threads: processors to use; all when absent.
        sides: of the square matrices, rising; images of the convolutions grow alike.
        libraries: names in `PROBES`.
        say: told, line by line, what was found.
    """
    threads = threads or usable_cores()
    sides = sides or ((1024, 2048) if threads <= 8 else (2048, 4096))
    skipped: dict[str, str] = {}
    trials: list[tuple[Reading, _Timed]] = []
    peaks: dict[str, Reading] = {}
    with contextlib.ExitStack() as stack:
        for library in libraries:
            build, modules = PROBES[library]
            missing = [module for module in modules if importlib.util.find_spec(module) is None]
            if missing:
                skipped[library] = f"{missing[0]} is not installed"
                continue
            environment = thread_environment(threads)
            worker = Worker(build, threads, tuple(sides), name=library, environment=environment)
            trials += _try_all(stack.enter_context(worker), skipped)
        readings = [reading for reading, _ in trials]
        for precision in dict.fromkeys(reading.precision for reading in readings):
            ranked = sorted((t for t in trials if t[0].precision == precision), key=lambda t: -t[0].rate)
            sustained = _sustain([case for _, case in ranked[:_FINALISTS]], skipped)
            if sustained:
                readings += sustained
                best = peaks[precision] = max(sustained, key=lambda reading: reading.rate)
                say(f"{precision}: {best.rate:,.0f} {_UNIT.get(precision, 'GFLOP/s')}, {best.label}")
    return Peak(
        threads=threads,
        gflops={precision: reading.rate for precision, reading in peaks.items() if precision != COPY},
        copy_gb_s=peaks[COPY].rate if COPY in peaks else None,
        by={precision: reading.label for precision, reading in peaks.items()},
        readings=tuple(readings),
        skipped=skipped,
    )


def _try_all(worker: Worker, skipped: dict[str, str]) -> list[tuple[Reading, _Timed]]:
    """Give every case of a library a short turn; note what cannot run here."""
    try:
        worker.wait_ready()
    except WorkerError as error:
        skipped[worker.name] = error.reason
        return []
    cases = [_Timed(worker, number, *case) for number, case in enumerate(worker.facts["cases"])]
    trials = []
    for _, sizes in itertools.groupby(cases, key=lambda case: case.kind):
        per_work = 0.0
        for case in sizes:
            if per_work * case.work > _LONGEST_CALL:
                break
            try:
                seconds = case.seconds(_TRIAL_SECONDS)
            except WorkerError as error:
                skipped[case.label] = error.reason
                break
            per_work = statistics.median(seconds) / case.work
            trials.append((case.reading(seconds, sustained=False), case))
    return trials


def _sustain(cases: Sequence[_Timed], skipped: dict[str, str]) -> list[Reading]:
    """Time cases in turns over several rounds."""
    seconds: dict[_Timed, list[float]] = {case: [] for case in cases}
    for _ in range(_ROUNDS):
        for case in list(seconds):
            try:
                seconds[case] += case.seconds(_SECONDS)
            except WorkerError as error:
                skipped[case.label] = error.reason
                del seconds[case]
    return [case.reading(timed, sustained=True) for case, timed in seconds.items()]
