"""Networks that enlarge an image: what they learn is what interpolation cannot give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, Rename, check_integer
from reskit.models.registry import register_family
from reskit.models.restoration import convolutions
from reskit.nn import BicubicUpscale, NormFreeBlock, Residual, zero_init_

__all__ = ["EDSR", "VDSR"]

SCALES = (2, 3, 4)


def _check_scale(scale: object) -> None:
    if scale not in SCALES or isinstance(scale, bool):
        raise ModelError(f"scale is {scale!r}: give one of {', '.join(map(str, SCALES))}")


class _Detailed(Residual):
    """`y = F(x) + U(x)`: the shortcut enlarges, `F` gives the detail."""

    def __init__(self, layers: nn.Sequential, *, scale: int, subpixel: bool, residual: bool) -> None:
        super().__init__(residual=residual)
        self.layers = layers
        self.upscale = BicubicUpscale(scale)
        self.shuffle = nn.PixelShuffle(scale)
        self.subpixel = subpixel

    def residual(self, x: Tensor) -> Tensor:
        """Return the detail that is missing."""
        if self.subpixel:
            return self.shuffle(self.layers(x))  # type: ignore[no-any-return]
        return self.layers(self.upscale(x))  # type: ignore[no-any-return]

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `x` enlarged."""
        return self.upscale(x)  # type: ignore[no-any-return]


class VDSR(Backbone):
    r"""Convolutions that add detail to an image enlarged by bicubic interpolation.

    :math:`y = U(x) + F(U(x))`, with the interpolation `U` in the network, so that its input is the small
    image. With `subpixel` it is :math:`y = U(x) + S(F(x))`: the layers see the small image and give
    `scale * scale` values for each of its pixels, which `S` puts in their places (Shi et al., Real-Time
    Single Image and Video Super-Resolution, 2016). That takes a quarter of the work at scale 2.

    Source: Kim et al., Accurate Image Super-Resolution Using Very Deep Convolutional Networks, 2016.

    Args:
        in_channels: channels in and out.
        scale: by how much both sides grow: 2, 3 or 4.
        depth: layers.
        width: channels between layers.
        subpixel: whether the layers work at the small image's size.
        zero_init: whether the detail starts at zero instead of small.
        residual: False builds the plain twin, which must make the image itself.
        features_only: whether :meth:`forward` gives the last map before the image, in the size of the input.
    """

    head_name: ClassVar[str] = "last"
    renames: ClassVar[Sequence[Rename]] = ()

    def __init__(
        self,
        *,
        in_channels: int,
        features_only: bool = False,
        scale: int = 2,
        depth: int = 20,
        width: int = 64,
        subpixel: bool = False,
        zero_init: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__(num_classes=0, in_channels=in_channels, features_only=features_only)
        _check_scale(scale)
        check_integer("depth", depth, minimum=2)
        check_integer("width", width, minimum=1)
        last = in_channels * scale**2 if subpixel else in_channels
        layers = convolutions(in_channels, width, [1] * depth, norm=False, out_channels=last)
        if zero_init:
            zero_init_(layers[-1])
        self.detailed = _Detailed(layers, scale=scale, subpixel=subpixel, residual=residual)
        # A map of the large image, its squares folded into channels: strides are whole numbers.
        self.fold = nn.Identity() if subpixel else nn.PixelUnshuffle(scale)
        self.num_features = width if subpixel else width * scale**2
        self.channels, self.strides = [self.num_features], [1]

    @property
    def head(self) -> nn.Module:
        """The layer that makes the detail."""
        return self.detailed.layers[-1]

    def segments(self) -> list[list[nn.Module]]:
        """Return all layers but the last, as one segment."""
        first = [] if self.detailed.subpixel else [self.detailed.upscale]
        return [[*first, *self.detailed.layers[:-1], self.fold]]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the image `(N, in_channels, scale * H, scale * W)` of `(N, in_channels, H, W)`."""
        if self.features_only:
            return self.feature_maps(x)
        return self.detailed(x)  # type: ignore[no-any-return]


class _Body(Residual):
    """Residual blocks and a convolution, around which another shortcut lies."""

    def __init__(self, blocks: Sequence[nn.Module], width: int, *, zero_init: bool, residual: bool) -> None:
        super().__init__(residual=residual)
        self.layers = nn.Sequential(*blocks, nn.Conv2d(width, width, 3, padding=1))
        if zero_init:
            zero_init_(self.layers[-1])

    def residual(self, x: Tensor) -> Tensor:
        """Return what blocks and convolution make of `x`."""
        return self.layers(x)  # type: ignore[no-any-return]


class EDSR(Backbone):
    """Residual blocks without norms on the small image, enlarged by pixel shuffle at the end.

    Pixels are expected in [0, 1]; the published networks take 0 to 255 less a mean.

    Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, 2017, section 3 and
    table 1.

    Args:
        in_channels: channels in and out.
        scale: by how much both sides grow: 2, 3 or 4.
        depth: residual blocks.
        width: channels of the blocks.
        scaling: of each block's `F`; 0.1 for the paper's widest network.
        zero_init: whether every `F` starts at zero.
        residual: False builds the plain twin.
        features_only: whether :meth:`forward` gives the last map in the size of the input.
    """

    head_name: ClassVar[str] = "last"

    def __init__(
        self,
        *,
        in_channels: int,
        features_only: bool = False,
        scale: int = 2,
        depth: int = 16,
        width: int = 64,
        scaling: float = 1.0,
        zero_init: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__(num_classes=0, in_channels=in_channels, features_only=features_only)
        _check_scale(scale)
        check_integer("depth", depth, minimum=1)
        check_integer("width", width, minimum=1)
        blocks = [
            NormFreeBlock(width, width, scaling=scaling, zero_init=zero_init, residual=residual)
            for _ in range(depth)
        ]
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.body = _Body(blocks, width, zero_init=zero_init, residual=residual)
        # Scale 4 goes in two steps, as in the paper.
        steps = [2, 2] if scale == 4 else [scale]
        self.enlarge = nn.Sequential(
            *(
                layer
                for step in steps
                for layer in (nn.Conv2d(width, width * step**2, 3, padding=1), nn.PixelShuffle(step))
            )
        )
        self.last = nn.Conv2d(width, in_channels, 3, padding=1)
        self.channels, self.strides, self.num_features = [width], [1], width

    def segments(self) -> list[list[nn.Module]]:
        """Return the layers before the image is enlarged, as one segment."""
        return [[self.first, self.body]]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the image `(N, in_channels, scale * H, scale * W)` of `(N, in_channels, H, W)`."""
        if self.features_only:
            return self.feature_maps(x)
        return self.last(self.enlarge(self.body(self.first(x))))  # type: ignore[no-any-return]


_VDSR = (
    "Kim et al., Accurate Image Super-Resolution Using Very Deep Convolutional Networks, 2016,"
    " arXiv:1511.04587"
)
_EDSR = (
    "Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, 2017, arXiv:1707.02921"
)

register_family(VDSR, {"vdsr": ({}, 665_921, _VDSR)}, input_size=(1, 128, 128), task="superresolve")
register_family(
    EDSR, {"edsr_baseline": ({}, 1_369_859, _EDSR)}, input_size=(3, 128, 128), task="superresolve"
)
