"""Metrics of the tasks, apart from them: torchmetrics is slow to import and predicting needs none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinarySensitivityAtSpecificity,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.functional.image import structural_similarity_index_measure

from reskit.tasks.restoration import MEASURED, psnr

__all__ = ["classification_metrics", "restoration_metrics", "tabular_metrics"]


def classification_metrics(classes: int, *, bins: int) -> MetricCollection:
    """Return the metrics of `Labelled.metrics` for logits `(N, classes)`; `bins` are the calibration's."""
    metrics: dict[str, Metric | MetricCollection] = {
        "top1": MulticlassAccuracy(classes, average="micro", sync_on_compute=False),
        "cross_entropy": _CrossEntropy(sync_on_compute=False),
        "precision": MulticlassPrecision(classes, average="macro", sync_on_compute=False),
        "recall": MulticlassRecall(classes, average="macro", sync_on_compute=False),
        "f1": MulticlassF1Score(classes, average="macro", sync_on_compute=False),
        "ece": MulticlassCalibrationError(classes, n_bins=bins, sync_on_compute=False),
    }
    if classes > 5:
        metrics["top5"] = MulticlassAccuracy(classes, average="micro", top_k=5, sync_on_compute=False)
    return MetricCollection(metrics, compute_groups=False)


def tabular_metrics(
    common: MetricCollection,
    *,
    classes: int,
    wanted: int | None,
    max_false_positives: float,
    costs: tuple[float, float],
) -> MetricCollection:
    """Return the metrics of `Tabular.metrics` for logits `(N, classes)`.

    Args:
        common: those of classification.
        classes: how many there are.
        wanted: index of the one of two that is to be found.
        max_false_positives: share of the others that may be called so.
        costs: of a false positive, and of a false negative.
    """
    metrics: dict[str, Metric | MetricCollection] = dict(common.items())
    if wanted is None:
        metrics["roc_auc"] = _OfLogits(classes, average="macro", sync_on_compute=False)
        return MetricCollection(metrics, compute_groups=False)
    found = {
        "roc_auc": BinaryAUROC(sync_on_compute=False),
        "average_precision": BinaryAveragePrecision(sync_on_compute=False),
        "recall_at_fpr": BinarySensitivityAtSpecificity(1 - max_false_positives, sync_on_compute=False),
        "expected_cost": _Cost(*costs, sync_on_compute=False),
    }
    metrics |= {name: _OfOne(metric, wanted) for name, metric in found.items()}
    return MetricCollection(metrics, compute_groups=False)


class _OfLogits(MulticlassAUROC):
    """What torchmetrics else takes for probabilities wherever a batch happens to look like some."""

    def update(self, outputs: Tensor, target: Tensor) -> None:
        super().update(outputs.softmax(1), target)


class _OfOne(Metric):
    """A metric of the probability of one of two classes."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, metric: Metric, wanted: int) -> None:
        super().__init__(sync_on_compute=False)
        self.metric, self.wanted = metric, wanted

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.metric.update(outputs.softmax(1)[:, self.wanted], (target == self.wanted).long())

    def compute(self) -> Tensor:
        value = self.metric.compute()
        found: Tensor = value[0] if isinstance(value, tuple) else value
        return found

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


class _Cost(Metric):
    """Mean cost of mistakes at the threshold that is cheapest where probabilities are true (Elkan 2001).

    Called positive is what costs less so: from ``false_positive / (false_positive + false_negative)`` on.
    """

    total: Tensor
    count: Tensor
    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, false_positive: float, false_negative: float, **options: Any) -> None:
        super().__init__(**options)
        self.costs = (false_positive, false_negative)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        false_positive, false_negative = self.costs
        threshold = false_positive / max(sum(self.costs), 1e-12)
        called = probability >= threshold
        self.total += false_positive * (called & (target == 0)).sum()
        self.total += false_negative * (~called & (target == 1)).sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        return self.total / self.count


class _CrossEntropy(Metric):
    """Mean negative log-likelihood of the true class in nats, without smoothing."""

    total: Tensor
    count: Tensor
    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.total += F.cross_entropy(outputs, target, reduction="sum")
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


def restoration_metrics(measured: Callable[[Tensor], Tensor]) -> MetricCollection:
    """Return the metrics of `RestorationTask.metrics`; `measured` gives the part of an image that counts."""
    return MetricCollection(
        {"psnr": _OfImages(measured, psnr), "ssim": _OfImages(measured, _ssim)}, compute_groups=False
    )


def _ssim(made: Tensor, true: Tensor) -> Tensor:
    _, everywhere = structural_similarity_index_measure(
        made, true, data_range=1.0, reduction="none", return_full_image=True
    )
    # Where the window lies within the image only, as Wang et al. have it.
    inner = slice(MEASURED // 2, -(MEASURED // 2))
    return everywhere[..., inner, inner].flatten(1).mean(1)


class _OfImages(Metric):
    """Mean over images of a figure each has."""

    total: Tensor
    count: Tensor
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self, measured: Callable[[Tensor], Tensor], figure: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(sync_on_compute=False)
        self.measured, self.figure = measured, figure
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        values = self.figure(self.measured(outputs), self.measured(target))
        self.total += values.double().sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        return self.total / self.count
