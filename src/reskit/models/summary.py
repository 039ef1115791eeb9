"""Counting what a network costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["model_summary"]


def model_summary(model: nn.Module, input_size: Sequence[int]) -> dict[str, int]:
    """Return the parameters of a network and its multiply-adds for one input.

    Multiply-adds of convolutions and matrix products, as papers count them ("FLOPs" in most): half of what
    PyTorch counts as floating-point operations. The network runs once in evaluation mode;
    on the ``meta`` device this costs nothing.

    Args:
        model: any network with parameters.
        input_size: of one input without the batch, such as `(C, H, W)`.

    Returns:
        ``parameters`` and ``macs``.
    """
    parameters = list(model.parameters())
    training = model.training
    model.eval()
    try:
        x = torch.zeros(1, *input_size, device=parameters[0].device, dtype=parameters[0].dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        model.train(training)
    return {"parameters": sum(p.numel() for p in parameters), "macs": counter.get_total_flops() // 2}
