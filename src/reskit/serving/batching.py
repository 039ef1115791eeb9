"""Requests gathered into batches: as large as the moment gives, never waiting for nobody.

All but the network's own run happens in the event loop, so that nothing needs a lock. While every worker is
at work, what arrives is gathered; the first that is done takes as much of it as fits. Requests of different
shapes are never mixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from reskit.serving.faults import BadRequestError, BusyError, DeadlineError, EngineError, NotReadyError

__all__ = ["Answered", "Batcher", "Observer"]

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]
_Shape = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Outputs, and what it took, in nanoseconds: waiting, joining, the network, dividing."""

    outputs: dict[str, np.ndarray]
    batch: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


class Observer(Protocol):
    """Who is told of every batch."""

    def batch(self, *, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a batch that was computed."""


@dataclass(slots=True, eq=False)
class _Job:
    inputs: Arrays
    shape: _Shape
    rows: int
    future: asyncio.Future[Answered]
    arrived: float
    started_ns: int


@dataclass(slots=True, eq=False)
class _Batch:
    jobs: list[_Job]
    rows: int
    began: float
    taken_ns: int
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    times: tuple[int, int, int] = (0, 0, 0)


class Batcher:
    """Runs requests in batches on threads of its own; to be used within one event loop.

    Args:
        run: the network; called from the workers' threads.
        observer: told of batches.
        max_batch: most examples at once.
        max_delay: seconds an example may wait for others though a worker rests.
        limit: most examples that may wait.
        workers: threads.
        hung_after: seconds after which a run is taken to have hung.
    """

    def __init__(
        self,
        run: Run,
        observer: Observer,
        *,
        max_batch: int,
        max_delay: float = 0.0,
        limit: int = 256,
        workers: int = 1,
        hung_after: float = 30.0,
    ) -> None:
        self._run, self._observer = run, observer
        self._max_batch, self._max_delay, self._limit = max_batch, max_delay, limit
        self._hung_after = hung_after
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[_Shape, deque[_Job]] = {}
        self._rows = 0
        self._idle = workers
        self._running: set[_Batch] = set()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._rate = 0.0  # examples a second, of late
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        # Daemons: a network that hangs must not keep the process from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Examples that wait."""
        return self._rows

    @property
    def hung(self) -> bool:
        """Whether a run takes so long that it will hardly come back."""
        return self._hanging() > 0

    @property
    def stuck(self) -> bool:
        """Whether all do, so that nothing will be answered any more."""
        return self._hanging() == len(self._threads)

    async def submit(self, inputs: Arrays, rows: int, deadline: float) -> Answered:
        """Return the outputs of some examples.

        Args:
            inputs: arrays that fit the network's signature.
            rows: how many examples they are.
            deadline: by the clock of the event loop.

        Raises:
            BadRequestError: more than `max_batch` of them.
            BusyError: the queue is full.
            DeadlineError: it took too long.
            EngineError: the network failed.
            NotReadyError: the batcher was closed.
        """
        if rows > self._max_batch:
            raise BadRequestError(f"{rows} examples in one request; the most is {self._max_batch}")
        if self._closed:
            raise NotReadyError("the model is being unloaded")
        if self._rows and self._rows + rows > self._limit:
            raise BusyError(f"{self._rows} examples are waiting, {self._limit} is the most", self._patience())
        now = self._loop.time()
        shape = tuple((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items())
        job = _Job(inputs, shape, rows, self._loop.create_future(), now, time.perf_counter_ns())
        self._waiting.setdefault(shape, deque()).append(job)
        self._rows += rows
        if not self._scheduled:  # what arrives in the same turn of the loop goes into the same batch
            self._scheduled = True
            self._loop.call_soon(self._dispatch)
        try:
            async with asyncio.timeout_at(deadline):
                return await job.future
        except TimeoutError:
            raise DeadlineError(f"no answer within {deadline - now:.3g} s") from None
        finally:
            job.future.cancel()
            self._forget(job)

    async def close(self, timeout: float) -> bool:
        """Answer what waits, take nothing new and end the threads; False if they did not end in time."""
        self._closed = True
        end = self._loop.time() + timeout
        while (self._rows or self._running) and self._loop.time() < end and not self.stuck:
            await asyncio.sleep(0.005)
        for _ in self._threads:
            self._batches.put(None)
        for job in (job for jobs in self._waiting.values() for job in jobs):
            self._fail(job, NotReadyError("the model was unloaded before the answer was computed"))
        return not self._running

    def _hanging(self) -> int:
        now = self._loop.time()
        return sum(now - batch.began > self._hung_after for batch in self._running)

    def _patience(self) -> int:
        """Return in how many seconds the queue will have gone, as far as can be said."""
        return min(60, max(1, math.ceil(self._rows / self._rate))) if self._rate else 1

    def _dispatch(self) -> None:
        """Give the workers that rest what waits."""
        self._scheduled = False
        while self._idle and (found := self._next()) is not None:
            self._idle -= 1
            self._running.add(found)
            self._batches.put(found)

    def _next(self) -> _Batch | None:
        """Return the next batch, or None where nothing waits, or not long enough."""
        if not self._waiting:
            return None
        now = self._loop.time()
        shape, jobs = min(self._waiting.items(), key=lambda item: item[1][0].arrived)
        wait = jobs[0].arrived + self._max_delay - now
        if wait > 0 and not self._closed and sum(job.rows for job in jobs) < self._max_batch:
            if self._timer is None:
                self._timer = self._loop.call_later(wait, self._delay_over)
            return None
        taken, rows = [], 0
        while jobs and rows + jobs[0].rows <= self._max_batch:
            rows += jobs[0].rows
            taken.append(jobs.popleft())
        self._rows -= rows
        if not jobs:
            del self._waiting[shape]
        return _Batch(taken, rows, now, time.perf_counter_ns())

    def _delay_over(self) -> None:
        self._timer = None
        self._dispatch()

    def _forget(self, job: _Job) -> None:
        """Drop a job nobody waits for any more, if it is still waiting itself."""
        jobs = self._waiting.get(job.shape)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            self._rows -= job.rows
            if not jobs:
                del self._waiting[job.shape]

    def _work(self) -> None:
        """Compute batches until told to end; the only part that runs in threads."""
        while (batch := self._batches.get()) is not None:
            error: Exception | None = None
            try:
                _compute(self._run, batch)
            except Exception as raised:  # a network may raise anything; it costs its own batch only
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._done, batch, error)

    def _done(self, batch: _Batch, error: Exception | None) -> None:
        """Answer the jobs of a batch and start the next."""
        self._running.discard(batch)
        self._idle += 1
        self._dispatch()
        if error is not None:
            reason = f"the network failed: {type(error).__name__}: {error}"
            for job in batch.jobs:
                self._fail(job, EngineError(reason))
            return
        joining, inferring, dividing = batch.times
        self._observer.batch(rows=batch.rows, input_ns=joining, infer_ns=inferring, output_ns=dividing)
        rate = batch.rows / max(sum(batch.times) / 1e9, 1e-9) * len(self._threads)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        for job, outputs in zip(batch.jobs, batch.parts, strict=True):
            if not job.future.done():
                job.future.set_result(
                    Answered(
                        outputs=outputs,
                        batch=batch.rows,
                        queue_ns=batch.taken_ns - job.started_ns,
                        input_ns=joining,
                        infer_ns=inferring,
                        output_ns=dividing,
                    )
                )

    def _fail(self, job: _Job, error: Exception) -> None:
        if not job.future.done():
            job.future.set_exception(error)


def _compute(run: Run, batch: _Batch) -> None:
    """Join the inputs, run, and divide the outputs."""
    begin = time.perf_counter_ns()
    jobs = batch.jobs
    inputs = jobs[0].inputs if len(jobs) == 1 else _joined([job.inputs for job in jobs])
    joined = time.perf_counter_ns()
    outputs = run(inputs)
    ran = time.perf_counter_ns()
    if any(len(array) != batch.rows for array in outputs.values()):
        raise RuntimeError(
            f"it gave {[len(array) for array in outputs.values()]} answers to {batch.rows} examples"
        )
    if len(jobs) == 1:
        batch.parts = [outputs]
    else:
        start = 0
        for job in jobs:
            batch.parts.append({name: array[start : start + job.rows] for name, array in outputs.items()})
            start += job.rows
    batch.times = (joined - begin, ran - joined, time.perf_counter_ns() - ran)


def _joined(inputs: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([arrays[name] for arrays in inputs]) for name in inputs[0]}
