"""The degradation problem, and how residual learning mends it (He et al. 2015, figures 1 and 6).

Trains plain and residual networks of 20 and 56 layers on the same data with the same budget and draws their
curves. The paper's ordering: of the plain networks the deeper one *trains* worse (so it is not overfitting);
of the residual networks the deeper one has the lower test error. A run that exists is gone on with.

    python benchmarks/degradation.py --data PATH/cifar10-jpeg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common import RESULTS, finished_run, write_result

NETWORKS = ("cifar_plain20", "cifar_plain56", "cifar_resnet20", "cifar_resnet56")
COLOURS = {"20": "#D55E00", "56": "#0072B2"}


def main() -> None:
    """Train the four networks, print the table, write `results/degradation.json` and `.png`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/degradation"))
    options = parser.parse_args()

    rows = [measured(name, options) for name in NETWORKS]
    by_name = {row["name"]: row for row in rows}
    plain_gap = by_name["cifar_plain56"]["train_loss"] - by_name["cifar_plain20"]["train_loss"]
    residual_gap = by_name["cifar_resnet56"]["test_error"] - by_name["cifar_resnet20"]["test_error"]
    for row in rows:
        print(f"{row['name']:<16} train loss {row['train_loss']:.3f}  test error {row['test_error']:.2%}")
    figures = {
        "data": options.data.name,
        "epochs": options.epochs,
        "seed": options.seed,
        "rows": rows,
        "plain_56_minus_20_train_loss": plain_gap,
        "residual_56_minus_20_test_error": residual_gap,
        "papers_ordering": plain_gap > 0 > residual_gap,
    }
    draw(rows, options)
    write_result("degradation", figures)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network; return its curves, ends and cost."""
    result, history = finished_run(
        "cifar10-resnet20",
        options.runs / f"{name}-{options.epochs}epochs-seed{options.seed}",
        data=options.data,
        overrides=[
            f"model.name={name}",
            "preprocess.size=32",
            f"training.epochs={options.epochs}",
            f"training.seed={options.seed}",
        ],
    )
    return {
        "name": name,
        "train_loss": history[-1]["train_loss"],
        "test_error": 1 - result["metrics"]["top1"],
        "train_loss_by_epoch": [row["train_loss"] for row in history],
        "test_error_by_epoch": [1 - row["test_top1"] for row in history],
        "minutes": result["training"]["seconds"] / 60,
        "runtime": result["training"]["runtime"],
    }


def draw(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw training loss and test error, plain networks left and residual ones right."""
    figure = Figure(figsize=(9, 4.2), layout="constrained", dpi=130)
    axes = figure.subplots(1, 2, sharey=True)
    twins = [ax.twinx() for ax in axes]
    twins[0].sharey(twins[1])
    for row in rows:
        side = 0 if "plain" in row["name"] else 1
        depth = row["name"][-2:]
        epochs = range(1, len(row["test_error_by_epoch"]) + 1)
        axes[side].plot(
            epochs, row["test_error_by_epoch"], color=COLOURS[depth], lw=2, label=f"{depth} layers"
        )
        twins[side].plot(epochs, row["train_loss_by_epoch"], color=COLOURS[depth], lw=1.2, ls="--")
    for ax, twin, title in zip(axes, twins, ("plain", "residual"), strict=True):
        ax.set(title=title, xlabel="epoch", ylim=(0, None))
        ax.grid(alpha=0.3)
        ax.legend(title="solid: test error\ndashed: training loss", frameon=False, loc="lower left")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        twin.set_ylim(0, None)
    axes[0].set_ylabel("test error")
    twins[1].set_ylabel("training loss")
    figure.suptitle(f"Deeper is worse without shortcuts, better with them ({options.data.name})")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "degradation.png")


if __name__ == "__main__":
    main()
