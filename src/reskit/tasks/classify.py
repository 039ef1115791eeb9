"""One label an image: image recognition, medical diagnosis, quality control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor
from torchvision.transforms import v2

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.config import DataConfig
from reskit.tasks.base import TASKS, Answered, Feeding, TaskSettings
from reskit.tasks.labelled import Labelled

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from reskit.data import Source, Split

__all__ = ["Classify"]


@TASKS.register("classify")
class Classify(Labelled):
    """One class an image.

    Args:
        preprocess: how an image becomes the network's input.
        labels: class names, in the order of the logits.
        mixup: alpha of the Beta distribution of mixup (Zhang et al. 2018); 0 is off.
        cutmix: alpha of cutmix (Yun et al. 2019); 0 is off. With both, each batch draws one.
        **options: as `Labelled`.
    """

    name = "classify"
    pipeline_tag = "image-classification"
    preprocess: ImagePreprocess

    def __init__(
        self,
        *,
        preprocess: Any,
        labels: Sequence[str] = (),
        settings: TaskSettings | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, settings=settings, **options)
        classes = len(labels)
        mixers = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
        mixers += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
        self._mixer = v2.RandomChoice(mixers) if mixers else None

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: Any) -> Self:
        """See `Task.from_recipe`."""
        return cls(
            preprocess=preprocess,
            labels=info.classes,
            settings=cls.read_settings(recipe),
            label_smoothing=recipe.training.label_smoothing,
            mixup=recipe.augment.mixup,
            cutmix=recipe.augment.cutmix,
        )

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        from reskit.data.sources import open_labelled

        return open_labelled(data, seed=seed)

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return batches of image, label and index; see `Task.loader` and `reskit.data.make_loader`."""
        from reskit.data import LabelledSplit, make_loader

        assert isinstance(split, LabelledSplit)
        return make_loader(
            split,
            preprocess=self.preprocess,
            drop_last=feeding.augment is not None,
            **feeding._asdict(),
        )

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and class probabilities `(N, classes)`."""
        if self._mixer is None:
            return inputs, target
        mixed: tuple[Tensor, Tensor] = self._mixer(inputs, target)
        return mixed

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw the confusion matrix, the reliability diagram and the worst mistakes."""
        from reskit import plots

        drawn = super().draw(analysis, examples, answered, folder)
        order = np.argsort(-examples["loss"], kind="stable")
        worst = [int(row) for row in order if examples["target"][row] != examples["prediction"][row]][:24]
        titles = [
            f"{self.labels[examples['target'][row]]} as {self.labels[examples['prediction'][row]]}"
            f" {examples['confidence'][row]:.0%}"
            for row in worst
        ]
        if worst:
            pictures = [answered(row).batch["image"][0].permute(1, 2, 0).numpy() for row in worst]
            drawn["mistakes"] = plots.image_grid(
                pictures, titles, folder / "mistakes.png", heading="Worst mistakes"
            )
        return drawn
