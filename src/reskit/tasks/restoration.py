"""What denoising and super-resolution share: an image is the answer, decibels the measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from reskit.config import Recipe
from reskit.models import Backbone, create_model
from reskit.tasks.base import Answered, Batch, Drop
from reskit.tasks.dense import DenseTask

if TYPE_CHECKING:
    import pyarrow as pa
    from torchmetrics import MetricCollection

__all__ = ["RestorationTask", "luma", "to_pixels"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
SHOWN = 4


class RestorationTask(DenseTask):
    """An image made better; pixels are in [0, 1] for the network, and what it answers is too."""

    main_metric = "psnr"
    meanings: ClassVar[Mapping[str, str]] = {
        "psnr": "peak signal-to-noise ratio in dB, mean over images",
        "ssim": "structural similarity (Wang et al. 2004), mean over images",
    }
    drop = Drop(0.1, 1.0, "dB")
    pixels = "float32"
    statistics = "none"
    pipeline_tag = "image-to-image"
    blank: ClassVar[Mapping[str, Any]] = {"height": None, "width": None}
    shave = 0
    """Pixels at the border that are not measured."""

    def build_model(self, recipe: Recipe) -> Backbone:
        """See `Task.build_model`."""
        return create_model(recipe.model.name, in_channels=self.preprocess.channels, **recipe.model.arguments)

    def read(self, item: object) -> Tensor:
        """Return an image as float32 pixels from 0 to 255, `(C, h, w)`."""
        return super().read(item).float()

    def target(self, batch: Batch) -> Tensor:
        """Return the true image in [0, 1], `(N, C, H, W)`."""
        return batch["target"].float() / 255

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
        error = (self.measured(outputs) - self.measured(target)).double()
        return {"psnr": -10 * error.square().flatten(1).mean(1).log10()}

    def analyse(self, examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return how the psnr is spread over the images."""
        psnr = examples["psnr"]
        return {
            "psnr_spread": {
                "min": float(psnr.min()),
                "median": float(np.median(psnr)),
                "max": float(psnr.max()),
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
        places = sorted({round(part * (len(order) - 1)) for part in np.linspace(0, 1, SHOWN)})
        rows = []
        for row in (int(order[place]) for place in places):
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


def to_pixels(image: Tensor) -> np.ndarray:
    """Return a batch of one image in [0, 1] as uint8 `(H, W)` or `(H, W, 3)`."""
    pixels = (image[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def luma(image: Tensor) -> Tensor:
    """Return the luminance `(N, 1, H, W)` of `(N, 3, H, W)` in [0, 1], by ITU-R 601 in its full range."""
    weights = torch.tensor(_LUMA, device=image.device, dtype=image.dtype).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)
