"""Single layers against the roof of the machine: how long each takes, how long it would at least.

Roofline model (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785): a layer is bound by
arithmetic or by the memory its input, weights and output go through; the roof is
`min(peak, intensity * bandwidth)`.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reskit.backends.worker import Call, Worker, thread_environment
from reskit.benchmarking.peak import Peak
from reskit.benchmarking.probes import openvino_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reskit.bundle import Bundle

__all__ = ["LayerTime", "layers_of_eager", "layers_of_openvino"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_WEIGHTED_NODES = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
_KERNELS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "I8": "int8"}
"""Last word of the name of a kernel of OpenVINO to what it computes in."""
_REST = "all else"
_WARM_CALLS, _CALLS = 3, 15
_TICK = 1e-6  # seconds: OpenVINO counts whole microseconds, so tiny layers take none


class _Work(NamedTuple):
    """Of one image: operations, values read and written; and values of the weights."""

    operations: int
    values: int
    weights: int


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """One layer of a network on one engine.

    Attributes:
        name: the module's; ``all else`` for what is no convolution or matrix product.
        engine: who ran it.
        precision: what it computed in.
        batch: images a call.
        ms: median milliseconds of a call.
        gflops: G operations a second.
        intensity: operations a byte of input, weights and output.
        roof_fraction: part of what the machine allows at that intensity; None where its peak is not known.
    """

    name: str
    engine: str
    precision: str
    batch: int
    ms: float
    gflops: float
    intensity: float
    roof_fraction: float | None


def layers_of_eager(bundle: Bundle, *, batch: int, threads: int, peak: Peak) -> list[LayerTime]:
    """Time the layers of a bundle's network in PyTorch, float32.

    Raises:
        WorkerError: the process failed.
    """
    environment = thread_environment(threads)
    with Worker(_EagerProfile, bundle.path, batch, name="reskit/eager", environment=environment) as worker:
        worker.wait_ready()
        return _against_roof(bundle, worker.facts["layers"], engine="eager-fp32", batch=batch, peak=peak)


def layers_of_openvino(
    bundle: Bundle, path: Path, *, precision: str, batch: int, threads: int, peak: Peak
) -> list[LayerTime]:
    """Time the layers of a file that the OpenVINO backend wrote of a bundle.

    Raises:
        WorkerError: the process failed.
    """
    arguments = (path, precision, batch, threads)
    with Worker(_OpenVINOProfile, *arguments, name="reskit/openvino") as worker:
        worker.wait_ready()
        times = worker.facts["layers"]
    return _against_roof(bundle, times, engine=f"openvino-{precision}", batch=batch, peak=peak)


_Times = list[tuple[str, str, float]]
"""Layer, what it computed in, median seconds of a call."""


class _Profile:
    """What a worker holds of a profile: facts, and nothing to call."""

    def __init__(self, runs: Sequence[Mapping[tuple[str, str], float]]) -> None:
        medians = {key: statistics.median(run.get(key, 0.0) for run in runs) for run in runs for key in run}
        self.facts = {"layers": [(name, precision, t) for (name, precision), t in medians.items()]}

    def __call__(self, batch: int) -> Call:
        raise NotImplementedError


class _EagerProfile(_Profile):
    """Hooks take the time before and after modules with weights."""

    def __init__(self, path: Path, batch: int) -> None:
        import torch

        from reskit.backends.servable import servable
        from reskit.bundle import Bundle

        bundle = Bundle.load(path)
        model = servable(bundle)
        run: dict[tuple[str, str], float] = defaultdict(float)
        for name, layer in _weighted(model):
            layer.register_forward_pre_hook(partial(_note, run, (name, "fp32"), -1))
            layer.register_forward_hook(partial(_note, run, (name, "fp32"), 1))
        pixels = torch.randint(0, 256, _shape(bundle, batch), dtype=torch.uint8)
        runs = []
        with torch.inference_mode():
            for _ in range(_WARM_CALLS + _CALLS):
                run.clear()
                start = time.perf_counter()
                model(pixels)
                whole = time.perf_counter() - start
                runs.append({**run, (_REST, "fp32"): whole - sum(run.values())})
        super().__init__(runs[_WARM_CALLS:])


class _OpenVINOProfile(_Profile):
    """OpenVINO's own counters, node by node."""

    def __init__(self, path: Path, precision: str, batch: int, threads: int) -> None:
        settings = {
            "PERF_COUNT": True,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32"),
            "ENABLE_CPU_PINNING": False,
        }
        compiled = openvino_module().Core().compile_model(path, "CPU", settings)
        request = compiled.create_infer_request()
        shape = [batch, *(side.get_length() for side in list(compiled.inputs[0].partial_shape)[1:])]
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        runs = []
        for _ in range(_WARM_CALLS + _CALLS):
            request.infer([pixels])
            run: dict[tuple[str, str], float] = defaultdict(float)
            for node in request.profiling_info:
                if node.node_type.startswith(_WEIGHTED_NODES):
                    kernel = node.exec_type.rsplit("_", 1)[-1]
                    key = (node.node_name.split("/")[0], _KERNELS.get(kernel, precision))
                else:
                    key = (_REST, precision)
                run[key] += node.real_time.total_seconds()
            runs.append(run)
        super().__init__(runs[_WARM_CALLS:])


def _note(run: dict[tuple[str, str], float], key: tuple[str, str], sign: int, *_: object) -> None:
    run[key] += sign * time.perf_counter()


def _weighted(model: nn.Module) -> list[tuple[str, nn.Module]]:
    from torch import nn

    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _shape(bundle: Bundle, batch: int) -> tuple[int, ...]:
    return (batch, *bundle.task.preprocess.shape)


def _work(bundle: Bundle) -> dict[str, _Work]:
    """Return what each layer with weights has to do for one image."""
    import torch

    from reskit.backends.servable import servable

    model = servable(bundle)
    found: dict[str, _Work] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        before = found.get(name, _Work(0, 0, weight.numel()))
        found[name] = _Work(
            operations=before.operations + 2 * output.numel() * weight[0].numel(),
            values=before.values + inputs[0].numel() + output.numel(),
            weights=weight.numel(),
        )

    for name, layer in _weighted(model):
        layer.register_forward_hook(partial(count, name))
    with torch.inference_mode():
        model(torch.zeros(_shape(bundle, 1), dtype=torch.uint8))
    return found


def _against_roof(bundle: Bundle, times: _Times, *, engine: str, batch: int, peak: Peak) -> list[LayerTime]:
    """Return layers with what the machine allows; a node of no layer's name is the one that is left."""
    work = _work(bundle)
    left = iter([name for name in work if name not in {layer for layer, _, _ in times}])
    layers = []
    for found, precision, seconds in sorted(times, key=lambda layer: layer[0] == _REST):
        name = found if found in work or found == _REST else next(left, _REST)
        operations = moved = 0.0
        if name in work:
            operations = batch * work[name].operations
            moved = _BYTES[precision] * (batch * work[name].values + work[name].weights)
        seconds = max(seconds, _TICK)
        rate, intensity = operations / seconds / 1e9, operations / moved if moved else 0.0
        roof = min(peak.of(precision) or 0.0, intensity * (peak.copy_gb_s or float("inf")))
        layers.append(
            LayerTime(
                name=name,
                engine=engine,
                precision=precision,
                batch=batch,
                ms=1e3 * seconds,
                gflops=rate,
                intensity=intensity,
                roof_fraction=rate / roof if roof else None,
            )
        )
    return layers
