"""What each Keras layer computes, as nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reskit.errors import WeightsError, did_you_mean
from reskit.weights.building import NO_PADDING, GraphBuilder, Padding, Value

__all__ = ["Layer", "convert"]

_CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "TFSMLayer")
# Nothing in evaluation: regularisation and augmentation.
_IDENTITIES = frozenset(
    {
        "ActivityRegularization",
        "AlphaDropout",
        "Dropout",
        "GaussianDropout",
        "GaussianNoise",
        "Identity",
        "SpatialDropout2D",
        "RandomBrightness",
        "RandomContrast",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
    }
)
_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softmax": "softmax",
    "swish": "swish",
    "silu": "swish",
    "hard_sigmoid": "hard_sigmoid",
    "hard_swish": "hard_swish",
    "hard_silu": "hard_swish",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a Keras configuration.

    Attributes:
        name: as Keras has it, the models it is in before it.
        kind: its class.
        config: its settings.
        arrays: gives its arrays, in the order in which Keras makes them.
        channels_last: how maps lie in the model.
        old: whether the file is of Keras 1 or 2.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    arrays: Callable[[], list[Tensor]]
    channels_last: bool
    old: bool

    def weights(self, *names: str) -> dict[str, Tensor]:
        """Return the arrays under these names; there have to be as many."""
        arrays = self.arrays()
        if len(arrays) != len(names):
            raise WeightsError(
                f"layer {self.name!r} ({self.kind}) has {len(arrays)} arrays in the file and needs"
                f" {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, arrays, strict=True))

    def number(self, key: str, default: float) -> float:
        """Return a setting that is a number."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WeightsError(f"layer {self.name!r} has the {key} {value!r}, which is no number")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        """Return a setting that is a whole number."""
        number = self.number(key, default)
        if number != int(number):
            raise WeightsError(f"layer {self.name!r} has the {key} {number!r}, which is no whole number")
        return int(number)

    def pair(self, key: str, default: Any) -> tuple[int, int]:
        """Return a setting that is one whole number or two."""
        value = self.config.get(key)
        value = default if value is None else value
        pair = (value, value) if isinstance(value, int) else value
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(n) is int for n in pair):
            raise WeightsError(f"layer {self.name!r} has the {key} {value!r}")
        return pair[0], pair[1]

    @property
    def padding(self) -> Padding:
        """Padding of its window, as a graph has it."""
        padding = self.config.get("padding", "valid")
        if padding not in ("same", "valid"):
            raise WeightsError(f"layer {self.name!r} has the padding {padding!r}")
        return "same" if padding == "same" else NO_PADDING


_Converter = Callable[[Layer, Sequence[Value], GraphBuilder], Value]


def convert(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    """Add a layer to a graph.

    Raises:
        WeightsError: the layer holds code, is not of residual networks, or its weights do not fit.
    """
    if layer.kind in _CODE:
        raise WeightsError(
            f"layer {layer.name!r} is a {layer.kind}, which holds code; reskit runs none from a file:"
            " rebuild the model of plain layers"
        )
    if layer.kind in _IDENTITIES:
        return inputs[0]
    converter = _CONVERTERS.get(layer.kind)
    if converter is None:
        raise WeightsError(
            f"layer {layer.name!r} is a {layer.kind}, which reskit cannot read"
            f"{did_you_mean(layer.kind, _CONVERTERS)}"
        )
    if layer.kind not in _JOINS and len(inputs) != 1:
        raise WeightsError(f"layer {layer.name!r} ({layer.kind}) has {len(inputs)} inputs")
    return converter(layer, inputs, graph)


def _activate(layer: Layer, x: Value, graph: GraphBuilder, name: str) -> Value:
    """Add the activation in a layer's settings, if there is one."""
    activation = layer.config.get("activation") or "linear"
    if isinstance(activation, Mapping):
        activation = activation.get("config")
    if activation == "linear":
        return x
    if activation == "elu":
        return graph.add(name, "elu", [x], {"alpha": 1.0})
    if activation == "leaky_relu":
        return graph.add(name, "leaky_relu", [x], {"slope": 0.2})
    if activation == "hard_sigmoid" and layer.old:  # Keras 2 had clip(0.2 x + 0.5, 0, 1)
        x = graph.add(f"{name}_slope", "affine", [x], {"scale": 1.2, "shift": 0.0})
    if activation not in _ACTIVATIONS:
        raise WeightsError(
            f"layer {layer.name!r} has the activation {activation!r}, which reskit cannot read"
        )
    return graph.add(name, _ACTIVATIONS[activation], [x])


def _then_activate(layer: Layer, x: Value, graph: GraphBuilder) -> Value:
    return _activate(layer, x, graph, f"{layer.name}_activation")


def _names(layer: Layer, *names: str) -> tuple[str, ...]:
    """Return the names of arrays with ``bias`` if the layer uses one."""
    return (*names, "bias") if layer.config.get("use_bias", True) else names


