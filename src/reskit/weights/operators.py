"""The operations of a :class:`~reskit.weights.graph.Graph` as PyTorch modules."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node
from reskit.weights.layers import (
    Affine,
    BatchNorm,
    Flatten,
    PaddedAvgPool2d,
    PaddedConv2d,
    PaddedMaxPool2d,
    Padding,
    Scale,
    Sizes,
    Subsample,
    Window,
)

__all__ = ["JOINS", "Uninitialised", "build", "evaluate", "find_size", "has_bias", "load_node", "run_nodes"]

# What networks are made for, in px, tried in this order where a file does not say.
_SIZES = (224, 32, 112, 64, 96, 128, 160, 192, 256, 299, 28, 320, 331, 380, 384, 448, 512)


def join_add(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum, sizes 1 broadcast."""
    return functools.reduce(operator.add, parts)


def join_multiply(parts: Sequence[Tensor]) -> Tensor:
    """Return the product, sizes 1 broadcast."""
    return functools.reduce(operator.mul, parts)


def join_concat(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts side by side along the channels."""
    return torch.cat(list(parts), 1)


JOINS: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "add": join_add,
    "multiply": join_multiply,
    "concat": join_concat,
}
"""What the operations with more than one input do."""


def _conv(node: Mapping[str, Any], bias: bool) -> nn.Module:
    options: dict[str, Any] = {name: tuple(node[name]) for name in ("kernel_size", "stride", "dilation")} | {
        name: node[name] for name in ("in_channels", "out_channels", "groups")
    }
    padding = node["padding"]
    if _is_symmetric(padding):
        return nn.Conv2d(**options, padding=(padding[0], padding[2]), bias=bias)
    window = Window(node["kernel_size"], node["stride"], node["dilation"], padding)
    return PaddedConv2d(window=window, **options, bias=bias)


def _max_pool(node: Mapping[str, Any]) -> nn.Module:
    kernel_size, stride, padding = node["kernel_size"], node["stride"], node["padding"]
    if _fits_pool(padding, kernel_size):
        half = (padding[0], padding[2])
        return nn.MaxPool2d(tuple(kernel_size), tuple(stride), half, ceil_mode=node["ceil_mode"])
    return PaddedMaxPool2d(Window(kernel_size, stride, (1, 1), padding), ceil_mode=node["ceil_mode"])


def _avg_pool(node: Mapping[str, Any]) -> nn.Module:
    kernel_size, stride, padding = node["kernel_size"], node["stride"], node["padding"]
    options = {name: node[name] for name in ("ceil_mode", "count_include_pad")}
    if _fits_pool(padding, kernel_size):
        return nn.AvgPool2d(tuple(kernel_size), tuple(stride), (padding[0], padding[2]), **options)
    return PaddedAvgPool2d(Window(kernel_size, stride, (1, 1), padding), **options)


def _is_symmetric(padding: Padding) -> bool:
    if isinstance(padding, str):
        if padding != "same":
            raise WeightsError(f"padding {padding!r} is not known: use 'same' or [top, bottom, left, right]")
        return False
    return padding[0] == padding[1] and padding[2] == padding[3]


def _fits_pool(padding: Padding, kernel_size: Sizes) -> bool:
    """Tell whether PyTorch's pooling pads like this: equal sides, at most half a window."""
    if isinstance(padding, str) or not _is_symmetric(padding):
        return False
    return padding[0] <= kernel_size[0] // 2 and padding[2] <= kernel_size[1] // 2


def _pad(node: Mapping[str, Any]) -> nn.Module:
    top, bottom, left, right = node["padding"]
    return nn.ConstantPad2d((left, right, top, bottom), float(node["value"]))


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any], bool], nn.Module]] = {
    "conv": _conv,
    "batch_norm": lambda a, bias: BatchNorm(a["channels"], eps=a["eps"]),
    "linear": lambda a, bias: nn.Linear(a["in_features"], a["out_features"], bias=bias),
    "scale": lambda a, bias: Scale(a["channels"], bias=bias),
    "affine": lambda a, bias: Affine(a["scale"], a["shift"]),
    "prelu": lambda a, bias: nn.PReLU(a["channels"]),
    # None works in place: where branches part, both read the same map.
    "relu": lambda a, bias: nn.ReLU(),
    "relu6": lambda a, bias: nn.ReLU6(),
    "leaky_relu": lambda a, bias: nn.LeakyReLU(a["slope"]),
    "elu": lambda a, bias: nn.ELU(a["alpha"]),
    "sigmoid": lambda a, bias: nn.Sigmoid(),
    "hard_sigmoid": lambda a, bias: nn.Hardsigmoid(),
    "hard_swish": lambda a, bias: nn.Hardswish(),
    "swish": lambda a, bias: nn.SiLU(),
    "tanh": lambda a, bias: nn.Tanh(),
    "softmax": lambda a, bias: nn.Softmax(dim=1),
    "max_pool": lambda a, bias: _max_pool(a),
    "avg_pool": lambda a, bias: _avg_pool(a),
    "global_avg_pool": lambda a, bias: nn.AdaptiveAvgPool2d(1),
    "global_max_pool": lambda a, bias: nn.AdaptiveMaxPool2d(1),
    "flatten": lambda a, bias: Flatten(a["order"]),
    "pad": lambda a, bias: _pad(a),
    "subsample": lambda a, bias: Subsample(a["stride"], a["front"], a["back"]),
}


