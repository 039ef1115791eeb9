"""Accuracy of packaged recipes on named data: trains, measures on the held-out split, writes the result.

A run folder that exists is gone on with, so a long benchmark may be stopped and started again.

    python benchmarks/accuracy.py cifar10-resnet20 --data PATH/cifar10-jpeg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import finished_run, write_result


def main() -> None:
    """Train the recipe for each seed and write `results/accuracy-<recipe>.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()

    rows = []
    for seed in options.seeds:
        result, history = finished_run(
            options.recipe,
            options.runs / f"{options.recipe}-seed{seed}",
            data=options.data,
            overrides=[*options.overrides, *([f"training.seed={seed}"] if seed else [])],
        )
        rows.append(
            {
                "seed": seed,
                "metrics": result["metrics"],
                "training": result["training"],
                "top1_by_epoch": [row[f"{result['split']}_top1"] for row in history],
            }
        )
        print(f"{options.recipe} seed {seed}: top1 {result['metrics']['top1']:.4f}")
    data = options.data.name if options.data else "digits (embedded)"
    write_result(
        f"accuracy-{options.recipe}",
        {
            "recipe": options.recipe,
            "data": data,
            "split": result["split"],
            "overrides": options.overrides,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
