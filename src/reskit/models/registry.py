"""Models by name: what is known of each, and the one function that builds them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reskit.errors import ModelError, did_you_mean
from reskit.models.base import Backbone
from reskit.registry import Registry
from reskit.weights import Weights, load_into

__all__ = ["MODELS", "ModelEntry", "create_model", "list_models", "register_family"]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A named network as published.

    Attributes:
        name: by which :func:`create_model` knows it.
        build: makes it; takes `num_classes`, `in_channels`, `features_only` and what is in its signature.
        arguments: those of `build` that make this network.
        parameters: their number at `num_classes` classes and `in_channels` channels, or None.
        num_classes: classes of the data it was published on; None where the arguments say it.
        input_size: `(C, H, W)` it was published at, of text `(L,)`, of rows of a table `(F,)`.
        in_channels: channels of the images it was published for; of text how many tokens there are, of
            tables the columns of numbers.
        paper: where it was published.
        task: what it is made for: ``classify``, or how it is fed otherwise, such as ``restore``.
    """

    name: str
    build: Callable[..., Backbone]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None
    num_classes: int | None
    input_size: tuple[int, ...]
    in_channels: int
    paper: str
    task: str = "classify"

    def zeros(self, batch: int) -> Tensor:
        """Return a batch of zeros as the network takes it."""
        dtype = torch.int64 if self.task == "text" else torch.float32
        return torch.zeros(batch, *self.input_size, dtype=dtype)

    @property
    def options(self) -> list[str]:
        """The architecture arguments that may be changed, sorted."""
        taken = {"num_classes", "in_channels", "features_only"}
        return sorted(set(inspect.signature(self.build).parameters) - taken)


MODELS: Registry[ModelEntry] = Registry("model")


def register_family(
    build: Callable[..., Backbone],
    table: Mapping[str, tuple[Mapping[str, Any], int | None, str]],
    *,
    num_classes: int | None = None,
    input_size: tuple[int, ...],
    in_channels: int | None = None,
    task: str = "classify",
) -> None:
    """Register a table of variants: name to arguments, number of parameters and paper."""
    for name, (arguments, parameters, paper) in table.items():
        entry = ModelEntry(
            name=name,
            build=build,
            arguments=arguments,
            parameters=parameters,
            num_classes=num_classes,
            input_size=input_size,
            in_channels=input_size[0] if in_channels is None else in_channels,
            paper=paper,
            task=task,
        )
        MODELS.add(name, entry)


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Return the sorted names of the models that match a shell-style `pattern`, all or those for a task."""
    return [name for name in MODELS.names(pattern) if task is None or MODELS.get(name).task == task]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    weights: Weights | None = None,
    features_only: bool = False,
    **architecture: Any,
) -> Backbone:
    """Build a network by name.

    Args:
        name: one of :func:`list_models`.
        num_classes: width of the logits, as published by default; 0 for the pooled vector. Networks that
            know no classes take none.
        in_channels: channels of the images; of text how many tokens there are, of tables the columns of
            numbers.
        weights: what to load: a file of any known format, a bundle's folder, ``hf:owner/name``,
            ``torchvision:ResNet50_Weights.DEFAULT`` or torchvision's member itself, or the several files of
            one network; see :func:`reskit.weights.read_checkpoint`. Random by default.
        features_only: whether the network gives its list of feature maps, without a head.
        architecture: anything else to change, e.g. ``residual=False`` or ``depths=[1, 1]``; JSON values.

    Returns:
        The network, in training mode, its `architecture` filled in.

    Raises:
        UnknownNameError: there is no such model.
        ModelError: an argument is unknown or has a bad value.
        WeightsError: the weights cannot be read or do not fit.

    Example:
        >>> create_model("cifar_resnet20")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    entry = MODELS.get(name)
    for argument in architecture:
        if argument not in entry.options:
            raise ModelError(
                f"model {name!r} takes no argument {argument!r}{did_you_mean(argument, entry.options)}"
            )
    try:
        architecture = json.loads(json.dumps(architecture))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"arguments of model {name!r} must be JSON values, to be saved with it: {error}"
        ) from None
    given: dict[str, Any] = {"in_channels": in_channels}
    if "num_classes" in inspect.signature(entry.build).parameters:
        given = {"num_classes": entry.num_classes if num_classes is None else num_classes, **given}
    elif num_classes is not None:
        raise ModelError(f"model {name!r} knows no classes: leave num_classes out")
    model = entry.build(**given, features_only=features_only, **{**entry.arguments, **architecture})
    model.architecture = {"name": name, **given, **architecture}
    if features_only:
        model.architecture["features_only"] = True
    if weights is not None:
        # A network built without a head has no use for the head in the file.
        headless = model.num_classes == 0 and "num_classes" in given
        load_into(model, weights, ignore=(model.head_name,) if headless else ())
    return model
