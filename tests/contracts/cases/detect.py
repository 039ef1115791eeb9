"""Detection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .case import TaskCase


def write(folder: Path) -> None:
    """Write bright and dark rectangles on grey, in YOLO's format; one picture shows nothing."""
    (folder / "data.yaml").write_text("names: [bright, dark]\n")
    for split, count in (("train", 8), ("test", 5)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            random = np.random.default_rng(number + 100 * (split == "test"))
            height, width = 48 + 8 * (number % 2), 64
            pixels = random.normal(128, 6, (height, width))
            lines = []
            for label in range(0 if number == 3 else 1 + number % 2):
                tall, wide = random.integers(14, 30, 2)
                top, left = random.integers(0, height - tall), random.integers(0, width - wide)
                pixels[top : top + tall, left : left + wide] = 30 if label else 220
                box = ((left + wide / 2) / width, (top + tall / 2) / height, wide / width, tall / height)
                lines.append(" ".join(map(str, (label, *box))))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / "images" / split / f"{number}.png")
            if lines:
                (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {"name": "detect", "arguments": {"scale": [0.8, 1.2], "views": 2}},
        "model": {
            "name": "fcos_resnet18_fpn",
            "arguments": {"backbone_arguments": {"depths": [1, 1, 1], "width": 8}, "width": 64, "convs": 1},
        },
        "preprocess": {"size": 64},
        "augment": {"flip": True},
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"name": "adam", "lr": 0.002}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="images/test/*.png",
    columns=("boxes",),
    saved=("drawn",),
)

IN_TWO_STAGES = CASE._replace(
    recipe={
        **CASE.recipe,
        "model": {
            "name": "fasterrcnn_resnet18_fpn",
            "arguments": {
                "backbone_arguments": {"depths": [1, 1, 1], "width": 8},
                "width": 16,
                "hidden": 32,
                "candidates": 50,
                "proposals": 30,
            },
        },
    }
)
