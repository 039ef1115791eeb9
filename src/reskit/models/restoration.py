"""Networks that restore an image: what they learn is the difference to what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, Rename, check_integer, check_integers
from reskit.models.registry import register_family
from reskit.nn import Residual

__all__ = ["RestorationNet"]


class _Restored(Residual):
    """`y = F(x) + x` around all layers of a network."""

    def __init__(self, layers: nn.Sequential, *, residual: bool) -> None:
        super().__init__(residual=residual)
        self.layers = layers

    def residual(self, x: Tensor) -> Tensor:
        """Return the correction: minus the noise, or the detail that is missing."""
        return -self.layers(x)  # type: ignore[no-any-return]


class RestorationNet(Backbone):
    r"""Convolutions of one size around which a single shortcut lies: :math:`y = x - N(x)`.

    `N` predicts the noise as the published weights of DnCNN do; what is left is the image. VDSR is the same
    network without norms, its `x` an image scaled up by bicubic interpolation.

    Sources: Zhang et al., Beyond a Gaussian Denoiser, 2017 (DnCNN); Kim et al., Accurate Image
    Super-Resolution Using Very Deep Convolutional Networks, 2016 (VDSR); Zhang et al., Learning Deep CNN
    Denoiser Prior, 2017, and Wang et al., Dilated Residual Network for Image Denoising, 2017 (dilations).

    Args:
        in_channels: channels in and out.
        depth: layers.
        width: channels between layers.
        dilations: of each layer, instead of `depth` layers without.
        norm: whether a batch norm follows every layer but the first and the last.
        residual: False builds the plain twin, which must make the image itself.
        features_only: whether :meth:`forward` gives the last map before the image.
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
        residual: bool = True,
    ) -> None:
        super().__init__(num_classes=0, in_channels=in_channels, features_only=features_only)
        check_integer("depth", depth, minimum=2)
        check_integer("width", width, minimum=1)
        if dilations is None:
            dilations = [1] * depth
        check_integers("dilations", dilations)
        if len(dilations) < 2:
            raise ModelError("dilations has one value: a network needs at least two layers")
        widths = [in_channels, *[width] * (len(dilations) - 1), in_channels]
        layers: list[nn.Module] = []
        for place, dilation in enumerate(dilations):
            inner = 0 < place < len(dilations) - 1
            layers.append(
                nn.Conv2d(
                    widths[place],
                    widths[place + 1],
                    3,
                    padding=dilation,
                    dilation=dilation,
                    bias=not norm,
                )
            )
            if inner and norm:
                layers.append(nn.BatchNorm2d(width))
            if place < len(dilations) - 1:
                layers.append(nn.ReLU(inplace=True))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        # The last layer begins small, so that the network begins near the identity.
        with_last = layers[-1]
        assert isinstance(with_last, nn.Conv2d)
        nn.init.normal_(with_last.weight, std=1e-3)
        self.restored = _Restored(nn.Sequential(*layers), residual=residual)
        self.channels, self.strides, self.num_features = [width], [1], width

    @property
    def head(self) -> nn.Module:
        """The layer that makes the correction."""
        return self.restored.layers[-1]

    def segments(self) -> list[list[nn.Module]]:
        """Return all layers but the last, as one segment."""
        return [list(self.restored.layers[:-1])]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the restored image `(N, in_channels, H, W)` of `x` alike; of any size."""
        if self.features_only:
            return self.feature_maps(x)
        return self.restored(x)  # type: ignore[no-any-return]


register_family(
    RestorationNet,
    {
        "dncnn": ({"depth": 17}, 556_032, "Zhang et al. 2017"),
        "dncnn_blind": ({"depth": 20}, 667_008, "Zhang et al. 2017"),
        "dilated_denoiser": (
            {"dilations": [1, 2, 3, 4, 3, 2, 1]},
            186_112,
            "Wang et al. 2017; Zhang et al. 2017 (IRCNN)",
        ),
        "vdsr": ({"depth": 20, "norm": False}, 665_921, "Kim et al. 2016"),
    },
    input_size=(1, 64, 64),
    task="restore",
)
