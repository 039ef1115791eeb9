"""Layers picked by rank (1-D sequences, 2-D images, 3-D volumes) and the options every block takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reskit.errors import ModelError

__all__ = ["SqueezeExcitation", "StochasticDepth", "make_conv", "make_norm", "make_pool", "zero_init_"]

_CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# A vector (rank 0) is normalised by the same class as a sequence.
_NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
_POOL: dict[int, type[nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d]] = {
    1: nn.AvgPool1d,
    2: nn.AvgPool2d,
    3: nn.AvgPool3d,
}


def _check_rank(rank: int, known: dict[int, type]) -> None:
    if rank not in known:
        raise ModelError(f"rank is {rank!r}: use one of {', '.join(map(str, known))}")


def make_conv(
    rank: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    padding: int | None = None,
    bias: bool = False,
) -> nn.Module:
    """Return a convolution that keeps the size at stride 1 and halves it, rounded up, at stride 2.

    Its weight starts normal with variance ``2 / fan_out`` and its bias at zero (He et al., Delving Deep into
    Rectifiers, 2015, equation 14: the backward signal keeps its scale), as torchvision's ResNets do.

    Args:
        rank: 1, 2 or 3; input `(N, C, L)`, `(N, C, H, W)` or `(N, C, D, H, W)`.
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd, the same in every direction.
        stride: step in every direction.
        dilation: distance between the taps.
        groups: groups of channels that do not mix.
        padding: zeros on each side; by default as many as keep the size.
        bias: whether it has a bias; a norm after it makes one pointless.
    """
    _check_rank(rank, _CONV)
    conv = _CONV[rank](
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size - 1) // 2 if padding is None else padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def make_norm(rank: int, channels: int) -> nn.Module:
    """Return batch normalisation for `rank` (0 for vectors `(N, C)`), weight one and bias zero."""
    _check_rank(rank, _NORM)
    return _NORM[rank](channels)


def make_pool(rank: int, stride: int) -> nn.Module:
    """Return average pooling by `stride`; a last odd row or column is averaged over what is there."""
    _check_rank(rank, _POOL)
    # ceil_mode gives the size a strided convolution gives, so both branches of a block agree on odd sizes.
    return _POOL[rank](stride, stride, ceil_mode=True, count_include_pad=False)


def zero_init_(layer: nn.Module) -> None:
    """Set the weight, and the bias if there is one, of a single layer to zero in place."""
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)


class SqueezeExcitation(nn.Module):
    """Weigh each channel by a gate computed from the means of all channels.

    ``y = x * sigmoid(W2 relu(W1 mean(x) + b1) + b2)``; the layers are named as timm names them.

    Source: Hu et al., Squeeze-and-Excitation Networks, 2018, equations 2 to 4.

    Args:
        channels: channels of `x`, `(N, channels, ...)`.
        reduction: the hidden layer has ``channels // reduction`` units, at least one.
        rank: 1, 2, 3, or 0 for vectors `(N, channels)`.
    """

    def __init__(self, channels: int, *, reduction: int = 16, rank: int = 2) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.positions = tuple(range(2, 2 + rank))
        self.fc1 = _pointwise(rank, channels, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = _pointwise(rank, hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with its channels weighed, same shape."""
        means = x.mean(self.positions, keepdim=True) if self.positions else x
        return x * torch.sigmoid(self.fc2(self.relu(self.fc1(means))))


def _pointwise(rank: int, in_features: int, out_features: int) -> nn.Module:
    """Return the linear map of channels: a 1x1 convolution, or for vectors a linear layer."""
    if rank == 0:
        return nn.Linear(in_features, out_features)
    return make_conv(rank, in_features, out_features, 1, bias=True)


class StochasticDepth(nn.Module):
    """Drop the whole of `F(x)` for a random part of the batch while training.

    What is kept is scaled by ``1 / (1 - rate)``, so that evaluation needs no scaling (the paper scales
    there instead).

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016.

    Args:
        rate: probability that a sample's `F(x)` is dropped, in [0, 1).

    Raises:
        ModelError: `rate` is outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ModelError(f"stochastic_depth is {rate!r}: give a probability of at least 0 and below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `(N, ...)` with some samples zeroed while training, `x` itself otherwise."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate:g}"


def make_squeeze(channels: int, se: int | bool, rank: int) -> nn.Module:
    """Return the `se` option of a block: a reduction ratio, True for the paper's 16, 0 or False for none.

    Raises:
        ModelError: the reduction is negative.
    """
    reduction = 16 if se is True else se
    if not isinstance(reduction, int) or reduction < 0:
        raise ModelError(f"se is {se!r}: give the reduction ratio (16 in the paper), or 0 for none")
    return SqueezeExcitation(channels, reduction=reduction, rank=rank) if reduction else nn.Identity()


def make_stochastic_depth(rate: float) -> nn.Module:
    """Return the `stochastic_depth` option of a block: the identity at rate 0."""
    return StochasticDepth(rate) if rate else nn.Identity()
