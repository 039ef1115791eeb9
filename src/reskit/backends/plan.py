"""What `reskit optimize` found on a machine, kept beside the bundle: the table, the choices, the files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from reskit.backends.base import BACKENDS, Precision, Runner
from reskit.environment import fingerprint
from reskit.errors import BackendError, UnknownNameError
from reskit.files import sha256

if TYPE_CHECKING:
    from reskit.bundle import Bundle

__all__ = [
    "ENGINES",
    "GOALS",
    "PLAN",
    "BatchFigures",
    "Engine",
    "Goal",
    "Guard",
    "Plan",
    "find_plan",
    "other_machines",
    "plan_folder",
    "plan_time",
]

Goal = Literal["latency", "throughput", "memory", "size"]
GOALS: tuple[Goal, ...] = get_args(Goal)
ENGINES = "engines"
"""Folder in a bundle that holds, machine by machine, a plan and the files it names."""
PLAN = "plan.json"


FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""In the plan's own folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchFigures(_Part):
    """What was measured at one batch size: seconds of whole calls, images a second at their median."""

    batch: PositiveInt
    p50_ms: float
    p95_ms: float
    images_per_s: float


class Engine(_Part):
    """One way to run the bundle, and what was measured of it.

    Attributes:
        name: backend and precision, such as ``openvino-int8``.
        threads: processors used.
        streams: batches worked on at once.
        keep: modules int8 left in higher precision.
        file: what runs, in the plan's folder; kept there only if some goal chose it.
        batches: speed by batch size.
        memory_mib: the most memory the process that ran it held, libraries included.
        file_mib: size of its files.
        difference: largest difference of the outputs from float32, as a part of the largest output.
        metric: the guard's metric.
        pareto: whether no other engine is better in one respect and worse in none.
    """

    name: str
    backend: str
    precision: Precision
    threads: PositiveInt
    streams: PositiveInt
    keep: tuple[str, ...] = ()
    file: FileName
    batches: Annotated[tuple[BatchFigures, ...], Field(min_length=1)]
    memory_mib: float
    file_mib: float
    difference: float
    metric: float
    pareto: bool = False

    def at(self, batch: int) -> BatchFigures:
        """Return the figures of a batch size."""
        return next(figures for figures in self.batches if figures.batch == batch)

    @property
    def latency_ms(self) -> float:
        """Median milliseconds of the smallest batch measured."""
        return min(self.batches, key=lambda figures: figures.batch).p50_ms

    @property
    def images_per_s(self) -> float:
        """Images a second at the best batch size measured."""
        return max(figures.images_per_s for figures in self.batches)


class Guard(_Part):
    """How accuracy was held: which metric, on what, and by how many units it may drop from float32 eager."""

    metric: str
    on: str
    examples: int
    float32: float
    max_drop: float
    unit: str = "points"


class Machine(BaseModel):
    """What `reskit.environment.fingerprint` said; there may be more than is used here."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    processor: str


class Plan(_Part):
    """The outcome of `reskit.optimize` on one machine.

    Attributes:
        bundle: checksum of the bundle it was measured for.
        machine: where it was measured.
        versions: of the packages of the backends tried.
        settings: what was asked for: batch sizes, how much accuracy may drop.
        goal: what the user asked for; :attr:`engine` follows it.
        chosen: goal to the place of its engine in `engines`.
        engines: everything measured.
        skipped: what was not, and why.
        files: every file the plan names, with its SHA-256.
    """

    format: Literal[1] = 1
    library: str
    created: str
    bundle: str
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    goal: Goal
    chosen: dict[Goal, NonNegativeInt]
    engines: tuple[Engine, ...]
    skipped: tuple[dict[str, str], ...]
    guard: Guard
    files: dict[FileName, str]
    seconds: float

    def engine(self, goal: Goal | None = None) -> Engine:
        """Return the engine chosen for a goal; for the one asked for when absent."""
        return self.engines[self.chosen[goal or self.goal]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the plan in a folder.

        Raises:
            BackendError: it is damaged.
        """
        file = folder / PLAN
        try:
            plan = cls.model_validate(json.loads(file.read_text(encoding="utf-8")))
            for goal in GOALS:
                BACKENDS.get(plan.engine(goal).backend)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (KeyError, IndexError):
            reason = "chosen: no engine for every goal"
        except (OSError, ValueError, RecursionError, UnknownNameError) as error:
            reason = str(error).splitlines()[0]
        else:
            return plan
        raise BackendError(f"{file} is damaged ({reason}); run `reskit optimize` again")

    def check(self, folder: Path, goals: Iterable[Goal] = GOALS) -> None:
        """Hold the files of the engines chosen for some goals, each once, against the plan in their folder.

        Raises:
            BackendError: a file is missing or altered.
        """
        chosen = {self.engine(goal).file for goal in goals}
        stems = {Path(file).stem for file in chosen}
        for name in chosen | {name for name in self.files if Path(name).stem in stems}:
            if not (folder / name).is_file() or sha256(folder / name) != self.files.get(name):
                raise BackendError(f"{folder / name} is missing or altered; run `reskit optimize` again")

    def load(self, folder: Path, goal: Goal | None = None) -> Runner:
        """Return the runner of the engine chosen.

        Args:
            folder: where the plan was read from.
            goal: which choice; the plan's own when absent.

        Raises:
            BackendError: a file is missing or altered, or the backend refuses it.
            MissingExtraError: the backend is not installed any more.
        """
        engine = self.engine(goal)
        backend = BACKENDS.get(engine.backend)
        backend.require()
        self.check(folder, [goal or self.goal])
        return backend.load(folder / engine.file, threads=engine.threads, streams=engine.streams)


def plan_folder(bundle: Path) -> Path:
    """Return the folder in a bundle that is this machine's."""
    return bundle / ENGINES / str(fingerprint()["id"])


def find_plan(bundle: Bundle) -> tuple[Plan, Path] | None:
    """Return this machine's plan of a bundle and its folder, or None where there is none.

    Raises:
        BackendError: it is damaged, or of another bundle or machine.
    """
    folder = plan_folder(bundle.path)
    if not (folder / PLAN).is_file():
        return None
    plan = Plan.read(folder)
    if plan.bundle != bundle.config.checksum():
        raise BackendError(f"the plan in {folder} is of another bundle; run `reskit optimize` again")
    if plan.machine.id != fingerprint()["id"]:
        raise BackendError(f"the plan in {folder} is of another machine; run `reskit optimize` again")
    return plan, folder


def plan_time(bundle: Path) -> int | None:
    """Return when this machine's plan of a bundle was written, in nanoseconds; None where there is none."""
    file = plan_folder(bundle) / PLAN
    return file.stat().st_mtime_ns if file.is_file() else None


def other_machines(bundle: Path) -> list[str]:
    """Return the processors for which a bundle holds plans, this machine left out."""
    here, found = str(fingerprint()["id"]), []
    for path in sorted((bundle / ENGINES).glob(f"*/{PLAN}")):
        if path.parent.name != here:
            with contextlib.suppress(BackendError):  # damaged: that concerns those who would use it
                found.append(Plan.read(path.parent).machine.processor)
    return found
