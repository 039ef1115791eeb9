"""MobileNetV2: inverted residuals, for small devices."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, check_probability, drop_rates
from reskit.models.registry import register_family
from reskit.nn import InvertedResidual, make_conv, make_norm
from reskit.nn.residual import check_plain

__all__ = ["MobileNetV2"]

# Expansion, channels, blocks and stride of the first block of each stage (the paper's table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


class MobileNetV2(Backbone):
    """A network of inverted residuals: narrow maps are added, wide ones are made and filtered within a block.

    Feature maps: the last at each of the strides 2, 4, 8, 16 and 32; the very last is the 1280-channel
    map that is pooled. Parameters are named as in torchvision, so its weights load as they are.

    Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, table 2.

    Args:
        width_factor: scales the channels of every stage, rounded to multiples of 8 and never by more than
            a tenth down; the last map grows with it but does not shrink.
        dropout: before the head.
        residual: False builds the plain twin.
        se: reduction ratio of squeeze-excitation; True for 16, 0 for none.
        stochastic_depth: rate of the last block; it grows linearly from the first.
        zero_init: whether every block with a shortcut starts as the identity.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: channels of the images.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: an argument has a bad value, or two do not go together.
    """

    head_name: ClassVar[str] = "classifier"

    def __init__(
        self,
        *,
        width_factor: float = 1.0,
        dropout: float = 0.2,
        residual: bool = True,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        if not width_factor > 0:
            raise ModelError(f"width_factor is {width_factor!r}: give a positive number")
        check_probability("dropout", dropout)
        channels, stride = round_to_eight(_STEM * width_factor), 2
        layers: list[nn.Module] = [_rectified(in_channels, channels, 3, stride=2)]
        outs, strides = [channels], [stride]  # after each layer
        rates = iter(drop_rates(stochastic_depth, sum(depth for _, _, depth, _ in _STAGES)))
        for expansion, width, depth, first_stride in _STAGES:
            out = round_to_eight(width * width_factor)
            for j in range(depth):
                block = InvertedResidual(
                    channels,
                    out,
                    expansion=expansion,
                    stride=first_stride if j == 0 else 1,
                    residual=residual,
                    se=se,
                    stochastic_depth=next(rates),
                    zero_init=zero_init,
                )
                layers.append(block)
                channels, stride = out, stride * block.stride
                outs.append(channels)
                strides.append(stride)
        last = round_to_eight(_LAST * max(1.0, width_factor))
        layers.append(_rectified(channels, last, 1))
        self.features = nn.Sequential(*layers)
        # One map a stride: a segment ends where the next layer shrinks the map, the last with the last layer.
        self.ends = [i + 1 for i, (a, b) in enumerate(pairwise(strides)) if a != b] + [len(layers)]
        self.dropout = dropout
        self.finish([*(outs[end - 1] for end in self.ends[:-1]), last], sorted(set(strides)))

    def make_head(self, num_classes: int) -> nn.Module:
        """Return dropout and a linear layer that starts small."""
        linear = nn.Linear(self.num_features, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Dropout(self.dropout), linear)

    def segments(self) -> list[list[nn.Module]]:
        """Return the layers cut where the map shrinks."""
        return [list(self.features[start:end]) for start, end in pairwise([0, *self.ends])]


def round_to_eight(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, and one more where that loses over a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _rectified(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Module:
    """Return convolution, norm and the rectifier clipped at 6."""
    conv = make_conv(2, in_channels, out_channels, kernel_size, stride=stride)
    return nn.Sequential(conv, make_norm(2, out_channels), nn.ReLU6(inplace=True))


_PAPER = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, arXiv:1801.04381"

register_family(
    MobileNetV2, {"mobilenet_v2": ({}, 3_504_872, _PAPER)}, num_classes=1000, input_size=(3, 224, 224)
)
