"""One label a row of a table: fraud, risk, churn, machines that need repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo
from reskit.data.tables import TablePreprocess
from reskit.errors import ConfigError, did_you_mean
from reskit.inputs import Found
from reskit.inputs.tables import find_rows
from reskit.tasks.base import TASKS, Answered, TaskSettings
from reskit.tasks.labelled import Labelled
from reskit.tasks.rows import Rows, kept_preprocess

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from reskit.data import Split
    from reskit.data.column import Column

__all__ = ["Tabular"]

_POINTS = 200
"""Of the curve that is kept."""


class TabularSettings(TaskSettings):
    """What a recipe may say of rows of tables."""

    categorical: tuple[str, ...] = Field((), description="columns of categories, though they hold numbers")
    positive: str | None = Field(None, description="of two classes, the one to find; the rarer when absent")
    max_false_positives: float = Field(
        0.01, gt=0, lt=1, description="share of the others that may be called so, for recall_at_fpr"
    )
    false_positive_cost: float = Field(1.0, ge=0, description="of one that is called so and is not")
    false_negative_cost: float = Field(10.0, ge=0, description="of one that is so and is not called so")
    balanced: bool = Field(False, description="whether every class counts alike in the loss")
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="of the classes in the loss; balanced settles them"
    )


@TASKS.register("tabular")
class Tabular(Rows):
    """One class a row, told of its numbers and categories; see `TablePreprocess`.

    Of two classes one is to be found, the rarer unless `positive` names it: how well rows are ordered by its
    probability, how many are found while few others are called so, and what mistakes cost.
    """

    name = "tabular"
    takes = "table"
    made_for = "tabular"
    explains = False
    raw = "row"
    dtype = "float32"
    for_instance = "rows.csv"
    Input = TablePreprocess
    preprocess: TablePreprocess
    pipeline_tag = "tabular-classification"
    Settings = TabularSettings
    settings: TabularSettings
    main_metric = "roc_auc"
    meanings: ClassVar[Mapping[str, str]] = {
        "roc_auc": "chance that a row of a class has a higher probability of it than one of another",
        "average_precision": "area under precision over recall of the class to find",
        "recall_at_fpr": "share that is found of the class to find, with max_false_positives of the others",
        "expected_cost": "mean cost of mistakes, called so from the cheapest probability on; lower is better",
        **Labelled.meanings,
    }

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: Any) -> Self:
        """See `Task.from_recipe`; settles which class is to be found, and the weights of the loss."""
        task = super().from_recipe(recipe, info, preprocess)
        counts = info.splits["train"].per_class
        settings = task.settings
        positive = settings.positive
        if positive is None and len(counts) == 2:
            positive = min(counts, key=lambda name: (counts[name], -info.classes.index(name)))
        if positive is not None and len(counts) != 2:
            raise ConfigError(f"task.arguments.positive is for two classes; here are {len(counts)}")
        if positive is not None and positive not in info.classes:
            hint = did_you_mean(positive, info.classes)
            raise ConfigError(f"task.arguments.positive: there is no class {positive!r}{hint}")
        weights = settings.weights
        if settings.balanced:
            total = sum(counts.values())
            weights = tuple(total / (len(counts) * max(1, counts[name])) for name in info.classes)
        if weights and len(weights) != len(info.classes):
            raise ConfigError(f"task.arguments.weights: give {len(info.classes)}, one a class")
        task.settings = settings.model_copy(update={"positive": positive, "weights": weights})
        return task

    @classmethod
    def column(cls) -> Column:
        """See `Rows.column`."""
        from reskit.data.table_sources import ROWS

        return ROWS

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> TablePreprocess:
        """Return the scales and categories of the training rows; see `Task.geometry`."""
        cls.refuse_pictures(recipe)
        from reskit.data.table_sources import RowSplit

        assert isinstance(train, RowSplit)
        if (known := kept_preprocess(TablePreprocess, recipe)) is not None:
            return known
        return TablePreprocess.learned(train.columns(), cls.read_settings(recipe).categorical)

    def find(self, inputs: Any, recursive: bool) -> Iterator[Found]:
        """See `Task.find`."""
        return find_rows(inputs, recursive)

    def decided(self) -> dict[str, Any]:
        """Return how many values each column of categories has; see `Labelled.decided`."""
        return {"categories": [len(column.values) + 1 for column in self.preprocess.categories]}

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy, classes weighed as the settings say."""
        weights = self.settings.weights
        weight = torch.tensor(weights, device=outputs.device, dtype=outputs.dtype) if weights else None
        return F.cross_entropy(outputs, target, weight=weight, label_smoothing=self.label_smoothing)

    @property
    def wanted(self) -> int | None:
        """Index of the class to find, where there are two."""
        positive = self.settings.positive
        return self.labels.index(positive) if positive is not None and len(self.labels) == 2 else None

    def metrics(self) -> MetricCollection:
        """Return those of `Labelled` and roc_auc; of two classes also what the class docs say."""
        from reskit.tasks.metrics import tabular_metrics

        settings = self.settings
        costs = (settings.false_positive_cost, settings.false_negative_cost)
        return tabular_metrics(
            super().metrics(),
            classes=len(self.labels),
            wanted=self.wanted,
            max_false_positives=settings.max_false_positives,
            costs=costs,
        )

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return those of `Labelled`, and of two classes the probability of the one to find."""
        found = super().examples(outputs, target)
        if self.wanted is not None:
            found["probability"] = outputs.float().softmax(1)[:, self.wanted]
        return found

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return those of `Labelled`, and of two classes the curve of precision over recall."""
        from sklearn.metrics import average_precision_score, precision_recall_curve

        found = super().analyse(examples)
        truth = examples["target"] == self.wanted
        if self.wanted is not None and truth.any():
            precision, recall, thresholds = precision_recall_curve(truth, examples["probability"])
            kept = np.unique(np.linspace(0, len(recall) - 1, _POINTS).astype(int))
            found["precision_recall"] = {
                "precision": precision[kept].tolist(),
                "recall": recall[kept].tolist(),
                "thresholds": np.append(thresholds, 1.0)[kept].tolist(),
                "average_precision": float(average_precision_score(truth, examples["probability"])),
            }
        return found

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw those of `Labelled`, and of two classes the curve of precision over recall."""
        from reskit import plots

        drawn = super().draw(analysis, examples, answered, folder)
        if "precision_recall" in analysis:
            drawn["precision_recall"] = plots.threshold_curve(
                analysis["precision_recall"],
                folder / "precision_recall.png",
                of=f"rows of {self.settings.positive}",
            )
        return drawn
