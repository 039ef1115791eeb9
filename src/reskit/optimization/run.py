"""Which way of running this bundle is best on this machine? Tried, not assumed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import reskit
from reskit.backends.base import BACKENDS, Backend
from reskit.backends.plan import PLAN, Goal, Machine, Plan, find_plan, plan_folder
from reskit.backends.servable import servable
from reskit.backends.writing import calibration_samples, read_pictures
from reskit.bundle import Bundle
from reskit.data import Source
from reskit.environment import fingerprint, usable_cores
from reskit.errors import BackendError, ConfigError, UnknownNameError
from reskit.files import atomic_folder, sha256, to_json, write_text, writing
from reskit.optimization.candidates import Candidate, Skipped, Trial, list_candidates
from reskit.optimization.choosing import choose, mark_pareto
from reskit.optimization.guard import guard_examples
from reskit.optimization.racing import race

__all__ = ["BATCHES", "Optimized", "optimize"]

BATCHES = (1, 16)
_LIBRARY = f"reskit {reskit.__version__}"
_WRITABLE = "optimize a copy of the bundle elsewhere"


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """The outcome of `optimize`.

    Attributes:
        plan: the table and the choices.
        folder: where plan and files are, in the bundle.
        measured: False where an earlier plan of this machine still held.
    """

    plan: Plan
    folder: Path
    measured: bool

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        plan = self.plan.model_dump(mode="json")
        return {**plan, "engine": self.plan.engine().model_dump(mode="json"), "folder": str(self.folder)}


def optimize(
    bundle: Bundle | str | Path,
    *,
    goal: Goal = "latency",
    data: str | Path | Source | None = None,
    pictures: str | Path | None = None,
    max_drop: float | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    again: bool = False,
    say: Callable[[str], None] = lambda _: None,
    step: Callable[[str, float], None] = lambda _title, _done: None,
) -> Optimized:
    """Find the fastest way to run a bundle that answers as well as float32, and keep it beside the bundle.

    Every backend that is installed writes the network in every precision this machine supports. What was
    written must agree with eager, then hold the task's metric on held-out examples; int8 that does not gives
    layers back to higher precision until it does. What remains is timed in turns, each in a process of its
    own. `reskit.predict` and all that answers uses the choice from then on.

    Args:
        bundle: a loaded bundle or its folder.
        goal: ``latency`` (lowest median of one example), ``throughput`` (most examples a second), ``memory``
            (of the process) or ``size`` (of the files).
        data: labelled data to guard accuracy with; the bundle's own held-out split when absent.
        pictures: a folder of pictures without labels instead: agreement with float32 is then guarded, and
            int8 calibrated with them.
        max_drop: units of the task's main metric (points, dB) an engine may lose; the task's own when absent.
        backends: names of backends; all that are made for servers and PCs when absent.
        precisions: those to try; all when absent.
        batches: batch sizes to time.
        threads: processors to use; all when absent.
        again: measure though this machine's plan still holds.
        say: told, line by line, what happens.
        step: told what is done next and which part of all is behind.

    Raises:
        ConfigError: a batch size or `max_drop` makes no sense.
        UnknownNameError: there is no such backend or precision.
        DataError: the data or pictures cannot be read.
        BackendError: no engine remained.
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    max_drop = bundle.task.drop.most if max_drop is None else max_drop
    if not batches or min(batches) < 1 or not max_drop >= 0:
        raise ConfigError(f"batches {tuple(batches)} must be positive, max_drop {max_drop} not negative")
    settings: dict[str, Any] = {
        "batches": sorted(set(batches)),
        "max_drop": max_drop,
        "threads": threads,
        "backends": None if backends is None else sorted(set(backends)),
        "precisions": None if precisions is None else sorted(set(precisions)),
        "data": _named(bundle, data),
        "pictures": None if pictures is None else str(pictures),
    }
    folder = plan_folder(bundle.path)
    kept = None if again else _earlier(bundle, goal, settings)
    if kept is not None:
        say("this machine's plan still holds: nothing was measured again")
        return kept
    start = time.perf_counter()
    with writing(bundle.path, instead=_WRITABLE):  # better said now than after the search
        tempfile.TemporaryFile(dir=bundle.path).close()
    step("reading examples", 0.0)
    given = read_pictures(bundle, pictures) if pictures is not None else None
    examples = guard_examples(bundle, data, given, batch_size=max(batches), max_drop=max_drop, say=say)
    samples = given.numpy() if given is not None else _calibration(bundle)
    model = servable(bundle)
    with (
        tempfile.TemporaryDirectory(prefix="reskit-optimize-") as name,
        contextlib.ExitStack() as workers,
    ):
        staging = Path(name)
        found = list(list_candidates(backends, precisions))
        trials = [
            Trial(
                bundle,
                *item,
                staging,
                model=model,
                samples=samples,
                examples=examples,
                batches=settings["batches"],
                threads=threads or usable_cores(),
                workers=workers,
                say=say,
            )
            for item in found
            if not isinstance(item, Skipped)
        ]
        candidates, skipped = _tried(
            trials,
            metric=examples.guard.metric,
            everything=precisions is not None,
            say=say,
            step=step,
        )
        skipped += [item for item in found if isinstance(item, Skipped)]
        for item in skipped:
            say(f"{item.name} was left out: {item.reason}")
        engines, failed = race(
            candidates,
            batches=settings["batches"],
            threads=threads or usable_cores(),
            say=say,
            step=lambda title, part: step(title, 0.6 + 0.4 * part),
        )
        skipped += failed
        if not engines:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in skipped)
            raise BackendError(f"no engine remained for {bundle.path}: {reasons}")
        engines = mark_pareto(engines, higher_is_better=bundle.task.higher_is_better)
        plan = Plan(
            library=_LIBRARY,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            bundle=bundle.config.checksum(),
            machine=Machine(**fingerprint()),
            versions=_versions(candidate.backend for candidate in candidates),
            settings=settings,
            goal=goal,
            chosen=choose(engines),
            engines=tuple(engines),
            skipped=tuple(asdict(item) for item in skipped),
            guard=examples.guard,
            files={},
            seconds=time.perf_counter() - start,
        )
        return Optimized(plan=_keep(plan, staging, folder), folder=folder, measured=True)


