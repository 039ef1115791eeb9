"""One training step against timm's with its defaults, and against what the machine can do.

Every contender holds its network, optimiser and one batch in a process of its own; they take turns. A step is
forward, loss, backward and update; reading and varying pictures is measured by `training_throughput.py`.
Operations are counted by PyTorch: about three times those of the forward pass.

    timm     the network (timm's where it has it), float32, eager; SGD by its factory
    plain    bf16 autocast, channels last, torch.optim.SGD, nothing else
    reskit   the step of `reskit train` in the runtimes it chooses among, after what it does to the process

    python benchmarks/training_step.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common import write_result
from reskit.backends.worker import Worker, thread_environment
from reskit.benchmarking import measure_peak
from reskit.environment import usable_cores

LAYOUTS = ("nchw", "channels_last")


@dataclass(frozen=True)
class Case:
    """A network, its input, and what the issue asks of it."""

    name: str
    timm: str | None
    size: int
    batch: int
    peak_goal: float
    timm_goal: float


CASES = (
    Case("resnet18", "resnet18", 224, 16, 0.72, 2.5),
    Case("cifar_resnet20", None, 32, 128, 0.50, 2.4),
)


def main() -> None:
    """Measure both cases and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    options = parser.parse_args()
    peak = measure_peak(say=print)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows += race(case, options.rounds, options.seconds, peak.gflops)
    write_result("training_step", {"rounds": options.rounds, "peak": peak.as_dict(), "rows": rows})


def race(case: Case, rounds: int, seconds: float, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Time all contenders of a case in turns; return a row each."""
    contenders: dict[str, tuple[Any, ...]] = {
        "timm": (timm_step, case),
        "plain bf16": (plain_step, case),
        **{f"reskit {layout}": (reskit_step, case, layout) for layout in LAYOUTS},
    }
    environment = thread_environment(usable_cores())
    workers = {
        name: Worker(build, *arguments, name=name, environment=environment)
        for name, (build, *arguments) in contenders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for worker in workers.values():
            worker.start()
            worker.wait_ready()
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(statistics.median(worker.time(case.batch, seconds=seconds)))
    finally:
        for worker in workers.values():
            worker.close()
    gflop = step_gflop(case)
    rows = []
    for name, values in times.items():
        rate = gflop / statistics.median(values)
        ratios = [theirs / ours for theirs, ours in zip(times["timm"], values, strict=True)]
        rows.append(
            {
                "case": case.name,
                "name": name,
                "batch": case.batch,
                "step_ms": 1e3 * statistics.median(values),
                "images_per_s": case.batch / statistics.median(values),
                "gflop_per_s": rate,
                "bf16_peak_fraction": rate / peak["bf16"],
                "peak_goal": case.peak_goal,
                "over_timm": statistics.median(ratios),
                "timm_goal": case.timm_goal,
                "step_ms_by_round": [1e3 * value for value in values],
            }
        )
        print(
            f"{case.name:<16}{name:<24}{rows[-1]['step_ms']:8.1f} ms {rate:7.0f} GFLOP/s"
            f" {rows[-1]['bf16_peak_fraction']:6.1%} of bf16 peak   x{rows[-1]['over_timm']:.2f} of timm"
        )
    return rows


def step_gflop(case: Case) -> float:
    """Return the operations of one step in units of 1e9; a multiply-add is two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import reskit

    with torch.device("meta"):
        model = reskit.create_model(case.name, num_classes=10).train()
        images = torch.zeros(case.batch, 3, case.size, case.size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() / 1e9


def timm_step(case: Case) -> Callable[[int], Callable[[], object]]:
    """Build timm's step: its network and optimiser with their defaults."""
    import timm
    import torch
    from timm.optim import create_optimizer_v2

    import reskit

    if case.timm:
        model = timm.create_model(case.timm, pretrained=False, num_classes=10)
    else:  # timm has no CIFAR ResNet
        model = reskit.create_model(case.name, num_classes=10)
    model.train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=1e-4, momentum=0.9)

    def prepare(batch: int) -> Callable[[], object]:
        images, labels = torch.randn(batch, 3, case.size, case.size), torch.arange(batch) % 10

        def step() -> float:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss)

        return step

    return prepare


def plain_step(case: Case) -> Callable[[int], Callable[[], object]]:
    """Build what a careful user writes: bf16 autocast and channels last."""
    import torch

    import reskit

    model = reskit.create_model(case.name, num_classes=10).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=1e-4, momentum=0.9)

    def prepare(batch: int) -> Callable[[], object]:
        images = torch.randn(batch, 3, case.size, case.size).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(batch) % 10

        def step() -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = model(images)
            loss = torch.nn.functional.cross_entropy(outputs.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss)

        return step

    return prepare


def reskit_step(case: Case, layout: str) -> Callable[[int], Callable[[], object]]:
    """Build the step of `reskit train`, on uint8 pictures."""
    import torch

    import reskit
    from reskit.config import OptimizerConfig
    from reskit.data import ImagePreprocess
    from reskit.tasks import TASKS
    from reskit.training.loop import training_loss
    from reskit.training.optim import build_optimizer
    from reskit.training.runtime import Runtime, keep_freed_memory

    keep_freed_memory()
    runtime = Runtime(device="cpu", precision="bf16", layout=layout)
    preprocess = ImagePreprocess(size=(case.size, case.size))
    labels = [str(place) for place in range(10)]
    task = TASKS.get("classify").from_config(
        {"preprocess": preprocess.model_dump(mode="json"), "labels": labels}
    )
    model = runtime.place(reskit.create_model(case.name, num_classes=10)).train()
    optimizer = build_optimizer([(model.parameters(), 1.0)], OptimizerConfig(lr=0.01))

    def prepare(batch: int) -> Callable[[], object]:
        pixels = torch.randint(0, 256, (batch, 3, case.size, case.size), dtype=torch.uint8)
        given = {
            "image": pixels.contiguous(memory_format=torch.channels_last),
            "label": torch.arange(batch) % 10,
        }

        def step() -> float:
            loss = training_loss(task, model, given, runtime)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss)

        return step

    return prepare


if __name__ == "__main__":
    import training_step  # workers find what they build by the module's name

    training_step.main()
