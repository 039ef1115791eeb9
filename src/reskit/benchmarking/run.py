"""One network, everyone who can run it here, and what the machine could do at most."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from reskit.backends.worker import WorkerError
from reskit.backends.writing import read_pictures
from reskit.benchmarking.contenders import (
    Contender,
    open_target,
    our_contenders,
    peer_contenders,
    plan_contenders,
)
from reskit.benchmarking.peak import Peak, measure_peak
from reskit.benchmarking.peers import PEERS
from reskit.benchmarking.race import Timing, race
from reskit.benchmarking.report import BenchReport, Row
from reskit.benchmarking.roofline import LayerTime, layers_of_eager, layers_of_openvino
from reskit.benchmarking.subject import Subject
from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.environment import machine, usable_cores, versions
from reskit.errors import ConfigError
from reskit.models.summary import model_summary
from reskit.optimization.candidates import Skipped, list_candidates

__all__ = ["bench"]


def bench(
    target: Bundle | str | Path,
    *,
    batches: Sequence[int] = (1, 16),
    peers: Iterable[str] = PEERS,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    size: int | None = None,
    pictures: str | Path | None = None,
    rounds: int = 5,
    seconds: float = 0.5,
    threads: int | None = None,
    layers: bool = False,
    peak: Peak | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    step: Callable[[str, float], None] = lambda _title, _done: None,
) -> BenchReport:
    """Time a network here on every engine of ours and of its peers, and hold it against the machine's peak.

    The peak is measured first. Every contender runs in a process of its own; they take turns, so ratios
    hold even where the machine is not quite idle. Who cannot take part is listed with the reason.

    Args:
        target: a bundle, its folder, or the name of a network, which then has random weights.
        batches: batch sizes.
        peers: names in `reskit.benchmarking.PEERS`.
        backends: names of ours; all that are made for servers and PCs when absent.
        precisions: of ours; all when absent.
        size: side of the images in pixels, with the name of a network; as published when absent.
        pictures: a folder of pictures to calibrate int8 with; those in the bundle when absent.
        rounds: turns of each contender at each batch size.
        seconds: length of a turn.
        threads: processors to use, by peers too; when absent all, and for peers what each takes by itself.
        layers: whether to time single layers too, at the largest batch.
        peak: what `measure_peak` found a moment ago.
        out: a folder to write `bench.md`, `bench.json` and pictures to.
        say: told, line by line, what was found.
        step: told what is done next and which part of all is behind.

    Raises:
        ConfigError: the target is neither bundle nor network, or a number makes no sense.
        UnknownNameError: there is no such backend, precision or peer.
        BundleError: the bundle cannot be read.
        DataError: the pictures cannot be read.
        OutputError: the report cannot be written.
    """
    if not batches or min(batches) < 1 or rounds < 1 or not seconds > 0 or (threads or 1) < 1:
        raise ConfigError("batches, rounds, seconds and threads must be positive")
    batches = sorted(set(batches))
    with tempfile.TemporaryDirectory(prefix="reskit-bench-") as name:
        folder = Path(name)
        bundle = open_target(target, folder, size=size)
        summary = model_summary(bundle.model, _input_shape(bundle))
        subject = _subject(bundle, pictures, batches, threads, parameters=summary["parameters"])
        found = list(peer_contenders(subject, peers))
        listed = list(list_candidates(backends, precisions))
        if peak is None:
            step("measuring the machine's peak", 0.0)
            peak = measure_peak(threads, say=say)
        found += our_contenders(
            bundle,
            listed,
            folder,
            samples=subject.samples,
            threads=threads,
            step=lambda title: step(title, 0.2),
        )
        found += plan_contenders(bundle)
        contenders = [item for item in found if isinstance(item, Contender)]
        skipped = [item for item in found if isinstance(item, Skipped)]
        timings, failed = race(
            contenders,
            batches=batches,
            rounds=rounds,
            seconds=seconds,
            step=lambda title, part: step(title, 0.4 + 0.5 * part),
        )
        skipped += failed
        rows = _rows(timings, macs=summary["macs"], peak=peak)
        times: list[LayerTime] = []
        if layers:
            step("timing layers", 0.9)
            try:
                times = _layers(bundle, contenders, rows, batches[-1], threads or usable_cores(), peak)
            except WorkerError as error:
                skipped.append(Skipped(name="layers", reason=str(error)))
    report = BenchReport(
        target=str(target.path if isinstance(target, Bundle) else target),
        model=subject.name,
        input_shape=subject.input_shape,
        macs=summary["macs"],
        threads=threads or usable_cores(),
        rounds=rounds,
        peak=peak,
        rows=tuple(rows),
        skipped=tuple(skipped),
        layers=tuple(times),
        machine=machine(),
        versions=_versions(),
    )
    if out is not None:
        report.write(Path(out))
    return report


def _input_shape(bundle: Bundle) -> tuple[int, int, int]:
    preprocess = bundle.task.preprocess
    if not isinstance(preprocess, ImagePreprocess):
        raise ConfigError(f"bench compares networks for images; {bundle.path} takes a {bundle.task.takes}")
    return (preprocess.channels, *preprocess.size)


def _subject(
    bundle: Bundle,
    pictures: str | Path | None,
    batches: Sequence[int],
    threads: int | None,
    *,
    parameters: int,
) -> Subject:
    given = bundle.samples["samples"] if pictures is None else read_pictures(bundle, pictures)
    return Subject(
        architecture=bundle.model.architecture,
        parameters=parameters,
        classes=bundle.model.num_classes,
        input_shape=_input_shape(bundle),
        samples=given.numpy(),
        batches=batches,
        threads=threads,
    )


def _rows(timings: Iterable[Timing], *, macs: int, peak: Peak) -> list[Row]:
    """Return rows by batch size, the fastest first."""
    rows = []
    for timing in timings:
        gflops = 2 * macs * timing.images_per_s / 1e9
        limit = peak.of(timing.precision)
        rows.append(
            Row(
                name=timing.name,
                batch=timing.batch,
                precision=timing.precision,
                streams=timing.streams,
                latency_ms=timing.latency_ms(50),
                p95_ms=timing.latency_ms(95),
                images_per_s=timing.images_per_s,
                images_per_s_by_round=tuple(timing.images_per_s_by_round),
                gflops=gflops,
                peak_fraction=gflops / limit if limit else None,
            )
        )
    return sorted(rows, key=lambda row: (row.batch, -row.images_per_s))


def _layers(
    bundle: Bundle, contenders: Iterable[Contender], rows: Iterable[Row], batch: int, threads: int, peak: Peak
) -> list[LayerTime]:
    """Time the layers in PyTorch and, where OpenVINO ran, in its fastest precision.

    Raises:
        WorkerError: a process failed.
    """
    times = layers_of_eager(bundle, batch=batch, threads=threads, peak=peak)
    files = {item.name: item.arguments[1] for item in contenders if item.name.startswith("reskit/openvino-")}
    fastest = next((row for row in rows if row.name in files and row.batch == batch), None)
    if fastest:
        times += layers_of_openvino(
            bundle,
            files[fastest.name],
            precision=fastest.precision,
            batch=batch,
            threads=threads,
            peak=peak,
        )
    return times


def _versions() -> dict[str, str]:
    """Return the versions of all that takes part."""
    packages = importlib.metadata.packages_distributions()
    modules = sorted({module for peer in PEERS.values() for module in peer.modules})
    found = {name: importlib.metadata.version(name) for m in modules for name in packages.get(m, ())}
    return versions() | found
