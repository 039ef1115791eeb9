"""The network that peers are to run, and where they get theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reskit.errors import BackendError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Subject", "any_network", "timm_network", "torchvision_network"]

_TIMM = {"mobilenet_v2": "mobilenetv2_100"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network that peers are to run.

    Attributes:
        architecture: arguments of `reskit.create_model`.
        parameters: how many it has: a peer's network of that name must have as many.
        classes: outputs.
        input_shape: ``(C, H, W)``.
        samples: pictures to calibrate int8 with, uint8 ``(N, C, H, W)``.
        batches: batch sizes that will be asked for.
        threads: processors to use; what each library takes by itself when None.
    """

    architecture: Mapping[str, Any]
    parameters: int
    classes: int
    input_shape: tuple[int, int, int]
    samples: np.ndarray
    batches: Sequence[int]
    threads: int | None

    @property
    def name(self) -> str:
        """The architecture's name."""
        return str(self.architecture["name"])

    def images(self, batch: int) -> np.ndarray:
        """Return float32 noise ``(batch, C, H, W)``."""
        random = np.random.default_rng(0)
        return random.standard_normal((batch, *self.input_shape), dtype=np.float32)


def torchvision_network(subject: Subject) -> nn.Module:
    """Return torchvision's network of that name.

    Raises:
        BackendError: it has none, or another one.
    """
    from torchvision.models import get_model, list_models

    if subject.name not in list_models():
        raise BackendError(f"torchvision has no {subject.name}")
    if subject.input_shape[0] != 3:
        raise BackendError("torchvision's networks take three channels")
    return _checked(get_model(subject.name, weights=None, num_classes=subject.classes), subject)


def timm_network(subject: Subject) -> nn.Module:
    """Return timm's network of that name.

    Raises:
        BackendError: it has none, or another one.
    """
    import timm

    name = _TIMM.get(subject.name, subject.name)
    if not timm.is_model(name):
        raise BackendError(f"timm has no {subject.name}")
    network = timm.create_model(
        name, pretrained=False, num_classes=subject.classes, in_chans=subject.input_shape[0]
    )
    return _checked(network, subject)


def any_network(subject: Subject) -> nn.Module:
    """Return torchvision's network, or ours where it has none: what one would hand to another runtime."""
    try:
        return torchvision_network(subject)
    except BackendError:
        import reskit

        return reskit.create_model(**subject.architecture).eval()


def _checked(network: nn.Module, subject: Subject) -> nn.Module:
    """Refuse a network that is another one of the same name."""
    found = sum(parameter.numel() for parameter in network.parameters())
    if found != subject.parameters:
        raise BackendError(f"its {subject.name} has {found:,} parameters, not {subject.parameters:,}")
    return network.eval()
