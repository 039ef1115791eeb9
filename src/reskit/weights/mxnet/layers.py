"""The layers of MXNet as nodes of a :class:`~reskit.weights.graph.Graph`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.building import GraphBuilder, Value, both_sides
from reskit.weights.mxnet.symbol import Layer, Symbol

__all__ = ["Translator"]

_SAME = frozenset(["Dropout", "identity", "_copy", "BlockGrad", "stop_gradient"])


class Translator:
    """Layers of MXNet to nodes.

    Args:
        symbol: how the layers connect.
        arrays: weights by name.
        builder: what to add the layers to.

    Attributes:
        builder: the same.
    """

    def __init__(self, symbol: Symbol, arrays: Mapping[str, Tensor], builder: GraphBuilder) -> None:
        self.builder = builder
        self._symbol = symbol
        self._arrays = arrays
        self._values: dict[int, Value] = {}
        self._image: int | None = None
        self._taken: set[str] = set()

    def run(self) -> Value:
        """Add all layers; return the answer."""
        for position, layer in enumerate(self._symbol.layers):
            if layer.op != "null":
                self._values[position] = self._add(position, layer)
        return self._value(self._symbol.layers[self._symbol.head], self._symbol.head)

    def left_over(self) -> list[str]:
        """Return the names of the arrays no layer took."""
        return [name for name in self._arrays if name not in self._taken]

    def _add(self, position: int, layer: Layer) -> Value:
        if layer.op == "L2Normalization":
            layer.refuse(position != self._symbol.head, "is not the last layer")
            self.builder.notes.append(f"The division by the length at the end ({layer.name}) was left off.")
            return self._inputs(layer, 1)[0]
        if layer.op in _SAME:
            return self._inputs(layer, 1)[0]
        translate = _LAYERS.get(layer.op)
        if translate is None:
            raise WeightsError(
                f"layer {layer.name!r} is of type {layer.op!r}, which is not read; types that are:"
                f" {', '.join(sorted(_LAYERS))}"
            )
        return translate(self, layer)

    def _value(self, layer: Layer, position: int) -> Value:
        """Return what a layer takes; the first variable without an array is the image."""
        source = self._symbol.layers[position]
        if source.op != "null":
            return self._values[position]
        if source.name in self._arrays:
            raise WeightsError(f"layer {layer.name!r} ({layer.op}) takes the array {source.name!r} for a map")
        if self._image is None:
            self._image = position
            shape = source.numbers("__shape__")
            if len(shape) == 4 and min(shape[1:]) > 0:
                self.builder.set_input(*shape[1:])
        if self._image != position:
            raise WeightsError(
                f"layer {layer.name!r} takes {source.name!r}, for which the .params has no array: give the"
                " .params saved with this -symbol.json"
            )
        return self.builder.input

    def _inputs(self, layer: Layer, count: int | None = None) -> list[Value]:
        """Return the maps a layer takes: the first `count`, or all."""
        if not layer.inputs or (count is not None and len(layer.inputs) < count):
            raise WeightsError(f"layer {layer.name!r} ({layer.op}) takes {len(layer.inputs)} inputs")
        return [self._value(layer, position) for position in layer.inputs[:count]]

    def _array(self, layer: Layer, index: int, suffix: str) -> Tensor:
        """Return the array a layer takes as its input `index`, as float32.

        In old files the statistics of a normalisation are no inputs, and only their names tell.
        """
        positions = layer.inputs
        name = (
            self._symbol.layers[positions[index]].name if index < len(positions) else f"{layer.name}_{suffix}"
        )
        if name not in self._arrays:
            raise WeightsError(
                f"layer {layer.name!r} ({layer.op}) takes {name!r}, which the .params lacks: give the .params"
                " saved with this -symbol.json"
            )
        self._taken.add(name)
        array = self._arrays[name]
        layer.refuse(not array.is_floating_point(), f"has quantised weights ({array.dtype})")
        return array.float()

    def _shaped(self, layer: Layer, index: int, suffix: str, shape: Sequence[int]) -> Tensor:
        """Return an array of a given shape, in which -1 is any size."""
        array = self._array(layer, index, suffix)
        same = array.dim() == len(shape) and all(
            s in (-1, n) for s, n in zip(shape, array.shape, strict=True)
        )
        if not same:
            raise WeightsError(
                f"layer {layer.name!r} ({layer.op}) needs a {suffix} of shape {list(shape)} and has"
                f" {list(array.shape)}: give the .params saved with this -symbol.json"
            )
        return array

    def _convolution(self, layer: Layer) -> Value:
        layer.refuse(layer.text("layout", "NCHW") != "NCHW", "has another layout than NCHW")
        source = self._inputs(layer, 1)[0]
        out_channels = int(layer.number("num_filter", 0))
        shape = (out_channels, -1, *layer.pair("kernel"))
        bias = not layer.flag("no_bias", False)
        return self.builder.conv(
            layer.name,
            source,
            self._shaped(layer, 1, "weight", shape),
            self._shaped(layer, 2, "bias", (out_channels,)) if bias else None,
            stride=layer.pair("stride", 1),
            padding=both_sides(layer.pair("pad", 0)),
            dilation=layer.pair("dilate", 1),
            groups=int(layer.number("num_group", 1)),
        )

    def _batch_norm(self, layer: Layer) -> Value:
        layer.refuse(layer.number("axis", 1) != 1, "normalises another axis than the channels")
        source = self._inputs(layer, 1)[0]
        names = ("weight", "bias", "running_mean", "running_var")
        suffixes = ("gamma", "beta", "moving_mean", "moving_var")
        weights = {
            name: self._shaped(layer, index, suffix, (-1,))
            for index, (name, suffix) in enumerate(zip(names, suffixes, strict=True), start=1)
        }
        if layer.flag("fix_gamma", True):  # then what the file has for it is not used
            weights["weight"] = torch.ones_like(weights["weight"])
        return self.builder.per_channel(
            layer.name, "batch_norm", source, weights, eps=layer.number("eps", 1e-3)
        )

    def _fully_connected(self, layer: Layer) -> Value:
        source = self._inputs(layer, 1)[0]
        out_features = int(layer.number("num_hidden", 0))
        layer.refuse(not layer.flag("flatten", True), "acts on the last axis alone")
        bias = not layer.flag("no_bias", False)
        return self.builder.linear(
            layer.name,
            self.builder.flatten(f"{layer.name}_flatten", source),
            self._shaped(layer, 1, "weight", (out_features, -1)),
            self._shaped(layer, 2, "bias", (out_features,)) if bias else None,
        )

    def _activation(self, layer: Layer) -> Value:
        kind = layer.text("act_type", "") if layer.op == "Activation" else layer.op
        layer.refuse(kind not in ("relu", "sigmoid", "tanh"), f"is a {kind!r}")
        return self.builder.add(layer.name, kind, self._inputs(layer, 1))

    def _leaky_relu(self, layer: Layer) -> Value:
        kind = layer.text("act_type", "leaky")
        layer.refuse(kind not in ("leaky", "prelu", "elu"), f"is a {kind!r}")
        source = self._inputs(layer, 1)
        if kind == "prelu":
            weight = self._shaped(layer, 1, "gamma", (-1,))
            return self.builder.per_channel(layer.name, "prelu", source[0], {"weight": weight})
        slope = layer.number("slope", 0.25)
        if kind == "elu":
            return self.builder.add(layer.name, "elu", source, {"alpha": slope})
        return self.builder.add(layer.name, "leaky_relu", source, {"slope": slope})

    def _pooling(self, layer: Layer) -> Value:
        kind = layer.text("pool_type", "max")
        layer.refuse(kind not in ("max", "avg"), f"is a {kind!r}")
        rounding = layer.text("pooling_convention", "valid")
        layer.refuse(rounding not in ("valid", "full"), f"has the pooling_convention {rounding!r}")
        layer.refuse(layer.text("layout", "NCHW") != "NCHW", "has another layout than NCHW")
        source = self._inputs(layer, 1)[0]
        if layer.flag("global_pool", False):
            return self.builder.global_pool(layer.name, source, f"global_{kind}_pool")
        return self.builder.pool(
            layer.name,
            source,
            f"{kind}_pool",
            kernel=layer.pair("kernel"),
            stride=layer.pair("stride", 1),
            padding=both_sides(layer.pair("pad", 0)),
            ceil_mode=rounding == "full",
            count_include_pad=layer.flag("count_include_pad", True),
        )

    def _join(self, layer: Layer) -> Value:
        return self.builder.combine(layer.name, _JOINS[layer.op], self._inputs(layer))

    def _concat(self, layer: Layer) -> Value:
        layer.refuse(layer.number("dim", 1) != 1, "joins along another axis")
        inputs = self._inputs(layer)
        return inputs[0] if len(inputs) == 1 else self.builder.combine(layer.name, "concat", inputs)

    def _scalar(self, layer: Layer) -> Value:
        value = layer.number("scalar", 0.0)
        kind = layer.op.strip("_").replace("_scalar", "").replace("Scalar", "").lower()
        layer.refuse(kind == "div" and value == 0, "divides by zero")
        scale, shift = {
            "plus": (1.0, value),
            "minus": (1.0, -value),
            "rminus": (-1.0, value),
            "mul": (value, 0.0),
            "div": (1 / (value or 1.0), 0.0),
        }[kind]
        return self.builder.add(
            layer.name, "affine", self._inputs(layer, 1), {"scale": scale, "shift": shift}
        )

    def _clip(self, layer: Layer) -> Value:
        limits = (layer.number("a_min", 0), layer.number("a_max", 0))
        layer.refuse(limits != (0, 6), f"clips to {limits}")
        return self.builder.add(layer.name, "relu6", self._inputs(layer, 1))

    def _mean(self, layer: Layer) -> Value:
        axes = sorted(axis % 4 for axis in layer.numbers("axis"))
        layer.refuse(axes != [2, 3] or layer.flag("exclude", False), "averages other axes than the map's")
        value = self.builder.global_pool(layer.name, self._inputs(layer, 1)[0], "global_avg_pool")
        return (
            value if layer.flag("keepdims", False) else self.builder.flatten(f"{layer.name}_flatten", value)
        )

    def _pad(self, layer: Layer) -> Value:
        widths = layer.numbers("pad_width")
        constant = layer.text("mode", "constant") == "constant"
        layer.refuse(not constant or len(widths) != 8 or any(widths[:4]), "pads otherwise than with a number")
        value = layer.number("constant_value", 0.0)
        return self.builder.pad(layer.name, self._inputs(layer, 1)[0], widths[4:], value)

    def _softmax(self, layer: Layer) -> Value:
        over_channels = layer.number("axis", -1) in (-1, 1) and not layer.flag("multi_output", False)
        layer.refuse(not over_channels, "is not over the channels")
        return self.builder.add(layer.name, "softmax", self._inputs(layer, 1))

    def _flatten(self, layer: Layer) -> Value:
        if layer.op in ("Reshape", "reshape"):
            shape = layer.numbers("shape")
            layer.refuse(shape != [0, -1], f"makes the shape {shape}")
        return self.builder.flatten(layer.name, self._inputs(layer, 1)[0])

    def _cast(self, layer: Layer) -> Value:
        kind = layer.text("dtype", "")
        layer.refuse(not kind.startswith("float"), f"makes {kind}")
        return self._inputs(layer, 1)[0]


_JOINS: Mapping[str, str] = {
    **dict.fromkeys(("elemwise_add", "_plus", "_Plus", "broadcast_add", "broadcast_plus", "add_n"), "add"),
    **dict.fromkeys(("_add", "ElementWiseSum"), "add"),
    **dict.fromkeys(("elemwise_mul", "_mul", "_Mul", "broadcast_mul"), "multiply"),
}

_LAYERS: Mapping[str, Callable[[Translator, Layer], Value]] = {
    **dict.fromkeys(("Convolution", "Convolution_v1"), Translator._convolution),
    **dict.fromkeys(("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"), Translator._batch_norm),
    **dict.fromkeys(("Activation", "relu", "sigmoid", "tanh"), Translator._activation),
    "LeakyReLU": Translator._leaky_relu,
    **dict.fromkeys(("Pooling", "Pooling_v1"), Translator._pooling),
    "FullyConnected": Translator._fully_connected,
    **dict.fromkeys(_JOINS, Translator._join),
    **dict.fromkeys(("Concat", "concat"), Translator._concat),
    **dict.fromkeys(("_plus_scalar", "_PlusScalar", "_minus_scalar", "_MinusScalar"), Translator._scalar),
    **dict.fromkeys(("_rminus_scalar", "_RMinusScalar"), Translator._scalar),
    **dict.fromkeys(("_mul_scalar", "_MulScalar", "_div_scalar", "_DivScalar"), Translator._scalar),
    "clip": Translator._clip,
    "mean": Translator._mean,
    **dict.fromkeys(("Pad", "pad"), Translator._pad),
    **dict.fromkeys(("SoftmaxOutput", "Softmax", "softmax", "SoftmaxActivation"), Translator._softmax),
    **dict.fromkeys(("Flatten", "flatten", "Reshape", "reshape"), Translator._flatten),
    **dict.fromkeys(("Cast", "cast", "amp_cast"), Translator._cast),
}
