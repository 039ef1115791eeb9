"""Residual networks of any depth, width and number of stages, and the published ImageNet variants."""

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
    drop_rates,
    stage_widths,
)
from reskit.models.registry import register_family
from reskit.nn import BasicBlock, Bottleneck, ShortcutKind, make_conv, make_norm
from reskit.nn.residual import check_plain

__all__ = ["ResNet"]

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "cifar"]

EXPANSION = 4  # a bottleneck block gives four times its width (He et al. 2015, table 1)


class ResNet(Backbone):
    """A residual network: a stem, stages of blocks that halve the map and double the width, a linear head.

    Feature maps: one a stage, preceded with the `"imagenet"` stem by the stem's own at stride 2 (before
    its pooling). Parameters are named as in torchvision, so its weights load as they are.

    Source: He et al., Deep Residual Learning for Image Recognition, 2015, table 1.

    Args:
        depths: blocks in each stage; any number of stages.
        block: ``"basic"`` (two 3x3) or ``"bottleneck"`` (1x1, 3x3, 1x1).
        width: of the first stage, doubled at each next; or one width a stage. The stem has the first.
        stem: ``"imagenet"`` is 7x7 at stride 2 and pooling, for 224 px; ``"cifar"`` a 3x3, for 32 px.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        residual: False builds the plain twin.
        groups: of the 3x3 in a bottleneck.
        width_per_group: of the 3x3 in a bottleneck, at width 64.
        stride_first: whether a bottleneck's stride is on its first 1x1 ("v1": the paper, Caffe, Keras)
            and not on its 3x3 ("v1.5": torchvision, timm).
        se: reduction ratio of squeeze-excitation; True for 16, 0 for none.
        stochastic_depth: rate of the last block; it grows linearly from the first.
        zero_init: whether every block starts as its shortcut.
        num_classes: width of the logits; 0 for the pooled vector.
        in_channels: channels of the images.
        features_only: whether to give the feature maps, without a head.

    Raises:
        ModelError: an argument has a bad value, or two do not go together.
    """

    # The names that Hugging Face transformers gives the same layers; the bare backbone has no "resnet.".
    renames: ClassVar[Sequence[Rename]] = (
        (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
        (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
        (
            r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}.",
        ),
        (
            r"^(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.(conv|norm)\w+\.",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{'conv' if m[4] == 'conv' else 'bn'}{int(m[3]) + 1}.",
        ),
        (r"^classifier\.1\.", "fc."),
    )

    def __init__(
        self,
        *,
        depths: Sequence[int],
        block: Block = "basic",
        width: int | Sequence[int] = 64,
        stem: Stem = "imagenet",
        shortcut: ShortcutKind = "B",
        residual: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        stride_first: bool = False,
        se: int | bool = 0,
        stochastic_depth: float = 0.0,
        zero_init: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        _check(block, stem, groups, width_per_group, stride_first)
        check_integers("depths", depths)
        check_plain(residual, zero_init=zero_init, stochastic_depth=stochastic_depth)
        widths = stage_widths(width, len(depths))
        self.with_pool = stem == "imagenet"
        self._build_stem(in_channels, widths[0])

        rates = iter(drop_rates(stochastic_depth, sum(depths)))
        outs = [w * EXPANSION if block == "bottleneck" else w for w in widths]
        channels = widths[0]
        for i, (depth, stage_width, out) in enumerate(zip(depths, widths, outs, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                options: dict[str, Any] = {
                    "stride": 2 if i > 0 and j == 0 else 1,
                    "shortcut": shortcut,
                    "residual": residual,
                    "se": se,
                    "stochastic_depth": next(rates),
                    "zero_init": zero_init,
                }
                if block == "bottleneck":
                    inner = int(stage_width * width_per_group / 64) * groups
                    options |= {"width": inner, "groups": groups, "stride_first": stride_first}
                blocks.append((Bottleneck if block == "bottleneck" else BasicBlock)(channels, out, **options))
                channels = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_stages = len(depths)
        if self.with_pool:
            self.finish([widths[0], *outs], [2, *(4 * 2**i for i in range(len(depths)))])
        else:
            self.finish(outs, [2**i for i in range(len(depths))])

    def _build_stem(self, in_channels: int, width: int) -> None:
        """Add the layers before the first stage."""
        kernel_size, stride = (7, 2) if self.with_pool else (3, 1)
        self.conv1 = make_conv(2, in_channels, width, kernel_size, stride=stride)
        self.bn1 = make_norm(2, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if self.with_pool else nn.Identity()

    def segments(self) -> list[list[nn.Module]]:
        """Return stem and stages; the stem gives a map of its own where pooling follows it."""
        stem = [self.conv1, self.bn1, self.relu]
        first, *others = [[self.get_submodule(f"layer{i + 1}")] for i in range(self.num_stages)]
        if self.with_pool:
            return [stem, [self.maxpool, *first], *others]
        return [stem + first, *others]


def _check(block: str, stem: str, groups: int, width_per_group: int, stride_first: bool) -> None:
    """Refuse what :class:`ResNet` does not know.

    Raises:
        ModelError: naming the argument and its choices.
    """
    for argument, value, known in (("block", block, get_args(Block)), ("stem", stem, get_args(Stem))):
        if value not in known:
            raise ModelError(f"unknown {argument} {value!r}{did_you_mean(str(value), known)}")
    check_integer("groups", groups, minimum=1)
    check_integer("width_per_group", width_per_group, minimum=1)
    if block == "basic" and (groups, width_per_group, stride_first) != (1, 64, False):
        raise ModelError(
            "groups, width_per_group and stride_first shape a bottleneck: use block='bottleneck'"
        )


def _bottleneck(*depths: int, **arguments: Any) -> dict[str, Any]:
    return {"block": "bottleneck", "depths": depths, **arguments}


_RESNET = "He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385"
_WIDE = "Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146"
_RESNEXT = "Xie et al., Aggregated Residual Transformations for Deep Neural Networks, 2017, arXiv:1611.05431"
_SENET = "Hu et al., Squeeze-and-Excitation Networks, 2018, arXiv:1709.01507"

register_family(
    ResNet,
    {
        "resnet18": ({"depths": (2, 2, 2, 2)}, 11_689_512, _RESNET),
        "resnet34": ({"depths": (3, 4, 6, 3)}, 21_797_672, _RESNET),
        "resnet50": (_bottleneck(3, 4, 6, 3), 25_557_032, _RESNET),
        "resnet101": (_bottleneck(3, 4, 23, 3), 44_549_160, _RESNET),
        "resnet152": (_bottleneck(3, 8, 36, 3), 60_192_808, _RESNET),
        "wide_resnet50_2": (_bottleneck(3, 4, 6, 3, width_per_group=128), 68_883_240, _WIDE),
        "wide_resnet101_2": (_bottleneck(3, 4, 23, 3, width_per_group=128), 126_886_696, _WIDE),
        "resnext50_32x4d": (_bottleneck(3, 4, 6, 3, groups=32, width_per_group=4), 25_028_904, _RESNEXT),
        # Parameters are named as in timm, whose seresnet50 loads as it is.
        "seresnet50": (_bottleneck(3, 4, 6, 3, se=16), 28_088_024, _SENET),
    },
    num_classes=1000,
    input_size=(3, 224, 224),
)
