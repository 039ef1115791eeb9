"""Network in network, as published and with shortcuts."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from reskit.models.base import Backbone, check_probability, drop_rates
from reskit.models.registry import register_family
from reskit.nn import MlpConv, ShortcutKind
from reskit.nn.residual import check_plain

__all__ = ["NiN"]

# Kernel size and channels of each mlpconv; the paper's last 1x1, onto the classes, is the head.
_MLPCONVS = ((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192)))


class NiN(Backbone):
    """Three mlpconv blocks with pooling and dropout in between.

    The paper's last 1x1 convolution gives one map a class, and the logits are their means. The mean of
    a projection is the projection of the mean, so here the head is a linear layer on the pooled vector: same
    parameters, same function, but for the rectifier the authors' code has after that convolution.

    Feature maps: each mlpconv's, at strides 1, 2 and 4.

    Source: Lin et al., Network In Network, 2014, section 4; widths of the authors' CIFAR-10 network.

    Args:
        residual: True adds shortcuts around the mlpconvs, False is the published network.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        norm: whether a norm follows each convolution; the paper has none.
        dropout: of activations between the blocks.
        se: reduction ratio of squeeze-excitation; True for 16, 0 for none.
        stochastic_depth: rate of the last block; it grows linearly from the first.
        zero_init: whether every block starts as its shortcut.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: channels of the images.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: an argument has a bad value, or two do not go together.
    """

    head_name: ClassVar[str] = "linear"

    def __init__(
        self,
        *,
        residual: bool = True,
        shortcut: ShortcutKind = "B",
        norm: bool = False,
        dropout: float = 0.5,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        check_probability("dropout", dropout)
        rates = drop_rates(stochastic_depth, len(_MLPCONVS))
        channels = in_channels
        for i, (kernel_size, widths) in enumerate(_MLPCONVS):
            block = MlpConv(
                channels,
                widths,
                kernel_size=kernel_size,
                norm=norm,
                shortcut=shortcut,
                residual=residual,
                se=se,
                stochastic_depth=rates[i],
                zero_init=zero_init,
            )
            self.add_module(f"mlpconv{i + 1}", block)
            channels = widths[-1]
        self.pool1, self.dropout1 = nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(dropout)
        self.pool2, self.dropout2 = nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Dropout(dropout)
        self.finish([widths[-1] for _, widths in _MLPCONVS], [1, 2, 4])

    def segments(self) -> list[list[nn.Module]]:
        """Return the mlpconvs, each but the first with the pooling and dropout before it."""
        first, second, third = (self.get_submodule(f"mlpconv{i + 1}") for i in range(3))
        return [[first], [self.pool1, self.dropout1, second], [self.pool2, self.dropout2, third]]


_PAPER = "Lin et al., Network In Network, 2014, arXiv:1312.4400"

register_family(
    NiN,
    {
        "nin": ({"residual": False}, 966_986, _PAPER),
        "nin_residual": ({"residual": True}, 985_706, _PAPER),
    },
    num_classes=10,
    input_size=(3, 32, 32),
)
