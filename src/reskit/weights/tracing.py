"""Our own networks as a :class:`~reskit.weights.graph.Graph`, by running them symbolically."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reskit.errors import WeightsError
from reskit.nn import NoShortcut, StochasticDepth, ZeroPad
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node, safe_name
from reskit.weights.layers import (
    Affine,
    Flatten,
    PaddedAvgPool2d,
    PaddedConv2d,
    PaddedMaxPool2d,
    Scale,
)

__all__ = ["TracedGraph", "trace"]

Attributes = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TracedGraph(Graph):
    """A graph that knows where its nodes come from.

    Attributes:
        paths: name of a node that is a layer to the path of that layer in the network.
    """

    paths: Mapping[str, str] = field(default_factory=dict)


def trace(model: nn.Module, input_shape: tuple[int, int | None, int | None]) -> TracedGraph:
    """Return what a network computes in evaluation mode, with its weights.

    Args:
        model: a network of layers :data:`~reskit.weights.graph.OPERATORS` has, that gives one tensor.
        input_shape: `(C, H, W)` of its images, for the record: shapes are not needed to trace.

    Raises:
        WeightsError: it computes something a graph cannot say.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise WeightsError(f"{type(model).__name__} cannot be written as a graph: {error}") from error
    return _Converter(model, input_shape).convert(graph)


class _Tracer(fx.Tracer):
    """Looks into blocks and no further."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell what becomes one node: everything that is not made of other layers."""
        return not isinstance(m, nn.Sequential) and next(m.children(), None) is None


