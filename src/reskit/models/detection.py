"""Detectors: a feature pyramid on any residual network of ours, and torchvision's heads on the pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from reskit.errors import ModelError, did_you_mean
from reskit.models.base import Backbone, Rename, check_integer
from reskit.models.registry import MODELS, create_model, list_models, register_family

__all__ = ["Detector", "Fcos"]

_GROUPS = 32  # of the group norms in torchvision's heads


class Detector(Backbone):
    """What detectors share: a body, any network that classifies, and a pyramid with heads on its last maps.

    The body's maps are its features and its segments, so layers rest and learn as the body's do; all that is
    above them is the head. Weights of the body alone, published for classification, fill the body.

    Attributes:
        from_body: how many maps of the body the pyramid stands on, the last ones.
        scheme: name of what the outputs mean, in `reskit.tasks.detect_schemes.SCHEMES`.
        levels: stride of each level of the pyramid, in pixels.

    Raises:
        ModelError: an argument has a bad value, or the body has none of these.
    """

    head_name: ClassVar[str] = "detector"
    inner: ClassVar[str] = "body"
    renames: ClassVar[
        Sequence[Rename]
    ] = (  # torchvision's detectors, also those saved before its version 0.13
        (r"^backbone\.(?=body\.)", ""),
        (r"^backbone\.(?=fpn\.)", "detector."),
        (r"^(detector\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    )
    from_body: ClassVar[int]
    scheme: ClassVar[str]
    levels: list[int]

    def __init__(
        self,
        *,
        backbone: str,
        backbone_arguments: Mapping[str, Any] | None,
        residual: bool,
        zero_init: bool,
        num_classes: int,
        in_channels: int,
        features_only: bool,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        arguments = _for_body(backbone, dict(backbone_arguments or {}), residual, zero_init)
        self.body = create_model(backbone, in_channels=in_channels, features_only=True, **arguments)

    @property
    def used(self) -> list[int]:
        """Strides of the body's maps that the pyramid stands on."""
        return self.body.strides[-self.from_body :]

    def segments(self) -> list[list[nn.Module]]:
        """Return the body's segments."""
        return self.body.segments()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return what the head says of images `(N, in_channels, H, W)`; see the class."""
        if self.features_only or not self.num_classes:
            return super().forward(x)
        return self.head(self.feature_maps(x)[-self.from_body :])  # type: ignore[no-any-return]


class _Pyramid(nn.Module):
    """A feature pyramid and, on its levels, the towers that say what is where."""

    def __init__(self, channels: Sequence[int], *, width: int, convs: int, num_classes: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelP6P7(width, width))
        self.head = FCOSHead(width, num_anchors=1, num_classes=num_classes, num_convs=convs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return `(N, points, classes + 5)` of the body's maps."""
        levels = self.fpn(OrderedDict((str(place), level) for place, level in enumerate(maps)))
        said = self.head(list(levels.values()))
        return torch.cat([said["cls_logits"], said["bbox_regression"], said["bbox_ctrness"]], dim=2)


class Fcos(Detector):
    """A one-stage detector without anchors: every point of a feature pyramid says what object it lies in.

    :meth:`forward` returns `(N, points, classes + 5)`: logits of the classes; distances from the point to the
    left, top, right and bottom of its object, in strides of its level; the logit of how central it lies.
    Points go level by level, the finest first, and row by row.

    Sources: Tian et al., FCOS: A Simple and Strong Anchor-free Object Detector, 2020; Lin et al., Feature
    Pyramid Networks for Object Detection, 2017. Layers of the pyramid and of the heads are torchvision's.

    Args:
        backbone: name of the body, any of `list_models(task="classify")`.
        backbone_arguments: what differs from its published form.
        width: channels of the pyramid and its towers; a multiple of 32 from 64.
        convs: convolutions in each tower.
        residual: False builds the body's plain twin.
        zero_init: whether every block of the body starts as its shortcut.
        num_classes: kinds of objects; 0 for the body's pooled vector.
        in_channels: channels of the images.
        features_only: whether :meth:`forward` gives the body's maps.
    """

    logits_name: ClassVar[str] = "detector.head.classification_head.cls_logits"
    renames: ClassVar[Sequence[Rename]] = (
        *Detector.renames,
        (r"^(?=head\.(?:classification|regression)_head\.)", "detector."),
    )
    from_body: ClassVar[int] = 3  # C3, C4 and C5 of a ResNet; two more levels follow
    scheme: ClassVar[str] = "fcos"

    def __init__(
        self,
        *,
        backbone: str,
        backbone_arguments: Mapping[str, Any] | None = None,
        width: int = 256,
        convs: int = 4,
        residual: bool = True,
        zero_init: bool = False,
        num_classes: int = 91,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        check_integer("convs", convs, minimum=1)
        check_integer(
            "width", width, minimum=2 * _GROUPS
        )  # a group of one channel cannot norm a single pixel
        if width % _GROUPS:
            raise ModelError(f"width is {width}: the group norms of the towers need a multiple of {_GROUPS}")
        super().__init__(
            backbone=backbone,
            backbone_arguments=backbone_arguments,
            residual=residual,
            zero_init=zero_init,
            num_classes=num_classes,
            in_channels=in_channels,
            features_only=features_only,
        )
        self.width, self.convs = width, convs
        self.levels = [*self.used, 2 * self.used[-1], 4 * self.used[-1]]
        self.finish(self.body.channels, self.body.strides)

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new pyramid with its towers, from the body's last maps to `(N, points, classes + 5)`."""
        channels = self.body.channels[-self.from_body :]
        return _Pyramid(channels, width=self.width, convs=self.convs, num_classes=num_classes)


def _for_body(backbone: str, arguments: dict[str, Any], residual: bool, zero_init: bool) -> dict[str, Any]:
    """Return the arguments of a body, what a detector passes on among them.

    Raises:
        ModelError: the network cannot be a body, or has no form that is asked for.
    """
    entry = MODELS.get(backbone)
    if entry.task != "classify":
        known = list_models(task="classify")
        raise ModelError(f"{backbone!r} is no network to detect with{did_you_mean(backbone, known)}")
    for name, value, usual in (("residual", residual, True), ("zero_init", zero_init, False)):
        if value != usual and name not in entry.options:
            raise ModelError(f"backbone {backbone!r} does not know {name}={value}")
        if value != usual:
            arguments[name] = value
    return arguments


_FCOS = "Tian et al., FCOS: A Simple and Strong Anchor-free Object Detector, 2020, arXiv:2006.09214"

register_family(
    Fcos,
    {
        "fcos_resnet18_fpn": ({"backbone": "resnet18"}, 19_303_072, _FCOS),
        "fcos_resnet34_fpn": ({"backbone": "resnet34"}, 29_411_232, _FCOS),
        "fcos_resnet50_fpn": ({"backbone": "resnet50"}, 32_322_720, _FCOS),
        "fcos_resnet101_fpn": ({"backbone": "resnet101"}, 51_314_848, _FCOS),
        "fcos_mobilenet_v2_fpn": ({"backbone": "mobilenet_v2"}, 10_481_504, _FCOS),
    },
    num_classes=91,
    input_size=(3, 512, 512),
    task="detect",
)
