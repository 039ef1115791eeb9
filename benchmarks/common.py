"""What every benchmark writes beside its figures."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import reskit
from reskit.environment import git_commit, machine, versions
from reskit.files import to_json, write_text

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`: the figures, and where, when and how they were measured."""
    # Where things lie on the machine that measured is nobody's business.
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    command = ["python", *given]
    path = RESULTS / f"{name}.json"
    context = {
        "benchmark": name,
        "command": shlex.join(command),
        "date": datetime.now(UTC).date().isoformat(),
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
    }
    write_text(path, to_json({**context, **figures}))
    print(f"wrote {path}")
    return path


def finished_run(
    recipe: str, folder: Path, **arguments: Any
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train, or go on with, or only read a run; return its result and its history, one row an epoch."""
    if not (folder / "result.json").exists():
        reskit.train(recipe, out=folder, resume=folder.exists(), **arguments)
    with (folder / "log.csv").open() as file:
        history = [
            {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
        ]
    return json.loads((folder / "result.json").read_text()), history


def engines_of(bundle: Path) -> dict[str, Any]:
    """Return what `reskit.optimize` finds, and the figure of its choice on the whole held-out split.

    Engines take turns in one run; speeds are given as ratios to PyTorch in float32.
    """
    engines = ["torch", "onnxruntime", "openvino"]
    plan = reskit.optimize(bundle, backends=engines, again=True, say=print).plan
    eager = next(engine for engine in plan.engines if engine.name == "torch-fp32")
    metric = reskit.load(bundle).task.main_metric
    scores = {
        engine: reskit.evaluate(bundle, engine=engine).metrics[metric] for engine in ("eager", "latency")
    }
    return {
        "chosen": plan.engine("latency").name,
        "metric": metric,
        "of_eager": scores["eager"],
        "of_chosen": scores["latency"],
        "latency_ratio": eager.latency_ms / plan.engine("latency").latency_ms,
        "throughput_ratio": plan.engine("throughput").images_per_s / eager.images_per_s,
        "milliseconds": {
            f"{engine.name}, {engine.threads} threads": {str(one.batch): one.p50_ms for one in engine.batches}
            for engine in plan.engines
        },
    }
