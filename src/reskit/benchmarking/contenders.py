"""Who takes part: every backend and precision of ours, the plan of the bundle, and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reskit.backends import Backend, Precision
from reskit.backends.plan import Goal, find_plan
from reskit.backends.running import FileNetwork
from reskit.backends.servable import servable
from reskit.backends.worker import Prepare, thread_environment
from reskit.backends.writing import write_checked
from reskit.benchmarking.peers import PEERS
from reskit.benchmarking.subject import Subject
from reskit.bundle import Bundle
from reskit.environment import usable_cores
from reskit.errors import BackendError, ConfigError, MissingExtraError, UnknownNameError
from reskit.models import MODELS, create_model
from reskit.optimization.candidates import Skipped

__all__ = ["Contender", "open_target", "our_contenders", "peer_contenders", "plan_contenders"]

_NOISE = 8  # pictures of noise for a network that was never trained


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to run the network, to be started in a process of its own.

    Attributes:
        name: of its rows.
        build: see `Worker`.
        arguments: of `build`.
        precision: what it computes in; said by the worker where None.
        streams: parts of a batch it works on at once.
        environment: of its process.
    """

    name: str
    build: Callable[..., Prepare]
    arguments: tuple[Any, ...]
    precision: str | None = None
    streams: int = 1
    environment: dict[str, str] = field(default_factory=dict)


def open_target(target: Bundle | str | Path, folder: Path, *, size: int | None = None) -> Bundle:
    """Return what is to be run as a bundle.

    Args:
        target: a bundle, its folder, or the name of a network, which then has random weights.
        folder: where the bundle of a named network may be written.
        size: side of the images of a named network; as published when absent.

    Raises:
        ConfigError: it is neither, or a size was given for a bundle.
        BundleError: the bundle cannot be read.
    """
    named = not isinstance(target, Bundle) and not Path(target).exists()
    if not named and size is not None:
        raise ConfigError("a bundle has its own size; give size with the name of a network only")
    if isinstance(target, Bundle):
        return target
    if not named:
        return Bundle.load(target)
    if str(target) not in MODELS:
        unknown = UnknownNameError("network", str(target), MODELS)
        raise ConfigError(f"{target} is no bundle's folder, and {unknown}")
    return _untrained(str(target), folder / "untrained", size)


def our_contenders(
    bundle: Bundle,
    listed: Iterable[tuple[Backend, Precision] | Skipped],
    folder: Path,
    *,
    samples: np.ndarray,
    threads: int | None,
    step: Callable[[str], None],
) -> Iterator[Contender | Skipped]:
    """Write the bundle for every backend and precision listed, and yield each.

    Args:
        bundle: what is run.
        listed: what `list_candidates` gives.
        folder: where the files go.
        samples: pictures to calibrate int8 with, uint8 ``(N, C, H, W)``.
        threads: processors to use; all when absent.
        step: told what is written next.
    """
    model = servable(bundle)
    for item in listed:
        if isinstance(item, Skipped):
            yield Skipped(name=f"reskit/{item.name}", reason=item.reason)
            continue
        backend, precision = item
        name = f"{backend.name}-{precision}"
        path = folder / f"{name}{backend.suffix}"
        step(f"writing {name}")
        try:
            write_checked(bundle, backend, precision, path, samples=samples, model=model)
        except (BackendError, MissingExtraError) as error:
            yield Skipped(name=f"reskit/{name}", reason=str(error))
        else:
            yield _of_file(
                f"reskit/{name}",
                backend.name,
                path,
                precision=precision,
                threads=threads or usable_cores(),
                streams=1,
            )


def plan_contenders(bundle: Bundle) -> Iterator[Contender | Skipped]:
    """Yield what `reskit optimize` chose for latency and for throughput on this machine, where it ran."""
    try:
        found = find_plan(bundle)
    except BackendError as error:
        yield Skipped(name="reskit/plan", reason=str(error))
        return
    if found is None:
        yield Skipped(name="reskit/plan", reason="`reskit optimize` has not run for it on this machine")
        return
    plan, folder = found
    goals: tuple[Goal, ...] = ("latency", "throughput")
    for goal in goals:
        engine = plan.engine(goal)
        yield _of_file(
            f"reskit/plan-{goal}",
            engine.backend,
            folder / engine.file,
            precision=engine.precision,
            threads=engine.threads,
            streams=engine.streams,
        )


def peer_contenders(subject: Subject, names: Iterable[str]) -> Iterator[Contender | Skipped]:
    """Yield peers that are installed.

    Args:
        subject: what they are to run.
        names: in `PEERS`.

    Raises:
        UnknownNameError: there is no such peer.
    """
    for name in names:
        if name not in PEERS:
            raise UnknownNameError("peer", name, PEERS)
        if reason := PEERS[name].missing():
            yield Skipped(name=name, reason=reason)
        else:
            environment = thread_environment(subject.threads)
            yield Contender(name=name, build=PEERS[name].build, arguments=(subject,), environment=environment)


def _of_file(name: str, backend: str, path: Path, *, precision: str, threads: int, streams: int) -> Contender:
    return Contender(
        name=name,
        build=FileNetwork,
        arguments=(backend, path, threads, streams),
        precision=precision,
        streams=streams,
        environment=thread_environment(threads),
    )


def _untrained(name: str, folder: Path, size: int | None) -> Bundle:
    """Write a bundle of random weights, with noise for pictures."""
    import torch

    from reskit.data import ImagePreprocess
    from reskit.tasks import Classify

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name)
    channels, *published = MODELS.get(name).input_size
    side = tuple(published) if size is None else (size, size)
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE, channels, *side), dtype=np.uint8)
    return Bundle.write(
        folder,
        task=Classify(
            preprocess=ImagePreprocess(size=side),
            labels=[f"class {number}" for number in range(model.num_classes)],
        ),
        model=model,
        metrics={},
        provenance={},
        samples=torch.from_numpy(noise),
    )
