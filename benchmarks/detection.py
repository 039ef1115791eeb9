"""Detection: a small FCOS learns 16 photographs with people by heart, and its figures are pycocotools'.

From scratch, by the recipe `detect-overfit`: the photographs are the first 16 of COCO128, by name, that show
a person, and only people are looked for. It is trained and measured on the same images: the figure says that
data, loss, boxes and metrics belong together, and nothing of images never seen. Then its boxes are drawn, its
figures computed again by pycocotools from plain JSON records, and its network written as ONNX and compared.

    taskset -c 0 python benchmarks/detection.py --data PATH/coco128

Stopped at any time, it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import reskit
from common import RESULTS, finished_run, write_result
from reskit.backends import BACKENDS
from reskit.backends.writing import write_checked
from reskit.environment import usable_cores
from reskit.plots import draw_boxes, panels
from reskit.tasks.boxes import records

CLASS = "person"
TARGET, MINUTES = 0.5, 25
"""Average precision at IoU 0.50 to reach, and the CPU minutes allowed."""


def main() -> None:
    """Train, measure twice, draw and write `results/detection.json` and `results/detection.png`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="COCO128: images/, labels/, classes.yaml")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"))
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe, to try this script")
    options = parser.parse_args()

    data = options.runs / "images"
    names = choose(options.data, data, options.images)
    result, history = finished_run(
        "detect-overfit",
        options.runs / f"seed-{options.seed}",
        data=data,
        overrides=[
            f"data.test={data}",
            f"task.arguments.classes=[{CLASS}]",
            f"training.seed={options.seed}",
            *options.set,
        ],
    )
    bundle = reskit.load(options.runs / f"seed-{options.seed}" / "bundle")
    evaluation = reskit.evaluate(bundle)
    directly = by_pycocotools(evaluation.examples)
    difference = max(abs(directly[name] - value) for name, value in evaluation.metrics.items())
    minutes = cpu_minutes(history)
    written = write_checked(
        bundle, BACKENDS.get("onnxruntime"), "fp32", options.runs / f"seed-{options.seed}" / "network.onnx"
    )
    draw(bundle, data, names, evaluation.examples)
    passes = int(result["training"]["images_per_second"] * result["training"]["seconds"])
    write_result(
        "detection",
        {
            "data": f"the first {len(names)} images of coco128 with a {CLASS}, trained and measured on",
            "images": names,
            "model": bundle.model.architecture,
            "size": bundle.task.preprocess.size,
            "seed": options.seed,
            "image_passes": passes,
            "cpu_minutes": minutes,
            "allowed_cpu_minutes": MINUTES,
            "cpu_minutes_to_target": next(
                (row["cpu_minutes"] for row in spent(history) if row["map50"] >= TARGET), None
            ),
            "target_map50": TARGET,
            "metrics": evaluation.metrics,
            "pycocotools": directly,
            "largest_difference_from_pycocotools": difference,
            "found": {
                name: int(evaluation.examples[name].sum()) for name in ("objects", "found", "missed", "false")
            },
            "onnx_differences": written.differences,
            "curve": spent(history),
            "met": {
                "map50": evaluation.metrics["map50"] >= TARGET and minutes <= MINUTES,
                "pycocotools": difference < 1e-6,
            },
        },
    )
    print(f"map50 {evaluation.metrics['map50']:.3f} in {minutes:.1f} CPU minutes")


def choose(source: Path, folder: Path, count: int) -> list[str]:
    """Copy the first pictures, by name, that show a person, with their labels; return their names."""
    if not folder.exists():
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        for kind in ("images", "labels"):
            (staging / kind).mkdir(parents=True)
        shutil.copy(source / "classes.yaml", staging)
        pictures = {path.stem: path for path in (source / "images").rglob("*.jpg")}
        labels = [
            path
            for path in sorted((source / "labels").rglob("*.txt"))
            if any(line.startswith("0 ") for line in path.read_text().splitlines())
        ]
        for label in labels[:count]:
            shutil.copy(label, staging / "labels")
            shutil.copy(pictures[label.stem], staging / "images")
        staging.rename(folder)
    return sorted(path.name for path in (folder / "images").iterdir())


def spent(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return after each epoch the CPU minutes of training so far, the loss and the precision."""
    minutes = np.cumsum([row["seconds"] * row["cpu_utilisation"] * usable_cores() / 60 for row in history])
    return [
        {
            "epoch": int(row["epoch"]),
            "cpu_minutes": float(passed),
            "train_loss": row["train_loss"],
            **{name: row[f"test_{name}"] for name in ("map", "map50", "map75")},
        }
        for row, passed in zip(history, minutes, strict=True)
    ]


def cpu_minutes(history: list[dict[str, float]]) -> float:
    """Return the CPU minutes of training."""
    return spent(history)[-1]["cpu_minutes"]


def by_pycocotools(examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Return COCO's main figures of all boxes found and true, by pycocotools alone."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (found, true) in enumerate(zip(examples["detections"], examples["truth"], strict=True)):
        for x1, y1, x2, y2, label in true[true[:, 4] >= 0].tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            entry = {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **entry})
        for x1, y1, x2, y2, score, label in found[found[:, 5] >= 0].tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image, "category_id": int(label), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(examples["index"]))],
            "annotations": annotations,
            "categories": [{"id": 0, "name": CLASS}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("map", "map50", "map75"), map(float, evaluation.stats[:3]), strict=True))


def draw(bundle: reskit.Bundle, data: Path, names: list[str], examples: dict[str, np.ndarray]) -> None:
    """Draw the boxes found in every image that are sure enough to be reported, four a row."""
    task = bundle.task
    found, _ = records(torch.from_numpy(examples["detections"]), torch.from_numpy(examples["truth"]))
    cells = []
    for row, name in enumerate(names):
        image = task.read(data / "images" / name)
        sure = found[row]["scores"] >= task.settings.score
        scores = found[row]["scores"][sure].tolist()
        boxes = found[row]["boxes"][sure]
        picture = draw_boxes(image, boxes, [f"{score:.0%}" for score in scores], [0] * len(scores))
        right, objects = int(examples["found"][row]), int(examples["objects"][row])
        cells.append((f"{right} of {objects}, {int(examples['false'][row])} false", picture))
    whole = len(cells) - len(cells) % 4 or len(cells)
    panels(
        [cells[start : start + 4] for start in range(0, whole, 4)],
        RESULTS / "detection.png",
        heading=f"People found in images learned by heart, boxes of at least {task.settings.score:.0%}",
    )


if __name__ == "__main__":
    main()
