"""Networks as `.tflite` files, run by the LiteRT interpreter: size, agreement with eager, accuracy.

ResNet-18 has no ImageNet weights here, so it is made to tell the 100 ImageNet pictures apart
(`picturing.py`). Int8 is calibrated on other pictures, those of coco128. Of MobileNetV2 such a network would
not do: with random weights it amplifies rounding a thousandfold. It is trained here, 20 epochs on 244 ants
and bees at 128 px.

ResNet-20 and ResNet-56 have published CIFAR-10 weights. Int8 is calibrated on the first 256 of 4,000 training
pictures, and measured on the others and on the whole test split, which is here as JPEG only.

    python benchmarks/litert_models.py --data PATH
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import reskit
from common import write_result
from picturing import picture_bundle, read
from reskit.backends import BACKENDS, Runner
from reskit.backends.servable import servable
from reskit.backends.writing import largest_difference, write_checked
from reskit.bundle import Bundle
from reskit.data import ImagePreprocess, make_loader

BACKEND = BACKENDS.get("litert")
TRAINED = {"cifar_resnet20": "resnet20-12fca82f.th", "cifar_resnet56": "resnet56-4bfd9763.th"}
CALIBRATION = 256


def main() -> None:
    """Write, run, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets and weights")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in found(options.data, Path(folder), options.threads):
            rows.append(row)
            print(
                f"{row['name']:<22}{row['file_mb']:>8.2f} MB  differs {row['largest_difference']:.1e}"
                f"  agrees {row['top1_agreement']:.4f} of {row['pictures']} {row['on']}"
                + (f"  top-1 {row['top1']:.4f} ({row['points_lost']:+.2f} points)" if "top1" in row else ""),
                flush=True,
            )
    write_result("litert-models", {"how": __doc__, "calibration": CALIBRATION, "rows": rows})


def found(data: Path, folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of every network, precision and set of pictures."""
    pictures = data / "imagenet-sample-100"
    other = read(sorted((data / "coco128" / "images").rglob("*.jpg")))
    bundle = picture_bundle("resnet18", pictures, folder / "resnet18", samples=other)
    shown = {"ImageNet pictures": (read(sorted(pictures.iterdir())), None)}
    yield from compared(bundle, shown, None, threads)
    insects = data / "hymenoptera"
    settings = ["model.name=mobilenet_v2", "preprocess.size=128", "training.epochs=20"]
    run = reskit.train("imagefolder", data=insects, out=folder / "run", overrides=settings)
    bundle = reskit.load(run.bundle)
    held_out = split(insects, "validation", bundle.task.preprocess)
    yield from compared(bundle, {"held-out ants and bees": held_out}, None, threads)
    small = ImagePreprocess(size=(32, 32))
    train = [
        torch.cat(both)
        for both in zip(
            *(split(data / "cifar10-lossless-4k", name, small) for name in ("train", "test")), strict=True
        )
    ]
    test = split(data / "cifar10-jpeg", "test", small)
    samples = train[0][:CALIBRATION].numpy()
    sets = {
        "training pictures": (train[0][CALIBRATION:], train[1][CALIBRATION:]),
        "test pictures (JPEG)": test,
    }
    for name, file in TRAINED.items():
        weights = data / "weights" / "pytorch-cifar-resnet" / file
        bundle, _ = reskit.import_bundle(weights, folder / name, model=name, size=32, statistics="imagenet")
        yield from compared(bundle, sets, samples, threads)


def split(folder: Path, name: str, preprocess: ImagePreprocess) -> tuple[Tensor, Tensor]:
    """Return the images of a split, uint8 `(N, C, H, W)`, and their labels."""
    batches = list(make_loader(reskit.open_source(folder)[name], preprocess=preprocess, batch_size=1000))
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches])


def compared(
    bundle: Bundle,
    sets: dict[str, tuple[Tensor, Tensor | None]],
    samples: np.ndarray | None,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Yield size, agreement with eager and accuracy of a bundle in every precision on sets of pictures."""
    name, model = bundle.model.architecture["name"], servable(bundle)
    with torch.inference_mode():
        eager = {
            on: torch.cat([model(chunk) for chunk in pixels.split(100)]).numpy()
            for on, (pixels, _) in sets.items()
        }
    for precision in BACKEND.tolerance:
        path = bundle.path.parent / f"{name}-{precision}.tflite"
        write_checked(bundle, BACKEND, precision, path, samples=samples, model=model)
        with BACKEND.load(path, threads=threads) as runner:
            for on, (pixels, labels) in sets.items():
                outputs, expected = answers(runner, pixels), eager[on]
                row = {
                    "name": f"{name}/{precision}",
                    "model": name,
                    "precision": precision,
                    "file_mb": path.stat().st_size / 1e6,
                    "on": on,
                    "pictures": len(pixels),
                    "largest_difference": largest_difference(outputs, expected),
                    "top1_agreement": float((outputs.argmax(1) == expected.argmax(1)).mean()),
                }
                if labels is not None:
                    top1 = [float((y.argmax(1) == labels.numpy()).mean()) for y in (outputs, expected)]
                    row |= {"top1": top1[0], "eager_top1": top1[1], "points_lost": 100 * (top1[1] - top1[0])}
                yield row


def answers(runner: Runner, pixels: Tensor) -> np.ndarray:
    """Return what a runner gives, a hundred pictures at a time."""
    return np.concatenate([runner.answer(chunk.numpy()) for chunk in pixels.split(100)])


if __name__ == "__main__":
    main()
