"""Boxes around objects: driving, situational awareness, counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.box_vary import check_augment, factors, vary_boxes
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError, did_you_mean
from reskit.models import Backbone, Detector, create_model
from reskit.tasks.base import TASKS, Answered, Batch, Feeding, Network, Task
from reskit.tasks.boxes import coco_tables, held_against, need_pycocotools
from reskit.tasks.detect_schemes import PADDING, SCHEMES, Scheme
from reskit.tasks.detect_settings import DetectSettings

if TYPE_CHECKING:
    import pyarrow as pa
    from torch.utils.data import DataLoader
    from torchmetrics import MetricCollection

    from reskit.data import Source, Split
    from reskit.data.examples import Example

__all__ = ["Detect", "DetectSettings"]

SIDE = 320
MOST = 100
"""Boxes an image, as COCO's metrics count them."""


@TASKS.register("detect")
class Detect(Task):
    """Objects by their boxes, found by the points of a feature pyramid, in one pass or two.

    The network sees an image scaled to one size; boxes are said in pixels of the image as it came:
    `(N, 100, 6)`, each x1, y1, x2, y2, score and class, the best first, padded by class -1. True boxes are
    `(N, M, 5)` without a score.
    """

    name = "detect"
    main_metric = "map"
    meanings: ClassVar[Mapping[str, str]] = {
        "map": "COCO's average precision, mean over IoU 0.50 to 0.95 and classes",
        "map50": "average precision where an IoU of 0.50 is enough, mean over classes",
        "map75": "average precision where an IoU of 0.75 is asked for, mean over classes",
    }
    weakest_by = "map"
    pipeline_tag = "object-detection"
    Settings = DetectSettings
    settings: DetectSettings
    preprocess: ImagePreprocess
    blank: ClassVar[Mapping[str, Any]] = {"boxes": []}

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: ImagePreprocess) -> Self:
        """See `Task.from_recipe`; also asks the network for the strides of its pyramid."""
        need_pycocotools()
        check_augment(recipe.augment)
        if recipe.transfer.trained == "head":
            raise ConfigError(
                "transfer.trained: head keeps pooled features, without places; say how many segments learn"
            )
        settings: DetectSettings = cls.read_settings(recipe)
        labels = list(settings.classes or info.classes)
        for label in labels:
            if label not in info.classes:
                known = did_you_mean(label, info.classes)
                raise ConfigError(f"task.arguments.classes: {info.location} has no class {label!r}{known}")
        with torch.device("meta"):
            network = _network(recipe, preprocess, len(labels))
        return cls(preprocess=preprocess, labels=labels, settings=cls.settled(settings, network))

    @classmethod
    def settled(cls, settings: DetectSettings, model: Backbone) -> DetectSettings:
        """Return settings with the network's levels and scheme; see `Task.settled`."""
        if not isinstance(model, Detector):
            raise ConfigError(
                f"model.name: {model.architecture['name']} finds no boxes; `reskit models --task detect`"
                " lists networks that do, and any other is their `backbone` argument"
            )
        return settings.model_copy(update={"levels": tuple(model.levels), "scheme": model.scheme})

    # Data.

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        from reskit.data.boxes import open_boxes

        return open_boxes(data, seed=seed)

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> ImagePreprocess:
        """Return a square of `SIDE` pixels into which images are padded, unless the recipe says otherwise."""
        asked = recipe.preprocess
        if asked.resize == "crop":
            raise ConfigError("preprocess.resize: crop cuts objects off; detection takes pad or squash")
        suited = ImagePreprocess.from_info(
            info, size=asked.size or SIDE, interpolation=asked.interpolation or "bilinear"
        )
        return suited.model_copy(update={"resize": asked.resize or "pad", "crop_fraction": 1.0})

    def check(self, source: Source) -> None:
        """Refuse data that lack a class.

        Raises:
            DataError: naming it.
        """
        for label in self.labels:
            if label not in source.classes:
                raise DataError(
                    f"{source.location} has no class {label!r}, which the bundle was trained on"
                    f"{did_you_mean(label, source.classes)}"
                )

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return images of the network's size to train with, or images as they are, and their boxes."""
        from reskit.data.boxes import BoxSplit
        from reskit.data.examples import ExampleSet, example_loader, hold
        from reskit.data.memory import verify_split

        if not isinstance(split, BoxSplit):
            raise DataError(f"split {split.name!r} has no boxes")
        numbers = {split.classes.index(label): place for place, label in enumerate(self.labels)}
        most = max(1, max(len(picture.boxes) for picture in split.pictures))
        augment = feeding.augment

        def read(item: object, row: int) -> Example:
            image = self.preprocess.decode(item)
            boxes = split.boxes(row, (image.shape[-2], image.shape[-1]))
            wanted = [[*box[:4], numbers[int(box[4])]] for box in boxes if int(box[4]) in numbers]
            return {"image": image, "boxes": _padded(torch.tensor(wanted).reshape(-1, 5), most)}

        def vary(example: Example, generator: torch.Generator) -> Example:
            assert augment is not None
            boxes = example["boxes"]
            image, boxes = vary_boxes(
                example["image"],
                boxes[boxes[:, 4] >= 0],
                preprocess=self.preprocess,
                augment=augment,
                scale=self.settings.scale,
                generator=generator,
            )
            return {"image": image, "boxes": _padded(boxes, most)}

        held: Callable[[int], Example]
        if feeding.mode == "memory":
            held = hold(split, read)
        else:
            verify_split(split, self.preprocess)
            held = lambda row: read(split.item(row), row)  # noqa: E731
        return example_loader(
            ExampleSet(
                split.rows.tolist(),
                held,
                vary=None if augment is None else vary,
                views=1 if augment is None else self.settings.views,
                seed=feeding.seed,
            ),
            **feeding.of_examples(),
        )

    def stored(self, info: DataInfo) -> ImagePreprocess:
        """Return the images' own size; see `Task.stored`."""
        return self.preprocess.model_copy(update={"size": info.sizes.median})

    def read(self, item: object) -> Tensor:
        """Return an image at its own size; see `Task.read`."""
        return self.preprocess.decode(item)

    def sample(self, item: object) -> Tensor:
        """See `Task.sample`."""
        return self.preprocess.read(item)

    # Training.

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`."""
        return _network(recipe, self.preprocess, len(self.labels))

    def target(self, batch: Batch) -> Tensor:
        """Return boxes `(N, M, 5)` in pixels of the images: x1, y1, x2, y2, class; padded by class -1."""
        return batch["boxes"]

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `fcos_loss` and `rcnn_loss`."""
        return self.scheme.loss(outputs, target, self._places(), self.settings.levels)

    @property
    def scheme(self) -> Scheme:
        """What the network's outputs mean."""
        return SCHEMES.get(self.settings.scheme)

    def _places(self) -> Tensor:
        return self.scheme.places(self.preprocess.size, self.settings.levels)

    # Evaluation.

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """Return the detections `(N, 100, 6)` in images of any size, in their own pixels."""
        size = (images.shape[-2], images.shape[-1])
        across, down = factors(size, self.preprocess)
        height, width = self.preprocess.size
        if self.preprocess.resize == "pad":
            height, width = self.preprocess.scaled(*size)
        found = self.scheme.detections(
            network(self.preprocess.fit(images)),
            self._places(),
            (height, width),
            overlap=self.settings.overlap,
            most=MOST,
        )
        found[..., :4] /= found.new_tensor([across, down, across, down])
        return found

    def metrics(self) -> MetricCollection:
        """Return map, map50 and map75."""
        from reskit.tasks.detect_metrics import detection_metrics

        need_pycocotools()
        return detection_metrics()

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return objects, found, missed and false at the score that predict reports; and all boxes."""
        counts = held_against(outputs, target, self.settings.score)
        return {**counts, "detections": outputs, "truth": target}

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the tables per_class and precision_recall."""
        found, there = (torch.from_numpy(examples[name]) for name in ("detections", "truth"))
        return coco_tables(found, there, self.labels)

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw precision over recall, and true and found boxes of images from most to fewest mistakes."""
        from reskit.tasks.detect_report import draw_report

        return draw_report(analysis, examples, answered, folder, boxed=self.boxed, reported=self.reported)

    def agreement(self, outputs: Tensor) -> Batch:
        """Return the reported boxes as the true ones; see `Task.agreement`."""
        boxes = outputs[..., [0, 1, 2, 3, 5]].clone()
        boxes[..., 4] = torch.where(outputs[..., 4] >= self.settings.score, boxes[..., 4], PADDING)
        return {"boxes": boxes, "index": torch.arange(len(outputs))}

    # Prediction.

    def reported(self, rows: Tensor) -> Tensor:
        """Return the detections `(n, 6)` of one image that are sure enough."""
        return rows[(rows[:, 5] >= 0) & (rows[:, 4] >= self.settings.score)]

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return the boxes of each image, the best first: label, score, x1, y1, x2, y2."""
        return [
            {
                "boxes": [
                    {"label": self.labels[int(label)], "score": score, **_corners(corners)}
                    for *corners, score, label in self.reported(rows).tolist()
                ]
            }
            for rows in outputs.float()
        ]

    def pictures(self, image: Tensor, outputs: Tensor) -> dict[str, np.ndarray]:
        """Return the image with its boxes drawn."""
        return {"drawn": self.boxed(image, self.reported(outputs[0]))}

    def boxed(self, image: Tensor, rows: Tensor) -> np.ndarray:
        """Draw boxes `(n, 5)` with a class, or `(n, 6)` with a score and a class, into `(C, h, w)`."""
        from reskit import plots

        names = [
            self.labels[int(row[-1])] + (f" {row[4]:.0%}" if len(row) == 6 else "") for row in rows.tolist()
        ]
        return plots.draw_boxes(image, rows[:, :4], names, rows[:, -1].int().tolist())

    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return how many of what were found, and the surest."""
        boxes: Sequence[Mapping[str, Any]] = record["boxes"]
        counts = Counter(box["label"] for box in boxes)
        found = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        return {
            "found": found or "nothing",
            "surest": f"{boxes[0]['label']} {boxes[0]['score']:.1%}" if boxes else "",
            "drawn": record.get("drawn", ""),
        }

    def columns(self) -> list[pa.Field]:
        """Return boxes, a list of structs, and where the drawn image was saved."""
        import pyarrow as pa

        numbers = [(name, pa.float64()) for name in ("score", "x1", "y1", "x2", "y2")]
        box = pa.struct([("label", pa.string()), *numbers])
        return [pa.field("boxes", pa.list_(box)), pa.field("drawn", pa.string())]


def _network(recipe: Recipe, preprocess: ImagePreprocess, classes: int) -> Backbone:
    return create_model(
        recipe.model.name, num_classes=classes, in_channels=preprocess.channels, **recipe.model.arguments
    )


def _padded(boxes: Tensor, most: int) -> Tensor:
    """Return boxes `(n, 5)` as `(most, 5)`, padded by class -1."""
    padded = torch.full((most, 5), PADDING)
    padded[:, :4] = 0.0
    padded[: len(boxes)] = boxes
    return padded


def _corners(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), values, strict=True))
