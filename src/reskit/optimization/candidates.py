"""What could run a bundle on this machine: written, proven, and tried for accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reskit.backends.base import BACKENDS, PRECISIONS, Backend, Precision
from reskit.backends.running import FileNetwork
from reskit.backends.sensitivity import rank_by_sensitivity
from reskit.backends.servable import INPUT, OUTPUT, Servable
from reskit.backends.worker import Worker
from reskit.backends.writing import Written, write_checked
from reskit.bundle import Bundle
from reskit.errors import BackendError, MissingExtraError, UnknownNameError
from reskit.optimization.guard import Examples

__all__ = ["Candidate", "Skipped", "list_candidates", "prepare"]

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
    """

    backend: Backend
    written: Written
    keep: tuple[str, ...]
    metric: float

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
    chosen = [BACKENDS.get(name) for name in backends] if backends is not None else None
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


def prepare(
    bundle: Bundle,
    backend: Backend,
    precision: Precision,
    folder: Path,
    *,
    model: Servable,
    samples: np.ndarray | None,
    examples: Examples,
    threads: int,
    say: Callable[[str], None],
) -> Candidate | Skipped:
    """Write a bundle for a backend and measure the guard's metric; int8 gives back layers until it holds.

    Args:
        bundle: what is written.
        backend: for whom.
        precision: what to compute in.
        folder: where the file goes.
        model: what `servable` gave; shared by all, so that what they have in common is exported once.
        samples: pictures for calibration, uint8 `(N, C, H, W)`; None where there are none.
        examples: the guard.
        threads: processors to use.
        say: told what is given up on the way.
    """
    name = f"{backend.name}-{precision}"
    if precision == "int8" and samples is None:
        return Skipped(name=name, reason="no pictures to calibrate with: give --pictures")
    guard = examples.guard
    ranking, lost = None, 0.0
    for share in (0.0, *(SHARES_KEPT if precision == "int8" else ())):
        if share and ranking is None:
            assert samples is not None
            ranking = rank_by_sensitivity(model, samples)
        keep = tuple(ranking[: max(1, round(share * len(ranking)))]) if ranking else ()
        path = folder / f"{name}{backend.suffix}"
        try:
            written = write_checked(bundle, backend, precision, path, samples=samples, keep=keep, model=model)
            metric = _metric(backend, path, examples, threads)
        except (BackendError, MissingExtraError) as error:
            return Skipped(name=name, reason=str(error))
        if examples.accepts(metric):
            return Candidate(backend=backend, written=written, keep=keep, metric=metric)
        lost = examples.points_lost(metric)
        say(f"{name}: {guard.metric} {metric:.4f}, {lost:.2f} {guard.unit} below float32: too far")
    return Skipped(
        name=name,
        reason=f"loses {lost:.2f} {guard.unit} of {guard.metric}, {guard.max_drop:g} are allowed",
    )


def _metric(backend: Backend, path: Path, examples: Examples, threads: int) -> float:
    with Worker(FileNetwork, backend.name, path, threads) as worker:
        worker.time(len(examples.batches[0]["image"]), calls=1)  # compiles for that size
        return examples.score(lambda pixels: worker.answer({INPUT: pixels})[OUTPUT])
