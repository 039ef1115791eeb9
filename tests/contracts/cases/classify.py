"""One label an image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .case import TaskCase, scene


def write(folder: Path) -> None:
    for split, count in (("train", 12), ("test", 5)):
        for number in range(count):
            label = "dark" if number % 2 else "bright"
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            picture = scene(number if split == "train" else 100 + number)
            picture = picture // 2 if label == "dark" else picture
            Image.fromarray(picture).save(folder / split / label / f"{number}.png")


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": "classify",
        "model": {"name": "cifar_resnet8"},
        "preprocess": {"size": 32},
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"lr": 0.05}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/*/*.png",
    columns=("label", "confidence", "top"),
)
