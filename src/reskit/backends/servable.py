"""The one graph that every backend writes: from raw input to outputs."""

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

__all__ = ["OUTPUT", "Named", "Servable", "describe", "folded", "servable"]

OUTPUT = "output"


class Servable(nn.Module):
    """A network with its preprocessing: raw input, such as pixels `(N, C, H, W)`, to float32 outputs.

    Reading an example stays outside, normalising is inside, so whoever runs the file cannot normalise
    otherwise than training did.

    Args:
        normalize: raw input to normalised values.
        model: normalised values to outputs.
    """

    def __init__(self, normalize: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model

    def forward(self, raw: Tensor) -> Tensor:
        """Return the outputs of raw input."""
        outputs: Tensor = self.model(self.normalize(raw))
        return outputs.float()


class Named(nn.Module):
    """A network whose input has whatever name it is given by, for who writes that down.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the outputs of the one input."""
        (raw,) = inputs.values()
        outputs: Tensor = self.model(raw)
        return outputs


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
    task = bundle.task
    raw = TensorSpec(name=task.raw, dtype=task.dtype, shape=(None, *task.preprocess.shape))
    # As it is, not folded: tracing changes every module of the process while it lasts, and others may run.
    device = next(bundle.model.parameters()).device
    with torch.no_grad():
        outputs = bundle.model(task.normalize.to(device)(raw.zeros(1, str(device))))
    return Metadata(
        backend=backend,
        precision=precision,
        model=str(bundle.model.architecture["name"]),
        task=task.config(),
        signature=Signature(
            inputs=(raw,),
            outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=(None, *outputs.shape[1:])),),
        ),
        bundle=bundle.config.checksum(),
        library=f"reskit {reskit.__version__}",
    )
