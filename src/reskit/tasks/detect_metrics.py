"""COCO's figures of detections, apart from the task: torchmetrics is slow to import."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from reskit.tasks.boxes import records

__all__ = ["average_precision", "detection_metrics"]


def detection_metrics() -> MetricCollection:
    """Return the metrics of `Detect.metrics`, of padded detections and true boxes."""
    return MetricCollection({"coco": _Coco()}, compute_groups=False)


def average_precision(*, extended_summary: bool = False) -> MeanAveragePrecision:
    """Return COCO's average precision, as pycocotools computes it; it does not sync by itself."""
    return MeanAveragePrecision(
        backend="pycocotools",
        # torchmetrics' own are in float32, so that a recall of 0.1 falls short of the threshold 0.1.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        extended_summary=extended_summary,
        sync_on_compute=False,
    )


class _Coco(Metric):
    """COCO's main figures; 0 where there is no object to find."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.precision = average_precision()

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.precision.update(*records(outputs, target))

    def compute(self) -> dict[str, Tensor]:
        found = self.precision.compute()
        names = {"map": "map", "map50": "map_50", "map75": "map_75"}
        return {ours: found[theirs].clamp(min=0) for ours, theirs in names.items()}

    def reset(self) -> None:
        super().reset()
        self.precision.reset()
