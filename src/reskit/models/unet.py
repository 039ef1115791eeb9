"""Residual U-Nets: any of our networks as the encoder, residual blocks on the way back up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reskit.errors import ModelError, did_you_mean
from reskit.models.base import Backbone, check_integers
from reskit.models.registry import MODELS, create_model, register_family
from reskit.nn import BasicBlock, make_conv
from reskit.nn.residual import check_plain

__all__ = ["UNet"]

_WIDEST, _NARROWEST = 256, 16
AUXILIARY = 2
"""Decoder levels below the last that answer too under deep supervision."""


class _Rise(nn.Module):
    """One level up: the map from below is enlarged, joined to the skip and merged by a block.

    The block sees every channel from below: narrowing them first by a 1x1 convolution would be cheaper, and
    cost 0.005 Dice on isbi2012-membrane.

    Args:
        deep: channels of the map from below.
        skip: channels of the encoder's map.
        width: channels out.
        residual: False builds the plain twin.
        zero_init: whether the block starts as its shortcut.
    """

    def __init__(self, deep: int, skip: int, width: int, *, residual: bool, zero_init: bool) -> None:
        super().__init__()
        self.block = BasicBlock(deep + skip, width, residual=residual, zero_init=zero_init)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return `(N, width, H, W)` of `(N, deep, h, w)` and `(N, skip, H, W)`; `H` may be any, also odd."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
        return self.block(torch.cat([x, skip], 1))  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """From an encoder's maps to logits of every pixel.

    Args:
        skips: channels of the maps, the finest first, the last of which is where it begins.
        widths: channels of each level, from the deepest up; one fewer than maps.
        num_classes: channels of the logits.
        auxiliary: levels below the last with logits of their own.
        residual: False builds the plain twin.
        zero_init: whether every block starts as its shortcut.
    """

    def __init__(
        self,
        skips: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        *,
        auxiliary: int,
        residual: bool,
        zero_init: bool,
    ) -> None:
        super().__init__()
        deep = [skips[-1], *widths]
        self.rise = nn.ModuleList(
            _Rise(below, skip, width, residual=residual, zero_init=zero_init)
            for below, skip, width in zip(deep, reversed(skips[:-1]), widths, strict=False)
        )
        self.logits = _logits(widths[-1], num_classes)
        self.auxiliary = nn.ModuleList(_logits(width, num_classes) for width in widths[-1 - auxiliary : -1])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits of the size of the first map; see `UNet.forward`."""
        x = maps[-1]
        levels = []
        for rise, skip in zip(self.rise, reversed(maps[:-1]), strict=True):
            x = rise(x, skip)
            levels.append(x)
        logits: Tensor = self.logits(x)
        if not self.training or not len(self.auxiliary):
            return logits
        coarse = [
            F.interpolate(head(level), size=logits.shape[-2:], mode="nearest")
            for head, level in zip(self.auxiliary, levels[-1 - len(self.auxiliary) : -1], strict=True)
        ]
        return torch.cat([logits, *reversed(coarse)], 1)


def _logits(channels: int, num_classes: int) -> nn.Module:
    """Return the convolution that gives logits; they start near zero: nothing is certain before learning."""
    conv = make_conv(2, channels, num_classes, 3, bias=True)
    nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
    return conv


