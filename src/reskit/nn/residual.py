"""The one idea: a block learns the difference to its input."""

from __future__ import annotations

from torch import Tensor, nn

from reskit.errors import ModelError

__all__ = ["Residual"]


class Residual(nn.Module):
    r"""The residual mapping, the base of every block in reskit.

    .. math:: y = \sigma(F(x) + W_s x)

    with `F` in :meth:`residual`, `W_s` in :meth:`shortcut` (the identity unless overridden) and the
    activation `\sigma` in :attr:`activation` (the identity unless given). Children give `F` and, where
    shapes change, `W_s`; none overrides :meth:`forward`, so whatever looks at a network through this class
    sees every family. It says nothing about the rank of `x`: vectors, sequences, images and volumes alike.

    With ``residual=False`` the block is its plain twin, `y = \sigma(F(x))`: the same layers, no shortcut.

    Source: He et al., Deep Residual Learning for Image Recognition, 2015, equations 1 and 2.

    Args:
        activation: applied after the sum; None for none.
        residual: False builds the plain twin.

    Example:
        >>> class Halve(Residual):
        ...     def residual(self, x):
        ...         return -x / 2
        >>> Halve()(torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, activation: nn.Module | None = None, *, residual: bool = True) -> None:
        super().__init__()
        self.activation = nn.Identity() if activation is None else activation
        self.plain = not residual

    def residual(self, x: Tensor) -> Tensor:
        """Return `F(x)`, of the shape of the output."""
        raise NotImplementedError(f"{type(self).__name__} must define residual(x)")

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `W_s x`, of the shape of the output."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return `y`; see the class."""
        if self.plain:  # H(x) = F(x): there is nothing to add, so nothing is paid for a sum
            return self.activation(self.residual(x))  # type: ignore[no-any-return]
        return self.activation(self.residual(x) + self.shortcut(x))  # type: ignore[no-any-return]


def check_plain(residual: bool, *, zero_init: bool, stochastic_depth: float) -> None:
    """Refuse options that need a shortcut where there is none.

    Raises:
        ModelError: `F` would start at zero, or be dropped, and nothing else would carry the signal.
    """
    if not residual and (zero_init or stochastic_depth > 0):
        option = "zero_init" if zero_init else "stochastic_depth"
        raise ModelError(f"{option} needs a shortcut to carry the signal: leave it out with residual=False")
