"""Transfer against learning from scratch: the same network, pictures, epochs and augmentation, several seeds.

Both train every layer for the same number of epochs, so a step costs the same; what the weights once cost is
not counted. From scratch all layers learn at one rate, which is `--scratch-lr`; from weights the lower layers
learn slower, as the recipe `finetune` says.

    python benchmarks/transfer.py --data PATH/hymenoptera --weights PATH/resnet20.th --size 96
"""

from __future__ import annotations

import argparse
from pathlib import Path

import reskit
from common import RESULTS, finished_run, write_result
from reskit.models import identify
from reskit.weights import read_checkpoint


def main() -> None:
    """Train both ways for each seed; write `results/transfer.json` and the convergence plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--scratch-lr", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    options = parser.parse_args()

    name = identify(read_checkpoint(options.weights))["name"]
    shared = [f"training.epochs={options.epochs}", f"preprocess.size={options.size}"]
    scratch = [f"model.name={name}", "preprocess.statistics=imagenet", "transfer.layer_decay=1"]
    ways = {
        "transfer": (options.weights, ["training.optimizer.lr=0.02"]),
        "scratch": ((), [*scratch, f"training.optimizer.lr={options.scratch_lr}"]),
    }
    folders: dict[str, list[Path]] = {way: [] for way in ways}
    for seed in options.seeds:
        for way, (weights, overrides) in ways.items():
            folder = options.runs / f"{way}-{seed}"
            finished_run(
                "finetune",
                folder,
                data=options.data,
                weights=weights,
                overrides=[*shared, *overrides, f"training.seed={seed}"],
            )
            folders[way].append(folder)
    plot = RESULTS / "transfer.png"
    comparison = reskit.compare(folders, out=plot)
    rows = {row["name"]: row for row in comparison.rows}
    gain = rows["transfer"]["final"] - rows["scratch"]["final"]
    print(f"{name}, {options.epochs} epochs, {len(options.seeds)} seeds: transfer {gain:+.1%} at the end")
    write_result(
        "transfer",
        {
            "model": name,
            "weights": options.weights.name,
            "data": options.data.name,
            "seeds": options.seeds,
            "gain": gain,
            **comparison.as_dict(),
            "plot": plot.name,
        },
    )


if __name__ == "__main__":
    main()
