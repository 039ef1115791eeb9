"""One label a row of a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from .case import TaskCase


def write(folder: Path) -> None:
    for split, count in (("train", 24), ("test", 5)):
        random = np.random.default_rng(len(split))
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["amount", "age", "country", "label"])
            for number in range(count):
                fraud = number % 3 == 1
                age = "" if number % 5 == 0 else int(random.integers(18, 80))
                country = random.choice(["fr", "de"] if fraud else ["de", "it"])
                writer.writerow(
                    [random.normal(900 if fraud else 90, 30), age, country, "bad" if fraud else "good"]
                )


CASE = TaskCase(
    recipe={
        "name": "small",
        "task": "tabular",
        "model": {"name": "tabular_resnet", "arguments": {"depth": 2, "width": 16}},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.05}},
        "runtime": {"precision": "fp32", "layout": "nchw"},
    },
    write=write,
    given="test.csv",
    columns=("label", "confidence", "top"),
)
