"""Where in an image a network found its answer."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.bundle import Bundle
from reskit.errors import ModelError

__all__ = ["explains", "grad_cam"]

_Module = TypeVar("_Module", bound=nn.Module)


def explains(bundle: Bundle) -> bool:
    """Return whether `grad_cam` is for a bundle: it classifies."""
    return bundle.task.name == "classify"


def grad_cam(bundle: Bundle, image: Tensor, label: int) -> Tensor:
    """Return how much each place of an image speaks for a class (Grad-CAM, Selvaraju et al. 2017).

    The channels of the last feature map, weighted by their mean gradient, added up where positive, scaled to
    the image. Computed in float32 by the network itself, whatever engine answers; from any thread.

    Args:
        bundle: one that classifies.
        image: uint8 `(C, H, W)` as its task reads it.
        label: index of the class.

    Returns:
        `(H, W)` from 0 to 1, on the CPU; 0 everywhere where nothing speaks for the class.

    Raises:
        ModelError: the task is another, or the network has no feature map at its end.
    """
    if not explains(bundle):
        raise ModelError(
            f"the task {bundle.task.name} has no classes that an image as a whole could speak for"
        )
    model = _twin(bundle.model)
    kept: list[Tensor] = []
    model.segments()[-1][-1].register_forward_hook(lambda *passed: kept.append(passed[-1]))
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        device = next(model.parameters()).device
        normalize = _twin(bundle.task.normalize).to(device)
        inputs = normalize(image.clone()[None].to(device)).requires_grad_()
        logits = model(inputs)
        if len(kept) != 1 or kept[0].ndim != 4:
            raise ModelError("the network does not end in one feature map, so no place speaks for a class")
        (gradient,) = torch.autograd.grad(logits[0, label], kept)
    weights = gradient.mean((2, 3), keepdim=True)
    found = (weights * kept[0].detach()).sum(1, keepdim=True).relu()
    scaled = F.interpolate(found, image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    strongest = scaled.max()
    return (scaled / strongest if strongest > 0 else scaled).cpu()


def _twin(module: _Module) -> _Module:
    """Return a copy with the same tensors, whose hooks do not disturb who else uses the module."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
