"""Boxes found held against boxes that are there: COCO's figures, and which is which in one picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from reskit.errors import MissingExtraError

__all__ = ["AT", "coco_tables", "held_against", "need_pycocotools", "records"]

AT = 0.5
"""IoU from which a box is counted as found where one figure an example is wanted."""


def need_pycocotools() -> None:
    """Say early that average precision cannot be measured.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise MissingExtraError("pycocotools", "detect")


def records(outputs: Tensor, target: Tensor) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return detections `(N, P, 6)` and true boxes `(N, M, 5)`, both padded, as torchmetrics takes them."""
    said, true = [], []
    for found, there in zip(outputs, target, strict=True):
        found, there = found[found[:, 5] >= 0], there[there[:, 4] >= 0]
        said.append({"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()})
        true.append({"boxes": there[:, :4], "labels": there[:, 4].long()})
    return said, true


def held_against(outputs: Tensor, target: Tensor, score: float) -> dict[str, Tensor]:
    """Return how many objects each picture shows, were found, missed, and said where there are none, `(N,)`.

    Detections of at least `score`, the best first, each take the free object of their class they overlap
    most.
    """
    counts = []
    for said, true in zip(*records(outputs, target), strict=True):
        sure = said["scores"] >= score
        boxes, labels = said["boxes"][sure], said["labels"][sure]
        overlap = box_iou(boxes, true["boxes"]) * (labels[:, None] == true["labels"])
        found = 0
        for row in overlap:
            if len(row) and row.max() >= AT:
                found += 1
                overlap[:, row.argmax()] = 0
        counts.append((len(true["labels"]), found, len(true["labels"]) - found, int(sure.sum()) - found))
    columns = torch.tensor(counts, dtype=torch.int64).reshape(-1, 4)
    return dict(zip(("objects", "found", "missed", "false"), columns.unbind(1), strict=True))


def coco_tables(outputs: Tensor, target: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Return the tables `per_class` and `precision_recall` of detections and true boxes.

    Precision is that of COCO: at each of 101 recalls the best there is at that recall or a higher one.
    """
    from reskit.tasks.detect_metrics import average_precision

    metric = average_precision(extended_summary=True)
    said, true = records(outputs, target)
    metric.update(said, true)
    found = metric.compute()
    # (thresholds, recalls, classes seen, areas, most detections): all areas, 100 detections
    precision = found["precision"][:, :, :, 0, -1].numpy()
    place = {int(label): at for at, label in enumerate(np.atleast_1d(found["classes"].numpy()).tolist())}
    there = torch.cat([image["labels"] for image in true]) if true else torch.zeros(0)
    support = np.bincount(there.numpy().astype(int), minlength=len(labels))
    rows, curves = [], []
    for number, label in enumerate(labels):
        if not support[number]:
            continue  # COCO knows no precision of what is not there
        curve = precision[:, :, place[number]]
        rows.append(
            {
                "label": label,
                "map": float(curve.mean()),
                "map50": float(curve[0].mean()),
                "map75": float(curve[5].mean()),
                "support": int(support[number]),
            }
        )
        curves.append({"label": label, "at_50": curve[0].tolist(), "at_75": curve[5].tolist()})
    return {"per_class": rows, "precision_recall": curves}
