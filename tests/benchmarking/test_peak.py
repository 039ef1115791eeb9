from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import pytest

from reskit.backends.worker import Worker, thread_environment
from reskit.benchmarking import measure_peak, peak, probes
from reskit.benchmarking.probes import COPY, PROBES, Case, Probe

MS = 1e6
"""Work that at one G operation a second takes a millisecond."""


def busy(seconds: float) -> Callable[[], Callable[[], None]]:
    return lambda: lambda: time.sleep(seconds)


def fail() -> Callable[[], None]:
    raise RuntimeError("not on this processor")


def fast_bf16(threads: int, sides: Sequence[int]) -> Probe:
    return Probe(
        [
            Case("fast bf16", "a", "bf16", 50 * MS, busy(0.005)),  # 10
            Case("fast fp32", "b", "fp32", 5 * MS, busy(0.005)),  # 1
            Case("fast int8", "c", "int8", 5 * MS, fail),
        ]
    )


def fast_fp32(threads: int, sides: Sequence[int]) -> Probe:
    assert (threads, sides, os.environ["OMP_NUM_THREADS"]) == (1, (8, 16), "1")
    return Probe(
        [
            Case("slow bf16", "a", "bf16", 5 * MS, busy(0.005)),  # 1
            Case("small fp32", "b", "fp32", 10 * MS, busy(0.005)),  # 2
            Case("large fp32", "b", "fp32", 20 * MS, busy(0.005)),  # 4
            Case("huge fp32", "b", "fp32", 1e6 * MS, busy(0.005)),  # would take too long, as it seems
            Case("copy", "c", COPY, 100 * MS, busy(0.005)),  # 20
        ]
    )


def dies(threads: int, sides: Sequence[int]) -> Probe:
    os._exit(7)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_TRIAL_SECONDS", 0.02)
    monkeypatch.setattr(peak, "_SECONDS", 0.02)
    for name, build in (("a", fast_bf16), ("b", fast_fp32), ("dead", dies)):
        monkeypatch.setitem(PROBES, name, (build, ()))
    monkeypatch.setitem(PROBES, "absent", (dies, ("no_such_module",)))


def test_the_best_library_is_the_peak(fakes: None) -> None:
    lines: list[str] = []
    found = measure_peak(1, sides=(8, 16), libraries=("a", "b", "dead", "absent"), say=lines.append)
    assert found.by == {"bf16": "fast bf16", "fp32": "large fp32", "copy": "copy"}
    assert 5 < found.gflops["bf16"] <= 10
    assert 2 < found.gflops["fp32"] <= 4
    assert found.copy_gb_s is not None
    assert 10 < found.copy_gb_s <= 20
    assert "int8" not in found.gflops
    assert found.skipped == {
        "fast int8": "RuntimeError: not on this processor",
        "dead": "its process ended with exit code 7",
        "absent": "no_such_module is not installed",
    }
    tried = {(reading.label, reading.sustained) for reading in found.readings}
    assert ("slow bf16", True) in tried
    assert ("fast fp32", False) in tried
    assert ("fast fp32", True) not in tried  # the two best of a precision go on
    assert "huge fp32" not in {label for label, _ in tried}
    assert any("bf16" in line and "fast bf16" in line for line in lines)
    assert found.as_dict()["readings"][0]["label"] == "fast bf16"


def test_fp16_is_held_against_fp32(fakes: None) -> None:
    found = measure_peak(1, sides=(8, 16), libraries=("b",))
    assert found.of("fp16") == found.of("fp32") == found.gflops["fp32"]
    assert found.of("int8") is None


def test_nothing_measured() -> None:
    found = measure_peak(1, sides=(8,), libraries=())
    assert (found.gflops, found.copy_gb_s) == ({}, None)


@pytest.mark.parametrize("library", PROBES)
def test_every_case_of_a_library_runs(library: str) -> None:
    import torch

    build, modules = PROBES[library]
    for module in modules:
        pytest.importorskip(module)
    with Worker(build, 1, (32, 48), environment=thread_environment(1)) as worker:
        worker.wait_ready()
        cases = worker.facts["cases"]
        assert len({(label, precision) for label, _, precision, _ in cases}) == len(cases)
        for number, (label, _, precision, work) in enumerate(cases):
            if (library, precision) == ("torch", "int8") and torch.backends.cpu.get_cpu_capability() in (
                "DEFAULT",
                "NO AVX",
            ):
                continue  # its kernels are for x86
            (seconds,) = worker.time(number, calls=1)
            assert 0 < work / seconds / 1e9 < 1e6, label


def test_work_is_counted_as_pytorch_counts_it() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    for call, work in (
        (probes._torch_gemm(64, torch.float32), probes._gemm_work(64)),
        (probes._torch_conv(512, torch.float32), probes._conv_work(512)),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        # PyTorch counts the padding of 3 x 3 kernels in, as everyone does
        assert counter.get_total_flops() == work
