"""Networks that take noise from an image: what they learn is the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, Rename, check_integer, check_integers
from reskit.models.registry import register_family
from reskit.nn import Residual, zero_init_

__all__ = ["RestorationNet", "convolutions"]


class _Restored(Residual):
    """`y = F(x) + x` around all layers of a network, `F` being minus the noise.

    Args:
        layers: from the image, its squares folded into channels, to the noise alike.
        shuffle: side of the squares.
        residual: False builds the plain twin.
    """

    def __init__(self, layers: nn.Sequential, *, shuffle: int, residual: bool) -> None:
        super().__init__(residual=residual)
        self.layers = layers
        self.fold = _Fold(shuffle) if shuffle > 1 else nn.Identity()
        self.unfold = nn.PixelShuffle(shuffle) if shuffle > 1 else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """Return the correction: minus the noise."""
        return -_cut(self.unfold(self.layers(self.fold(x))), x)


class _Fold(nn.Module):
    """Squares of pixels to channels; an image whose sides do not fit is continued by its border."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C * s * s, ceil(H / s), ceil(W / s))` of `(N, C, H, W)`."""
        return nn.functional.pixel_unshuffle(_continued(x, self.side), self.side)


# Leaves for symbolic tracing, by which norms are folded into convolutions: what they do depends on sizes.
@torch.fx.wrap
def _continued(x: Tensor, side: int) -> Tensor:
    down, right = (-size % side for size in x.shape[-2:])
    return nn.functional.pad(x, (0, right, 0, down), "replicate") if down or right else x


@torch.fx.wrap
def _cut(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape == like.shape else x[..., : like.shape[-2], : like.shape[-1]]


class RestorationNet(Backbone):
    r"""Convolutions of one size around which a single shortcut lies: :math:`y = x - N(x)`.

    `N` predicts the noise, as the published weights of DnCNN do; what is left is the image.

    Sources: Zhang et al., Beyond a Gaussian Denoiser, 2017 (DnCNN); Zhang et al., Learning Deep CNN
    Denoiser Prior, 2017, and Wang et al., Dilated Residual Network for Image Denoising, 2017 (dilations);
    Zhang et al., FFDNet, 2018 (`shuffle`).

    Args:
        in_channels: channels in and out.
        depth: layers.
        width: channels between layers.
        dilations: of each layer, instead of `depth` layers without.
        norm: whether a batch norm follows every layer but the first and the last; convolutions then have no
            bias.
        shuffle: side of the squares of pixels that become channels of one, so that all layers work at a
            fraction of the resolution and see further.
        zero_init: whether the noise starts at zero instead of small.
        residual: False builds the plain twin, which must make the image itself.
        features_only: whether :meth:`forward` gives the last map before the noise.
    """

    head_name: ClassVar[str] = "last"
    renames: ClassVar[Sequence[Rename]] = ((r"^(?:module\.)?dncnn\.", "restored.layers."),)

    def __init__(
        self,
        *,
        in_channels: int,
        features_only: bool = False,
        depth: int = 17,
        width: int = 64,
        dilations: Sequence[int] | None = None,
        norm: bool = True,
        shuffle: int = 1,
        zero_init: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__(num_classes=0, in_channels=in_channels, features_only=features_only)
        check_integer("depth", depth, minimum=2)
        check_integer("width", width, minimum=1)
        check_integer("shuffle", shuffle, minimum=1)
        if dilations is None:
            dilations = [1] * depth
        check_integers("dilations", dilations)
        if len(dilations) < 2:
            raise ModelError("dilations has one value: a network needs at least two layers")
        folded = in_channels * shuffle**2
        layers = convolutions(folded, width, dilations, norm=norm, out_channels=folded)
        if zero_init:
            zero_init_(layers[-1])
        self.restored = _Restored(layers, shuffle=shuffle, residual=residual)
        self.channels, self.strides, self.num_features = [width], [shuffle], width

    @property
    def head(self) -> nn.Module:
        """The layer that makes the noise."""
        return self.restored.layers[-1]

    def segments(self) -> list[list[nn.Module]]:
        """Return folding and all layers but the last, as one segment."""
        return [[self.restored.fold, *self.restored.layers[:-1]]]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the restored image `(N, in_channels, H, W)` of `x` alike; of any size."""
        if self.features_only:
            return self.feature_maps(x)
        return self.restored(x)  # type: ignore[no-any-return]


def convolutions(
    in_channels: int, width: int, dilations: Sequence[int], *, norm: bool, out_channels: int
) -> nn.Sequential:
    """Return 3x3 convolutions, rectified in between.

    The last begins small, so that what is added to a shortcut begins near zero.

    Args:
        in_channels: of the first layer.
        width: channels between layers.
        dilations: of each layer.
        norm: whether a batch norm follows all but the first and the last.
        out_channels: of the last layer.
    """
    widths = [in_channels, *[width] * (len(dilations) - 1), out_channels]
    last = len(dilations) - 1
    layers: list[nn.Module] = []
    for place, dilation in enumerate(dilations):
        conv = nn.Conv2d(
            widths[place], widths[place + 1], 3, padding=dilation, dilation=dilation, bias=not norm
        )
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        if place == last:
            with torch.no_grad():
                conv.weight *= 0.02
        layers.append(conv)
        if norm and 0 < place < last:
            layers.append(nn.BatchNorm2d(width))
        if place < last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


_DNCNN = "Zhang et al., Beyond a Gaussian Denoiser, 2017, arXiv:1608.03981"

register_family(
    RestorationNet,
    {
        "dncnn": ({"depth": 17}, 556_032, _DNCNN),
        "dncnn_blind": ({"depth": 20}, 667_008, _DNCNN),
        "dilated_denoiser": (
            {"dilations": [1, 2, 3, 4, 3, 2, 1]},
            186_112,
            "Wang et al., Dilated Residual Network for Image Denoising, 2017, arXiv:1708.05473",
        ),
    },
    input_size=(1, 128, 128),
    task="denoise",
)
