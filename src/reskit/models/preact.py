"""Pre-activation and wide residual networks, for 32-px and 224-px images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from reskit.errors import ModelError, did_you_mean
from reskit.models.base import (
    Backbone,
    Rename,
    check_integer,
    check_integers,
    check_probability,
    drop_rates,
    stage_widths,
)
from reskit.models.registry import register_family
from reskit.nn import PreActBasicBlock, PreActBottleneck, ShortcutKind, WideBlock, make_conv, make_norm
from reskit.nn.residual import check_plain

__all__ = ["PreActResNet"]

Block = Literal["basic", "bottleneck", "wide"]
Stem = Literal["imagenet", "cifar"]

_BLOCKS: dict[str, type[PreActBasicBlock | PreActBottleneck]] = {
    "basic": PreActBasicBlock,
    "bottleneck": PreActBottleneck,
    "wide": WideBlock,
}


class PreActResNet(Backbone):
    """A residual network whose sums are left alone: norm and rectifier come before each convolution.

    Between stages the papers normalise and rectify once, before the input splits into `F` and the shortcut.
    Here these are ``bn1``, ``bn2``, ... of the network: ``bn1`` follows the stem, the last precedes pooling.
    The feature map of a stage is taken after them, so these maps are normalised and rectified. With the
    `"imagenet"` stem they are preceded by the bare convolution's, at stride 2, before its pooling.

    Source: He et al., Identity Mappings in Deep Residual Networks, 2016, appendix; Zagoruyko and Komodakis,
    Wide Residual Networks, 2016, table 1.

    Args:
        depths: blocks in each stage; any number of stages.
        block: ``"basic"`` (two 3x3), ``"bottleneck"`` (1x1, 3x3, 1x1; four times as many channels) or
            ``"wide"`` (basic, with dropout in between).
        width: of the first stage, doubled at each next; or one width a stage.
        stem_width: channels of the stem.
        stem: ``"cifar"`` is a 3x3, for 32 px; ``"imagenet"`` 7x7 at stride 2 and pooling, for 224 px.
        shortcut: see :func:`reskit.nn.make_shortcut`; projections have no norm.
        residual: False builds the plain twin.
        dropout: within a wide block; the paper uses 0.3 for SVHN and some of its CIFAR results.
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
    # The names of timm's ResNetV2, which has four stages, and the norm between two of them in the second.
    renames: ClassVar[Sequence[Rename]] = (
        (r"^stem\.conv\.", "conv1."),
        (r"^stages\.(\d+)\.blocks\.0\.norm1\.", lambda m: f"bn{int(m[1]) + 1}."),
        (r"^norm\.", "bn5."),
        (
            r"^stages\.(\d+)\.blocks\.(\d+)\.(conv|norm)(\d)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{m[3].replace('norm', 'bn')}{m[4]}.",
        ),
        (
            r"^stages\.(\d+)\.blocks\.(\d+)\.downsample\.conv\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.0.",
        ),
        (r"^head\.fc\.", "linear."),
    )

    def __init__(
        self,
        *,
        depths: Sequence[int],
        block: Block = "basic",
        width: int | Sequence[int] = 16,
        stem_width: int = 16,
        stem: Stem = "cifar",
        shortcut: ShortcutKind = "B",
        residual: bool = True,
        dropout: float = 0.0,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        _check(block, stem, stem_width, dropout)
        check_integers("depths", depths)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        widths = [w * 4 if block == "bottleneck" else w for w in stage_widths(width, len(depths))]
        self.with_pool = stem == "imagenet"
        kernel_size, stride = (7, 2) if self.with_pool else (3, 1)
        self.conv1 = make_conv(2, in_channels, stem_width, kernel_size, stride=stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if self.with_pool else nn.Identity()

        rates = iter(drop_rates(stochastic_depth, sum(depths)))
        channels = stem_width
        for i, (depth, out) in enumerate(zip(depths, widths, strict=True)):
            self._add_norm(i + 1, channels)
            blocks: list[nn.Module] = []
            for j in range(depth):
                options: dict[str, Any] = {
                    "preactivated": j == 0,
                    "stride": 2 if i > 0 and j == 0 else 1,
                    "shortcut": shortcut,
                    "residual": residual,
                    "se": se,
                    "stochastic_depth": next(rates),
                    "zero_init": zero_init,
                }
                if block == "wide":
                    options["dropout"] = dropout
                blocks.append(_BLOCKS[block](channels, out, **options))
                channels = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self._add_norm(len(depths) + 1, channels)
        self.num_stages = len(depths)
        strides = [2**i for i in range(len(depths))]
        if self.with_pool:
            self.finish([stem_width, *widths], [2, *(4 * stride for stride in strides)])
        else:
            self.finish(widths, strides)

    def _add_norm(self, index: int, channels: int) -> None:
        """Add the norm and the rectifier before stage `index`, counted from 1, or after the last."""
        self.add_module(f"bn{index}", make_norm(2, channels))
        self.add_module(f"relu{index}", nn.ReLU(inplace=True))

    def segments(self) -> list[list[nn.Module]]:
        """Return the stages, each with the norm and rectifier after it.

        The stem gives a map of its own where pooling follows it; otherwise it belongs to the first stage.
        """
        stages = [
            [self.get_submodule(name) for name in (f"layer{i}", f"bn{i + 1}", f"relu{i + 1}")]
            for i in range(1, self.num_stages + 1)
        ]
        stages[0] = [self.get_submodule("bn1"), self.get_submodule("relu1"), *stages[0]]
        if self.with_pool:
            return [[self.conv1], [self.maxpool, *stages[0]], *stages[1:]]
        return [[self.conv1, *stages[0]], *stages[1:]]


def _check(block: str, stem: str, stem_width: int, dropout: float) -> None:
    """Refuse what :class:`PreActResNet` does not know.

    Raises:
        ModelError: naming the argument and its choices.
    """
    for argument, value, known in (("block", block, get_args(Block)), ("stem", stem, get_args(Stem))):
        if value not in known:
            raise ModelError(f"unknown {argument} {value!r}{did_you_mean(str(value), known)}")
    check_integer("stem_width", stem_width, minimum=1)
    check_probability("dropout", dropout)
    if dropout and block != "wide":
        raise ModelError("dropout sits within a wide block: use block='wide'")


def _bottleneck(depth: int) -> dict[str, Any]:
    """Depth is 9n + 2: n blocks of three layers in each of three stages, the stem and the head."""
    return {"block": "bottleneck", "depths": ((depth - 2) // 9,) * 3}


def _wide(depth: int, factor: int) -> dict[str, Any]:
    """Depth is 6n + 4: as pre-activation, counting the projections between the stages."""
    return {"block": "wide", "depths": ((depth - 4) // 6,) * 3, "width": 16 * factor}


_PREACT = "He et al., Identity Mappings in Deep Residual Networks, 2016, arXiv:1603.05027"
_WIDE = "Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146"

# The papers print 1.7M, 1.7M and 10.2M; 2.7M, 36.5M and 2.2M. Only the 1001-layer count is not the printed
# one to its last digit; it is that of the other implementations of this network.
register_family(
    PreActResNet,
    {
        "cifar_preact_resnet110": ({"depths": (18, 18, 18), "shortcut": "A"}, 1_727_962, _PREACT),
        "cifar_preact_resnet164": (_bottleneck(164), 1_703_258, _PREACT),
        "cifar_preact_resnet1001": (_bottleneck(1001), 10_327_706, _PREACT),
        "wrn_16_4": (_wide(16, 4), 2_748_890, _WIDE),
        "wrn_28_10": (_wide(28, 10), 36_479_194, _WIDE),
        "wrn_40_2": (_wide(40, 2), 2_243_546, _WIDE),
    },
    num_classes=10,
    input_size=(3, 32, 32),
)
_IMAGENET = {"block": "bottleneck", "width": 64, "stem": "imagenet", "stem_width": 64}

# Parameters and shapes are those of timm's networks of these names, with batch normalisation.
register_family(
    PreActResNet,
    {
        "resnetv2_50": ({**_IMAGENET, "depths": (3, 4, 6, 3)}, 25_549_352, _PREACT),
        "resnetv2_101": ({**_IMAGENET, "depths": (3, 4, 23, 3)}, 44_541_480, _PREACT),
    },
    num_classes=1000,
    input_size=(3, 224, 224),
)