class Uninitialised(TorchFunctionMode):
    """Leaves out drawing starting values, which only costs time where weights follow, or none."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(node: Node, *, bias: bool = True) -> nn.Module:
    """Return the module of a node with one input, its parameters and buffers named as in OPERATORS.

    Args:
        node: what to build.
        bias: whether a convolution, linear or scale has one.

    Raises:
        WeightsError: the node's settings make no sense.
    """
    try:
        return _BUILDERS[node.op](node.attributes, bias)
    except (TypeError, ValueError, IndexError, RuntimeError, KeyError, OverflowError) as error:
        raise WeightsError(f"layer {node.name!r} ({node.op}) cannot be built: {error}") from error


def has_bias(node: Node, weights: Mapping[str, Tensor]) -> bool:
    """Tell whether `weights` have a bias for the node."""
    return f"{node.name}.bias" in weights


def load_node(node: Node, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the module of a node with its weights in it; what a norm lacks is as at its start.

    Raises:
        WeightsError: the weights' shapes are not those the node's settings ask for.
    """
    with Uninitialised():
        module = build(node, bias=has_bias(node, weights))
    names = [name for name in OPERATORS[node.op].weights if f"{node.name}.{name}" in weights]
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in names:
        tensor = weights[f"{node.name}.{name}"]
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"layer {node.name!r} ({node.op}) has a {name} of shape {list(tensor.shape)}"
                f" where its settings ask for {list(own[name].shape)}"
            )
    module.load_state_dict({name: weights[f"{node.name}.{name}"] for name in names}, strict=False)
    return module


def run_nodes(
    nodes: Sequence[Node], values: dict[str, Tensor], module_of: Callable[[Node], nn.Module]
) -> Tensor:
    """Compute nodes in order and return what the last one gives; what nobody needs any more is let go.

    Args:
        nodes: what to compute.
        values: what is known before, by name.
        module_of: gives the module of a node with one input.
    """
    last_use = {name: i for i, node in enumerate(nodes) for name in node.inputs}
    for i, node in enumerate(nodes):
        inputs = [values[name] for name in node.inputs]
        join = JOINS.get(node.op)
        values[node.name] = module_of(node)(inputs[0]) if join is None else join(inputs)
        for name in {*node.inputs}:
            if last_use[name] == i:
                del values[name]
    return values[nodes[-1].name]


@torch.no_grad()
def evaluate(graph: Graph, x: Tensor) -> Tensor:
    """Return what a graph computes as it stands, in evaluation mode and in the precision of `x`.

    Args:
        graph: any.
        x: images `(N, *graph.input_shape)`.

    Raises:
        WeightsError: a node's weights do not fit its settings, or its settings do not fit its input.
    """

    def module_of(node: Node) -> nn.Module:
        return _Named(node, load_node(node, graph.weights).eval().to(x.dtype))

    return run_nodes(graph.nodes, {INPUT: x}, module_of)


def find_size(graph: Graph, first: int = _SIZES[0]) -> tuple[int, int]:
    """Return the height and width of a graph's images; where any will do, a usual one that works.

    Args:
        graph: any.
        first: the size to try before all others.

    Raises:
        WeightsError: none works; it says why the first did not.
    """
    channels, height, width = graph.input_shape
    if height and width:
        return height, width
    refusal = None
    for size in (first, *_SIZES):
        x = torch.zeros(2, channels, height or size, width or size, device="meta")
        try:
            with torch.device("meta"), Uninitialised():
                run_nodes(graph.nodes, {INPUT: x}, lambda node: _Named(node, build(node).eval()))
            return height or size, width or size
        except (WeightsError, RuntimeError) as error:
            refusal = refusal or error
    raise WeightsError(f"the network works on images of no usual size: {refusal}")


class _Named(nn.Module):
    """A layer that is named when its input does not fit it."""

    def __init__(self, node: Node, layer: nn.Module) -> None:
        super().__init__()
        self.node, self.layer = node, layer

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.layer(x)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"layer {self.node.name!r} ({self.node.op}) does not fit its input"
                f" of shape {list(x.shape[1:])}: {reason}"
            ) from error
