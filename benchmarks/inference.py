"""What `reskit optimize` chose against what others make of the same network, and against the machine's peak.

Made for a bundle of ResNet-50 at 224 px. Peers: torchvision eager, timm under torch.compile with its
defaults, OpenVINO int8 as a careful user sets it up by hand (NNCF, hint for latency at batch 1, for
throughput above it), and others. Every contender runs in a process of its own; they take turns, and ratios
are medians of the ratios round by round. The plan is that of this machine: made here if the bundle has none.

    python benchmarks/inference.py --bundle PATH --pictures PATH/imagenet-sample-100

Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import reskit
from common import RESULTS, write_result
from reskit.backends.plan import Engine, Goal
from reskit.benchmarking import BenchReport, bench
from reskit.optimization.showing import Watch

GOALS: dict[tuple[int, str], float] = {
    (1, "torchvision/eager"): 3.8,
    (16, "torchvision/eager"): 8.0,
    (1, "timm/compile"): 2.5,
    (16, "timm/compile"): 4.0,
    (1, "openvino/int8-hand"): 0.97,
    (16, "openvino/int8-hand"): 0.97,
}
"""Batch size and peer to the ratio aimed at."""
PLANS: dict[int, Goal] = {1: "latency", 16: "throughput"}
"""Batch size to the choice that is held against the peers there."""
PEAK_GOALS = {"bf16": 0.85, "int8": 0.70}


def main() -> None:
    """Optimise, race, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of a ResNet-50")
    parser.add_argument(
        "--pictures", type=Path, help="to calibrate with, and to hold agreement with float32 on"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backends", nargs="+", help="ours to try; all that are installed when absent")
    parser.add_argument(
        "--again", action="store_true", help="optimise though this machine's plan still holds"
    )
    options = parser.parse_args()
    with Watch() as watch:
        hooks: dict[str, Any] = {"say": watch.say, "step": watch.step}
        optimized = reskit.optimize(
            options.bundle,
            pictures=options.pictures,
            batches=tuple(PLANS),
            backends=options.backends,
            again=options.again,
            **hooks,
        )
        report = bench(
            options.bundle,
            batches=tuple(PLANS),
            backends=options.backends,
            pictures=options.pictures,
            rounds=options.rounds,
            layers=True,
            **hooks,
        )
    watch.console.print(report)
    plan = optimized.plan
    ratios = compared(report)
    for row in ratios:
        print("batch {batch:<3} plan-{goal} / {peer:<20} {median:5.2f}  (aim {aim})".format(**row))
    peaks = peak_fractions(report)
    for precision, row in peaks.items():
        print(f"batch 16 {precision}: {row['peak_fraction']:.0%} by {row['name']} (aim {row['aim']:.0%})")
    with tempfile.TemporaryDirectory() as folder:
        files = report.write(Path(folder))
        shutil.copyfile(files["speeds"], RESULTS / "inference.png")
        shutil.copyfile(files["roofline"], RESULTS / "inference-roofline.png")
    figures = report.as_dict()
    write_result(
        "inference",
        {
            "network": {name: figures[name] for name in ("model", "input_shape", "macs")},
            "ratios": ratios,
            "peak_fractions": peaks,
            "chosen": {goal: chosen(plan.engine(goal)) for goal in PLANS.values()},
            "guard": plan.guard.model_dump(mode="json"),
            "optimize_seconds": plan.seconds,
            **{name: figures[name] for name in ("rounds", "threads", "peak", "rows", "skipped", "layers")},
        },
    )


def compared(report: BenchReport) -> list[dict[str, Any]]:
    """Return the plan's ratios to the peers that took part."""
    timed = {(row.batch, row.name) for row in report.rows}
    return [
        {
            "batch": batch,
            "goal": PLANS[batch],
            "peer": peer,
            **report.ratio(f"reskit/plan-{PLANS[batch]}", peer, batch),
            "aim": aim,
        }
        for (batch, peer), aim in GOALS.items()
        if {(batch, peer), (batch, f"reskit/plan-{PLANS[batch]}")} <= timed
    ]


def peak_fractions(report: BenchReport) -> dict[str, dict[str, Any]]:
    """Return, for each precision, what the fastest of our rows reached of the peak at the largest batch."""
    found: dict[str, dict[str, Any]] = {}
    for precision, aim in PEAK_GOALS.items():
        rows = [row for row in report.rows if row.precision == precision and row.batch == max(PLANS)]
        ours = [row for row in rows if row.name.startswith("reskit/")]
        if ours and ours[0].peak_fraction is not None:
            found[precision] = {"name": ours[0].name, "peak_fraction": ours[0].peak_fraction, "aim": aim}
    return found


def chosen(engine: Engine) -> dict[str, Any]:
    """Return what ran, and what it agrees with."""
    wanted = ("name", "threads", "streams", "metric", "difference", "memory_mib", "file_mib")
    return {name: getattr(engine, name) for name in wanted}


if __name__ == "__main__":
    main()
