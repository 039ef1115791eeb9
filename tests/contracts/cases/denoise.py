"""Denoising."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .case import TaskCase, scene


def write(folder: Path) -> None:
    for split, count in (("train", 8), ("test", 5)):
        (folder / split).mkdir()
        for number in range(count):
            seed = number if split == "train" else 100 + number
            # Pictures of several sizes, one of them smaller than a tile.
            picture = scene(seed, 32 + 4 * (number % 3), 32 if number else 24)
            Image.fromarray(picture).save(folder / split / f"{number}.png")


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {"name": "denoise", "arguments": {"sigma": 25, "patch": 16, "patches": 4}},
        "model": {"name": "dncnn", "arguments": {"depth": 3, "width": 8}},
        "preprocess": {"size": 32},
        "augment": {"dihedral": True},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/*.png",
    columns=("height", "width"),
    saved=("restored",),
)
