"""Which of our networks a file of weights is for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reskit.errors import ModelError, WeightsError
from reskit.models.base import Backbone
from reskit.models.registry import MODELS, ModelEntry, create_model
from reskit.weights.align import align
from reskit.weights.graph import Graph
from reskit.weights.operators import Uninitialised
from reskit.weights.pairing import kernel_shapes
from reskit.weights.tracing import trace

__all__ = ["fitted_to", "recognise", "recognise_state"]

Shapes = Mapping[str, tuple[int, ...]]

# What published networks differ in, beside their names: tried in this order.
_OPTIONS: Sequence[Mapping[str, Any]] = (
    {},
    {"stride_first": True},
    {"shortcut": "A"},
    {"shortcut": "B"},
    {"norm": True},
)
_FARTHEST = 0.2  # by how much the parameters of a candidate may differ, relative: projections come and go


def recognise(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]] | None:
    """Return which of our networks a graph is, and its weights in it; None if it is none.

    Networks whose kernels have the same shapes are tried until one is proven to compute the same.

    Args:
        graph: any.

    Returns:
        Arguments of :func:`~reskit.models.create_model`, the state, and the graph's names to ours.
    """
    shapes = kernel_shapes(graph)
    if not shapes:
        return None
    head = [node for node in graph.nodes if node.op in ("linear", "conv")][-1]
    classes, features = graph.weights[f"{head.name}.weight"].shape[:2]
    # each kernel with a norm
    numbers = sum(math.prod(shape) + 2 * shape[0] for shape in shapes) - classes * features
    alike: set[str] = set()  # as published; a stride on another layer changes no shape
    for entry, options in _candidates(numbers, features):
        if "stride_first" in options and entry.name not in alike:
            continue
        model = _on_meta(entry.name, num_classes=classes, in_channels=graph.input_shape[0], **options)
        if model is None:
            continue
        try:
            if kernel_shapes(trace(model, graph.input_shape)) != shapes:
                continue
            if not options:
                alike.add(entry.name)
            state, renamed = align(graph, model)
        except WeightsError:  # a detector or another network that cannot be drawn as a graph is none of these
            continue
        return model.architecture, state, renamed
    return None


def recognise_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return which of our networks a state dict is of, by names and shapes; None if it is none.

    Shapes do not tell a network from its plain twin, nor on which convolution of a bottleneck the stride is:
    then it is the residual one, with the stride on the 3x3.

    Args:
        state: names to tensors, as PyTorch has them; the head may be missing.

    Returns:
        Arguments of :func:`~reskit.models.create_model`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.dim() > 0}
    kernels = [shape for shape in shapes.values() if len(shape) > 1]
    if not kernels:
        return None
    numbers = sum(math.prod(shape) for name, shape in shapes.items() if "running_" not in name)
    classes, features = kernels[-1][:2] if len(kernels[-1]) == 2 else (0, kernels[-1][0])
    for entry, options in _candidates(numbers - classes * features, features):
        if options.get("stride_first"):
            continue
        model = _on_meta(entry.name, **options)
        if model is None:
            continue
        fitted = _fit(model, _renamed(shapes, model))
        if fitted is not None:
            return fitted
    return None


def fitted_to(state: Mapping[str, Tensor], name: str, **options: Any) -> dict[str, Any]:
    """Return the arguments of a named network with the classes and channels of a state dict.

    Those it is published with, where the state dict does not fit it with others either.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if tensor.dim() > 0}
    model = _on_meta(name, **options)
    fitted = None if model is None else _fit(model, _renamed(shapes, model))
    return fitted or {"name": name, **options}


def _candidates(numbers: int, features: int) -> Iterator[tuple[ModelEntry, Mapping[str, Any]]]:
    """Yield networks of about as many parameters, the nearest first, as published and then with options.

    Of networks alike, those with shortcuts come before their plain twins.

    Args:
        numbers: parameters before the head.
        features: width of the vector that goes into the head.
    """
    near: list[tuple[float, bool, str]] = []
    for entry in map(MODELS.get, MODELS):
        if entry.parameters and (entry.num_classes or entry.task != "classify"):
            classes = entry.num_classes or 0
            distance = abs((numbers + classes * (features + 1)) / entry.parameters - 1)
            if distance < _FARTHEST:
                near.append((round(distance, 3), entry.arguments.get("residual") is False, entry.name))
    for options in _OPTIONS:
        for _, _, name in sorted(near):
            entry = MODELS.get(name)
            if not options or _changes(entry, options):
                yield entry, options


def _changes(entry: ModelEntry, options: Mapping[str, Any]) -> bool:
    """Tell whether a network has these options, and otherwise set."""
    defaults = {name: p.default for name, p in inspect.signature(entry.build).parameters.items()}
    own = {**defaults, **entry.arguments}
    return options.keys() <= own.keys() and any(own[name] != value for name, value in options.items())


def _on_meta(name: str, **options: Any) -> Backbone | None:
    """Return a network without memory for its weights; None if there is none with these options."""
    try:
        with torch.device("meta"), Uninitialised():
            return create_model(name, **options)
    except ModelError:
        return None


def _renamed(shapes: Shapes, model: Backbone) -> Shapes:
    """Return shapes under our names."""
    renamed = {}
    for name, shape in shapes.items():
        for pattern, replacement in model.renames:
            name = re.sub(pattern, replacement, name)
        renamed[name] = shape
    return renamed


def _fit(model: Backbone, shapes: Shapes) -> dict[str, Any] | None:
    """Return the arguments that give `model` these shapes: its own, with other classes and channels."""
    own = _shapes_of(model)
    heads = (n for n in reversed(own) if n.startswith(f"{model.head_name}.") and n.endswith(".weight"))
    logits = f"{model.logits_name}.weight" if model.logits_name else next(heads, "")
    head = logits if "num_classes" in model.architecture else ""
    stem = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
    body = {name for name in own if not (head and name.startswith(f"{model.head_name}."))}
    if stem not in shapes or set(shapes) not in (set(own), body):
        return None
    # A first layer may see several pixels of each channel.
    channels = int(model.architecture["in_channels"]) * shapes[stem][1] // own[stem][1]
    rows = shapes[head][0] - model.background if head in shapes else 0
    classes = {"num_classes": rows} if head else {}
    fitted = _on_meta(**{**model.architecture, **classes, "in_channels": channels})
    if fitted is None or _squeezed(_shapes_of(fitted)) != _squeezed(shapes):
        return None
    return fitted.architecture


def _shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.dim() > 0}


def _squeezed(shapes: Shapes) -> Shapes:
    """Return shapes with those of 1x1 convolutions as of linear layers: they hold the same numbers."""
    return {name: s[:2] if len(s) == 4 and s[2:] == (1, 1) else s for name, s in shapes.items()}
