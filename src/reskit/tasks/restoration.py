"""What denoising and super-resolution share: an image is the answer, decibels the measure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.augment import Augment
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError
from reskit.models import MODELS, Backbone, create_model, list_models
from reskit.tasks.base import Answered, Batch, Drop, Feeding, shown_of
from reskit.tasks.dense import DenseSettings, DenseTask, centre, pad_to

if TYPE_CHECKING:
    import pyarrow as pa
    from torch.utils.data import DataLoader
    from torchmetrics import MetricCollection

    from reskit.data import Source, Split
    from reskit.data.examples import Example

__all__ = ["RestorationSettings", "RestorationTask", "psnr", "to_pixels"]

MEASURED = 11
"""The least side of what is measured: the window of the structural similarity."""
_TURNS = Augment(flip=1.0, dihedral=True)


class RestorationSettings(DenseSettings):
    """What a recipe may say of a task whose answer is an image."""

    channels: Literal[1, 3] | None = Field(
        None, description="of the network: 1 for grey or luminance, 3 for RGB; as in the data when absent"
    )
    loss: Literal["mse", "l1"] = Field("mse", description="mean squared or mean absolute error")


class RestorationTask(DenseTask):
    """An image made better; pixels are in [0, 1] for the network, and what it answers is too.

    A grey network takes colour pictures too and answers in colour; how, the tasks say.
    """

    main_metric = "psnr"
    meanings: ClassVar[Mapping[str, str]] = {
        "psnr": "peak signal-to-noise ratio in dB, mean over images",
        "ssim": "structural similarity (Wang et al. 2004), mean over images",
    }
    drop = Drop(0.1, 1.0, "dB")
    dtype = "float32"
    statistics = "none"
    pipeline_tag = "image-to-image"
    blank: ClassVar[Mapping[str, Any]] = {"height": None, "width": None}
    Settings = RestorationSettings
    settings: RestorationSettings
    shave = 0
    """Pixels at the border that are not measured."""

    # Data.

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """Open pictures without labels; see `open_pictures`."""
        from reskit.data.pictures import open_pictures

        return open_pictures(data, seed=seed)

    @classmethod
    def geometry(cls, recipe: Recipe, info: DataInfo, train: Split) -> ImagePreprocess:
        """Return tiles of the network's channels; see `DenseTask.geometry`."""
        channels = cls.read_settings(recipe).channels or info.channels
        return super().geometry(recipe, info.model_copy(update={"channels": channels}), train)

    @abstractmethod
    def learned(self, item: object) -> Example:
        """Return what patches are cut from, for training.

        Raises:
            DataError: the image cannot be read.
        """

    @abstractmethod
    def tested(self, item: object, row: int) -> Example:
        """Return an image to be answered, `image`, and what it should become, `target`.

        Raises:
            DataError: the image cannot be read.
        """

    @abstractmethod
    def vary(self, example: Example, augment: Augment, generator: torch.Generator) -> Example:
        """Return a patch of what `learned` gave, cut and varied at random."""

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return patches to train with, or whole images, one at a time; see `Task.loader`."""
        from reskit.data.examples import ExampleSet, example_loader, reader

        augment = feeding.augment
        if augment is not None and augment.model_copy(update={"flip": 1.0, "dihedral": True}) != _TURNS:
            raise ConfigError(
                f"{self.name} learns from pixels as they are: of augment it takes flip and dihedral only"
            )

        def read(item: object, row: int) -> Example:
            return self.tested(item, row) if augment is None else self.learned(item)

        def vary(example: Example, generator: torch.Generator) -> Example:
            assert augment is not None
            return self.vary(example, augment, generator)

        held = reader(split, read, feeding.mode)
        rows = split.rows.tolist()
        if augment is None:
            dataset = ExampleSet(rows, held)
        else:
            dataset = ExampleSet(rows, held, vary=vary, views=self.settings.patches, seed=feeding.seed)
        return example_loader(
            dataset,
            **feeding.of_examples(),
        )

    def require(self, image: Tensor, side: int, what: str) -> None:
        """Refuse an image `(..., h, w)` with a side below `side`, what it is too small for being named.

        Raises:
            DataError: with both sizes.
        """
        height, width = image.shape[-2:]
        if min(height, width) < side:
            raise DataError(f"an image of {height}x{width} pixels is too small {what}: {side} are needed")

    def read(self, item: object) -> Tensor:
        """Return an image as float32 pixels from 0 to 255, `(C, h, w)`; for a grey network in colour too."""
        if self.preprocess.channels != 1:
            return super().read(item).float()
        image = self.preprocess.model_copy(update={"channels": 3}).decode(item).float()
        return image[:1] if bool((image == image[:1]).all()) else image

    def sample(self, item: object) -> Tensor:
        """Return the centre of an image, a tile large, in the network's channels; see `Task.sample`."""
        image = self.preprocess.decode(item).float()
        return centre(pad_to(image, self.preprocess.size), self.preprocess.size)

    # Training.

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`.

        Raises:
            ConfigError: the network is none for this task, or is told what the task decides.
        """
        name = recipe.model.name
        if MODELS.get(name).task != self.name:
            known = ", ".join(list_models(task=self.name))
            raise ConfigError(f"{name} is no network to {self.name} with; those are {known}")
        decided, said = self.architecture(self.settings), recipe.model.arguments
        for argument in decided.keys() & said.keys():
            raise ConfigError(f"model.arguments.{argument} is what task.arguments decides: say it there only")
        return create_model(name, in_channels=self.preprocess.channels, **said, **decided)

    def target(self, batch: Batch) -> Tensor:
        """Return the true image in [0, 1], `(N, C, H, W)`."""
        return batch["target"].float() / 255

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared or absolute error of pixels in [0, 1], times 255."""
        error = outputs - target
        return (error.square() if self.settings.loss == "mse" else error.abs()).mean() * 255

    # Evaluation.

    def metrics(self) -> MetricCollection:
        """Return psnr and ssim, each the mean over images of what is measured of them."""
        from reskit.tasks.metrics import restoration_metrics

        return restoration_metrics(self.measured)

    def measured(self, image: Tensor) -> Tensor:
        """Return the part of an image `(N, C, H, W)` in [0, 1] that is measured."""
        inner = slice(self.shave, -self.shave or None)
        return image[..., inner, inner].clamp(0, 1)

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the column psnr."""
        return {"psnr": psnr(self.measured(outputs), self.measured(target))}

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return how the psnr is spread over the images."""
        found = examples["psnr"]
        return {
            "psnr_spread": {
                "min": float(found.min()),
                "median": float(np.median(found)),
                "max": float(found.max()),
            }
        }

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw the images that were restored worst, median and best: given, restored, true, difference."""
        from reskit import plots

        order = np.argsort(examples["psnr"], kind="stable")
        rows = []
        for row in shown_of(order):
            batch, outputs = answered(row)
            given, true, made = (
                to_pixels(image) for image in (self.given(batch), self.target(batch), outputs)
            )
            before = float(self.examples(self.given(batch), self.target(batch))["psnr"][0])
            difference = np.clip(128 + 4 * (made.astype(int) - true.astype(int)), 0, 255).astype(np.uint8)
            titles = (
                f"given, {before:.2f} dB",
                f"restored, {examples['psnr'][row]:.2f} dB",
                "true",
                "difference x 4",
            )
            rows.append(list(zip(titles, (given, made, true, difference), strict=True)))
        return {"restored": plots.panels(rows, folder / "restored.png", heading="Worst to best")}

    def given(self, batch: Batch) -> Tensor:
        """Return what the network was given, as an image in [0, 1] of the size of the answer."""
        return batch["image"].float() / 255

    # Prediction.

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return the size of each answer; the image itself is a picture."""
        height, width = outputs.shape[-2:]
        return [{"height": height, "width": width} for _ in outputs]

    def pictures(self, image: Tensor, outputs: Tensor) -> dict[str, np.ndarray]:
        """Return the restored image."""
        return {"restored": to_pixels(outputs)}

    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the size, and where the image was saved."""
        return {
            "size": f"{record['height']} x {record['width']}",
            "restored": record.get("restored", "--save DIR keeps it"),
        }

    def columns(self) -> list[pa.Field]:
        """Return height and width, and where the image was saved."""
        import pyarrow as pa

        return [
            pa.field("height", pa.int64()),
            pa.field("width", pa.int64()),
            pa.field("restored", pa.string()),
        ]


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each of two batches in [0, 1], `(N,)`; at most 100."""
    error = (made.double() - true.double()).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def to_pixels(image: Tensor) -> np.ndarray:
    """Return a batch of one image in [0, 1] as uint8 `(H, W)` or `(H, W, 3)`."""
    pixels = (image[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
