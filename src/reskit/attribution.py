"""Where in an image, a recording or a text a network found its answer."""

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
    """Return whether `grad_cam` is for a bundle: it tells classes by what lies at places."""
    return bundle.task.explains


def grad_cam(bundle: Bundle, example: Tensor, label: int) -> Tensor:
    """Return how much each place of an example speaks for a class (Grad-CAM, Selvaraju et al. 2017).

    The channels of the last feature map, weighted by their mean gradient, added up where positive, scaled to
    the example. Computed in float32 by the network itself, whatever engine answers; from any thread.

    Args:
        bundle: one that classifies.
        example: as its task reads it: an image or the spectrum of a recording, uint8 `(C, H, W)`, or the
            tokens of a text `(L,)`.
        label: index of the class.

    Returns:
        `(H, W)`, or `(L,)`, from 0 to 1, on the CPU; 0 everywhere where nothing speaks for the class.

    Raises:
        ModelError: the task is another, or the network has no feature map at its end.
    """
    if not explains(bundle):
        raise ModelError(
            f"the task {bundle.task.name} has no classes that places of an example could speak for"
        )
    model, places = _twin(bundle.model), example.shape[-2:] if example.ndim == 3 else example.shape
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, made: Tensor) -> Tensor:
        kept.append(made.detach().requires_grad_())  # nothing before it is of interest
        return kept[-1].clone()  # what follows may work in place

    model.segments()[-1][-1].register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
        device = next(model.parameters()).device
        normalize = _twin(bundle.task.normalize).to(device)
        logits = model(normalize(example.clone()[None].to(device)))
        if len(kept) != 1 or kept[0].ndim != 2 + len(places):
            raise ModelError("the network does not end in one feature map, so no place speaks for a class")
        (gradient,) = torch.autograd.grad(logits[0, label], kept)
    weights = gradient.flatten(2).mean(2).view(1, -1, *(1 for _ in places))
    found = (weights * kept[0].detach()).sum(1, keepdim=True).relu()
    mode = "bilinear" if len(places) == 2 else "linear"
    scaled = F.interpolate(found, places, mode=mode, align_corners=False)[0, 0]
    strongest = scaled.max()
    return (scaled / strongest if strongest > 0 else scaled).cpu()


def _twin(module: _Module) -> _Module:
    """Return a copy with the same tensors, whose hooks do not disturb who else uses the module."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
