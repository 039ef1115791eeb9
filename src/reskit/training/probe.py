"""Linear probing: the features of a network that rests are computed once, and only its head is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reskit.config import Recipe
from reskit.data.loading import EpochSampler, batches
from reskit.errors import ConfigError
from reskit.models import Backbone
from reskit.tasks import Task
from reskit.training.feed import Feed

__all__ = ["CachedFeatures", "cache_features"]


class CachedFeatures(Dataset[Any]):
    """Pooled features of a split, in one or more augmented versions; epochs take the versions in turn.

    Args:
        features: float `(views, N, num_features)`.
        labels: int64 `(N,)`.
        rows: row number of each example in its split, int64 `(N,)`.
    """

    def __init__(self, features: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.features, self.labels, self.rows = features, labels, rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[int]) -> dict[str, Tensor]:
        """Return the batch of `keys` (see `EpochSampler`)."""
        view = keys[0] // len(self) % len(self.features)
        index = torch.tensor(keys, dtype=torch.int64) % len(self)
        return {
            "features": self.features[view, index],
            "label": self.labels[index],
            "index": self.rows[index],
        }


def cache_features(
    recipe: Recipe,
    task: Task,
    model: Backbone,
    feed: Feed,
    *,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, DataLoader[Any]]:
    """Return loaders like those of `feed`, of what `model.pooled` gives instead of images.

    Raises:
        ConfigError: cutmix is asked for, which cuts from images.
    """
    if recipe.augment.cutmix:
        raise ConfigError("augment.cutmix cuts from images, and transfer.trained: head keeps features only")
    model.to(device).eval()
    task.normalize.to(device)
    views = recipe.transfer.views if recipe.augment.changes_pixels else 1
    loaders = {}
    for split in dict.fromkeys(("train", feed.monitor)):
        loader = feed.loaders[split]
        held = _features(task, model, loader, views=views if split == "train" else 1, device=device)
        loaders[split] = batches(
            held,
            batch_size=loader.batch_size or 1,
            shuffle=split == "train",
            seed=recipe.training.seed,
            drop_last=loader.drop_last,
        )
        count, width = held.features.shape[1:]
        say(f"features of {split} are kept: {count:,} x {width}" + (f", {views} views" if views > 1 else ""))
    return loaders


@torch.inference_mode()
def _features(
    task: Task, model: Backbone, loader: DataLoader[Any], *, views: int, device: torch.device
) -> CachedFeatures:
    """Run the resting network over a split, in order, once a view."""
    ordered = batches(loader.dataset, batch_size=loader.batch_size or 1, workers=loader.num_workers)
    sampler = ordered.sampler
    assert isinstance(sampler, EpochSampler)
    passes: list[Tensor] = []
    labels, rows = [], []
    for view in range(views):
        sampler.set_epoch(view)
        found = []
        for batch in ordered:
            found.append(model.pooled(task.inputs({task.raw: batch[task.raw].to(device)})).float().cpu())
            if view == 0:
                labels.append(batch["label"])
                rows.append(batch["index"])
        passes.append(torch.cat(found))
    return CachedFeatures(torch.stack(passes).clone(), torch.cat(labels).clone(), torch.cat(rows).clone())