class _Converter:
    """Turns the calls of a traced network into nodes, one after the other."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, int | None, int | None]) -> None:
        self.modules = dict(model.named_modules())
        self.input_shape = input_shape
        self.nodes: list[Node] = []
        self.taken: set[str] = set()
        self.weights: dict[str, Tensor] = {}
        self.paths: dict[str, str] = {}
        self.values: dict[fx.Node, str] = {}  # to the node that gives it

    def convert(self, graph: fx.Graph) -> TracedGraph:
        """Return the network as a graph."""
        for call in graph.nodes:
            if call.op == "placeholder":
                self.values[call] = INPUT
            elif call.op == "call_module":
                self.values[call] = self._layer(call)
            elif call.op in ("call_function", "call_method"):
                self.values[call] = self._function(call)
            elif call.op == "output":
                self._finish(call)
            else:
                raise WeightsError(f"a network that reads {call.target!r} cannot be written as a graph")
        return TracedGraph(
            nodes=self.nodes, input_shape=self.input_shape, weights=self.weights, paths=self.paths
        )

    def _finish(self, call: fx.Node) -> None:
        answer = call.args[0]
        if not isinstance(answer, fx.Node) or [self.values[answer]] != [n.name for n in self.nodes[-1:]]:
            raise WeightsError("only a network that gives one tensor can be written as a graph")

    def _add(self, name: str, op: str, inputs: tuple[str, ...], attributes: Attributes | None = None) -> str:
        """Add a node and return its name."""
        name = safe_name(name.replace(".", "_"), self.taken)
        self.taken.add(name)
        self.nodes.append(Node(name=name, op=op, inputs=inputs, attributes=attributes or {}))
        return name

    def _layer(self, call: fx.Node) -> str:
        """Add the node of a layer; one that does nothing in evaluation gives what it takes."""
        path, layer = str(call.target), self.modules[str(call.target)]
        source = self.values[call.all_input_nodes[0]]
        if isinstance(layer, _IDENTITIES):
            return source
        op, attributes = _describe(path, layer)
        name = self._add(path, op, (source,), attributes)
        self.paths[name] = path
        own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        for weight in OPERATORS[op].weights:
            if own.get(weight) is not None:
                self.weights[f"{name}.{weight}"] = own[weight].detach()
        return name

    def _function(self, call: fx.Node) -> str:
        """Add the node or nodes of a function."""
        name = call.name
        if call.op == "call_function" and call.target in _JOINS:
            parts = call.args[0] if call.target is torch.cat else call.args
            if isinstance(parts, tuple | list) and all(isinstance(part, fx.Node) for part in parts):
                inputs = tuple(self.values[part] for part in parts)
                return self._add(name, _JOINS[call.target], inputs)
        source = self.values[call.all_input_nodes[0]]
        if call.op == "call_function" and call.target in _FUNCTIONS:
            return self._add(name, _FUNCTIONS[call.target], (source,))
        if call.target in ("flatten", torch.flatten) and call.args[1:] == (1,):
            return self._add(name, "flatten", (source,), {"order": "chw"})
        if call.target == "mean" and tuple(call.args[1]) == (2, 3):  # type: ignore[arg-type]
            name = self._add(name, "global_avg_pool", (source,))
            if call.kwargs.get("keepdim"):
                return name
            return self._add(f"{name}_flat", "flatten", (name,), {"order": "chw"})
        raise WeightsError(f"the function {call.target!r} cannot be written as a node of a graph")


_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, StochasticDepth, NoShortcut)
_JOINS: Mapping[Any, str] = {
    operator.add: "add",
    torch.add: "add",
    operator.mul: "multiply",
    torch.mul: "multiply",
    torch.cat: "concat",
}
_FUNCTIONS: Mapping[Any, str] = {
    torch.sigmoid: "sigmoid",
    torch.relu: "relu",
    F.relu: "relu",
    torch.tanh: "tanh",
}


def _sizes(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _sides(value: int | tuple[int, ...]) -> list[int]:
    vertical, horizontal = _sizes(value)
    return [vertical, vertical, horizontal, horizontal]


def _conv(layer: nn.Conv2d) -> Attributes:
    if isinstance(layer, PaddedConv2d):
        padding = layer.window.padding
    elif isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise WeightsError(f"the padding of {layer} cannot be written as a node of a graph")
    else:
        padding = _sides(layer.padding)
    return {
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "padding": padding,
    }


def _pool(layer: Any) -> Attributes:
    padded = isinstance(layer, PaddedMaxPool2d | PaddedAvgPool2d)
    if getattr(layer, "dilation", 1) != 1 or getattr(layer, "divisor_override", None) is not None:
        raise WeightsError(f"{layer} cannot be written as a node of a graph")
    return {
        "kernel_size": _sizes(layer.kernel_size),
        "stride": _sizes(layer.stride),
        "padding": layer.window.padding if padded else _sides(layer.padding),
        "ceil_mode": layer.ceil_mode,
    }


def _avg_pool(layer: nn.AvgPool2d) -> Attributes:
    with_border = layer.with_border if isinstance(layer, PaddedAvgPool2d) else layer.count_include_pad
    return _pool(layer) | {"count_include_pad": with_border}


def _global(layer: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) -> Attributes:
    if layer.output_size not in (1, (1, 1)):
        raise WeightsError(f"{layer} cannot be written as a node of a graph")
    return {}


def _constant_pad(layer: nn.ConstantPad2d) -> Attributes:
    left, right, top, bottom = layer.padding
    return {"padding": [top, bottom, left, right], "value": layer.value}


_LAYERS: tuple[tuple[type[nn.Module], str, Callable[[Any], Attributes]], ...] = (
    (
        nn.Conv2d,
        "conv",
        _conv,
    ),
    (nn.BatchNorm2d, "batch_norm", lambda m: {"channels": m.num_features, "eps": m.eps}),
    (nn.BatchNorm1d, "batch_norm", lambda m: {"channels": m.num_features, "eps": m.eps}),
    (nn.Linear, "linear", lambda m: {"in_features": m.in_features, "out_features": m.out_features}),
    (Scale, "scale", lambda m: {"channels": len(m.weight)}),
    (Affine, "affine", lambda m: {"scale": m.scale, "shift": m.shift}),
    (nn.PReLU, "prelu", lambda m: {"channels": m.num_parameters}),
    (nn.ReLU6, "relu6", lambda m: {}),
    (nn.ReLU, "relu", lambda m: {}),
    (nn.LeakyReLU, "leaky_relu", lambda m: {"slope": m.negative_slope}),
    (nn.ELU, "elu", lambda m: {"alpha": m.alpha}),
    (nn.Sigmoid, "sigmoid", lambda m: {}),
    (nn.Hardsigmoid, "hard_sigmoid", lambda m: {}),
    (nn.Hardswish, "hard_swish", lambda m: {}),
    (nn.SiLU, "swish", lambda m: {}),
    (nn.Tanh, "tanh", lambda m: {}),
    (nn.Softmax, "softmax", lambda m: {}),
    (nn.MaxPool2d, "max_pool", _pool),
    (nn.AvgPool2d, "avg_pool", _avg_pool),
    (nn.AdaptiveAvgPool2d, "global_avg_pool", _global),
    (nn.AdaptiveMaxPool2d, "global_max_pool", _global),
    (Flatten, "flatten", lambda m: {"order": m.order}),
    (nn.Flatten, "flatten", lambda m: {"order": "chw"}),
    (nn.ConstantPad2d, "pad", _constant_pad),
    (ZeroPad, "subsample", lambda m: {"stride": m.stride, "front": m.front, "back": m.back}),
)


def _describe(path: str, layer: nn.Module) -> tuple[str, Attributes]:
    """Return the operation of a layer and its attributes."""
    for kind, op, attributes in _LAYERS:
        if isinstance(layer, kind):
            return op, attributes(layer)
    raise WeightsError(f"layer {path!r} is a {type(layer).__name__}, which cannot be written as a graph")
