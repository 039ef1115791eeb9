"""Transfer learning where memory is short: the last blocks of a network, trained with little kept.

Source: Chiang et al., MobileTL: On-Device Transfer Learning with Inverted Residual Blocks, AAAI 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from torch import nn

from reskit.errors import ModelError
from reskit.models import Backbone
from reskit.nn import InvertedResidual
from reskit.nn.lean import (
    FrozenNorm,
    ShiftNorm,
    ShiftNormHardSwish,
    ShiftNormReLU6,
    freeze_norms,
    unfreeze_norms,
)

__all__ = ["make_lean", "plain_blocks", "restore_lean", "split_blocks"]

_FUSED: dict[type[nn.Module], type[ShiftNorm]] = {
    nn.ReLU6: ShiftNormReLU6,
    nn.Hardswish: ShiftNormHardSwish,
}


def make_lean(model: nn.Module, blocks: int = 5) -> nn.Module:
    """Let only the last blocks of `model` train, and keep little for their backward pass; in place.

    Of the last `blocks` inverted residuals, the layers after them and the head:

    - convolutions and linear layers train as usual;
    - a norm that a clipped rectifier (or hard-swish) follows trains its shift only; scale and statistics are
      fixed, and the activation keeps one bit an element (see :mod:`reskit.nn.lean`);
    - the norm that ends a block trains whole, with the statistics of the batch.

    Nothing below them trains: no parameter requires a gradient and no statistic changes, so that autograd
    keeps nothing there. Names and shapes of the state are those of the ordinary network, whose output in
    evaluation mode is the same. Build the optimiser after this; :func:`restore_lean` undoes it.

    Args:
        model: a network of inverted residuals, such as ``mobilenet_v2``.
        blocks: how many of its blocks train, counted from the head.

    Returns:
        `model`.

    Raises:
        ModelError: the network has no inverted residuals, or not so many.
    """
    trained = plain_blocks(model, blocks)
    _, above = split_blocks(trained, blocks)
    for parent, place, activation in list(_rectified_norms(above)):
        parent[place] = _FUSED[type(activation)](parent[place])  # type: ignore[arg-type]
        parent[place + 1] = nn.Identity()
    return model


def plain_blocks(model: nn.Module, blocks: int = 5) -> nn.Module:
    """Let only the last blocks of `model` and what follows them train, as usual; in place.

    The same layers as :func:`make_lean`, every parameter of them, norms by the statistics of the batch: what
    that is compared with.

    Args:
        model: a network of inverted residuals.
        blocks: how many of its blocks train, counted from the head.

    Returns:
        `model`.

    Raises:
        ModelError: the network has no inverted residuals, or not so many.
    """
    below, _ = split_blocks(model, blocks)
    frozen = nn.Sequential(*below).requires_grad_(False)
    freeze_norms(frozen)
    return model


def restore_lean(model: nn.Module) -> nn.Module:
    """Turn what :func:`make_lean` or :func:`plain_blocks` made back into the ordinary network, in place.

    The parameters are the same objects as before and all of them are trainable.

    Returns:
        `model`.
    """
    activations: dict[type[nn.Module], type[nn.Module]] = {fused: plain for plain, fused in _FUSED.items()}
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            for place, layer in enumerate(parent):
                if type(layer) in activations:
                    parent[place + 1] = activations[type(layer)](inplace=True)
    unfreeze_norms(model)
    return model.requires_grad_(True)


def split_blocks(model: nn.Module, blocks: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers of `model` below its last `blocks` inverted residuals, and the others; no head.

    Raises:
        ModelError: the network has no inverted residuals, or not so many.
    """
    name = type(model).__name__
    layers = [layer for part in model.segments() for layer in part] if isinstance(model, Backbone) else []
    places = [i for i, layer in enumerate(layers) if isinstance(layer, InvertedResidual)]
    if not places:
        raise ModelError(f"{name} has no inverted residual blocks: on-device training is for mobilenet_v2")
    if not 1 <= blocks <= len(places):
        raise ModelError(f"{name} has {len(places)} blocks: train between 1 and all of them, not {blocks}")
    return layers[: places[-blocks]], layers[places[-blocks] :]


def _rectified_norms(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Sequential, int, nn.Module]]:
    """Yield every norm in `layers` that an activation follows: its parent, its place and the activation."""
    for parent in nn.Sequential(*layers).modules():
        if isinstance(parent, nn.Sequential):
            for place, (norm, activation) in enumerate(pairwise(parent)):
                ordinary = isinstance(norm, nn.modules.batchnorm._BatchNorm)
                if ordinary and not isinstance(norm, FrozenNorm) and type(activation) in _FUSED:
                    yield parent, place, activation
