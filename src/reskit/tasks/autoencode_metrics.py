"""Metrics of `Autoencode`, apart from it: torchmetrics is slow to import and predicting needs none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

__all__ = ["reconstruction_metrics"]

Rows = Callable[[Tensor, Tensor], Mapping[str, Tensor]]

_MEANS = {"mse": "score", "psnr": "psnr", "kl": "kl", "elbo": "elbo"}
_COLUMNS = ("score", "psnr", "kl", "elbo", "unseen")


def reconstruction_metrics(rows: Rows) -> MetricCollection:
    """Return the metrics of `Autoencode.metrics`; `rows` gives the columns of `Autoencode.examples`."""
    return MetricCollection({"reconstruction": _Reconstruction(rows)}, compute_groups=False)


class _Reconstruction(Metric):
    """Means over the images of classes that were trained on, and how well the error tells the others."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(self, rows: Rows) -> None:
        super().__init__(sync_on_compute=False)
        self.rows = rows
        for name in _COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        found = self.rows(outputs, target)
        for name in _COLUMNS:
            if name in found:
                getattr(self, name).append(found[name])

    def compute(self) -> dict[str, Tensor]:
        columns = {name: dim_zero_cat(getattr(self, name)) for name in _COLUMNS if getattr(self, name)}
        unseen, score = columns["unseen"] > 0, columns["score"]
        seen = ~unseen
        found = {name: columns[column][seen].mean() for name, column in _MEANS.items() if column in columns}
        if unseen.any():
            found["unseen_mse"] = score[unseen].mean()
        if unseen.any() and seen.any():
            found["roc_auc"] = binary_auroc(score, unseen.long())
            found["average_precision"] = binary_average_precision(score, unseen.long())
        return found
