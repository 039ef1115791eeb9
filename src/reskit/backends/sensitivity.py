"""Which layers int8 hurts most."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.backends.servable import Servable

__all__ = ["rank_by_sensitivity"]

_SAMPLES = 16


@torch.inference_mode()
def rank_by_sensitivity(model: Servable, samples: np.ndarray) -> list[str]:
    """Return the names of the layers with weights, the one that int8 hurts most first.

    One layer after the other is rounded as int8 would (weights by output channel, its input by one scale),
    all others stay float32; the hurt is the divergence of the probabilities from those of float32.

    Args:
        model: the network.
        samples: uint8 ``(N, C, H, W)``; the first few are used.
    """
    pixels = torch.from_numpy(samples[:_SAMPLES])
    expected = model(pixels).log_softmax(1)
    hurt = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.data
            hook = layer.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
            layer.weight.data = torch.stack([_rounded(channel) for channel in weight])
            found = model(pixels).log_softmax(1)
            hurt[name] = float(F.kl_div(found, expected, reduction="batchmean", log_target=True))
            layer.weight.data = weight
            hook.remove()
    return sorted(hurt, key=lambda name: -hurt[name])


def _rounded(values: Tensor) -> Tensor:
    """Return values rounded to the 255 levels of one symmetric scale."""
    scale = values.abs().amax().clamp(min=1e-12) / 127
    return (values / scale).round() * scale
