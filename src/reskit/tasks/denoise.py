"""Gaussian noise taken away: the noise is what the network learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reskit.config import DataConfig
from reskit.data import Source, Split, augment_batch
from reskit.data.examples import Example, ExampleSet, cut, example_loader, hold
from reskit.data.pictures import open_pictures
from reskit.data.seeds import derive_seed
from reskit.tasks.base import TASKS, Feeding
from reskit.tasks.dense import DenseSettings
from reskit.tasks.restoration import RestorationTask

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["Denoise", "DenoiseSettings"]


class DenoiseSettings(DenseSettings):
    """What a recipe may say of denoising; a sigma is a standard deviation in grey levels of 255."""

    sigma: float = Field(25.0, gt=0, description="of the noise, in training and in evaluation")
    sigma_from: float | None = Field(
        None, ge=0, description="blind: training noise is drawn evenly from here up to sigma_to"
    )
    sigma_to: float | None = Field(None, gt=0, description="goes with sigma_from")

    @model_validator(mode="after")
    def _range(self) -> DenoiseSettings:
        if (self.sigma_from is None) != (self.sigma_to is None):
            raise ValueError("sigma_from and sigma_to go together")
        if self.sigma_from is not None and self.sigma_to is not None and self.sigma_from > self.sigma_to:
            raise ValueError(f"sigma_from {self.sigma_from:g} is above sigma_to {self.sigma_to:g}")
        return self


@TASKS.register("denoise")
class Denoise(RestorationTask):
    """The mean squared error of the restored image, which is that of the noise.

    Noise is white and Gaussian, is not clipped, and in evaluation is a function of the image's row alone.

    Source: Zhang et al., Beyond a Gaussian Denoiser, 2017, section 3.
    """

    name = "denoise"
    Settings = DenoiseSettings
    settings: DenoiseSettings

    @classmethod
    def open(cls, data: DataConfig, *, seed: int) -> Source:
        """See `Task.open`."""
        return open_pictures(data, seed=seed)

    def loader(self, split: Split, feeding: Feeding) -> DataLoader[Any]:
        """Return clean patches to train with, or whole images, noisy and clean; see `Task.loader`."""
        augment, patch = feeding.augment, (self.settings.patch, self.settings.patch)

        def read(item: object, row: int) -> Example:
            return {"target": self.preprocess.decode(item)}

        def vary(example: Example, generator: torch.Generator) -> Example:
            assert augment is not None
            target = augment_batch(cut(example, patch, generator)["target"][None], augment, generator)[0]
            return {"image": target, "target": target}

        held = hold(split, read) if feeding.mode == "memory" else lambda row: read(split.item(row), row)

        def noisy(row: int) -> Example:
            target = held(row)["target"]
            generator = torch.Generator().manual_seed(derive_seed(0, "noise", row))
            noise = torch.randn(target.shape, generator=generator) * self.settings.sigma
            return {"image": target + noise, "target": target}

        rows = split.rows.tolist()
        if augment is None:
            dataset = ExampleSet(rows, noisy)
        else:
            dataset = ExampleSet(rows, held, vary=vary, views=self.settings.patches, seed=feeding.seed)
        return example_loader(
            dataset,
            batch_size=feeding.batch_size,
            shuffle=feeding.shuffle,
            seed=feeding.seed,
            workers=0 if feeding.mode == "memory" else feeding.workers or 0,
            pin_memory=feeding.pin_memory,
        )

    def sample(self, item: object) -> Tensor:
        """Return a tile with noise; see `Task.sample`."""
        clean = super().sample(item)
        generator = torch.Generator().manual_seed(int(clean.sum()))
        return clean + torch.randn(clean.shape, generator=generator) * self.settings.sigma

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Add noise to the images of a training batch."""
        sigma: float | Tensor = self.settings.sigma / 255
        if self.settings.sigma_from is not None:
            low, high = self.settings.sigma_from / 255, cast(float, self.settings.sigma_to) / 255
            sigma = torch.empty(len(inputs), 1, 1, 1).uniform_(low, high).to(inputs.device)
        return inputs + torch.randn_like(inputs) * sigma, target

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of pixels in [0, 1], times 255."""
        return (outputs - target).square().mean() * 255
