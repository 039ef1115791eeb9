"""The one graph that every backend writes: from pixels to outputs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import reskit
from reskit.backends.base import Metadata, Precision, Signature, TensorSpec

if TYPE_CHECKING:
    from reskit.bundle import Bundle

__all__ = ["INPUT", "OUTPUT", "Servable", "describe", "folded", "servable"]

INPUT, OUTPUT = "image", "output"


class Servable(nn.Module):
    """A network with its preprocessing: raw pixels `(N, C, H, W)` to float32 outputs.

    Scaling an image to `(H, W)` stays outside, normalising is inside, so whoever runs the file cannot
    normalise otherwise than training did.

    Args:
        normalize: pixels to normalised values.
        model: normalised values to outputs.
    """

    def __init__(self, normalize: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Return the outputs of pixels."""
        outputs: Tensor = self.model(self.normalize(image))
        return outputs.float()


def servable(bundle: Bundle) -> Servable:
    """Return a private copy of a bundle's network with its preprocessing, on the CPU, ready to be written.

    Batch norms that follow a convolution are folded into it.
    """
    model = Servable(copy.deepcopy(bundle.task.normalize).cpu(), folded(bundle.model))
    return model.eval().requires_grad_(False)


def folded(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU, its batch norms folded into the convolutions before them."""
    network = copy.deepcopy(network).cpu().eval()
    try:
        fused: nn.Module = fuse(network, inplace=True)
    except Exception:  # what cannot be traced symbolically runs as it is
        return network
    return fused


def describe(bundle: Bundle, backend: str, precision: Precision) -> Metadata:
    """Return what an exported file says of itself."""
    task, preprocess = bundle.task, bundle.task.preprocess
    pixels = TensorSpec(name=INPUT, dtype=task.pixels, shape=(None, preprocess.channels, *preprocess.size))
    # As it is, not folded: tracing changes every module of the process while it lasts, and others may run.
    device = next(bundle.model.parameters()).device
    with torch.no_grad():
        outputs = bundle.model(task.normalize.to(device)(pixels.zeros(1, str(device))))
    return Metadata(
        backend=backend,
        precision=precision,
        model=str(bundle.model.architecture["name"]),
        task=task.config(),
        signature=Signature(
            inputs=(pixels,),
            outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=(None, *outputs.shape[1:])),),
        ),
        bundle=bundle.config.checksum(),
        library=f"reskit {reskit.__version__}",
    )
