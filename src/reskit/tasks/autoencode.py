"""Images made again of a few numbers: compression, generation, and anomalies told by what cannot be made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from reskit.config import Recipe
from reskit.data import DataInfo, ImagePreprocess
from reskit.data.config import DataConfig
from reskit.errors import ConfigError, DataError, did_you_mean
from reskit.models import MODELS, Backbone, create_model, list_models
from reskit.models.autoencoder import Parts, divergence, take_apart
from reskit.tasks.base import TASKS, Answered, Batch, Drop, Feeding, Task, TaskSettings
from reskit.tasks.restoration import to_pixels

if TYPE_CHECKING:
    import pyarrow as pa
    from torch.utils.data import DataLoader
    from torchmetrics import MetricCollection

    from reskit.data import Source, Split

__all__ = ["Autoencode", "AutoencodeSettings"]


NEAREST = 1e-6
"""How near to 0 and 1 a made pixel counts for its cross-entropy; engines of 8 bits may go beyond."""


def _names(value: Any) -> Any:
    """Read class names that YAML takes for numbers, and one name as a list of one."""
    several = value if isinstance(value, list | tuple) else () if value is None else (value,)
    return tuple(str(name) for name in several)


ClassNames = Annotated[tuple[str, ...], BeforeValidator(_names)]


class AutoencodeSettings(TaskSettings):
    """What a recipe may say of autoencoding."""

    latent: int = Field(16, ge=1, description="numbers an image is made again of")
    likelihood: Literal["bernoulli", "gaussian"] = Field(
        "bernoulli", description="of a pixel: its cross-entropy, or its squared error over 2 sigma^2"
    )
    sigma: float = Field(0.1, gt=0, description="gaussian: standard deviation of pixels in [0, 1]")
    beta: float = Field(1.0, ge=0, description="weight of the divergence from the prior in training")
    noise: float = Field(
        0.0, ge=0, description="standard deviation of noise on the images that are encoded in training"
    )
    train_classes: ClassNames = Field((), description="train on these only; all when empty")
    leave_out: ClassNames = Field((), description="train on all but these")
    latent_in_rows: bool = Field(True, description="whether predict gives the latent vector")

    @model_validator(mode="after")
    def _one_choice(self) -> AutoencodeSettings:
        if shared := set(self.train_classes) & set(self.leave_out):
            raise ValueError(f"{', '.join(sorted(shared))} cannot be both in train_classes and in leave_out")
        return self


@TASKS.register("autoencode")
class Autoencode(Task):
    """Reconstruction, and with a variational network the evidence lower bound.

    `labels` are the classes trained on. Images of any other class count as never seen: they have no part in
    `mse`, `psnr`, `kl` and `elbo`, and the error must tell them.

    Sources: Kingma and Welling, Auto-Encoding Variational Bayes, 2013, equation 3 and appendices B and C;
    Higgins et al., beta-VAE, 2017, equation 4 (`beta`); Vincent et al., Extracting and Composing Robust
    Features with Denoising Autoencoders, 2008 (`noise`).
    """

    name = "autoencode"
    main_metric = "mse"
    higher_is_better = False
    meanings: ClassVar[Mapping[str, str]] = {
        "mse": "mean squared error of the pixels in [0, 1], mean over images; lower is better",
        "psnr": "peak signal-to-noise ratio in dB, mean over images",
        "elbo": "log-likelihood of an image in nats at the mean of its latent vector, less the divergence",
        "kl": "divergence of the latent distribution from the prior in nats, mean over images",
        "unseen_mse": "mse of images of classes that were not trained on",
        "roc_auc": "chance that an image of an unseen class has a larger error than one of a seen class",
        "average_precision": "area under precision over recall, unseen classes being what is looked for",
    }
    weakest_by = "psnr"
    drop = Drop(0.5, 1e-3, "thousandths of squared error")
    statistics = "none"
    pipeline_tag = "image-feature-extraction"
    blank: ClassVar[Mapping[str, Any]] = {"score": None, "latent": []}
    Settings = AutoencodeSettings
    settings: AutoencodeSettings
    preprocess: ImagePreprocess

    @classmethod
    def from_recipe(cls, recipe: Recipe, info: DataInfo, preprocess: ImagePreprocess) -> Autoencode:
        """See `Task.from_recipe`; classes without a training image count as left out.

        Raises:
            ConfigError: a class is named that the data have not, or none is left.
        """
        settings: AutoencodeSettings = cls.read_settings(recipe)
        for key in ("train_classes", "leave_out"):
            for name in getattr(settings, key):
                if name not in info.classes:
                    raise ConfigError(
                        f"task.arguments.{key}: {info.location} has no class {name!r}"
                        f"{did_you_mean(name, info.classes)}"
                    )
        counts = info.splits["train"].per_class
        wanted = set(settings.train_classes or info.classes) - set(settings.leave_out)
        seen = [name for name in info.classes if counts.get(name) and name in wanted]
        if info.classes and not seen:
            raise ConfigError("task.arguments leave no class with training images to train on")
        unseen = tuple(name for name in info.classes if name not in seen)
        settings = settings.model_copy(update={"leave_out": unseen, "train_classes": ()})
        return cls(preprocess=preprocess, labels=seen, settings=settings)

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open` and `open_classed`."""
        from reskit.data.classed import open_classed

        return open_classed(data, seed=seed)

    def check(self, source: Source) -> None:
        """Refuse data of which no class was trained on; see `Task.check`."""
        if self.labels and source.classes and not set(self.labels) & set(source.classes):
            raise DataError(
                f"no class of {source.location} is one the bundle was trained on"
                f" ({', '.join(self.labels[:5])}): there is nothing to hold them against;"
                " predict gives their scores"
            )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes trained on, and then of those left out."""
        return [*self.labels, *self.settings.leave_out]

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return batches of image, label and index; see `Task.loader`.

        To train, the rows of classes that are left out leave the split. A label is a place in `class_names`,
        the one behind its end for any other class, -1 where there is none.
        """
        from reskit.data import make_loader

        names = self.class_names
        places = {name: place for place, name in enumerate(names)}
        recoded = np.array([*(places.get(name, len(names)) for name in split.classes), -1])
        if feeding.augment is not None and self.labels:
            split.rows = split.rows[recoded[split.labels] < len(self.labels)]
        loader = make_loader(
            split,
            preprocess=self.preprocess,
            drop_last=feeding.augment is not None,
            **feeding._asdict(),
        )
        dataset: Any = loader.dataset
        dataset.labels = torch.from_numpy(recoded)[dataset.labels]
        return loader

    @classmethod
    def architecture(cls, settings: AutoencodeSettings) -> dict[str, Any]:
        """Return the length of the latent vector."""
        return {"latent": settings.latent}

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`.

        Raises:
            ConfigError: the recipe says of the network what data and task settle, or what has no meaning.
        """
        if recipe.transfer.trained == "head":
            raise ConfigError("transfer.trained: head is for networks with a classifier, not for autoencode")
        name = recipe.model.name
        if MODELS.get(name).task != self.name:
            known = ", ".join(list_models(task=self.name))
            raise ConfigError(f"{name} is no network to {self.name} with; those are {known}")
        for argument, key in (("latent", "task.arguments.latent"), ("size", "preprocess.size")):
            if argument in recipe.model.arguments:
                raise ConfigError(f"model.arguments.{argument} is settled by {key}: set that")
        return create_model(
            name,
            in_channels=self.preprocess.channels,
            size=self.preprocess.size,
            **recipe.model.arguments,
            **self.architecture(self.settings),
        )

    # Outputs and targets.

    def parts(self, outputs: Tensor) -> Parts:
        """Take a network's output apart; see `take_apart`."""
        shape = (self.preprocess.channels, *self.preprocess.size)
        return take_apart(outputs, shape, self.settings.latent)

    def target(self, batch: Batch) -> Tensor:
        """Return the pixels in [0, 1] and the label of each image, `(N, C * H * W + 1)`."""
        pixels = batch.get("target", batch["image"]).float() / 255
        return torch.cat([pixels.flatten(1), batch["label"][:, None].to(pixels)], dim=1)

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Add noise to the images of a training batch; the target stays clean."""
        if self.settings.noise:
            inputs = inputs + torch.randn_like(inputs) * self.settings.noise
        return inputs, target

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the negative evidence lower bound, its divergence times `beta`, in nats a pixel value.

        Without a distribution of the latent vector it is the reconstruction term alone.
        """
        parts, pixels = self.parts(outputs), target[:, :-1]
        cost = -self.likelihood(parts, pixels)
        if parts.log_variance is not None:
            cost = cost + self.settings.beta * divergence(parts.mean, parts.log_variance)
        return cost.mean() / pixels.shape[1]

    def likelihood(self, parts: Parts, pixels: Tensor) -> Tensor:
        """Return the log-likelihood in nats `(N,)` of pixels in [0, 1], `(N, C * H * W)`."""
        made = parts.images.flatten(1)
        if self.settings.likelihood == "bernoulli":
            made = made.clamp(NEAREST, 1 - NEAREST)
            return (pixels * made.log() + (1 - pixels) * (1 - made).log()).sum(1)
        sigma = self.settings.sigma
        constant = math.log(sigma) + math.log(2 * math.pi) / 2
        return -(((made - pixels) / sigma).square() / 2 + constant).sum(1)

    # Evaluation.

    def metrics(self) -> MetricCollection:
        """Return mse, psnr and, of variational networks, kl and elbo; roc_auc where classes are unseen."""
        from reskit.tasks.autoencode_metrics import reconstruction_metrics

        return reconstruction_metrics(self.examples)

    def examples(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the columns score, psnr, unseen (0 or 1) and class; of variational networks kl and elbo."""
        parts, pixels, label = self.parts(outputs), target[:, :-1], target[:, -1].long()
        error = (parts.images.flatten(1).double() - pixels.double()).square().mean(1)
        columns = {
            "score": error,
            "psnr": -10 * error.clamp(min=1e-12).log10(),
            "unseen": ((label >= len(self.labels)) & bool(self.labels)).long(),
            "class": label,
        }
        if parts.log_variance is not None:
            columns["kl"] = divergence(parts.mean, parts.log_variance).double()
            columns["elbo"] = self.likelihood(parts, pixels).double() - columns["kl"]
        return columns

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return scores (how they are spread over seen and unseen images) and per_class."""
        from reskit.tasks.autoencode_report import per_class, spread

        unseen = examples["unseen"].astype(bool)
        groups = {"seen": examples["score"][~unseen], "unseen": examples["score"][unseen]}
        return {
            "scores": {name: spread(score) for name, score in groups.items() if len(score)},
            "per_class": per_class(examples, self.class_names, seen=len(self.labels)),
        }

    def draw(
        self,
        analysis: Mapping[str, Any],
        examples: Mapping[str, np.ndarray],
        answered: Callable[[int], Answered],
        folder: Path,
    ) -> dict[str, Path]:
        """Draw originals, reconstructions and errors, from the best to the worst, and the scores."""
        from reskit.tasks.autoencode_report import pictures

        return pictures(self, examples, answered, folder)

    def agreement(self, outputs: Tensor) -> Batch:
        """Return the network's own reconstructions as what is to be made; see `Task.agreement`."""
        count = len(outputs)
        return {
            "target": self.parts(outputs).images * 255,
            "label": torch.full((count,), -1),
            "index": torch.arange(count),
        }

    # Prediction.

    def decode(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return score, the mean squared error of the reconstruction, and the latent vector of each image."""
        parts = self.parts(outputs.float())
        latent = parts.mean.tolist() if self.settings.latent_in_rows else [[]] * len(outputs)
        return [
            {"score": score, "latent": vector}
            for score, vector in zip(parts.score.tolist(), latent, strict=True)
        ]

    def pictures(self, image: Tensor, outputs: Tensor) -> dict[str, np.ndarray]:
        """Return the reconstruction, and each pixel's absolute error, mean over channels, as grey."""
        made = self.parts(outputs).images.float().cpu()
        error = (made - image.cpu() / 255).abs().mean(1, keepdim=True)
        return {"reconstruction": to_pixels(made), "error_map": to_pixels(error)}

    def words(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the score, and where the reconstruction was saved."""
        saved = record.get("reconstruction", "--save DIR keeps it")
        return {"score": f"{record['score']:.5f}", "reconstruction": saved}

    def columns(self) -> list[pa.Field]:
        """Return score and latent, and where the pictures were saved."""
        import pyarrow as pa

        return [
            pa.field("score", pa.float64()),
            pa.field("latent", pa.list_(pa.float64())),
            pa.field("reconstruction", pa.string()),
            pa.field("error_map", pa.string()),
        ]