def _kernel(layer: Layer, kernel: Tensor) -> Tensor:
    """Return a kernel (h, w, in, out) as (out, in, h, w)."""
    if kernel.dim() != 4:
        raise WeightsError(f"layer {layer.name!r} has a kernel of shape {tuple(kernel.shape)}")
    return kernel.permute(3, 2, 0, 1)


def _depthwise_kernel(layer: Layer, kernel: Tensor) -> Tensor:
    """Return a depthwise kernel (h, w, in, times) as (in times, 1, h, w)."""
    if kernel.dim() != 4:
        raise WeightsError(f"layer {layer.name!r} has a kernel of shape {tuple(kernel.shape)}")
    return kernel.flatten(2).permute(2, 0, 1)[:, None]


def _window(layer: Layer) -> dict[str, Any]:
    return {
        "stride": layer.pair("strides", 1),
        "padding": layer.padding,
        "dilation": layer.pair("dilation_rate", 1),
    }


def _conv(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    weights = layer.weights(*_names(layer, "kernel"))
    kernel = _kernel(layer, weights["kernel"])
    groups = layer.whole("groups", 1)
    x = graph.conv(layer.name, inputs[0], kernel, weights.get("bias"), groups=groups, **_window(layer))
    return _then_activate(layer, x, graph)


def _depthwise_conv(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    weights = layer.weights(*_names(layer, "kernel"))
    kernel = _depthwise_kernel(layer, weights["kernel"])
    groups = inputs[0].channels
    x = graph.conv(layer.name, inputs[0], kernel, weights.get("bias"), groups=groups, **_window(layer))
    return _then_activate(layer, x, graph)


def _separable_conv(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    weights = layer.weights(*_names(layer, "depthwise", "pointwise"))
    kernel = _depthwise_kernel(layer, weights["depthwise"])
    groups = inputs[0].channels
    x = graph.conv(f"{layer.name}_depthwise", inputs[0], kernel, groups=groups, **_window(layer))
    x = graph.conv(layer.name, x, _kernel(layer, weights["pointwise"]), weights.get("bias"))
    return _then_activate(layer, x, graph)


def _dense(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    weights = layer.weights(*_names(layer, "kernel"))
    _channel_axis(layer, inputs[0], -1)
    if weights["kernel"].dim() != 2:
        raise WeightsError(f"layer {layer.name!r} has weights of shape {tuple(weights['kernel'].shape)}")
    x = graph.linear(layer.name, inputs[0], weights["kernel"].T, weights.get("bias"))
    return _then_activate(layer, x, graph)


def _channel_axis(layer: Layer, x: Value, axis: Any) -> None:
    """Refuse a layer that works along another axis than that of the channels."""
    if isinstance(axis, list) and len(axis) == 1:
        axis = axis[0]
    expected = (1, -1) if x.size is None else (3, -1) if layer.channels_last else (1, -3)
    if axis not in expected:
        raise WeightsError(f"layer {layer.name!r} ({layer.kind}) works along axis {axis}, not the channels")


def _batch_norm(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    x = inputs[0]
    _channel_axis(layer, x, layer.config.get("axis", -1))
    affine = {"scale": "weight", "center": "bias"}
    names = [name for key, name in affine.items() if layer.config.get(key, True)]
    weights = layer.weights(*names, "running_mean", "running_var")
    weights = {"weight": torch.ones(x.channels), "bias": torch.zeros(x.channels), **weights}
    return graph.per_channel(layer.name, "batch_norm", x, weights, eps=layer.number("epsilon", 1e-3))


def _activation(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    return _activate(layer, inputs[0], graph, layer.name)


def _relu(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    largest = layer.config.get("max_value")
    slope = layer.number("negative_slope", 0) if layer.config.get("negative_slope") else 0.0
    if layer.config.get("threshold") or largest not in (None, 6) or (largest and slope):
        raise WeightsError(f"layer {layer.name!r} is a ReLU with a threshold or a limit other than 6")
    if slope:
        return graph.add(layer.name, "leaky_relu", inputs, {"slope": slope})
    return graph.add(layer.name, "relu" if largest is None else "relu6", inputs)


def _leaky_relu(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    key = "negative_slope" if "negative_slope" in layer.config else "alpha"  # the second: Keras 2
    return graph.add(layer.name, "leaky_relu", inputs, {"slope": layer.number(key, 0.3)})


def _prelu(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    slopes = layer.weights("alpha")["alpha"]
    if inputs[0].channels != slopes.numel():
        raise WeightsError(
            f"layer {layer.name!r} is a PReLU with slopes of {tuple(slopes.shape)}: reskit reads one for"
            " each channel (shared_axes=[1, 2])"
        )
    return graph.per_channel(layer.name, "prelu", inputs[0], {"weight": slopes.flatten()})


def _elu(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    return graph.add(layer.name, "elu", inputs, {"alpha": layer.number("alpha", 1.0)})


def _softmax(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    _channel_axis(layer, inputs[0], layer.config.get("axis", -1))
    return graph.add(layer.name, "softmax", inputs)


def _join(op: str) -> _Converter:
    def add(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
        if op == "concat":
            _channel_axis(layer, inputs[0], layer.config.get("axis", -1))
        return graph.combine(layer.name, op, inputs)

    return add


def _pool(op: str) -> _Converter:
    def add(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
        kernel = layer.pair("pool_size", 2)
        stride = layer.pair("strides", list(kernel))
        return graph.pool(layer.name, inputs[0], op, kernel=kernel, stride=stride, padding=layer.padding)

    return add


def _global_pool(op: str) -> _Converter:
    def add(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
        x = graph.global_pool(layer.name, inputs[0], op)
        return x if layer.config.get("keepdims") else graph.flatten(f"{layer.name}_flatten", x)

    return add


def _order(layer: Layer) -> str:
    return "hwc" if layer.channels_last else "chw"


def _flatten(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    """Flattening; told that channels are first, Keras moves them to the end before."""
    first = layer.config.get("data_format") == "channels_first"
    if first and layer.channels_last and inputs[0].size not in (None, (1, 1)):
        raise WeightsError(f"layer {layer.name!r} flattens maps as if their channels were first")
    return graph.flatten(layer.name, inputs[0], "hwc" if first else _order(layer))


def _reshape(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    """Flattening, or a vector as a map of one position; nothing else is met in residual networks."""
    target = layer.config.get("target_shape")
    x = inputs[0]
    if not isinstance(target, list) or not all(type(n) is int for n in target):
        raise WeightsError(f"layer {layer.name!r} reshapes to {target!r}")
    if len(target) == 1:
        return graph.flatten(layer.name, x, _order(layer))
    place = -1 if layer.channels_last else 0
    sides = target[:-1] if layer.channels_last else target[1:]
    one_position = x.size in (None, (1, 1)) and len(target) == 3 and target[place] in (x.channels, -1)
    if not one_position or any(side not in (1, -1) for side in sides) or target.count(-1) > 1:
        raise WeightsError(
            f"layer {layer.name!r} reshapes to {target}: reskit reads a flattening or (1, 1, C)"
        )
    return graph.as_map(layer.name, x)


def _zero_padding(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    padding = layer.config.get("padding", 1)
    rows, columns = padding if isinstance(padding, list) and len(padding) == 2 else (padding, padding)
    sides = [n for side in (rows, columns) for n in (side if isinstance(side, list) else [side, side])]
    return graph.pad(layer.name, inputs[0], sides)


def _rescaling(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    factor, shift = (_numbers(layer, key, default) for key, default in (("scale", 1.0), ("offset", 0.0)))
    if factor.dim() == 0 and shift.dim() == 0:
        attributes = {"scale": float(factor), "shift": float(shift)}
        return graph.add(layer.name, "affine", inputs, attributes)
    weights = _spread(inputs[0], weight=factor, bias=shift)
    return graph.per_channel(layer.name, "scale", inputs[0], weights)


def _normalization(layer: Layer, inputs: Sequence[Value], graph: GraphBuilder) -> Value:
    x = inputs[0]
    _channel_axis(layer, x, layer.config.get("axis", -1))
    if layer.config.get("invert"):
        raise WeightsError(f"layer {layer.name!r} is an inverted Normalization")
    if layer.config.get("mean") is not None:
        mean, variance = _numbers(layer, "mean", 0.0), _numbers(layer, "variance", 1.0)
    else:
        found = layer.weights("mean", "variance", "count")
        mean, variance = found["mean"], found["variance"]
    factor = 1 / variance.flatten().sqrt().clamp(min=1e-7)  # Keras's own guard
    weights = _spread(x, weight=factor, bias=-mean.flatten() * factor)
    return graph.per_channel(layer.name, "scale", x, weights)


def _spread(x: Value, **numbers: Tensor) -> dict[str, Tensor]:
    """Return numbers as one for each channel; those that do not fit are left to be refused."""
    return {
        name: (tensor.expand(x.channels) if tensor.numel() == 1 else tensor).float()
        for name, tensor in numbers.items()
    }


def _numbers(layer: Layer, key: str, default: float) -> Tensor:
    """Return a setting that is a number, or nested lists of numbers of one channel each."""
    try:
        numbers = torch.tensor(layer.config.get(key, default), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"layer {layer.name!r} has a {key} that is no number") from error
    return numbers if numbers.dim() == 0 else numbers.flatten()


_JOINS = {
    "Add": _join("add"),
    "Multiply": _join("multiply"),
    "Concatenate": _join("concat"),
}
_CONVERTERS: Mapping[str, _Converter] = {
    **_JOINS,
    "Conv2D": _conv,
    "DepthwiseConv2D": _depthwise_conv,
    "SeparableConv2D": _separable_conv,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "PReLU": _prelu,
    "ELU": _elu,
    "Softmax": _softmax,
    "MaxPooling2D": _pool("max_pool"),
    "AveragePooling2D": _pool("avg_pool"),
    "GlobalAveragePooling2D": _global_pool("global_avg_pool"),
    "GlobalMaxPooling2D": _global_pool("global_max_pool"),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "ZeroPadding2D": _zero_padding,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
}
