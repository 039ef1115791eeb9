"""How much a residual block adds to what passes it by: the size of `F(x)` against that of its shortcut."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from reskit.evaluation.run import network_answers
from reskit.insight.blocks import residual_blocks
from reskit.insight.examples import Examples
from reskit.nn import Residual

__all__ = ["Shortcut", "ratios"]

Shortcut = Literal["identity", "projection", "none"]
"""What is left of a block without its `F`; the padding of option A counts as a projection."""

_TINY = 1e-12


@torch.inference_mode()
def ratios(model: nn.Module, examples: Examples) -> dict[str, tuple[Shortcut, float | None]]:
    """Return of each residual block what its shortcut is, and ``|F(x)| / |shortcut(x)|``; None where plain.

    Euclidean norms of one example's values, the mean over examples.

    Source: Jastrzebski et al., Residual Connections Encourage Iterative Inference, 2018, arXiv:1710.04773.
    """
    sums: dict[str, float] = {}
    kinds: dict[str, Shortcut] = {}

    def watch(name: str, block: Residual, inputs: tuple[Tensor], _: Tensor) -> None:
        (x,) = inputs
        if block.plain:
            kinds[name] = "none"
            return
        shortcut = block.shortcut(x)
        kinds[name] = "identity" if shortcut is x else "projection"
        sizes = block.residual(x).flatten(1).norm(dim=1), shortcut.flatten(1).norm(dim=1)
        sums[name] = sums.get(name, 0.0) + float((sizes[0] / sizes[1].clamp_min(_TINY)).sum())

    answer = network_answers(model.to(examples.device), examples.task, examples.device)
    with ExitStack() as stack:
        for name, block in residual_blocks(model).items():
            stack.callback(block.register_forward_hook(partial(watch, name)).remove)
        for batch in examples.batches:
            answer(batch)
    return {
        name: (kind, sums[name] / len(examples) if name in sums else None) for name, kind in kinds.items()
    }
