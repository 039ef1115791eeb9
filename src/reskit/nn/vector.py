"""Residual blocks for vectors: tables, embeddings, whatever has no neighbourhood."""

from __future__ import annotations

from torch import Tensor, nn

from reskit.nn.layers import make_norm, make_squeeze, make_stochastic_depth, zero_init_
from reskit.nn.residual import Residual, check_plain
from reskit.nn.shortcuts import NoShortcut

__all__ = ["ResidualMLP"]


class ResidualMLP(Residual):
    """A residual perceptron: ``F(x) = W2 dropout(relu(W1 norm(x) + b1)) + b2``.

    Without `norm` this is the two-layer `F` of He et al. 2015 (text after equation 1) with biases.

    Args:
        in_features: features in, `(N, in_features)`.
        out_features: features out, `(N, out_features)`; the same as in by default, else a linear map
            without bias is the shortcut.
        hidden: units of the hidden layer; twice `in_features` by default.
        activation: applied after the sum; None for none.
        norm: whether `F` begins with batch normalisation.
        dropout: probability of dropping a hidden unit.
        residual: False builds the plain twin.
        se: reduction ratio of squeeze-excitation on `F`; True for 16, 0 for none.
        stochastic_depth: probability of dropping a sample's `F(x)` while training.
        zero_init: whether `W2` and `b2` start at zero, so that the block starts as its shortcut.

    Raises:
        ModelError: an option is out of range, or needs the shortcut that ``residual=False`` takes away.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        hidden: int | None = None,
        activation: nn.Module | None = None,
        norm: bool = False,
        dropout: float = 0.0,
        residual: bool = True,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__(activation, residual=residual)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        out_features = in_features if out_features is None else out_features
        hidden = 2 * in_features if hidden is None else hidden
        self.norm = make_norm(0, in_features) if norm else nn.Identity()
        self.linear1 = nn.Linear(in_features, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear2 = nn.Linear(hidden, out_features)
        self.se = make_squeeze(out_features, se, rank=0)
        self.stochastic_depth = make_stochastic_depth(stochastic_depth)
        self.downsample = _vector_shortcut(in_features, out_features, residual)
        if zero_init:
            zero_init_(self.linear2)

    def residual(self, x: Tensor) -> Tensor:
        """Return `F(x)` `(N, out_features)`."""
        x = self.dropout(self.relu(self.linear1(self.norm(x))))
        return self.stochastic_depth(self.se(self.linear2(x)))  # type: ignore[no-any-return]

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `W_s x` `(N, out_features)`."""
        return self.downsample(x)  # type: ignore[no-any-return]


def _vector_shortcut(in_features: int, out_features: int, residual: bool) -> nn.Module:
    """Return the identity or, where widths differ, a linear map; nothing for the plain twin."""
    if not residual:
        return NoShortcut()
    return nn.Identity() if in_features == out_features else nn.Linear(in_features, out_features, bias=False)
