"""What a block adds to `F(x)`: the identity, or what makes `x` fit where the shape changes."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import ModelError, did_you_mean
from reskit.nn.layers import make_conv, make_norm, make_pool

__all__ = ["NoShortcut", "ShortcutKind", "ZeroPad", "make_shortcut"]

ShortcutKind: TypeAlias = Literal["identity", "A", "B", "C", "D", "none"]


class ZeroPad(nn.Module):
    """Option A: take every `stride`-th position, pad the new channels with zeros; no parameters.

    Half of the new channels go in front and half behind, as published CIFAR weights expect. It works
    on slices, so it costs one copy and keeps the memory format.

    Source: He et al. 2015, section 3.3, option A.

    Args:
        in_channels: channels in.
        out_channels: channels out, not fewer.
        stride: step in every direction.

    Raises:
        ModelError: there are fewer channels out than in.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ModelError(
                f"shortcut 'A' pads channels and cannot go from {in_channels} to {out_channels}: "
                "use 'B', a projection"
            )
        extra = out_channels - in_channels
        self.front, self.back = extra // 2, extra - extra // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, out_channels, ceil(H / stride), ...)` for `x` `(N, in_channels, H, ...)`."""
        rank = x.dim() - 2
        if self.stride > 1:
            x = x[(slice(None), slice(None)) + (slice(None, None, self.stride),) * rank]
        return F.pad(x, (0, 0) * rank + (self.front, self.back))

    def extra_repr(self) -> str:
        """Show the padding and the stride."""
        return f"front={self.front}, back={self.back}, stride={self.stride}"


class NoShortcut(nn.Module):
    """The shortcut of a plain block: nothing, whatever `x` is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero that broadcasts to any shape."""
        return x.new_zeros(())


def make_shortcut(
    kind: ShortcutKind,
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    rank: int = 2,
    *,
    norm: bool = True,
) -> nn.Module:
    """Return `W_s` for a block.

    ========== =====================================================================================
    kind       what is added to `F(x)`
    ========== =====================================================================================
    identity   `x`; the shape must not change
    A          `x`, or where the shape changes its positions subsampled, its new channels zero
    B          `x`, or where the shape changes a strided 1x1 projection
    C          a strided 1x1 projection, always
    D          `x`, or where the shape changes an average over `stride` and then a 1x1 projection, which
               sees every position (He et al., Bag of Tricks, 2019, figure 2c)
    none       nothing: the plain twin
    ========== =====================================================================================

    Source: He et al. 2015, section 3.3 (A and B), section 4.1 (C).

    Args:
        kind: one of the table.
        in_channels: channels of `x`.
        out_channels: channels of `F(x)`.
        stride: by how much `F` shrinks every direction.
        rank: 1, 2 or 3.
        norm: whether a projection is followed by its norm; pre-activation networks leave it out.

    Raises:
        ModelError: the kind is unknown or cannot make this change of shape.
    """
    if kind not in get_args(ShortcutKind):
        raise ModelError(f"unknown shortcut {kind!r}{did_you_mean(str(kind), get_args(ShortcutKind))}")
    if kind == "none":
        return NoShortcut()
    same_shape = stride == 1 and in_channels == out_channels
    if same_shape and kind != "C":
        return nn.Identity()
    if kind == "identity":
        raise ModelError(
            f"an identity shortcut cannot go from {in_channels} to {out_channels} channels "
            f"at stride {stride}: use 'A', 'B' or 'D'"
        )
    if kind == "A":
        return ZeroPad(in_channels, out_channels, stride)
    layers: list[nn.Module] = []
    if kind == "D":
        layers.append(make_pool(rank, stride) if stride > 1 else nn.Identity())
        stride = 1
    layers.append(make_conv(rank, in_channels, out_channels, 1, stride=stride))
    if norm:
        layers.append(make_norm(rank, out_channels))
    return nn.Sequential(*layers)
