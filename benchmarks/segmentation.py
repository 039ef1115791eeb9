"""Our residual U-Net against that of segmentation_models_pytorch: Dice over seeds, and images a second.

Accuracy: isbi2012-membrane, 24 images to learn from, the last six held out. Both networks have a ResNet-18
encoder with random weights and are trained by `reskit train isbi-unet`: the same patches, variation, loss,
optimiser, steps, precision and seeds; evaluated on whole images of 512 px in float32. Class 1, the
foreground, is white in the masks: the inside of cells; class 0 is the membrane between them. Dice is the mean
of both.

Speed: whole images, contenders in turns, the ratio in each round and its median. Inference of ours as
`reskit optimize --for throughput` chose (within 0.005 Dice), and as plain PyTorch in float32 and bf16; theirs
as plain PyTorch in float32, its default, and besides in bf16 with channels last. A training step is forward,
loss, backward and update of one batch of the recipe, in float32 and in bf16 with channels last, for both.

    python benchmarks/segmentation.py --data PATH --out runs/segmentation

Goes on with what it finds in `--out`. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import reskit
from common import RESULTS, finished_run, write_result
from reskit.backends.answers import answers
from reskit.config import OptimizerConfig
from reskit.models import Backbone
from reskit.models.registry import register_family
from reskit.training.feed import Feed
from reskit.training.loop import training_loss
from reskit.training.optim import build_optimizer
from reskit.training.runtime import Runtime

NETWORKS = {"ours": "unet_resnet18", "theirs": "smp_unet_resnet18"}
GOALS = {"dice_not_lower": True, "throughput": 1.5, "foreground_dice": 0.94}
METRICS = ("dice", "foreground_dice", "iou", "pixel_error")
BATCH = 4
"""Images at once in the race of inference."""


class Theirs(Backbone):
    """`segmentation_models_pytorch.Unet("resnet18", encoder_weights=None)`, to be trained by our loop."""

    head_name = "head_of_theirs"

    def __init__(self, *, num_classes: int, in_channels: int, features_only: bool = False) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        self.net = smp.Unet("resnet18", encoder_weights=None, in_channels=in_channels, classes=num_classes)
        self.finish([512], [32])

    def make_head(self, num_classes: int) -> nn.Module:
        """Return nothing: theirs has its own."""
        return nn.Identity()

    def segments(self) -> list[list[nn.Module]]:
        """Return the whole network."""
        return [[self.net]]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes, H, W)`."""
        return self.net(x)  # type: ignore[no-any-return]


register_family(
    Theirs,
    {NETWORKS["theirs"]: ({}, 14_328_354, "segmentation_models_pytorch, 2019")},
    num_classes=2,
    input_size=(3, 256, 256),
    task="segment",
)


