"""The residual networks of He et al. for 32-px images, and their plain twins."""

from __future__ import annotations

from typing import Any, ClassVar

from reskit.models.registry import register_family
from reskit.models.resnet import ResNet

__all__ = ["CifarResNet"]


class CifarResNet(ResNet):
    """A :class:`ResNet` whose head is called ``linear``, as in the published CIFAR weights."""

    head_name: ClassVar[str] = "linear"


_PAPER = "He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2, arXiv:1512.03385"

# Depth is 6n + 2: n basic blocks of two layers in each of three stages, the stem and the head. Shortcuts
# of option A have no parameters, so the plain twin has the same number. The 8-layer network (n = 1) is not
# in the paper; it suits images of about 8 px and quick trials.
_PARAMETERS = {
    8: 75_290,
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}


def _arguments(depth: int, **others: Any) -> dict[str, Any]:
    return {"depths": ((depth - 2) // 6,) * 3, "width": 16, "stem": "cifar", "shortcut": "A", **others}


register_family(
    CifarResNet,
    {f"cifar_resnet{depth}": (_arguments(depth), count, _PAPER) for depth, count in _PARAMETERS.items()}
    | {
        f"cifar_plain{depth}": (_arguments(depth, residual=False), _PARAMETERS[depth], _PAPER)
        for depth in (20, 32, 44, 56, 110)
    },
    num_classes=10,
    input_size=(3, 32, 32),
)
