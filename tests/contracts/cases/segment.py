"""Segmentation: three classes and pixels without a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .case import TaskCase, scene


def write(folder: Path) -> None:
    for split, count in (("train", 8), ("test", 5)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
        for number in range(count):
            # Pictures of several sizes, one of them smaller than a tile.
            height, width = 32 + 4 * (number % 3), 32 if number else 24
            picture = scene(number if split == "train" else 100 + number, height, width)
            mask = np.where(picture > 150, 2, np.where(picture > 95, 1, 0)).astype(np.uint8)
            mask[:2] = 255
            Image.fromarray(picture).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {
            "name": "segment",
            "arguments": {"patch": 16, "patches": 2, "losses": {"cross_entropy": 1, "dice": 0.5}},
        },
        "model": {
            "name": "unet_cifar_resnet20",
            "arguments": {"encoder": "cifar_resnet8", "deep_supervision": True},
        },
        "preprocess": {"size": 32},
        "augment": {"dihedral": True, "elastic": 1.0, "rotate": 10},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.003}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/images/*.png",
    columns=("height", "width", "areas"),
    saved=("mask", "overlay"),
)