def main() -> None:
    """Train, race, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="isbi2012-membrane")
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn, at least")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="changes the recipe")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no result")
    options = parser.parse_args()

    runs = accuracy(options)
    part = options.out / "speed.json"
    if not part.exists():
        part.write_text(json.dumps(speed(options)))
    found = json.loads(part.read_text())
    means = {
        who: {name: statistics.fmean(run[who][name] for run in runs) for name in METRICS} for who in NETWORKS
    }
    reached = {
        "dice_difference": means["ours"]["dice"] - means["theirs"]["dice"],
        "throughput": found["inference"]["ours, optimized"]["times_theirs"],
        "foreground_dice": means["ours"]["foreground_dice"],
    }
    for who, values in means.items():
        print(f"{who:<7}" + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    print(f"goals {GOALS}, reached {reached}")
    if not options.trial:
        folder = options.out / f"ours-{options.seeds[0]}" / "evaluation"
        for name in ("masks", "precision_recall"):
            shutil.copy(folder / f"{name}.png", RESULTS / f"segmentation-{name}.png")
        write_result(
            "segmentation",
            {"goals": GOALS, "reached": reached, "means": means, "runs": runs, "speed": found},
        )


def accuracy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of both networks for every seed, trained in turns."""
    rows = []
    for seed in options.seeds:
        row: dict[str, Any] = {"seed": seed}
        for who, network in NETWORKS.items():
            result, _ = finished_run(
                "isbi-unet",
                options.out / f"{who}-{seed}",
                data=options.data,
                overrides=[
                    f"model.name={network}",
                    f"training.seed={seed}",
                    "runtime.precision=bf16",
                    "runtime.layout=channels_last",
                    *options.overrides,
                ],
            )
            training = result["training"]
            row[who] = {name: result["metrics"][name] for name in METRICS} | {
                "network": network,
                "steps": training["steps"],
                "minutes": training["seconds"] / 60,
                "runtime": training["runtime"],
            }
        print(json.dumps(row))
        rows.append(row)
    return rows


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Return images a second and steps a second of both."""
    bundles = {who: reskit.load(options.out / f"{who}-{options.seeds[0]}" / "bundle") for who in NETWORKS}
    plan = reskit.optimize(bundles["ours"], goal="throughput", batches=(1, BATCH), say=print).plan
    exact = reskit.evaluate(bundles["ours"]).metrics
    planned = reskit.evaluate(bundles["ours"], engine="throughput").metrics
    return {
        "inference": inference(bundles, options),
        "training": training(options),
        "optimized": {
            "engine": plan.engine("throughput").name,
            "seconds_of_search": plan.seconds,
            "dice": {"float32": exact["dice"], "optimized": planned["dice"]},
            "engines": [engine.model_dump(mode="json") for engine in plan.engines],
        },
        "threads": torch.get_num_threads(),
    }


def inference(bundles: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Race the answers to a batch of whole raw images."""
    samples = bundles["ours"].samples["samples"]
    pixels = samples[:BATCH].contiguous()

    def eager(who: str, *, fast: bool) -> Callable[[], object]:
        task, model = bundles[who].task, bundles[who].model.eval()
        layout = torch.channels_last if fast else torch.contiguous_format
        model = copy.deepcopy(model).to(memory_format=layout)

        def answer() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=fast):
                model(task.inputs({"image": pixels}).to(memory_format=layout))

        return answer

    chosen = answers(bundles["ours"], "throughput")
    return race(
        {
            "theirs, float32": eager("theirs", fast=False),
            "theirs, bf16 channels last": eager("theirs", fast=True),
            "ours, float32": eager("ours", fast=False),
            "ours, bf16 channels last": eager("ours", fast=True),
            "ours, optimized": lambda: chosen(pixels),
        },
        options,
        per_call=BATCH,
        against="theirs, float32",
    )


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Race steps of training on one batch of the recipe."""
    recipe = reskit.load_recipe(
        "isbi-unet", [f"data.path={options.data}", "task.arguments.patches=1", *options.overrides]
    )
    feed = Feed(recipe, processes=1, say=lambda _: None)
    batch = next(iter(feed.loaders["train"]))

    def step(network: str, precision: str, layout: str) -> Callable[[], object]:
        runtime = Runtime(device="cpu", precision=precision, layout=layout, compile=False)
        named = recipe.model.model_copy(update={"name": network})
        model = feed.task.build_model(recipe.model_copy(update={"model": named})).train()
        model = runtime.place(model)
        optimizer = build_optimizer([(list(model.parameters()), 1.0)], OptimizerConfig(name="adamw", lr=1e-5))

        def run() -> None:
            training_loss(feed.task, model, batch, runtime).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    contenders = {
        f"{who}, {words}": step(network, precision, layout)
        for words, precision, layout in (("float32", "fp32", "nchw"), ("bf16", "bf16", "channels_last"))
        for who, network in NETWORKS.items()
    }
    return race(contenders, options, per_call=1, against="theirs, float32")


def race(
    contenders: Mapping[str, Callable[[], object]],
    options: argparse.Namespace,
    *,
    per_call: int,
    against: str,
) -> dict[str, Any]:
    """Let contenders take turns; return what each does in a second, and how many times what one does."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.rounds + 1):
        for name, call in contenders.items():
            call()  # the other contenders have filled the caches
            calls, begun = 0, time.perf_counter()
            while calls < 2 or time.perf_counter() - begun < options.seconds:
                call()
                calls += 1
            if turn:  # the first round is warm-up
                rates[name].append(per_call * calls / (time.perf_counter() - begun))
    rows = {
        name: {
            "per_second": statistics.median(values),
            "times_theirs": statistics.median(a / b for a, b in zip(values, rates[against], strict=True)),
            "rounds": values,
        }
        for name, values in rates.items()
    }
    for name, row in rows.items():
        print(f"{name:<28} {row['per_second']:8.3f} a second, {row['times_theirs']:.2f} x {against}")
    return rows


if __name__ == "__main__":
    main()
