"""Networks that nobody trained, made to tell pictures apart.

Random weights, batch-norm statistics measured on the pictures, and a last layer solved by ridge regression so
that each picture is a class of its own. Agreement with float32 is then a question with an answer, and a hard
one: nothing was ever trained to leave a margin.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import reskit
from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.tasks import TASKS

PREPROCESS = ImagePreprocess(size=(224, 224), resize="crop", crop_fraction=0.875)
RIDGE = 1.0


def read(files: list[Path]) -> Tensor:
    """Return pictures as the networks are given them, uint8 `(N, 3, 224, 224)`."""
    return torch.stack([PREPROCESS.read(path) for path in files])


def picture_bundle(name: str, pictures: Path, folder: Path, *, samples: Tensor | None = None) -> Bundle:
    """Return a bundle of a network that tells every picture of a folder from every other.

    Args:
        name: of the architecture.
        pictures: the folder.
        folder: where the bundle goes.
        samples: what int8 is calibrated with; the first 64 of the pictures when absent.
    """
    torch.manual_seed(0)
    files = sorted(pictures.iterdir())
    task = TASKS.get("classify").from_config(
        {"preprocess": PREPROCESS.model_dump(mode="json"), "labels": [path.stem for path in files]}
    )
    model = reskit.create_model(name, num_classes=len(files))
    found = read(files)
    inputs = task.inputs({"image": found})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain mean over what follows
        model.train()
        for chunk in inputs.split(25):
            model(chunk)
        model.eval()
        vectors = torch.cat([model.pooled(chunk) for chunk in inputs.split(25)]).double()
        centre = vectors.mean(0)
        spread = vectors - centre
        gram, one = spread @ spread.T, torch.eye(len(files), dtype=torch.float64)
        target = one - 1 / len(files)
        solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * one, target)
        weight = 10 * (spread.T @ solved).T
        head = next(module for module in model.head.modules() if isinstance(module, torch.nn.Linear))
        head.weight.copy_(weight)
        head.bias.copy_(-(weight @ centre))
    return Bundle.write(
        folder,
        task=task,
        model=model,
        metrics={},
        provenance={"made": "benchmarks/picturing.py"},
        samples=found[:64] if samples is None else samples,
    )
