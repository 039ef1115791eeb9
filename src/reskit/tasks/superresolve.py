"""A small picture made large: the detail that interpolation cannot give is what the network learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reskit.data import ImagePreprocess, augment_batch
from reskit.data.augment import Augment
from reskit.data.colour import from_ycbcr, luminance, to_ycbcr
from reskit.nn import BicubicUpscale
from reskit.tasks.base import TASKS, Batch, Network
from reskit.tasks.dense import centre, pad_to
from reskit.tasks.restoration import MEASURED, RestorationSettings, RestorationTask

if TYPE_CHECKING:
    from reskit.data.examples import Example

__all__ = ["SuperResolve", "SuperResolveSettings", "shrink"]


class SuperResolveSettings(RestorationSettings):
    """What a recipe may say of super-resolution; a patch is one of the small image."""

    scale: Literal[2, 3, 4] = Field(2, description="by how much both sides grow")


@TASKS.register("superresolve")
class SuperResolve(RestorationTask):
    """Small images are made of large ones by `shrink`; what is predicted is taken to be small.

    Figures are of the luminance, `scale` pixels at the border left out, as papers have them. A grey network
    takes the luminance of colour pictures, and their colours are enlarged by bicubic interpolation.

    Sources: Kim et al., VDSR, 2016, section 5; Lim et al., EDSR, 2017, section 4.
    """

    name = "superresolve"
    Settings = SuperResolveSettings
    settings: SuperResolveSettings

    def __init__(self, *, preprocess: ImagePreprocess, **arguments: Any) -> None:
        super().__init__(preprocess=preprocess, **arguments)
        self.scale = self.shave = self.settings.scale
        self.enlarge = BicubicUpscale(self.scale)

    def learned(self, item: object) -> Example:
        """See `RestorationTask.learned`."""
        large = self._in_channels(_cropped(self.read(item), self.scale))
        patch = f"(task.arguments.patch x scale {self.scale})"
        self.require(large, self.settings.patch * self.scale, f"to cut patches from {patch}")
        return {"image": shrink(large, self.scale), "target": large}

    def tested(self, item: object, row: int) -> Example:
        """Return an image made small and as it was; see `RestorationTask.tested`."""
        large = _cropped(self.read(item), self.scale)
        self.require(large, MEASURED + 2 * self.shave, "to be measured")
        return {"image": shrink(large, self.scale), "target": large}

    def vary(self, example: Example, augment: Augment, generator: torch.Generator) -> Example:
        """Cut and turn both images alike; see `RestorationTask.vary`."""
        from reskit.data.examples import cut

        size = (self.settings.patch, self.settings.patch)
        both = cut(example, size, generator, scales={"target": self.scale})
        seed = int(torch.randint(2**31, (), generator=generator))
        return {
            name: augment_batch(image[None], augment, torch.Generator().manual_seed(seed))[0]
            for name, image in both.items()
        }

    def sample(self, item: object) -> Tensor:
        """Return the centre of an image made small, a tile large; see `Task.sample`."""
        large = self._in_channels(self.read(item))
        small = shrink(pad_to(large, (self.scale, self.scale)), self.scale)
        return centre(pad_to(small, self.preprocess.size), self.preprocess.size)

    @classmethod
    def architecture(cls, settings: SuperResolveSettings) -> dict[str, Any]:
        """Return the scale."""
        return {"scale": settings.scale}

    def outputs(self, network: Network, images: Tensor) -> Tensor:
        """Answer whole images; of colour pictures a grey network makes the luminance."""
        if images.shape[1] == self.preprocess.channels:
            return super().outputs(network, images)
        parts = to_ycbcr(images.float() / 255)
        luma = super().outputs(network, parts[:, :1] * 255).to(parts.device)
        return from_ycbcr(torch.cat([luma, self.enlarge(parts[:, 1:])], 1))

    def measured(self, image: Tensor) -> Tensor:
        """Return the luminance within the border; see `RestorationTask.measured`."""
        return super().measured(luminance(image) if image.shape[1] == 3 else image)

    def given(self, batch: Batch) -> Tensor:
        """Return the small image enlarged by bicubic interpolation."""
        return self.enlarge(super().given(batch))  # type: ignore[no-any-return]

    def _in_channels(self, image: Tensor) -> Tensor:
        """Return pixels `(C, h, w)` in the network's channels: of colour the luminance, where it is grey."""
        if image.shape[0] == self.preprocess.channels:
            return image
        return luminance(image[None] / 255)[0] * 255


def shrink(image: Tensor, scale: int) -> Tensor:
    """Return `(C, h, w)` at `1 / scale` of its size by bicubic interpolation without rounding.

    The kernel is that of MATLAB's ``imresize``: a = -1/2, widened by `scale` against aliasing. PyTorch's
    antialiased kind is the same as Pillow's on float; at the border, which is not measured, both leave out
    what MATLAB mirrors.

    Args:
        image: of any range.
        scale: a whole number; a rest of the sides is ignored.
    """
    height, width = (side // scale for side in image.shape[-2:])
    exact = image[None, ..., : height * scale, : width * scale].float()
    return F.interpolate(exact, size=(height, width), mode="bicubic", antialias=True)[0]


def _cropped(image: Tensor, scale: int) -> Tensor:
    """Return `(..., h, w)` with its sides cut to multiples of `scale`."""
    height, width = (side // scale * scale for side in image.shape[-2:])
    return image[..., :height, :width]