def _earlier(bundle: Bundle, goal: Goal, settings: Mapping[str, Any]) -> Optimized | None:
    """Return this machine's plan, its goal set to `goal`, where it was asked for alike and still holds."""
    try:
        found = find_plan(bundle)
        if found is None:
            return None
        plan, folder = found
        plan.check(folder)
        known = [BACKENDS.get(name) for name in {engine.backend for engine in plan.engines}]
    except (BackendError, UnknownNameError):
        return None
    if (plan.settings, plan.library, plan.versions) != (dict(settings), _LIBRARY, _versions(known)):
        return None
    if plan.goal != goal:
        plan = plan.model_copy(update={"goal": goal})
        write_text(folder / PLAN, to_json(plan.model_dump(mode="json")))
    return Optimized(plan=plan, folder=folder, measured=False)


def _named(bundle: Bundle, data: str | Path | Source | None) -> str | None:
    """Return what tells data from others; None for those the bundle was trained with."""
    if not isinstance(data, Source):
        return None if data is None else str(data)
    own = data.fingerprint == bundle.config.provenance.get("fingerprint")
    return None if own else f"{data.location} {data.fingerprint}"


def _calibration(bundle: Bundle) -> np.ndarray | None:
    """Return raw input to calibrate int8 with, or None where the bundle has none."""
    try:
        return calibration_samples(bundle)
    except BackendError:
        return None


def _tried(
    trials: Sequence[Trial],
    *,
    metric: str,
    everything: bool,
    say: Callable[[str], None],
    step: Callable[[str, float], None],
) -> tuple[list[Candidate], list[Skipped]]:
    """Return what answers well enough, and what was left out.

    Nothing is timed yet: what compiles does so while the rest is written. As that takes longest, float32 is
    compiled only where nothing faster of the same backend holds the metric.

    Args:
        trials: what to try.
        metric: name of the guard's.
        everything: whether float32 is compiled in any case.
        say: told of each.
        step: told what is done next.
    """
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    last = [
        trial for trial in trials if trial.backend.compiles and trial.precision == "fp32" and not everything
    ]
    first = [trial for trial in trials if trial not in last]
    for place, trial in enumerate(first):
        step(f"writing {trial.name}", 0.1 + 0.2 * place / len(trials))
        trial.begin()
    # Those that compile were begun first and have most to do.
    for place, trial in enumerate([*sorted(first, key=lambda trial: trial.backend.compiles), *last]):
        if trial in last and (better := [one for one in candidates if one.backend is trial.backend]):
            reason = f"{better[0].name} holds the metric; name the precision to have it measured"
            skipped.append(Skipped(name=trial.name, reason=reason))
            continue
        step(f"trying {trial.name}", 0.3 + 0.3 * place / len(trials))
        if trial in last:
            trial.begin()
        outcome = trial.finish()
        if isinstance(outcome, Skipped):
            skipped.append(outcome)
        else:
            candidates.append(outcome)
            worst = max(outcome.written.differences.values())
            say(f"{outcome.name}: {metric} {outcome.metric:.4f}, differs by {worst:.1e}")
    return sorted(candidates, key=lambda candidate: candidate.name), skipped


def _keep(plan: Plan, staging: Path, folder: Path) -> Plan:
    """Put the plan and the files its choices need into the bundle, whole or not at all."""
    stems = {Path(plan.engine(goal).file).stem for goal in plan.chosen}
    with atomic_folder(folder, instead=_WRITABLE) as place:
        kept = [file for file in sorted(staging.iterdir()) if file.stem in stems]
        for file in kept:
            shutil.copyfile(file, place / file.name)
        plan = plan.model_copy(update={"files": {file.name: sha256(file) for file in kept}})
        (place / PLAN).write_text(to_json(plan.model_dump(mode="json")), encoding="utf-8")
    return plan


def _versions(backends: Iterable[Backend]) -> dict[str, str]:
    """Return the versions of the packages that run backends."""
    modules = sorted({module for backend in backends for module in backend.run_needs})
    names = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(name) for module in modules for name in names.get(module, ())}
