"""One label a text."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from .case import TaskCase

GOOD, BAD = ["fine", "lovely", "great"], ["dull", "awful", "poor"]
ANY = ["the", "film", "is", "a", "story", "of", "it"]


def sentence(seed: int, good: bool) -> str:
    """Return a few words, one of which says what is meant."""
    random = np.random.default_rng(seed)
    words = [*random.choice(ANY, 4), random.choice(GOOD if good else BAD)]
    return " ".join(random.permutation(words))


def write(folder: Path) -> None:
    for split, count in (("train", 16), ("test", 5)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            for number in range(count):
                seed, good = number if split == "train" else 100 + number, number % 2 == 1
                writer.writerow([sentence(seed, good), "good" if good else "bad"])


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": {"name": "text", "arguments": {"least": 1}},
        "model": {
            "name": "text_resnet8",
            "arguments": {"depths": [1, 1], "width": 8, "embedding": 8, "token_dropout": 0.0, "dropout": 0.1},
        },
        "training": {"epochs": 2, "batch_size": 4, "optimizer": {"lr": 0.05}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test.csv",
    columns=("label", "confidence", "top"),
)
