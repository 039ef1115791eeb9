"""The data of a run, opened and ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from reskit.config import Recipe
from reskit.data import IMAGENET_MEAN, IMAGENET_STD, MemoryImages, choose_mode, measure_mean_std
from reskit.data.preprocess import Statistics
from reskit.errors import ConfigError
from reskit.tasks import TASKS, Batch, Feeding

__all__ = ["Feed"]

STATISTICS_IMAGES = 2000
"""Images of a streamed training split from which mean and standard deviation are measured."""


class Feed:
    """What a recipe says about data, carried out.

    Args:
        recipe: task, data, preprocess, augment and training are read.
        processes: how many share a batch.
        say: told what was found and decided, in lines.

    Attributes:
        source: the opened data.
        info: its description; unreadable images that were skipped are listed and no longer counted.
        task: what the recipe asks of these data.
        loaders: batches of `train`, of `monitor` and of the held-out split, before they are shared out.
        monitor: the split measured after each epoch: validation where there is one, else the held-out one.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the recipe asks for what the data do not have.
    """

    def __init__(self, recipe: Recipe, *, processes: int, say: Callable[[str], None]) -> None:
        self._recipe, self._processes = recipe, processes
        data, training, kind = recipe.data, recipe.training, TASKS.get(recipe.task.name)
        self.source = kind.open(data, seed=training.seed)
        info = self.source.describe()
        self.monitor = "validation" if "validation" in self.source.splits else info.held_out
        if (training.keep == "best" or training.patience) and self.monitor == info.held_out:
            raise ConfigError(
                f"choosing epochs (training.keep, training.patience) on {self.monitor!r} would flatter the"
                " final figure, measured there; it takes train, validation and test splits:"
                " data.validation=0.1 makes the second where it is missing"
            )
        if training.batch_size % (training.accumulate * processes):
            raise ConfigError(
                f"training.batch_size {training.batch_size} does not divide by {processes} processes"
                f" x {training.accumulate} micro-batches"
            )
        train = self.source["train"]
        self.task = kind.from_recipe(recipe, info, kind.geometry(recipe, info, train))
        self._mode, reason = choose_mode(info, self.task.stored(info), augment=recipe.augment)
        if not kind.streams:
            self._mode, reason = "memory", "examples are kept in memory"
        elif data.loading != "auto":
            self._mode, reason = data.loading, f"data.loading is {data.loading}"
        # The held-out split is opened before training, so that a bad image in it is not found after.
        splits = dict.fromkeys(("train", self.monitor, info.held_out))
        self.loaders = {split: self._loader(split) for split in splits}
        preprocess = self.task.preprocess.measured(self._statistics)
        self.task = kind.from_recipe(recipe, info, preprocess)
        self.info = self.source.describe()  # reading every image may have left some out
        for line in (*self.info.lines(), f"given to the network: {self.task.preprocess.describe()}", reason):
            say(line)
        if not len(self.loaders["train"]):
            count = len(self.source["train"])
            raise ConfigError(
                f"training.batch_size {training.batch_size} is more than the {count} training examples:"
                f" --set training.batch_size={max(1, count // 8)}"
            )

    def _loader(self, split: str) -> DataLoader[Batch]:
        """Return batches of a split: shuffled and varied for `train`, as they are else."""
        recipe, training = self._recipe, self._recipe.training
        trains = split == "train"
        feeding = Feeding(
            batch_size=training.batch_size // training.accumulate // self._processes,
            mode=self._mode,
            augment=recipe.augment if trains else None,
            shuffle=trains,
            seed=training.seed,
            workers=recipe.data.workers,
            pin_memory=torch.cuda.is_available(),
        )
        return self.task.loader(self.source[split], feeding)

    def inputs(self, count: int) -> Iterator[Tensor]:
        """Yield the raw input of up to `count` training examples spread evenly, a batch of one each."""
        split = self.source["train"]
        places = np.linspace(0, len(split.rows) - 1, min(count, len(split.rows))).astype(int)
        for row in split.rows[places]:
            yield self.task.sample(split.item(int(row)))[None]

    def _statistics(self) -> Statistics:
        """Return the mean and standard deviation the recipe asks for, of pixels in [0, 1]."""
        channels, asked = self.task.preprocess.channels, self._recipe.preprocess
        if asked.mean is not None and asked.std is not None:
            return _fitted(asked.mean, channels), _fitted(asked.std, channels)
        match self.task.statistics or asked.statistics:
            case "none":
                return (0.0,) * channels, (1.0,) * channels
            case "imagenet" if channels == 3:
                return IMAGENET_MEAN, IMAGENET_STD
            case "imagenet":
                raise ConfigError(
                    f"preprocess.statistics imagenet is for 3 channels, these images have {channels}"
                )
            case "weights":  # settled when the run began: they are in mean and std
                raise ConfigError("preprocess.statistics weights needs model.weights")
            case "data":
                held = self.loaders["train"].dataset
                if isinstance(held, MemoryImages):
                    return measure_mean_std(held.images.permute(0, 3, 1, 2))
                return measure_mean_std(self.inputs(STATISTICS_IMAGES))


def _fitted(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return statistics given for other channels, such as RGB's, as their mean for every channel there is."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
