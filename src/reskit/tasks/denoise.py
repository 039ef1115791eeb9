"""Gaussian noise taken away: the noise is what the network learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reskit.data import augment_batch
from reskit.data.augment import Augment
from reskit.data.seeds import derive_seed
from reskit.tasks.base import TASKS, Network
from reskit.tasks.restoration import MEASURED, RestorationSettings, RestorationTask

if TYPE_CHECKING:
    from reskit.data.examples import Example

__all__ = ["Denoise", "DenoiseSettings"]


class DenoiseSettings(RestorationSettings):
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
    """Learns by the error of the restored image, which is that of the noise.

    Noise is white and Gaussian, is not clipped, and in evaluation is a function of the image's row alone.
    A grey network takes colour pictures a channel at a time.

    Source: Zhang et al., Beyond a Gaussian Denoiser, 2017, section 3.
    """

    name = "denoise"
    Settings = DenoiseSettings
    settings: DenoiseSettings

    def learned(self, item: object) -> Example:
        """See `RestorationTask.learned`."""
        image = self.preprocess.decode(item)
        self.require(image, self.settings.patch, "to cut patches from (task.arguments.patch)")
        return {"target": image}

    def tested(self, item: object, row: int) -> Example:
        """Return an image with its noise and without; see `RestorationTask.tested`."""
        target = self.read(item)
        self.require(target, MEASURED, "to be measured")
        generator = torch.Generator().manual_seed(derive_seed(0, "noise", row))
        noise = torch.randn(target.shape, generator=generator) * self.settings.sigma
        return {"image": target + noise, "target": target}

    def vary(self, example: Example, augment: Augment, generator: torch.Generator) -> Example:
        """See `RestorationTask.vary`; noise comes with the whole batch."""
        from reskit.data.examples import cut

        target = cut(example, (self.settings.patch, self.settings.patch), generator)["target"]
        target = augment_batch(target[None], augment, generator)[0]
        return {"image": target, "target": target}

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """Answer whole images; a grey network answers each channel of a colour picture by itself."""
        if images.shape[1] == self.preprocess.channels:
            return super().outputs(network, images)
        channels = super().outputs(network, images.flatten(0, 1).unsqueeze(1))
        return channels.reshape(*images.shape[:2], *channels.shape[-2:])

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
