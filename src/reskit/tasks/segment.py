"""A class for every pixel: medical image segmentation, land cover, defects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError
from reskit.models import Backbone, create_model
from reskit.tasks.base import TASKS, Answered, Batch, Feeding, TaskSettings, shown_of
from reskit.tasks.dense import DenseTask
from reskit.tasks.segment_settings import SegmentSettings, added_losses, balanced, supervised

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchmetrics import MetricCollection

    from reskit.data import Source, Split
    from reskit.data.examples import Example

__all__ = ["Segment", "SegmentSettings"]

WHOLE = 512
"""Images of one size are answered whole up to so many pixels a side, others in tiles."""
TILE = 256
LEVELS = 100
"""Steps of probability by which the curve of precision and recall is counted."""


@TASKS.register("segment")
class Segment(DenseTask):
    """A weighted sum of losses over pixels; those without a label count nowhere.

    Args:
        preprocess: how an image becomes the network's input.
        labels: class names, in the order of the logits.
        settings: what the recipe says of the task.
        label_smoothing: of the cross-entropy.
    """

    name = "segment"
    main_metric = "dice"
    meanings: ClassVar[Mapping[str, str]] = {
        "dice": "twice the pixels said and true, by the sum of those said and those true; mean over classes",
        "iou": "pixels said and true, by those said or true (Jaccard); mean over classes",
        "foreground_dice": "dice of the second of two classes",
        "pixel_error": "share of pixels whose class is wrong; lower is better",
    }
    weakest_by = "dice"
    pipeline_tag = "image-segmentation"
    Settings = SegmentSettings
    settings: SegmentSettings
    blank: ClassVar[Mapping[str, Any]] = {"height": None, "width": None, "areas": []}

    def __init__(
        self,
        *,
        preprocess: ImagePreprocess,
        labels: Sequence[str] = (),
        settings: TaskSettings | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, settings=settings)
        self.label_smoothing = label_smoothing
        weights = self.settings.class_weights
        self._weights = torch.tensor(weights) if isinstance(weights, tuple) else None

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: ImagePreprocess) -> Segment:
        """See `Task.from_recipe`."""
        if recipe.transfer.trained == "head":
            raise ConfigError(
                "transfer.trained: head keeps pooled features, which know no places; give a number of"
                " segments"
            )
        settings: SegmentSettings = cls.read_settings(recipe)
        labels, weights = list(settings.classes) or info.classes, settings.class_weights
        if len(labels) != len(info.classes):
            raise ConfigError(
                f"task.arguments.classes names {len(labels)} classes, the data have {len(info.classes)}:"
                f" {', '.join(info.classes[:8])}"
            )
        if weights == "balanced":
            weights = balanced([info.splits["train"].per_class.get(name, 0) for name in info.classes])
        if weights is not None and len(weights) != len(labels):
            raise ConfigError(
                f"task.arguments.class_weights has {len(weights)} values for {len(labels)} classes: give one"
                " each"
            )
        return cls(
            preprocess=preprocess,
            labels=labels,
            settings=settings.model_copy(update={"class_weights": weights}),
            label_smoothing=recipe.training.label_smoothing,
        )

    # Data.

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        from reskit.data.mask_sources import open_masks

        return open_masks(data, seed=seed)

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> ImagePreprocess:
        """Return the images' own size where all have one and it is small, else tiles; see `DenseTask`."""
        sizes = info.sizes
        whole = sizes.max if sizes.uniform and max(sizes.max) <= WHOLE else (TILE, TILE)
        preprocess = super().geometry(recipe, info, train)
        return preprocess.model_copy(update={"size": recipe.preprocess.size or whole})

    def check(self, source: Source) -> None:
        """Refuse data of other classes.

        Names that the recipe gave stand for those of the data; indices of classes may lack the last ones.
        """
        from reskit.data.masks import MaskSplit

        split = next(iter(source.splits.values()))
        count = len(self.labels)
        if isinstance(split, MaskSplit) and split.coding.may_lack_classes and len(source.classes) <= count:
            return
        if not self.settings.classes:
            super().check(source)
        elif len(source.classes) != count:
            raise DataError(
                f"{source.location} has {len(source.classes)} classes, the bundle was trained on {count}"
            )

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return patches to train with, or whole images: image, mask and index; see `Task.loader`."""
        from reskit.data.examples import ExampleSet, example_loader, reader
        from reskit.data.mask_vary import check_augment, vary_masked
        from reskit.data.masks import MaskSplit

        assert isinstance(split, MaskSplit)
        augment, patch = feeding.augment, (self.settings.patch, self.settings.patch)
        if augment is not None:
            check_augment(augment)

        def read(item: object, row: int) -> Example:
            image = self.preprocess.decode(item)
            return {"image": image, "mask": split.mask(row, (image.shape[-2], image.shape[-1]))}

        def vary(example: Example, generator: torch.Generator) -> Example:
            assert augment is not None
            image, mask = vary_masked(example["image"], example["mask"], augment, patch, generator)
            return {"image": image, "mask": mask}

        held = reader(split, read, feeding.mode)
        dataset = ExampleSet(
            split.rows.tolist(),
            held,
            vary=None if augment is None else vary,
            views=1 if augment is None else self.settings.patches,
            seed=feeding.seed,
        )
        return example_loader(
            dataset,
            **feeding.of_examples(),
        )

    # Training.

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`."""
        model = create_model(
            recipe.model.name,
            num_classes=len(self.labels),
            in_channels=self.preprocess.channels,
            **recipe.model.arguments,
        )
        if self.settings.patch < 2 * model.strides[-1]:
            # A deepest map of one pixel leaves its norms next to nothing to take statistics from.
            raise ConfigError(
                f"task.arguments.patch {self.settings.patch} is too small for {recipe.model.name}, whose"
                f" stride is {model.strides[-1]}: set it to {2 * model.strides[-1]} at least"
            )
        return model

    def target(self, batch: Batch) -> Tensor:
        """Return classes `(N, H, W)`, `IGNORED` where there is no label."""
        return batch["mask"].long()

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the sum of `settings.losses`, of logits `(N, levels * K, H, W)`; see `supervised`."""
        weights = None if self._weights is None else self._weights.to(outputs.device)
        levels = torch.split(outputs, len(self.labels), dim=1)
        return supervised(
            [
                added_losses(logits, target, self.settings, weights=weights, smoothing=self.label_smoothing)
                for logits in levels
            ]
        )

    # Evaluation.

    def metrics(self) -> MetricCollection:
        """Return dice, iou, pixel_error and, of two classes, foreground_dice, over all pixels."""
        from reskit.tasks.segment_metrics import segmentation_metrics

        return segmentation_metrics(len(self.labels))

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the columns dice and iou (means over the classes in an image) and pixel_error.

        And for `analyse`: `areas` `(N, 3, K)`, the pixels of each class right, true and said; of two classes
        `scores` `(N, 2, LEVELS)`, pixels of each by the probability of the second.
        """
        from reskit.tasks.segment_analysis import figures, score_counts

        columns = figures(outputs, target)
        return columns | ({"scores": score_counts(outputs, target, LEVELS)} if len(self.labels) == 2 else {})

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the table per_class and, of two classes, precision_recall."""
        from reskit.tasks.segment_analysis import class_table, precision_recall

        tables: dict[str, Any] = {"per_class": class_table(examples["areas"].sum(0), self.labels)}
        if "scores" in examples:
            tables["precision_recall"] = precision_recall(examples["scores"].sum(0))
        return tables

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw the images answered worst, median and best, and of two classes precision over recall."""
        from reskit import plots

        order = np.argsort(examples["dice"], kind="stable")
        rows = []
        for row in shown_of(order):
            batch, outputs = answered(row)
            truth, said = batch["mask"][0].numpy(), outputs[0].argmax(0).numpy()
            titles = ("image", "truth", f"answer, dice {examples['dice'][row]:.3f}", "wrong pixels")
            pixels = batch["image"][0].to(torch.uint8).numpy()
            shown = plots.mask_panels(pixels, truth, said, len(self.labels))
            rows.append(list(zip(titles, shown, strict=True)))
        drawn = {"masks": plots.panels(rows, folder / "masks.png", heading="Worst to best")}
        if "precision_recall" in analysis:
            drawn["precision_recall"] = plots.threshold_curve(
                analysis["precision_recall"],
                folder / "precision_recall.png",
                of=f"pixels of {self.labels[1]}",
            )
        return drawn

    def agreement(self, outputs: Tensor) -> Batch:
        """Return the most probable classes; see `Task.agreement`."""
        return {"mask": outputs.argmax(1).to(torch.uint8), "index": torch.arange(len(outputs))}

    # Prediction.

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return size and areas of each answer: the pixels and the share of each class."""
        height, width = outputs.shape[-2:]
        records = []
        for classes in outputs.argmax(1):
            pixels = torch.bincount(classes.flatten(), minlength=len(self.labels)).tolist()
            areas = [
                {"label": label, "pixels": count, "share": count / (height * width)}
                for label, count in zip(self.labels, pixels, strict=True)
            ]
            records.append({"height": height, "width": width, "areas": areas})
        return records

    def pictures(self, image: Tensor, outputs: Tensor) -> dict[str, np.ndarray | Image.Image]:
        """Return the mask, class indices with a palette, and the image tinted by it."""
        from reskit import plots

        classes = outputs[0].argmax(0).to(torch.uint8).cpu().numpy()
        return {
            "mask": plots.indexed(classes, len(self.labels)),
            "overlay": plots.overlay(image.cpu().numpy(), classes, len(self.labels)),
        }

    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the largest areas, and where the mask was saved."""
        largest = sorted(record["areas"], key=lambda area: -area["share"])
        shown = ", ".join(f"{area['label']} {area['share']:.1%}" for area in largest[:4] if area["pixels"])
        return {"areas": shown, "mask": record.get("mask", "--save DIR keeps it")}

    def columns(self) -> list[pa.Field]:
        """Return height, width and areas, a list of structs, and where mask and overlay were saved."""
        import pyarrow as pa

        area = pa.struct([("label", pa.string()), ("pixels", pa.int64()), ("share", pa.float64())])
        return [
            pa.field("height", pa.int64()),
            pa.field("width", pa.int64()),
            pa.field("areas", pa.list_(area)),
            pa.field("mask", pa.string()),
            pa.field("overlay", pa.string()),
        ]
