"""What each operator of TensorFlow Lite computes, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from reskit.errors import WeightsError
from reskit.weights.building import NO_PADDING, Padding, Value
from reskit.weights.tflite.network import Network, Operation

__all__ = ["LAYERS"]


def _plain(op: str) -> Callable[[Network, Operation], Value]:
    def add(network: Network, operation: Operation) -> Value:
        return network.graph.add(operation.name, op, [network.value(operation, 0)])

    return add


def _window(options: Any) -> dict[str, Any]:
    padding: Padding = NO_PADDING if options.Padding() else "same"
    return {"stride": (options.StrideH(), options.StrideW()), "padding": padding}


def _conv(network: Network, operation: Operation) -> Value:
    depthwise = operation.kind == "DEPTHWISE_CONV_2D"
    schema = network.schema
    options = operation.options(schema.DepthwiseConv2DOptions if depthwise else schema.Conv2DOptions)
    x = network.value(operation, 0)
    kernel = network.constant(operation, 1)
    if kernel.dim() != 4:
        raise WeightsError(f"layer {operation.name!r} has a kernel of shape {tuple(kernel.shape)}")
    # (out, h, w, in / groups), or for depthwise (1, h, w, out)
    kernel = kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2)
    x = network.graph.conv(
        operation.name,
        x,
        kernel,
        network.optional(operation, 2),
        dilation=(options.DilationHFactor(), options.DilationWFactor()),
        groups=x.channels // max(kernel.shape[1], 1),
        **_window(options),
    )
    return network.fused(operation, options, x)


def _fully_connected(network: Network, operation: Operation) -> Value:
    options = operation.options(network.schema.FullyConnectedOptions)
    if options.WeightsFormat():
        raise WeightsError(f"layer {operation.name!r} has shuffled weights")
    x = network.value(operation, 0)
    weight = network.constant(operation, 1)
    if not options.KeepNumDims():
        x = network.graph.flatten(f"{operation.name}_flatten", x, "hwc")
    x = network.graph.linear(operation.name, x, weight, network.optional(operation, 2))
    return network.fused(operation, options, x)


def _pool(network: Network, operation: Operation) -> Value:
    options = operation.options(network.schema.Pool2DOptions)
    op = "max_pool" if operation.kind == "MAX_POOL_2D" else "avg_pool"
    kernel = (options.FilterHeight(), options.FilterWidth())
    x = network.value(operation, 0)
    x = network.graph.pool(operation.name, x, op, kernel=kernel, **_window(options))
    return network.fused(operation, options, x)


def _reduce(network: Network, operation: Operation) -> Value:
    """Mean or maximum over height and width."""
    options = operation.options(network.schema.ReducerOptions)
    axes = network.constant(operation, 1).flatten().tolist()
    if sorted(axis % 4 for axis in axes) != [1, 2]:
        raise WeightsError(f"layer {operation.name!r} reduces the axes {axes}, not height and width")
    op = "global_avg_pool" if operation.kind == "MEAN" else "global_max_pool"
    x = network.graph.global_pool(operation.name, network.value(operation, 0), op)
    return x if options.KeepDims() else network.graph.flatten(f"{operation.name}_flatten", x, "hwc")


def _reshape(network: Network, operation: Operation) -> Value:
    """Flattening, or a vector as a map of one position."""
    x = network.value(operation, 0)
    shape = network.shape(operation.output)
    if len(shape) == 2:
        return network.graph.flatten(operation.name, x, "hwc")
    if len(shape) == 4 and shape[1:] == [1, 1, x.channels] and x.size in (None, (1, 1)):
        return network.graph.as_map(operation.name, x)
    raise WeightsError(f"layer {operation.name!r} reshapes to {shape}: only a flattening is read")


def _pad(network: Network, operation: Operation) -> Value:
    padding = network.constant(operation, 1)
    if tuple(padding.shape) != (4, 2) or bool(padding[[0, 3]].any()):
        raise WeightsError(f"layer {operation.name!r} pads other than height and width")
    value = float(network.constant(operation, 2)) if operation.kind == "PADV2" else 0.0
    sides = [int(n) for n in padding[1:3].flatten()]
    return network.graph.pad(operation.name, network.value(operation, 0), sides, value)


def _arithmetic(network: Network, operation: Operation) -> Value:
    """Sum or product of maps, or of a map and a constant."""
    kind = operation.kind
    options = operation.options(getattr(network.schema, f"{kind.title()}Options"))
    first, second = (network.is_constant(operation, i) for i in (0, 1))
    if not first and not second and kind in ("ADD", "MUL"):
        inputs = [network.value(operation, i) for i in (0, 1)]
        x = network.graph.combine(operation.name, "add" if kind == "ADD" else "multiply", inputs)
    elif first == second or (first and kind in ("SUB", "DIV")):
        raise WeightsError(f"layer {operation.name!r} ({kind}) is of a form that reskit cannot read")
    else:
        x = _with_constant(network, operation, position=0 if first else 1)
    return network.fused(operation, options, x)


def _with_constant(network: Network, operation: Operation, position: int) -> Value:
    numbers = network.constant(operation, position)
    x = network.value(operation, 1 - position)
    if numbers.numel() > 1 and numbers.numel() != numbers.shape[-1]:
        raise WeightsError(f"layer {operation.name!r} has a constant of shape {tuple(numbers.shape)}")
    numbers = numbers.flatten()
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    weight, bias = {
        "ADD": (one, numbers),
        "SUB": (one, -numbers),
        "MUL": (numbers, zero),
        "DIV": (1 / numbers, zero),
    }[operation.kind]
    if numbers.numel() == 1:
        attributes = {"scale": float(weight), "shift": float(bias)}
        return network.graph.add(operation.name, "affine", [x], attributes)
    return network.graph.per_channel(operation.name, "scale", x, {"weight": weight, "bias": bias})


def _prelu(network: Network, operation: Operation) -> Value:
    slopes = network.constant(operation, 1)
    return network.graph.per_channel(
        operation.name, "prelu", network.value(operation, 0), {"weight": slopes.flatten()}
    )


def _leaky_relu(network: Network, operation: Operation) -> Value:
    slope = float(operation.options(network.schema.LeakyReluOptions).Alpha())
    return network.graph.add(operation.name, "leaky_relu", [network.value(operation, 0)], {"slope": slope})


def _elu(network: Network, operation: Operation) -> Value:
    return network.graph.add(operation.name, "elu", [network.value(operation, 0)], {"alpha": 1.0})


def _concatenation(network: Network, operation: Operation) -> Value:
    options = operation.options(network.schema.ConcatenationOptions)
    inputs = [network.value(operation, i) for i in range(len(operation.inputs))]
    if options.Axis() not in ((1, -1) if inputs[0].size is None else (3, -1)):
        raise WeightsError(f"layer {operation.name!r} concatenates along axis {options.Axis()}")
    return network.fused(operation, options, network.graph.combine(operation.name, "concat", inputs))


LAYERS: Mapping[str, Callable[[Network, Operation], Value]] = {
    "RELU": _plain("relu"),
    "RELU6": _plain("relu6"),
    "LOGISTIC": _plain("sigmoid"),
    "TANH": _plain("tanh"),
    "HARD_SWISH": _plain("hard_swish"),
    "SOFTMAX": _plain("softmax"),
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "MEAN": _reduce,
    "REDUCE_MAX": _reduce,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "PAD": _pad,
    "PADV2": _pad,
    "ADD": _arithmetic,
    "SUB": _arithmetic,
    "MUL": _arithmetic,
    "DIV": _arithmetic,
    "PRELU": _prelu,
    "LEAKY_RELU": _leaky_relu,
    "ELU": _elu,
    "CONCATENATION": _concatenation,
}
