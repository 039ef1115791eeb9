"""Metrics of segmentation, apart from the task: torchmetrics is slow to import and predicting needs none."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassHammingDistance, MulticlassJaccardIndex

from reskit.data.images import IGNORED

__all__ = ["segmentation_metrics"]


def segmentation_metrics(classes: int) -> MetricCollection:
    """Return the metrics of `Segment.metrics` for logits `(N, classes, H, W)` and classes `(N, H, W)`.

    All are of the pixels of all images together. A class that is neither in the truth nor in the answers has
    no part in a mean.
    """
    options: dict[str, Any] = {"ignore_index": IGNORED, "sync_on_compute": False}
    metrics: dict[str, Metric | MetricCollection] = {
        "dice": MulticlassF1Score(classes, average="macro", **options),
        "iou": MulticlassJaccardIndex(classes, average="macro", **options),
        "pixel_error": MulticlassHammingDistance(classes, average="micro", **options),
    }
    if classes == 2:
        metrics["foreground_dice"] = _Second(classes, average="none", **options)
    return MetricCollection(metrics, compute_groups=False)


class _Second(MulticlassF1Score):
    """The figure of the second of two classes."""

    def compute(self) -> Tensor:
        """Return it alone."""
        return super().compute()[1]
