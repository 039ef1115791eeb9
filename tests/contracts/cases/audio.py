"""One label a recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from .case import TaskCase

RATE = 4000


def tone(seed: int, high: bool) -> np.ndarray:
    """Return a quarter of a second of a tone in noise, float `(S,)`."""
    random = np.random.default_rng(seed)
    time = np.arange(RATE // 4) / RATE
    hertz = random.uniform(1100, 1500) if high else random.uniform(200, 400)
    return 0.4 * np.sin(2 * np.pi * hertz * time) + random.normal(0, 0.02, len(time))


def write(folder: Path) -> None:
    for split, count in (("train", 12), ("test", 5)):
        for number in range(count):
            high = number % 2 == 1
            place = folder / split / ("high" if high else "low")
            place.mkdir(parents=True, exist_ok=True)
            seed = number if split == "train" else 100 + number
            soundfile.write(place / f"{number}.wav", tone(seed, high), RATE)


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {"name": "audio", "arguments": {"bands": 16}},
        "model": {"name": "cifar_resnet8"},
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"lr": 0.05}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test/*/*.wav",
    columns=("label", "confidence", "top"),
)
