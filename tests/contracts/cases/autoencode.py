"""Autoencoding, with a class that is only seen when it is tested."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .case import TaskCase, scene


def write(folder: Path) -> None:
    for split, count in (("train", 12), ("test", 5)):
        for number in range(count):
            label = "strange" if split == "test" and number > 2 else "usual"
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            picture = scene(number if split == "train" else 100 + number)
            picture = 255 - picture if label == "strange" else picture
            Image.fromarray(picture).save(folder / split / label / f"{number}.png")


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {"name": "autoencode", "arguments": {"latent": 3, "noise": 0.1}},
        "model": {"name": "residual_vae", "arguments": {"depths": [1, 1], "width": 8}},
        "preprocess": {"size": 16},
        "augment": {"flip": True},
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"name": "adam", "lr": 0.01}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/*/*.png",
    columns=("score", "latent"),
    saved=("reconstruction", "error_map"),
)
