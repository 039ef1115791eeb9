"""What could run a bundle on this machine: written, proven, and tried for accuracy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from reskit.backends.base import BACKENDS, PRECISIONS, Backend, Precision
from reskit.backends.running import FileNetwork
from reskit.backends.sensitivity import rank_by_sensitivity
from reskit.backends.servable import OUTPUT, Servable
from reskit.backends.worker import Worker, thread_environment
from reskit.backends.writing import Draft, Written, write_draft
from reskit.background import in_background
from reskit.bundle import Bundle
from reskit.errors import BackendError, MissingExtraError, UnknownNameError
from reskit.optimization.guard import Examples

__all__ = ["Candidate", "Skipped", "Trial", "list_candidates", "start_worker"]

SHARES_KEPT = (0.1, 0.25, 0.5)
"""Parts of the layers that int8 leaves in higher precision, tried in turn; the most hurt layers first."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A written file that answers well enough.

    Attributes:
        backend: who runs it.
        written: the file.
        keep: modules int8 left in higher precision.
        metric: the guard's.
        worker: the process that runs it, on all threads.
    """

    backend: Backend
    written: Written
    keep: tuple[str, ...]
    metric: float
    worker: Worker

    @property
    def name(self) -> str:
        """Backend and precision."""
        return f"{self.backend.name}-{self.written.metadata.precision}"


def list_candidates(
    backends: Iterable[str] | None, precisions: Iterable[str] | None
) -> Iterator[tuple[Backend, Precision] | Skipped]:
    """Yield what can be tried here, and what cannot with the reason.

    Args:
        backends: names; all that are made for machines as this one when absent.
        precisions: all when absent.

    Raises:
        UnknownNameError: there is no such backend or precision.
    """
    for precision in precisions or ():
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)
    chosen = [BACKENDS.get(name) for name in dict.fromkeys(backends)] if backends is not None else None
    for backend in chosen or [BACKENDS.get(name) for name in BACKENDS]:
        if chosen is None and backend.on_device:
            yield Skipped(name=backend.name, reason="made for phones and boards; name it to have it measured")
            continue
        try:
            backend.require(export=True)
        except MissingExtraError as error:
            yield Skipped(name=backend.name, reason=str(error))
            continue
        for precision in (p for p in PRECISIONS if p in backend.tolerance):
            if precisions is not None and precision not in precisions:
                continue
            reason = backend.unsupported(precision)
            yield (
                Skipped(name=f"{backend.name}-{precision}", reason=reason) if reason else (backend, precision)
            )


class Trial:
    """A bundle written for a backend in a precision, proven, and tried for accuracy.

    What has to be compiled is so in the background.

    Args:
        bundle: what is written.
        backend: for whom.
        precision: what to compute in.
        folder: where the file goes.
        model: what `servable` gave; shared by all, so that what they have in common is exported once.
        samples: raw input for calibration; None where there is none.
        examples: the guard.
        batches: batch sizes it will run.
        threads: processors to use.
        workers: closes the processes that were started.
        say: told what is given up on the way.

    Attributes:
        name: backend and precision.
        backend: for whom.
        precision: what it computes in.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        precision: Precision,
        folder: Path,
        *,
        model: Servable,
        samples: np.ndarray | None,
        examples: Examples,
        batches: Sequence[int],
        threads: int,
        workers: contextlib.ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self.name, self.backend, self.precision = f"{backend.name}-{precision}", backend, precision
        self._bundle = bundle
        self._path = folder / f"{self.name}{backend.suffix}"
        self._model, self._samples, self._examples = model, samples, examples
        self._batches, self._threads = batches, threads
        self._workers, self._say = workers, say
        self._begun: Future[tuple[Written, Worker]]

    def begin(self, keep: Sequence[str] = ()) -> None:
        """Write the file and have a process run it; `finish` says what came of it.

        Args:
            keep: modules that int8 leaves in higher precision.
        """
        self._begun = Future()
        try:
            if self.precision == "int8" and self._samples is None:
                raise BackendError("no pictures to calibrate with: give --pictures")
            draft = write_draft(
                self._bundle,
                self.backend,
                self.precision,
                self._path,
                samples=self._samples,
                keep=keep,
                model=self._model,
            )
            if self.backend.compiles:
                self._begun = in_background(partial(self._started, draft), name="reskit-compile")
            else:
                self._begun.set_result(self._started(draft))
        except (BackendError, MissingExtraError) as error:
            self._begun.set_exception(error)

    def _started(self, draft: Draft) -> tuple[Written, Worker]:
        """Compile, prove and load a file."""
        if self.backend.compiles:
            self.backend.prepare(draft.path, self._batches)
        written = draft.prove()
        worker = start_worker(self.backend, written.path, self._threads)
        self._workers.callback(worker.close)
        return written, worker

    def finish(self) -> Candidate | Skipped:
        """Measure the guard's metric of what was begun; int8 gives back layers until it holds."""
        keep: tuple[str, ...] = ()
        for share in (*(SHARES_KEPT if self.precision == "int8" else ()), None):
            try:
                written, worker = self._begun.result()
                metric = _metric(worker, self._examples)
            except (BackendError, MissingExtraError) as error:
                return Skipped(name=self.name, reason=getattr(error, "reason", str(error)))
            if self._examples.accepts(metric):
                return Candidate(
                    backend=self.backend, written=written, keep=keep, metric=metric, worker=worker
                )
            worker.close()
            guard, lost = self._examples.guard, self._examples.points_lost(metric)
            below = f"{lost:.2f} {guard.unit} below float32"
            self._say(f"{self.name}: {guard.metric} {metric:.4f}, {below}: too far")
            if share is not None:
                keep = tuple(self._ranking[: max(1, round(share * len(self._ranking)))])
                self.begin(keep)
        return Skipped(
            name=self.name,
            reason=f"loses {lost:.2f} {guard.unit} of {guard.metric}, {guard.max_drop:g} are allowed",
        )

    @cached_property
    def _ranking(self) -> list[str]:
        """Modules, those that int8 hurts most first."""
        assert self._samples is not None
        return rank_by_sensitivity(self._model, self._samples)


def start_worker(backend: Backend, path: Path, threads: int, streams: int = 1) -> Worker:
    """Start a process that runs a file."""
    worker = Worker(
        FileNetwork,
        backend.name,
        path,
        threads,
        streams,
        name=path.stem,
        environment=thread_environment(threads),
    )
    worker.start()
    return worker


def _metric(worker: Worker, examples: Examples) -> float:
    worker.time(len(examples.batches[0]["index"]), calls=1)  # compiles for that size
    return examples.score(lambda raw: worker.answer({examples.task.raw: raw})[OUTPUT])
