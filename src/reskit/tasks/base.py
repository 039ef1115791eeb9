"""What differs between tasks, and nothing else: head, loss, metrics, decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.models import Backbone
from reskit.registry import Registry

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

__all__ = ["TASKS", "Batch", "Task"]

Batch = Mapping[str, Tensor]


class Task(ABC):
    """One kind of question a network answers.

    A task is made from a recipe and what was found in the data (`from_recipe`), or from a bundle
    (`from_config`); both read, score and decode alike, so training and serving cannot disagree. It
    knows nothing of devices, loops or file formats.

    Args:
        preprocess: how a raw example becomes the network's input.
        labels: class names, in the order of the network's outputs.
    """

    name: ClassVar[str]
    main_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    def __init__(self, *, preprocess: ImagePreprocess, labels: list[str]) -> None:
        self.preprocess = preprocess
        self.labels = labels
        self.normalize = preprocess.normalize()

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: ImagePreprocess) -> Task:
        """Make the task a recipe asks for on the data at hand."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Task:
        """Make the task again from what `config` returned."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return what a bundle stores: JSON values only, enough for `from_config`."""

    @abstractmethod
    def build_model(self, recipe: Recipe) -> Backbone:
        """Return the recipe's network, its weights random, with the head this task needs."""

    def inputs(self, batch: Batch) -> Tensor:
        """Return the network's input: images uint8 `(N, C, H, W)` to normalised float.

        A batch of features, kept from a network that rests, goes to the head as it is.
        """
        if "features" in batch:
            return batch["features"]
        normalized: Tensor = self.normalize(batch["image"])
        return normalized

    @abstractmethod
    def target(self, batch: Batch) -> Tensor:
        """Return what the network's output is held against."""

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the examples of a training batch (mixup, cutmix); the identity unless overridden."""
        return inputs, target

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the scalar that training lowers; `target` may come from `mix`."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return fresh scalar metrics, updated with `(outputs, target)`; they must not sync by themselves."""

    @abstractmethod
    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return one row an example as columns `(N,)`: what it was, what was said, how wrong that is."""

    @abstractmethod
    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the tables of an evaluation from its rows; JSON values only."""

    @abstractmethod
    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        images: Callable[[int], np.ndarray],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw an evaluation into PNG files and return them by name.

        `images(i)` is example `i` of the split, uint8 `(H, W, C)`.
        """

    @abstractmethod
    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return one record an example that a person can read: label, confidence, top."""


TASKS: Registry[type[Task]] = Registry("task")