class UNet(Backbone):
    """An encoder, and a decoder that puts what it found back where it was found.

    Each level of the decoder enlarges the map from below, joins it to the encoder's map of that size and
    merges both in a residual block whose projection fits the channels. An encoder that begins by halving the
    image is joined, at the end, to the image itself, so that borders are as sharp as it shows them. Sides of
    any size will do, for maps are enlarged to the size of what they join.

    Feature maps are the encoder's; the head is the decoder.

    Sources: Ronneberger et al., U-Net, 2015 (the network); Zhang et al., Road Extraction by Deep Residual
    U-Net, 2018 (residual blocks in it); Lee et al., Deeply-Supervised Nets, 2015 (answers at coarser levels).

    Args:
        encoder: a registered network.
        encoder_arguments: what differs from its published form.
        widths: channels of each level of the decoder, from the deepest up; by default they halve from 256, or
            from half of what the encoder ends with, to 16.
        deep_supervision: whether coarser levels are trained to answer as well; see :meth:`forward`.
        residual: False builds the plain twin, encoder and decoder.
        zero_init: whether every block of both starts as its shortcut.
        num_classes: channels of the logits; 0 for the encoder's pooled vector.
        in_channels: channels of the images.
        features_only: whether to give the encoder's maps, without a decoder.

    Raises:
        ModelError: the encoder cannot be one, or an argument has a bad value.
    """

    head_name: ClassVar[str] = "decoder"
    logits_name: ClassVar[str] = "decoder.logits"
    inner: ClassVar[str] = "encoder"

    def __init__(
        self,
        *,
        encoder: str,
        encoder_arguments: Mapping[str, Any] | None = None,
        widths: Sequence[int] | None = None,
        deep_supervision: bool = False,
        residual: bool = True,
        zero_init: bool = False,
        num_classes: int = 2,
        in_channels: int = 3,
        features_only: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, features_only=features_only)
        check_plain(residual, zero_init=zero_init, stochastic_depth=0.0)
        both = {"residual": residual, "zero_init": zero_init}
        arguments = _for_encoder(encoder, dict(encoder_arguments or {}), both)
        self.encoder = create_model(encoder, in_channels=in_channels, features_only=True, **arguments)
        channels, strides = self.encoder.channels, self.encoder.strides
        # What is joined on the way up; an encoder that keeps the size has it among its own maps.
        self.skips = [*([in_channels] if strides[0] > 1 else []), *channels]
        if len(self.skips) < 2:
            raise ModelError(f"encoder {encoder!r} gives one map at stride 1: there is nothing to rise from")
        self.widths = _widths(self.skips, widths)
        self.deep_supervision, self.options = deep_supervision, both
        self.finish(channels, strides)

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new decoder."""
        auxiliary = min(AUXILIARY, len(self.widths) - 1) if self.deep_supervision else 0
        return _Decoder(self.skips, self.widths, num_classes, auxiliary=auxiliary, **self.options)

    def segments(self) -> list[list[nn.Module]]:
        """Return the encoder's."""
        return self.encoder.segments()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits `(N, num_classes, H, W)` of images `(N, in_channels, H, W)`.

        With `deep_supervision`, while training, those of coarser levels, enlarged, follow along the channels:
        `(N, levels * num_classes, H, W)`, the finest first.
        """
        if self.features_only or not self.num_classes:
            return super().forward(x)
        maps = self.feature_maps(x)
        logits: Tensor = self.head([x, *maps] if len(self.skips) > len(maps) else maps)
        return logits


def _for_encoder(encoder: str, arguments: dict[str, Any], both: Mapping[str, bool]) -> dict[str, Any]:
    """Return the arguments of an encoder, those it shares with the decoder among them.

    Raises:
        ModelError: the network cannot be an encoder, or has no form that is asked for.
    """
    entry = MODELS.get(encoder)
    if entry.task != "classify" or entry.num_classes is None:
        known = [name for name in MODELS.names() if MODELS.get(name).task == "classify"]
        raise ModelError(f"{encoder!r} is no encoder for a U-Net{did_you_mean(encoder, known)}")
    for name, value in both.items():
        asked = value != (name == "residual")
        if name in arguments:
            raise ModelError(f"{name} is said once for both: leave it out of encoder_arguments")
        if asked and name not in entry.options:
            raise ModelError(f"encoder {encoder!r} does not know {name}={value}")
        if asked:
            arguments[name] = value
    return arguments


def _widths(skips: Sequence[int], widths: Sequence[int] | None) -> list[int]:
    """Return the channels of each level of the decoder.

    Raises:
        ModelError: there are not as many as levels, or one is not positive.
    """
    levels = len(skips) - 1
    if widths is None:
        first = min(_WIDEST, max(_NARROWEST, skips[-1] // 2))
        return [max(_NARROWEST, first >> level) for level in range(levels)]
    check_integers("widths", widths)
    if len(widths) != levels:
        raise ModelError(f"widths has {len(widths)} values, this decoder {levels} levels: give one each")
    return list(widths)


_UNET = (
    "Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,"
    " arXiv:1505.04597"
)

register_family(
    UNet,
    {
        "unet_resnet18": ({"encoder": "resnet18"}, 14_592_482, _UNET),
        "unet_resnet34": ({"encoder": "resnet34"}, 24_700_642, _UNET),
        "unet_resnet50": ({"encoder": "resnet50"}, 33_436_642, _UNET),
        "unet_mobilenet_v2": ({"encoder": "mobilenet_v2"}, 7_032_482, _UNET),
        "unet_cifar_resnet20": ({"encoder": "cifar_resnet20"}, 319_570, _UNET),
    },
    num_classes=2,
    input_size=(3, 256, 256),
    task="segment",
)
