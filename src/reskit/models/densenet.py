"""Densely connected networks, for 224-px and 32-px images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from torch import nn

from reskit.errors import ModelError, did_you_mean
from reskit.models.base import Backbone, check_integer, check_integers, check_probability
from reskit.models.registry import register_family
from reskit.nn import DenseBlock, Transition, make_conv, make_norm

__all__ = ["DenseNet"]

Stem = Literal["imagenet", "cifar"]


class DenseNet(Backbone):
    """A densely connected network with bottlenecks and compression by one half ("BC").

    Feature maps: with the `"imagenet"` stem its own at stride 2; then each dense block's, before the
    transition compresses it; the last is normalised and rectified. Parameters are named as in torchvision.

    Source: Huang et al., Densely Connected Convolutional Networks, 2017, table 1.

    Args:
        depths: dense layers in each block; any number of blocks.
        growth: channels each layer adds.
        stem_width: channels of the stem.
        bottleneck: each layer's 1x1 has ``bottleneck * growth`` channels.
        stem: ``"imagenet"`` is 7x7 at stride 2, norm, pooling; ``"cifar"`` a bare 3x3.
        dropout: after each layer; the paper uses 0.2 without augmentation.
        se: reduction ratio of squeeze-excitation on what each layer adds; True for 16, 0 for none.
        residual: True is all there is: without its connections the layers have other shapes.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: channels of the images.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: an argument has a bad value, or a plain twin is asked for.
    """

    head_name: ClassVar[str] = "classifier"
    # Files from before PyTorch 0.4 have dots within the names of a dense layer's parts.
    renames: ClassVar[Sequence[tuple[str, str]]] = ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)

    def __init__(
        self,
        *,
        depths: Sequence[int],
        growth: int = 32,
        stem_width: int = 64,
        bottleneck: int = 4,
        stem: Stem = "imagenet",
        dropout: float = 0.0,
        se: int | bool = 0,
        residual: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        if not residual:
            raise ModelError(
                "a DenseNet has no plain twin: its layers' shapes come from its connections; "
                "compare with a ResNet's twin, e.g. cifar_plain56"
            )
        if stem not in get_args(Stem):
            raise ModelError(f"unknown stem {stem!r}{did_you_mean(str(stem), get_args(Stem))}")
        check_integers("depths", depths)
        check_probability("dropout", dropout)
        for name, value in (("growth", growth), ("stem_width", stem_width), ("bottleneck", bottleneck)):
            check_integer(name, value, minimum=1)
        self.features = nn.Sequential()
        self._build_stem(in_channels, stem_width, stem)

        channels, outs = stem_width, []
        for i, depth in enumerate(depths):
            if i > 0:
                self.features.add_module(f"transition{i}", Transition(channels, channels // 2))
                channels //= 2
            block = DenseBlock(channels, growth, depth, bottleneck=bottleneck, dropout=dropout, se=se)
            self.features.add_module(f"denseblock{i + 1}", block)
            channels += depth * growth
            outs.append(channels)
        # torchvision's name whatever the number of blocks
        self.features.add_module("norm5", make_norm(2, channels))
        self.features.add_module("relu5", nn.ReLU(inplace=True))
        if stem == "imagenet":
            self.finish([stem_width, *outs], [2, *(4 * 2**i for i in range(len(depths)))])
        else:
            self.finish(outs, [2**i for i in range(len(depths))])

    def _build_stem(self, in_channels: int, width: int, stem: Stem) -> None:
        """Add the layers before the first dense block."""
        if stem == "cifar":
            self.features.add_module("conv0", make_conv(2, in_channels, width, 3))
            return
        self.features.add_module("conv0", make_conv(2, in_channels, width, 7, stride=2))
        self.features.add_module("norm0", make_norm(2, width))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))

    def segments(self) -> list[list[nn.Module]]:
        """Return the layers, a new segment wherever pooling shrinks the map."""
        segments: list[list[nn.Module]] = [[]]
        for name, layer in self.features.named_children():
            if name.startswith(("pool", "transition")):
                segments.append([])
            segments[-1].append(layer)
        return segments


_PAPER = "Huang et al., Densely Connected Convolutional Networks, 2017, arXiv:1608.06993"

register_family(
    DenseNet,
    {
        "densenet121": ({"depths": (6, 12, 24, 16)}, 7_978_856, _PAPER),
        "densenet169": ({"depths": (6, 12, 32, 32)}, 14_149_480, _PAPER),
        "densenet201": ({"depths": (6, 12, 48, 32)}, 20_013_928, _PAPER),
    },
    num_classes=1000,
    input_size=(3, 224, 224),
)
register_family(
    DenseNet,
    {
        # Depth 100 is 3 blocks of 16 layers of two convolutions, stem, two transitions and head; the stem
        # has 2 * growth channels (section 4.2).
        "cifar_densenet_bc_100_12": (
            {"depths": (16, 16, 16), "growth": 12, "stem_width": 24, "stem": "cifar"},
            769_162,
            _PAPER,
        ),
    },
    num_classes=10,
    input_size=(3, 32, 32),
)
