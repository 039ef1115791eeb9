"""How each node is said in Keras's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import Node
from reskit.weights.keras.export.model import Writer
from reskit.weights.shapes import missing, reach, stride

__all__ = ["LAYERS"]


def _is_same(node: Node) -> bool:
    """Tell whether padding is what Keras calls ``same``, on maps of any size."""
    return node.attributes["padding"] == "same" or (
        list(node.attributes["stride"]) == [1, 1] and _is_centred(node)
    )


def _is_centred(node: Node) -> bool:
    """Tell whether padding is what ``same`` means at stride 1: windows centred on their positions."""
    totals = [reach(node, axis) - 1 for axis in (0, 1)]
    sides = [n for total in totals for n in (total // 2, total - total // 2)]
    return list(node.attributes["padding"]) == sides


def _window(node: Node) -> tuple[dict[str, Any], list[int]]:
    """Return the settings of a window, and the zeros that go around the map before it."""
    padding = node.attributes["padding"]
    unpadded = padding != "same" and not any(padding)
    same = not unpadded and _is_same(node)
    settings = {
        "strides": list(node.attributes["stride"]),
        "padding": "same" if same else "valid",
        "data_format": "channels_last",
    }
    return settings, [0, 0, 0, 0] if same else list(padding)


def _conv(writer: Writer, node: Node) -> str:
    """A convolution; one with as many groups as channels is depthwise."""
    attributes = node.attributes
    settings, zeros = _window(node)
    dilation = [
        d if k > 1 else 1 for d, k in zip(attributes["dilation"], attributes["kernel_size"], strict=True)
    ]
    if max(dilation) > 1 and max(attributes["stride"]) > 1:
        raise WeightsError(f"layer {node.name!r} has a stride and a dilation: Keras takes one of them")
    kernel, bias = _required(writer, node), writer.weight(node, "bias")
    settings |= {
        "kernel_size": list(attributes["kernel_size"]),
        "dilation_rate": dilation,
        "activation": "linear",
        "use_bias": bias is not None,
    }
    writer.map_size(node)
    before = writer.pad(node, zeros)
    inputs, groups = attributes["in_channels"], attributes["groups"]
    if groups == inputs and groups > 1 and attributes["stride"][0] == attributes["stride"][1]:
        times = kernel.shape[0] // inputs
        kernel = kernel[:, 0].permute(1, 2, 0).reshape(*kernel.shape[2:], inputs, times)
        arrays = {"depthwise_kernel": kernel, "bias": bias}
        return writer.layer(
            node, "DepthwiseConv2D", {**settings, "depth_multiplier": times}, arrays, after=before
        )
    settings |= {"filters": attributes["out_channels"], "groups": groups}
    arrays = {"kernel": kernel.permute(2, 3, 1, 0), "bias": bias}
    return writer.layer(node, "Conv2D", settings, arrays, after=before)


def _required(writer: Writer, node: Node) -> Tensor:
    weight = writer.weight(node)
    if weight is None:
        raise WeightsError(f"layer {node.name!r} ({node.op}) has no weights")
    return weight


def _batch_norm(writer: Writer, node: Node) -> str:
    channels = node.attributes["channels"]
    defaults = {
        "weight": torch.ones(channels),
        "bias": torch.zeros(channels),
        "running_mean": torch.zeros(channels),
        "running_var": torch.ones(channels),
    }
    found = {name: writer.weight(node, name) for name in defaults}
    values = [defaults[name] if tensor is None else tensor for name, tensor in found.items()]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    # A factor and shift per channel are a normalisation by mean 0 and variance 1.
    settings = {"axis": -1, "epsilon": node.attributes.get("eps", 0.0), "center": True, "scale": True}
    return writer.layer(node, "BatchNormalization", settings, dict(zip(names, values, strict=True)))


def _linear(writer: Writer, node: Node) -> str:
    if writer.source(node).shape.size is not None:
        raise WeightsError(f"layer {node.name!r} is linear and takes a map: flatten it before")
    bias = writer.weight(node, "bias")
    settings = {
        "units": node.attributes["out_features"],
        "activation": "linear",
        "use_bias": bias is not None,
    }
    return writer.layer(node, "Dense", settings, {"kernel": _required(writer, node).T, "bias": bias})


def _prelu(writer: Writer, node: Node) -> str:
    slopes = _required(writer, node).flatten()
    slopes = slopes.expand(writer.channels(node)) if slopes.numel() == 1 else slopes
    if writer.source(node).shape.size is None:
        return writer.layer(node, "PReLU", {"shared_axes": None}, {"alpha": slopes})
    return writer.layer(node, "PReLU", {"shared_axes": [1, 2]}, {"alpha": slopes[None, None]})


def _simple(
    kind: str, settings: Callable[[Node], Mapping[str, Any]] = lambda node: {}
) -> Callable[[Writer, Node], str]:
    def write(writer: Writer, node: Node) -> str:
        return writer.layer(node, kind, settings(node))

    return write


def _affine(writer: Writer, node: Node) -> str:
    settings = {"scale": float(node.attributes["scale"]), "offset": float(node.attributes["shift"])}
    return writer.layer(node, "Rescaling", settings)


def _hard_sigmoid(writer: Writer, node: Node) -> str:
    """relu6(x + 3) / 6, of layers that mean the same in Keras 2 and 3."""
    return writer.layer(node, "Rescaling", {"scale": 1 / 6, "offset": 0.0}, after=_ramp(writer, node))


def _hard_swish(writer: Writer, node: Node) -> str:
    before = writer.source(node).layer
    sixth = writer.helper(node, "sixth", "Rescaling", {"scale": 1 / 6, "offset": 0.0}, _ramp(writer, node))
    return writer.layer(node, "Multiply", after=[before, sixth])


def _ramp(writer: Writer, node: Node) -> str:
    """relu6(x + 3)."""
    shifted = writer.helper(
        node, "shifted", "Rescaling", {"scale": 1.0, "offset": 3.0}, writer.source(node).layer
    )
    return writer.helper(node, "clipped", "ReLU", {"max_value": 6.0}, shifted)


def _max_pool(writer: Writer, node: Node) -> str:
    """Maxima; zeros in place of the minus infinity that pads them are right where nothing is negative."""
    settings, zeros = _window(node)
    zeros = _with_missing(writer, node, zeros)
    if any(zeros) and not writer.source(node).positive:
        if zeros == list(node.attributes["padding"]) and _is_centred(node):
            return _dense_pool(writer, node, "MaxPooling2D")
        raise WeightsError(
            f"layer {node.name!r} pads a maximum of numbers that may be negative, which Keras cannot say"
        )
    settings["pool_size"] = list(node.attributes["kernel_size"])
    return writer.layer(node, "MaxPooling2D", settings, after=writer.pad(node, zeros))


def _avg_pool(writer: Writer, node: Node) -> str:
    """Averages; Keras never counts the padding of its own, and always that of a layer before."""
    settings, zeros = _window(node)
    counted = node.attributes["count_include_pad"]
    if settings["padding"] == "same" and counted:
        if node.attributes["padding"] == "same":
            raise WeightsError(
                f"layer {node.name!r} averages over its 'same' padding, which Keras cannot say"
            )
        settings["padding"], zeros = "valid", list(node.attributes["padding"])
    if _with_missing(writer, node, zeros) != zeros:
        raise WeightsError(
            f"layer {node.name!r} averages over cut windows (ceil_mode), which Keras cannot say"
        )
    if any(zeros) and not counted:
        if _is_centred(node):
            return _dense_pool(writer, node, "AveragePooling2D")
        raise WeightsError(f"layer {node.name!r} pads an average without counting, which Keras cannot say")
    settings["pool_size"] = list(node.attributes["kernel_size"])
    return writer.layer(node, "AveragePooling2D", settings, after=writer.pad(node, zeros))


def _dense_pool(writer: Writer, node: Node, kind: str) -> str:
    """Pool at every position with Keras's own padding, then keep every so many positions.

    With a window centred on its position this is what the stride alone would keep.
    """
    common = {"data_format": "channels_last"}
    everywhere = {"pool_size": list(node.attributes["kernel_size"]), "strides": [1, 1], "padding": "same"}
    pooled = writer.helper(node, "dense", kind, common | everywhere, writer.source(node).layer)
    some = {"pool_size": [1, 1], "strides": list(node.attributes["stride"]), "padding": "valid"}
    return writer.layer(node, "MaxPooling2D", common | some, after=pooled)


def _with_missing(writer: Writer, node: Node, zeros: Sequence[int]) -> list[int]:
    """Return the padding with what windows cut by the border (ceil_mode) need more."""
    more = [missing(node, writer.map_size(node), axis) for axis in (0, 1)]
    if more[0] is None or more[1] is None:
        raise WeightsError(
            f"layer {node.name!r} pools with ceil_mode maps of unknown size: trace the model with a size"
        )
    top, bottom, left, right = zeros
    return [top, bottom + more[0], left, right + more[1]]


def _flatten(writer: Writer, node: Node) -> str:
    """Flattening; Keras goes by position first, so channels are brought to the front where it matters."""
    before = writer.source(node).layer
    if node.attributes["order"] == "chw" and writer.source(node).shape.size not in (None, (1, 1)):
        before = writer.helper(node, "channels_first", "Permute", {"dims": [3, 1, 2]}, before)
    return writer.layer(node, "Flatten", {"data_format": "channels_last"}, after=before)


def _pad(writer: Writer, node: Node) -> str:
    if node.attributes["value"] != 0:
        raise WeightsError(f"layer {node.name!r} pads with {node.attributes['value']}: Keras pads with zeros")
    top, bottom, left, right = node.attributes["padding"]
    settings = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
    return writer.layer(node, "ZeroPadding2D", settings)


def _subsample(writer: Writer, node: Node) -> str:
    """Every so many positions and channels of zeros around: a fixed 1 x 1 convolution."""
    channels = writer.channels(node)
    front, back = node.attributes["front"], node.attributes["back"]
    kernel = torch.zeros(channels, front + channels + back)
    kernel[:, front : front + channels] = torch.eye(channels)
    settings = {
        "filters": kernel.shape[1],
        "kernel_size": [1, 1],
        "strides": list(stride(node)),
        "padding": "valid",
        "data_format": "channels_last",
        "activation": "linear",
        "use_bias": False,
    }
    return writer.layer(node, "Conv2D", settings, {"kernel": kernel[None, None]})


def _activation(name: str) -> Callable[[Writer, Node], str]:
    return _simple("Activation", lambda node: {"activation": name})


def _global(kind: str) -> Callable[[Writer, Node], str]:
    return _simple(kind, lambda node: {"data_format": "channels_last", "keepdims": True})


LAYERS: Mapping[str, Callable[[Writer, Node], str]] = {
    "conv": _conv,
    "batch_norm": _batch_norm,
    "scale": _batch_norm,
    "linear": _linear,
    "affine": _affine,
    "prelu": _prelu,
    "relu": _activation("relu"),
    "sigmoid": _activation("sigmoid"),
    "tanh": _activation("tanh"),
    "swish": _activation("swish"),
    "relu6": _simple("ReLU", lambda node: {"max_value": 6.0}),
    # The layer LeakyReLU calls its slope differently in Keras 2 and 3; this one does not.
    "leaky_relu": _simple("ReLU", lambda node: {"negative_slope": float(node.attributes["slope"])}),
    "elu": _simple("ELU", lambda node: {"alpha": float(node.attributes["alpha"])}),
    "softmax": _simple("Softmax", lambda node: {"axis": -1}),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _global("GlobalAveragePooling2D"),
    "global_max_pool": _global("GlobalMaxPooling2D"),
    "flatten": _flatten,
    "pad": _pad,
    "subsample": _subsample,
    "add": _simple("Add"),
    "multiply": _simple("Multiply"),
    "concat": _simple("Concatenate", lambda node: {"axis": -1}),
}
