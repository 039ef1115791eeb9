"""One label an example, whatever the examples are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo
from reskit.errors import ConfigError
from reskit.models import MODELS, Backbone, create_model
from reskit.tasks.base import Answered, Batch, Task, TaskSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from torchmetrics import MetricCollection


__all__ = ["CALIBRATION_BINS", "Labelled"]

CALIBRATION_BINS = 15
"""Bins of confidence for the expected calibration error (Guo et al. 2017 use 15)."""


class Labelled(Task):
    """Cross-entropy `L = -sum_i y_i log p_i` over `len(labels)` classes.

    Args:
        preprocess: how an example becomes the network's input.
        labels: class names, in the order of the logits.
        settings: what the recipe says of the task.
        label_smoothing: weight of the uniform distribution in the training target (Szegedy et al. 2016).
    """

    main_metric = "top1"
    meanings: ClassVar[Mapping[str, str]] = {
        "top1": "share of examples whose most probable class is right",
        "top5": "share of examples whose class is among the five most probable",
        "cross_entropy": "mean negative log-likelihood of the true class, in nats; lower is better",
        "precision": "of what was called a class, the share that is; mean over classes",
        "recall": "of what is a class, the share found; mean over classes",
        "f1": "harmonic mean of precision and recall; mean over classes",
        "ece": "expected calibration error: mean gap between confidence and accuracy; lower is better",
    }
    one_class = explains = True
    made_for: ClassVar[str] = "classify"
    """What its networks are registered for."""
    blank: ClassVar[Mapping[str, Any]] = {"label": None, "confidence": None, "top": []}

    def __init__(
        self,
        *,
        preprocess: Any,
        labels: Sequence[str] = (),
        settings: TaskSettings | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, settings=settings)
        self.label_smoothing = label_smoothing

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: Any) -> Self:
        """See `Task.from_recipe`."""
        return cls(
            preprocess=preprocess,
            labels=info.classes,
            settings=cls.read_settings(recipe),
            label_smoothing=recipe.training.label_smoothing,
        )

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`.

        Raises:
            ConfigError: the network is made for something else.
        """
        entry = MODELS.get(recipe.model.name)
        if entry.task != self.made_for:
            raise ConfigError(
                f"model.name: {entry.name} is made for {entry.task}, not for the task {self.name};"
                f" `reskit models --task {self.made_for}` lists networks that are"
            )
        return create_model(
            recipe.model.name,
            num_classes=len(self.labels),
            in_channels=self.preprocess.channels,
            **{**self.decided(), **recipe.model.arguments},
        )

    def decided(self) -> dict[str, Any]:
        """Return what the data decide of a network, besides its channels and classes."""
        return {}

    def target(self, batch: Batch) -> Tensor:
        """Return class indices `(N,)`."""
        return batch["label"]

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(N, classes)` with indices or probabilities."""
        return F.cross_entropy(outputs, target, label_smoothing=self.label_smoothing)

    def metrics(self) -> MetricCollection:
        """Return top1, top5 (beyond five classes), cross_entropy, ece, and macro precision, recall and f1."""
        from reskit.tasks.metrics import classification_metrics

        return classification_metrics(len(self.labels), bins=CALIBRATION_BINS)

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the columns target, prediction, confidence (of the prediction) and loss."""
        confidence, prediction = outputs.softmax(dim=1).max(dim=1)
        loss = F.cross_entropy(outputs, target, reduction="none")
        return {"target": target, "prediction": prediction, "confidence": confidence, "loss": loss}

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the tables per_class, confusion (rows are truth) and reliability."""
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        target, prediction = examples["target"], examples["prediction"]
        classes = np.arange(len(self.labels))
        precision, recall, f1, support = precision_recall_fscore_support(
            target, prediction, labels=classes, zero_division=0.0
        )
        per_class = [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(self.labels, precision, recall, f1, support, strict=True)
        ]
        return {
            "per_class": per_class,
            "confusion": confusion_matrix(target, prediction, labels=classes).tolist(),
            "reliability": _reliability(examples["confidence"], target == prediction),
        }

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw the confusion matrix and the reliability diagram."""
        from reskit import plots

        return {
            "confusion": plots.confusion(analysis["confusion"], self.labels, folder / "confusion.png"),
            "reliability": plots.reliability(
                analysis["reliability"], folder / "reliability.png", bin_count=CALIBRATION_BINS
            ),
        }

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return label, confidence and the (up to five) most probable labels of each row of logits."""
        probabilities, order = outputs.float().softmax(dim=1).topk(min(5, len(self.labels)), dim=1)
        return [
            {
                "label": self.labels[indices[0]],
                "confidence": values[0],
                "top": [
                    {"label": self.labels[i], "probability": p} for i, p in zip(indices, values, strict=True)
                ],
            }
            for indices, values in zip(order.tolist(), probabilities.tolist(), strict=True)
        ]

    def agreement(self, outputs: Tensor) -> Batch:
        """Return the most probable classes; see `Task.agreement`."""
        return {"label": outputs.argmax(1), "index": torch.arange(len(outputs))}

    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the label, how sure it is, and the next two."""
        others = ", ".join(f"{item['label']} {item['probability']:.1%}" for item in record["top"][1:3])
        return {"prediction": record["label"], "confidence": f"{record['confidence']:.1%}", "next": others}

    def columns(self) -> list[pa.Field]:
        """Return label, confidence and top, a list of structs."""
        import pyarrow as pa

        candidate = pa.struct([("label", pa.string()), ("probability", pa.float64())])
        return [
            pa.field("label", pa.string()),
            pa.field("confidence", pa.float64()),
            pa.field("top", pa.list_(candidate)),
        ]


def _reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    """Return accuracy and mean confidence of each non-empty bin of confidence."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        {
            "bin": index,
            "count": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
        }
        for index in np.unique(bins).tolist()
    ]
