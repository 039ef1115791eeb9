"""What is counted of masks, and the tables that are made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reskit.data.images import IGNORED

__all__ = ["areas", "class_table", "figures", "precision_recall", "score_counts"]


def areas(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the pixels of each class that are right, true and said, int64 `(N, 3, K)`, of labelled ones.

    Args:
        outputs: logits `(N, K, H, W)`.
        target: classes `(N, H, W)`.
    """
    classes = outputs.shape[1]
    said, labelled = outputs.argmax(1), target != IGNORED

    def count(values: Tensor, where: Tensor) -> Tensor:
        return torch.stack(
            [torch.bincount(v[w], minlength=classes) for v, w in zip(values, where, strict=True)]
        )

    return torch.stack(
        [count(target, labelled & (said == target)), count(target, labelled), count(said, labelled)], 1
    )


def figures(outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return dice, iou and pixel_error of each image, float64 `(N,)`, and its `areas`.

    Dice and iou are means over the classes there are in the truth or in the answer.
    """
    counts = areas(outputs, target)
    right, true, said = counts.double().unbind(1)
    there = ((true + said) > 0).sum(1).clamp(min=1)
    return {
        "dice": (2 * right / (true + said).clamp(min=1)).sum(1) / there,
        "iou": (right / (true + said - right).clamp(min=1)).sum(1) / there,
        "pixel_error": 1 - right.sum(1) / true.sum(1).clamp(min=1),
        "areas": counts,
    }


def score_counts(outputs: Tensor, target: Tensor, levels: int) -> Tensor:
    """Return how many pixels have each probability of the second of two classes, int64 `(N, 2, levels)`.

    Args:
        outputs: logits `(N, 2, H, W)`.
        target: classes `(N, H, W)`: the middle axis of what is returned.
        levels: equal steps from 0 to 1.
    """
    probability = outputs.double().softmax(1)[:, 1]
    level = (probability * levels).long().clamp(0, levels - 1)
    return torch.stack(
        [
            torch.stack([torch.bincount(one[true == index], minlength=levels) for index in (0, 1)])
            for one, true in zip(level, target, strict=True)
        ]
    )


def class_table(counts: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row a class of pixels right, true and said `(3, K)`; a figure without pixels is 0."""
    right, true, said = counts.astype(float)

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        quotient: np.ndarray = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return quotient

    columns = {
        "dice": ratio(2 * right, true + said),
        "iou": ratio(right, true + said - right),
        "precision": ratio(right, said),
        "recall": ratio(right, true),
        "share": true / max(true.sum(), 1.0),
    }
    return [
        {"label": label}
        | {name: float(values[place]) for name, values in columns.items()}
        | {"pixels": int(true[place])}
        for place, label in enumerate(labels)
    ]


def precision_recall(counts: np.ndarray) -> dict[str, Any]:
    """Return precision and recall at falling thresholds, and average precision, of counts `(2, levels)`.

    A pixel is said to be of the second class where its probability is at least the threshold. Thresholds at
    which nothing is said are left out. Average precision is the sum of precision times the rise of recall.
    """
    levels = counts.shape[1]
    false, true = (np.cumsum(row[::-1]).astype(float) for row in counts)
    thresholds = np.arange(levels - 1, -1, -1) / levels
    positive = true[-1]
    kept = (true + false > 0) & np.append(True, np.diff(true + false) > 0)
    precision = true[kept] / (true + false)[kept]
    recall = true[kept] / positive if positive else np.zeros_like(precision)
    rise = np.diff(recall, prepend=0.0)
    return {
        "thresholds": thresholds[kept].tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "average_precision": float((precision * rise).sum()),
    }
