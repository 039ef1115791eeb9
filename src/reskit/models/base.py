"""What every network offers to the tasks, and the checks they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from reskit.errors import ModelError

__all__ = ["Backbone", "Rename"]

Rename: TypeAlias = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern and what `re.sub` puts in its place."""


class Backbone(nn.Module):
    """A network seen as segments, one a feature map, then pooling and a head.

    Children build their layers under the names published weights use, then say by :meth:`segments` in
    which order they run, and by :meth:`finish` what comes out.

    Attributes:
        channels: channels of each feature map.
        strides: by how much each feature map is smaller than the input.
        num_features: width of the pooled vector.
        num_classes: width of the logits; 0 where there is no head.
        features_only: whether :meth:`forward` gives the feature maps.
        architecture: what :func:`~reskit.models.create_model` was called with; JSON values only. Calling it
            again with these gives the same network.
        head_name: name of the layer that makes logits.
        logits_name: name of the layer with a row for each class, where that is not the last of the head.
        background: rows of that layer, the first, that are no class.
        inner: name of the network this one is built on, where weights of that one alone are of use.
        renames: patterns and replacements that turn others' names of parameters into ours, one after the
            other; our own names they leave alone.
    """

    head_name: ClassVar[str] = "fc"
    logits_name: ClassVar[str] = ""
    background: ClassVar[int] = 0
    inner: ClassVar[str] = ""
    renames: ClassVar[Sequence[Rename]] = ()

    channels: list[int]
    strides: list[int]
    num_features: int
    num_classes: int
    features_only: bool
    architecture: dict[str, Any]

    def __init__(self, *, num_classes: int, in_channels: int, features_only: bool) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, minimum=0)
        check_integer("in_channels", in_channels, minimum=1)
        self.num_classes = 0 if features_only else num_classes
        self.features_only = features_only
        self.architecture = {}
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)

    def finish(self, channels: list[int], strides: list[int]) -> None:
        """Declare the feature maps and put the head on; called last by every constructor.

        Args:
            channels: channels of each map of :meth:`feature_maps`.
            strides: stride of each map.
        """
        self.channels, self.strides = channels, strides
        self.num_features = channels[-1]
        head = self.make_head(self.num_classes) if self.num_classes else nn.Identity()
        self.add_module(self.head_name, head)

    def make_head(self, num_classes: int) -> nn.Module:
        """Return a new head, from `(N, num_features)` to `(N, num_classes)`."""
        return nn.Linear(self.num_features, num_classes)

    @property
    def head(self) -> nn.Module:
        """The layer that makes logits of the pooled vector; the identity where there are no classes."""
        return self.get_submodule(self.head_name)

    def segments(self) -> list[list[nn.Module]]:
        """Return the layers in order, those that lead to one feature map together."""
        raise NotImplementedError(f"{type(self).__name__} must define segments()")

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps `(N, channels[i], H / strides[i], W / strides[i])` of `(N, in_channels, H, W)`."""
        maps = []
        for segment in self.segments():
            for layer in segment:
                x = layer(x)
            maps.append(x)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean of the last map, `(N, num_features)`; earlier maps are not kept."""
        for segment in self.segments():
            for layer in segment:
                x = layer(x)
        return self.pool(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return logits `(N, num_classes)` of images `(N, in_channels, H, W)`.

        Without classes the pooled vector `(N, num_features)`; with `features_only` the list of maps.
        """
        if self.features_only:
            return self.feature_maps(x)
        return self.head(self.pooled(x))  # type: ignore[no-any-return]


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Refuse what is not a whole number of at least `minimum`.

    Raises:
        ModelError: naming the argument and what it must be.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ModelError(f"{name} is {value!r}: give a whole number of at least {minimum}")


def check_integers(name: str, values: object, *, minimum: int = 1) -> None:
    """Refuse what is not a list of one or more whole numbers of at least `minimum`.

    Raises:
        ModelError: naming the argument and what it must be.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ModelError(f"{name} is {values!r}: give a list of at least one whole number")
    for value in values:
        check_integer(f"each of {name}", value, minimum=minimum)


def check_probability(name: str, value: object) -> None:
    """Refuse what is not a probability below 1.

    Raises:
        ModelError: naming the argument and what it must be.
    """
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ModelError(f"{name} is {value!r}: give a probability of at least 0 and below 1")


def stage_widths(width: int | Sequence[int], stages: int) -> list[int]:
    """Return one width a stage: those given, or `width` doubled from stage to stage.

    Raises:
        ModelError: there are not as many widths as stages, or one is not positive.
    """
    if isinstance(width, int):
        check_integer("width", width, minimum=1)
        return [width * 2**i for i in range(stages)]
    check_integers("width", width)
    if len(width) != stages:
        raise ModelError(f"width has {len(width)} values and depths {stages}: give one width a stage")
    return list(width)


def drop_rates(rate: float, blocks: int) -> list[float]:
    """Return the rate of stochastic depth of each block, growing linearly to `rate` at the last.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016, equation 4.

    Raises:
        ModelError: `rate` is not a probability below 1.
    """
    check_probability("stochastic_depth", rate)
    return [rate * (i + 1) / blocks for i in range(blocks)]
