"""The examples by which parts of a network are judged: few, labelled, decoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from reskit.data import Source
from reskit.errors import ConfigError, DataError, did_you_mean
from reskit.evaluation.run import network_answers
from reskit.tasks import Batch, Feeding, Task

__all__ = ["Examples", "choosing_split"]


@dataclass(frozen=True)
class Examples:
    """Labelled batches in memory.

    Attributes:
        task: how they are prepared and scored.
        split: where they are from.
        batches: what the task's loader gives.
        device: where networks run.
    """

    task: Task
    split: str
    batches: list[Batch]
    device: torch.device

    @classmethod
    def draw(cls, source: Source, split: str, task: Task, *, count: int, batch_size: int = 256) -> Self:
        """Take up to `count` examples, spread evenly over a split.

        Raises:
            DataError: the split is not there, the classes are not the task's, or an image cannot be read.
            ConfigError: `count` or `batch_size` is not positive.
        """
        if min(count, batch_size) < 1:
            raise ConfigError(f"examples is {count} and batch_size {batch_size}: give positive numbers")
        if split not in source.splits:
            raise DataError(f"{source.location} has no split {split!r}{did_you_mean(split, source.splits)}")
        task.check(source)
        batches = list(task.loader(source[split].spread(count), Feeding(batch_size=batch_size)))
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return cls(task, split, batches, device)

    def __len__(self) -> int:
        return sum(len(self.task.target(batch)) for batch in self.batches)

    @torch.inference_mode()
    def score(self, model: nn.Module) -> tuple[float, float]:
        """Return the mean loss of a network on the examples, and the task's main metric."""
        answer = network_answers(model.to(self.device), self.task, self.device)
        metric: Any = self.task.metrics()[self.task.main_metric]
        total = 0.0
        for batch in self.batches:
            outputs, target = answer(batch).float().cpu(), self.task.target(batch)
            metric.update(outputs, target)
            total += float(self.task.loss(outputs, target)) * len(target)
        return total / len(self), float(metric.compute())


def choosing_split(source: Source) -> str:
    """Return the split to decide by: ``validation``, or ``train`` where final figures are measured there."""
    return "validation" if "validation" in source.splits and source.held_out != "validation" else "train"
