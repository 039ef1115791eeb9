"""Autoencoding on the embedded digits: the bound rises, images are drawn, digits never seen are told.

First the recipe `digits-vae`. Then each digit in turn is left out of training and told from the other nine on
the test split by its reconstruction error (`digits-anomaly`); and the other way round, a network that was
trained on one digit alone tells it from the other nine. The recipe's latent vector of 4 numbers and its 60
epochs were chosen on a quarter of the training split that was set aside for that, not on the test split.

    python benchmarks/autoencoding.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reskit
from common import RESULTS, finished_run, write_result
from reskit import plots
from reskit.evaluation import held_out_loader, open_as_trained
from reskit.models.autoencoder import divergence
from reskit.plots.house import STYLE, light_grid, new_figure, put_title, save
from reskit.tasks.restoration import to_pixels

DIGITS = [str(digit) for digit in range(10)]
RUNTIME = ["runtime.precision=fp32", "runtime.layout=nchw"]
# One digit has about 140 training images: smaller batches, or there would be hardly a step.
ALONE = ["training.batch_size=16", "training.epochs=60", "task.arguments.leave_out=[]"]


def main() -> None:
    """Train, draw and write `results/autoencoding.json` and its pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="fewer than the recipes', to try this script")
    parser.add_argument("--runs", type=Path, default=Path("runs/autoencoding"))
    options = parser.parse_args()
    shared = RUNTIME + ([f"training.epochs={options.epochs}"] if options.epochs else [])

    start = time.process_time()
    figures: dict[str, Any] = {"seeds": options.seeds, "vae": vae(options.runs / "vae", shared)}
    for protocol, overrides in (("left_out", []), ("alone", ALONE)):
        rows = [
            told(protocol, digit, seed, options.runs, overrides + shared)
            for digit in DIGITS
            for seed in options.seeds
        ]
        figures[protocol] = summary(rows)
        print(protocol, figures[protocol]["mean"], flush=True)
    draw_roc_auc(figures)
    write_result("autoencoding", {**figures, "cpu_seconds_of_this_call": time.process_time() - start})


def vae(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train the recipe, draw its convergence, samples and reconstructions; return its figures."""
    result, history = finished_run("digits-vae", folder, overrides=overrides)
    bundle = reskit.load(folder / "bundle")
    generator = torch.Generator().manual_seed(0)
    drawn = [to_pixels(image[None]) for image in bundle.model.sample(100, generator=generator)]
    plots.tiles(drawn, RESULTS / "autoencoding-samples.png", heading="Drawn from the prior")
    shown = (folder / "evaluation" / "reconstructions.png").read_bytes()
    (RESULTS / "autoencoding-reconstructions.png").write_bytes(shown)
    pixels = int(np.prod(bundle.task.preprocess.size))
    curve = [
        {
            "epoch": int(row["epoch"]),
            "train_bound": -row["train_loss"] * pixels,
            "test_elbo_at_mean": row["test_elbo"],
            "test_kl": row["test_kl"],
            "test_mse": row["test_mse"],
        }
        for row in history
    ]
    draw_bound(curve)
    return {
        "recipe": "digits-vae",
        "epochs": len(curve),
        "train_seconds": result["training"]["seconds"],
        "metrics": result["metrics"],
        "test_elbo_of_64_draws": bound(bundle),
        "curve": curve,
    }


@torch.no_grad()
def bound(bundle: reskit.Bundle, draws: int = 64) -> float:
    """Return the evidence lower bound in nats an image of the test split, a mean over draws."""
    task, model = bundle.task, bundle.model
    loader, _ = held_out_loader(task, open_as_trained(bundle), batch_size=512)
    torch.manual_seed(0)
    found = []
    for batch in loader:
        x = task.inputs(batch)
        mean, log_variance = model.distribution(x)
        parts = task.parts(model(x))
        for _ in range(draws):
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            likelihood = task.likelihood(parts._replace(images=model.decode(z)), x.flatten(1))
            found.append(likelihood - divergence(mean, log_variance))
    return float(torch.cat(found).mean())


def told(protocol: str, digit: str, seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """Train without a digit, or on it alone, and return how well the error tells the unseen."""
    key = "leave_out" if protocol == "left_out" else "train_classes"
    result, _ = finished_run(
        "digits-anomaly",
        runs / f"{protocol}-{digit}-{seed}",
        overrides=[*overrides, f"task.arguments.{key}=['{digit}']", f"training.seed={seed}"],
    )
    names = ("roc_auc", "average_precision", "mse", "unseen_mse")
    return {"digit": digit, "seed": seed, **{name: result["metrics"][name] for name in names}}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over digits and seeds, the mean of each digit, and which digits reach 0.9."""
    each = {
        digit: float(np.mean([row["roc_auc"] for row in rows if row["digit"] == digit])) for digit in DIGITS
    }
    return {
        "mean": {
            name: float(np.mean([row[name] for row in rows])) for name in ("roc_auc", "average_precision")
        },
        "roc_auc": each,
        "at_least_0.9": [digit for digit, value in each.items() if value >= 0.9],
        "runs": rows,
    }


def draw_bound(curve: list[dict[str, Any]]) -> None:
    """Draw the bound over the epochs."""
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in curve]
    axes.plot(epochs, [row["train_bound"] for row in curve], color=STYLE["second"], label="train, drawn")
    held = [row["test_elbo_at_mean"] for row in curve]
    axes.plot(epochs, held, color=STYLE["first"], label="test, at the mean")
    axes.set(xlabel="epoch", ylabel="evidence lower bound, nats an image")
    axes.legend(frameon=False, fontsize=9)
    light_grid(axes)
    put_title(
        axes, "The bound of digits-vae", f"test {held[0]:.1f} after one epoch, {held[-1]:.1f} at the end"
    )
    save(figure, RESULTS / "autoencoding-elbo.png")


def draw_roc_auc(figures: dict[str, Any]) -> None:
    """Draw how well each digit is told by both protocols."""
    figure = new_figure(8.0, 4.2)
    axes = figure.add_subplot()
    for place, (protocol, name, colour) in enumerate(
        (
            ("left_out", "never seen, told from the nine trained on", "first"),
            ("alone", "the only one trained on, told from the nine never seen", "second"),
        )
    ):
        values = [figures[protocol]["roc_auc"][digit] for digit in DIGITS]
        label = f"{name}: mean {np.mean(values):.3f}"
        axes.bar(np.arange(10) + 0.4 * (place - 0.5), values, 0.38, color=STYLE[colour], label=label)
    axes.axhline(0.9, color=STYLE["muted"], linewidth=1, linestyle="--")
    axes.set(ylim=(0.5, 1.0), xlabel="digit", ylabel="ROC-AUC of the reconstruction error")
    axes.set_xticks(range(10), DIGITS)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    light_grid(axes)
    put_title(axes, "Digits never seen", "test split of the embedded digits, 359 images")
    save(figure, RESULTS / "autoencoding-roc-auc.png")


if __name__ == "__main__":
    main()
