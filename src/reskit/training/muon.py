"""Muon, an optimiser of matrices, for convolutions too.

Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Muon", "orthogonalized"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from Jordan et al.: quick to near 1, not exact."""


class Muon(Optimizer):
    """Moves every weight along its momentum made orthogonal, so that no direction of it is left behind.

    A weight is taken as the matrix `(out, everything else)`: a convolution learns as the linear map of a
    patch. (`torch.optim.Muon` takes matrices only.) Vectors, the biases, scales and shifts, learn by SGD with
    the same momentum. Weight decay is decoupled, as in AdamW.

    Args:
        params: parameters or groups of them.
        lr: the learning rate; a step changes a weight by about `lr * sqrt(max(1, rows / columns))`, in the
            spectral norm.
        momentum: of the gradient's running mean.
        nesterov: looks one step ahead.
        weight_decay: the share of a weight, times `lr`, that a step takes away.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change every parameter that has a gradient; return what `closure` gave."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Weights of one shape are made orthogonal together: many small products become one.
            matrices: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = self._momentum(parameter, group)
                if parameter.ndim > 1:
                    matrix = change.flatten(1)
                    matrices[matrix.shape[0], matrix.shape[1]].append((parameter, matrix))
                else:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-group["lr"])
            for (rows, columns), pairs in matrices.items():
                changes = orthogonalized(torch.stack([matrix for _, matrix in pairs]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), change in zip(pairs, changes, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change.view(parameter.shape), alpha=-rate)
        return loss

    def _momentum(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Return the change that momentum asks for, of the parameter's shape."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        return gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices `(N, rows, columns)` of the same singular vectors, all singular values near 1.

    They lie between about 0.7 and 1.2, which is as good for learning as exactly 1. Computed in bfloat16,
    given back in the type of `matrices`.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
