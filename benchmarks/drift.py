"""Does the alarm of drift go off when images get worse, and stay silent when they do not?

A profile is made of 2,000 training images and of 4,000 of one half of the test split. Traffic comes from the
other half: clean, and with noise, blur and less contrast at five levels, in the manner of Hendrycks and
Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, 2019 (the
parameters are those of their sets for small images). A window counts as alarmed when its inputs or its
predicted classes are over the profile's thresholds.

    python benchmarks/drift.py --bundle runs/cifar10-resnet20/bundle --data PATH/cifar10-jpeg
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

import reskit
from common import RESULTS, write_result
from reskit.bundle import Bundle
from reskit.data import Source
from reskit.drift import DriftProfile, features_and_classes
from reskit.drift.making import HELD_OUT, TRAINING, make_profile
from reskit.evaluation import open_as_trained
from reskit.plots.house import SERIES, STYLE, light_grid, new_figure, put_title, save

WINDOW, CLEAN_WINDOWS, WINDOWS_A_LEVEL = 200, 20, 3
FALSE_ALARMS = 0.01
MUST_FROM_LEVEL, MOST_CLEAN_ALARMS = 2, 1
Corruption = Callable[[Tensor, torch.Generator], Tensor]


def noise(strength: float) -> Corruption:
    """Return what adds Gaussian noise of a standard deviation, pixels being in [0, 1]."""
    return lambda images, generator: images + strength * torch.randn(images.shape, generator=generator)


def blur(strength: float) -> Corruption:
    """Return what blurs with a Gaussian of so many pixels."""
    return lambda images, _: tv.gaussian_blur(images, [9, 9], [strength, strength])


def contrast(strength: float) -> Corruption:
    """Return what brings pixels nearer to the mean of their channel in the image."""

    def lower(images: Tensor, _: torch.Generator) -> Tensor:
        mean = images.mean((2, 3), keepdim=True)
        return mean + strength * (images - mean)

    return lower


LEVELS: dict[str, tuple[Callable[[float], Corruption], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
}


def main() -> None:
    """Make a profile, send windows past it, print, draw and write `results/drift.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a trained cifar10-resnet20")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.perf_counter()
    bundle = reskit.load(options.bundle)
    source = open_as_trained(bundle, options.data)
    order = np.random.default_rng(options.seed).permutation(len(source["test"]))
    half = len(order) // 2
    train = np.linspace(0, len(source["train"]) - 1, TRAINING).astype(int)
    features, _ = look(bundle, read(source, "train", train))
    held, classes = look(bundle, read(source, "test", order[: min(half, HELD_OUT)]))
    profile = make_profile(
        features, held, classes, num_classes=len(bundle.task.labels), false_alarms=FALSE_ALARMS
    )
    live = read(source, "test", order[half : half + WINDOW * CLEAN_WINDOWS])
    print(f"profile of {len(features)} and {len(held)} images: {time.perf_counter() - began:.0f} s")

    clean = scored(bundle, profile, live)
    rows = []
    for name, (make, strengths) in LEVELS.items():
        for level, strength in enumerate(strengths, 1):
            generator = torch.Generator().manual_seed(options.seed)
            # Other images at each level, so that no draw of them decides.
            start = WINDOW * WINDOWS_A_LEVEL * (level - 1)
            images = live[start : start + WINDOW * WINDOWS_A_LEVEL]
            worse = corrupted(images, make(strength), generator)
            windows = scored(bundle, profile, worse)
            rows.append({"corruption": name, "level": level, "strength": strength, "windows": windows})
            alarms = sum(window["alarm"] for window in windows)
            print(f"{name:<9}{level}  {alarms} of {len(windows)}  input {windows[0]['input']:.2f}")
    report(bundle, profile, clean, rows, options, time.perf_counter() - began)


def read(source: Source, split: str, places: np.ndarray) -> list[Any]:
    """Return images of a split as they are."""
    part = source[split]
    return [part.item(int(row)) for row in part.rows[places]]


def corrupted(images: list[Any], corruption: Corruption, generator: torch.Generator) -> list[Any]:
    """Return images that are worse, as a camera or a scaler would have made them before anyone asked."""
    from torchvision.io import ImageReadMode, decode_image

    pixels = torch.stack(
        [
            decode_image(torch.frombuffer(bytearray(image), dtype=torch.uint8), ImageReadMode.RGB)
            for image in images
        ]
    )
    worse = corruption(pixels / 255, generator).mul(255).round().clamp(0, 255).to(torch.uint8)
    return [tv.to_pil_image(image) for image in worse]


def look(bundle: Bundle, images: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return features and predicted classes of images."""
    found = []
    for start in range(0, len(images), 200):
        pixels = torch.stack([bundle.task.read(image) for image in images[start : start + 200]])
        found.append(features_and_classes(bundle.model, bundle.task.normalize, pixels))
    features, classes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return features, classes


def scored(bundle: Bundle, profile: DriftProfile, images: list[Any]) -> list[dict[str, Any]]:
    """Return the scores of images, window by window, and whether each raised the alarm."""
    features, classes = look(bundle, images)
    windows = []
    for start in range(0, len(images), WINDOW):
        part = slice(start, start + WINDOW)
        scores = profile.scores(features[part], classes[part])
        over = profile.alarms(scores, WINDOW)
        windows.append({**scores._asdict(), "over": list(over), "alarm": any(over)})
    return windows


def report(
    bundle: Bundle,
    profile: DriftProfile,
    clean: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    options: argparse.Namespace,
    seconds: float,
) -> None:
    """Say what was asked for and what came out; draw it and write it."""
    missed = [
        f"{row['corruption']} {row['level']}"
        for row in rows
        if row["level"] >= MUST_FROM_LEVEL and not all(window["alarm"] for window in row["windows"])
    ]
    false = sum(window["alarm"] for window in clean)
    threshold = profile.thresholds[WINDOW]
    draw(clean, rows, threshold.input, false)
    print(f"clean: {false} of {len(clean)} windows raised the alarm (asked: at most {MOST_CLEAN_ALARMS})")
    print(f"from level {MUST_FROM_LEVEL} on without alarm in every window: {', '.join(missed) or 'none'}")
    write_result(
        "drift",
        {
            "model": bundle.config.architecture["name"],
            "top1": bundle.config.metrics["test"]["top1"],
            "data": options.data.name,
            "seed": options.seed,
            "window": WINDOW,
            "false_alarms_stated": FALSE_ALARMS,
            "profile_examples": profile.examples,
            "thresholds": threshold._asdict(),
            "asked": {"alarm_from_level": MUST_FROM_LEVEL, "most_clean_alarms": MOST_CLEAN_ALARMS},
            "clean_alarms": false,
            "missed": missed,
            "passed": not missed and false <= MOST_CLEAN_ALARMS,
            "seconds": round(seconds, 1),
            "clean": clean,
            "corrupted": rows,
        },
    )


def draw(clean: list[dict[str, Any]], rows: list[dict[str, Any]], threshold: float, false: int) -> None:
    """Draw the input score by level, and the threshold."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for colour, name in zip(SERIES[:1] + SERIES[2:], LEVELS, strict=False):
        found = [row for row in rows if row["corruption"] == name]
        means = [np.mean([window["input"] for window in row["windows"]]) for row in found]
        axes.plot([row["level"] for row in found], means, marker="o", color=colour, label=name)
    axes.plot([0] * len(clean), [window["input"] for window in clean], "o", color=STYLE["muted"], alpha=0.5)
    axes.axhline(threshold, color=STYLE["second"], linestyle="--", linewidth=1.2, label="threshold")
    axes.set_yscale("log")
    axes.set_xticks(range(6), ["clean", *map(str, range(1, 6))])
    axes.set_xlabel("level of corruption")
    axes.set_ylabel("input score of a window")
    light_grid(axes)
    axes.legend(frameon=False, fontsize=9)
    put_title(
        axes,
        "Worse images raise the alarm",
        f"windows of {WINDOW} images; {false} of {len(clean)} clean windows raised it",
    )
    print(f"wrote {save(figure, RESULTS / 'drift.png')}")


if __name__ == "__main__":
    main()
