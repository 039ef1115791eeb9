"""What of foreign weights fits a model as it is, and what can be made to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Adaptable", "Fit", "fit_state"]

_MOST_IMAGE_CHANNELS = 4  # a first convolution with more was not made for pictures


@dataclass(frozen=True)
class Adaptable:
    """What of a model may be fitted: names beginning with `head`, convolutions of `in_channels`."""

    head: str | None = None
    in_channels: int | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Adaptable:
        """Return what of `model` may be fitted: its head, and what sees the images."""
        head = getattr(model, "head_name", None)
        convolutions = (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
        first = next(convolutions, None)
        return cls(f"{head}." if head else None, first.in_channels if first else None)

    def is_head(self, name: str) -> bool:
        """Tell whether a parameter belongs to the head."""
        return self.head is not None and name.startswith(self.head)

    def is_stem(self, theirs: Tensor, ours: Tensor) -> bool:
        """Tell whether two kernels `(O, C, ...)` of the first layer differ in their `C` alone."""
        return (
            theirs.ndim == ours.ndim >= 3
            and ours.shape[1] == self.in_channels
            and theirs.shape[1] <= _MOST_IMAGE_CHANNELS
            and theirs.shape[0] == ours.shape[0]
            and theirs.shape[2:] == ours.shape[2:]
        )


@dataclass(frozen=True)
class Fit:
    """Tensors that fit the model, and what was done to some or why they were left out."""

    state: dict[str, Tensor] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)


def fit_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], adaptable: Adaptable) -> Fit:
    """Return what of `state` fits `own`, adapted where that is allowed."""
    fit = Fit()
    for name, ours in own.items():
        if name not in state:
            if adaptable.is_head(name):
                fit.adapted[name] = "not in the file, left as it was"
            continue
        theirs = _squeezed(state[name], ours)
        if theirs.shape == ours.shape:
            fit.state[name] = theirs
            if theirs.ndim != state[name].ndim:
                fit.adapted[name] = f"taken from the shape {tuple(state[name].shape)}"
        elif adaptable.is_head(name) and theirs.shape[1:] == ours.shape[1:]:
            fit.adapted[name] = f"left as it was: {theirs.shape[0]} classes in the file, {ours.shape[0]} here"
        elif adaptable.is_stem(theirs, ours):
            fit.state[name], fit.adapted[name] = _with_channels(theirs, ours.shape[1])
    return fit


def _squeezed(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return a linear layer's weight as that of a 1x1 convolution or the reverse, if that is what differs."""
    longer, shorter = sorted((theirs, ours), key=lambda tensor: -tensor.ndim)
    if shorter.ndim != 2 or longer.ndim == 2 or any(side != 1 for side in longer.shape[2:]):
        return theirs
    return theirs.reshape(*theirs.shape[:2], *ours.shape[2:])


def _with_channels(kernels: Tensor, channels: int) -> tuple[Tensor, str]:
    """Return kernels `(O, C, ...)` for `channels` inputs, their sums over inputs kept, and what was done."""
    have = kernels.shape[1]
    if channels == 1:
        return kernels.sum(1, keepdim=True), f"{have} input channels summed to 1"
    repeated = kernels[:, torch.arange(channels) % have] * (have / channels)
    return repeated, f"{have} input channels repeated to {channels}, scaled by {have}/{channels}"
