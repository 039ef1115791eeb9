"""Super-resolution."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .case import TaskCase, scene


def write(folder: Path) -> None:
    for split, count in (("train", 8), ("test", 5)):
        (folder / split).mkdir()
        for number in range(count):
            seed = number if split == "train" else 100 + number
            # Sizes that the scale does not divide, and colour.
            picture = scene(seed, 48 + number % 3, 49, channels=3 if number % 2 else 1)
            Image.fromarray(picture).save(folder / split / f"{number}.png")


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {
            "name": "superresolve",
            "arguments": {"scale": 2, "channels": 1, "patch": 12, "patches": 4},
        },
        "model": {"name": "vdsr", "arguments": {"depth": 3, "width": 8, "subpixel": True}},
        "preprocess": {"size": 20},
        "augment": {"dihedral": True},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/*.png",
    columns=("height", "width"),
    saved=("restored",),
)
