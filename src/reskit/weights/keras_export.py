"""Writes a graph as a Keras model: one HDF5 file that Keras 2 and Keras 3 load.

Maps lie as Keras has them by default, `(N, H, W, C)`. Where PyTorch and Keras pad differently, a layer of
padding goes before; what cannot be said exactly in Keras's layers is refused.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reskit.errors import MissingExtraError, WeightsError
from reskit.files import writing
from reskit.weights.graph import INPUT, Graph, Node, safe_name

__all__ = ["write_keras_h5"]

_VERSION = "2.15.0"  # of the form of the configuration; Keras 3 reads it as well
_ATTRIBUTE_LIMIT = 60_000  # bytes; HDF5 has no room for more in an object's header
_NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "softmax", "hard_sigmoid"})
_KEEPS_SIGN = frozenset(
    {"max_pool", "avg_pool", "global_avg_pool", "global_max_pool", "flatten", "subsample"}
    | {"add", "multiply", "concat"}
)
_Size = tuple[int | None, int | None]


@dataclass(frozen=True, kw_only=True)
class _Fact:
    """What is known of a value.

    Attributes:
        layer: of Keras, that gives it.
        channels: or the length of a vector.
        size: height and width; None for a vector.
        positive: whether no number in it can be below zero.
    """

    layer: str
    channels: int
    size: _Size | None
    positive: bool


def write_keras_h5(graph: Graph, path: Path, *, name: str) -> None:
    """Write a network as a whole-model Keras file; it takes `(N, H, W, C)` and gives the same answers.

    Args:
        graph: the network.
        path: of the ``.h5`` file.
        name: of the Keras model.

    Raises:
        WeightsError: a layer cannot be said exactly in Keras's layers.
        OutputError: the file cannot be written.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "formats") from None
    writer = _Writer(graph)
    config, order = writer.config(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            with h5py.File(staging, "w") as file:
                _fill(file, json.dumps(config), [(layer, writer.arrays.get(layer, {})) for layer in order])
            with Path(staging).open("rb") as written:
                os.fsync(written.fileno())
            Path(staging).chmod(0o644)
            Path(staging).replace(path)
        except BaseException:
            Path(staging).unlink(missing_ok=True)
            raise


def _fill(file: Any, config: str, layers: Sequence[tuple[str, Mapping[str, Tensor]]]) -> None:
    """Write the configuration and the arrays into an open HDF5 file."""
    group = file.create_group("model_weights")
    for holder in (file, group):
        holder.attrs["keras_version"] = _VERSION
        holder.attrs["backend"] = "tensorflow"
    file.attrs["model_config"] = config.encode("utf-8")
    _write_names(group, "layer_names", [layer for layer, _ in layers])
    for layer, arrays in layers:
        inner = group.create_group(layer)
        _write_names(inner, "weight_names", [f"{layer}/{key}:0" for key in arrays])
        for key, tensor in arrays.items():
            inner.create_dataset(f"{layer}/{key}:0", data=tensor.detach().float().numpy())


def _write_names(group: Any, key: str, names: Sequence[str]) -> None:
    """Write a list of names, in numbered pieces where it is long, as Keras does."""
    encoded = [name.encode("utf-8") for name in names]
    longest = max((len(name) for name in encoded), default=1)
    piece = max(_ATTRIBUTE_LIMIT // longest, 1)
    if len(encoded) <= piece:
        group.attrs[key] = np.array(encoded, dtype=f"S{longest}")
        return
    for number, start in enumerate(range(0, len(encoded), piece)):
        group.attrs[f"{key}{number}"] = np.array(encoded[start : start + piece], dtype=f"S{longest}")


class _Writer:
    """Turns nodes into Keras layers.

    Args:
        graph: the network.

    Attributes:
        arrays: of every layer that has any, in the order in which Keras makes them.
    """

    def __init__(self, graph: Graph) -> None:
        self.arrays: dict[str, dict[str, Tensor]] = {}
        self._graph = graph
        self._taken = {node.name for node in graph.nodes}
        channels, height, width = graph.input_shape
        self._layers: dict[str, dict[str, Any]] = {}
        self._sources: dict[str, list[str]] = {}
        # Not `INPUT` itself: Keras 3 takes a layer of that name for an argument.
        self._input = self._name("image")
        shape = {"batch_input_shape": [None, height, width, channels], "dtype": "float32", "sparse": False}
        self._add_layer("InputLayer", self._input, [], {**shape, "ragged": False})
        self.facts = {
            INPUT: _Fact(layer=self._input, channels=channels, size=(height, width), positive=False)
        }
        for node in graph.nodes:
            self.facts[node.name] = self._fact(node, _WRITERS[node.op](self, node))

    def config(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """Return the configuration, and its layers' names in the order in which Keras will have them."""
        answer = self.facts[self._graph.nodes[-1].name].layer
        order = self._keras_order(answer)
        settings = {
            "name": safe_name(name, self._layers),
            "trainable": True,
            "layers": [self._layers[layer] for layer in order],
            "input_layers": [[self._input, 0, 0]],
            "output_layers": [[answer, 0, 0]],
        }
        return {"class_name": "Functional", "config": settings}, order

    def source(self, node: Node) -> _Fact:
        """Return what is known of a node's only input."""
        return self.facts[node.inputs[0]]

    def weight(self, node: Node, name: str = "weight") -> Tensor | None:
        """Return a tensor of a node."""
        tensor = self._graph.weights.get(f"{node.name}.{name}")
        return None if tensor is None else tensor.detach().cpu()

    def layer(
        self,
        node: Node,
        kind: str,
        settings: Mapping[str, Any] | None = None,
        arrays: Mapping[str, Tensor | None] | None = None,
        *,
        after: str | Sequence[str] = (),
    ) -> str:
        """Add the layer that has a node's name, after its inputs or after other layers."""
        sources = [after] if isinstance(after, str) else after or [self.facts[n].layer for n in node.inputs]
        self._add_layer(kind, node.name, sources, settings or {})
        present = {key: tensor.contiguous() for key, tensor in (arrays or {}).items() if tensor is not None}
        if present:
            self.arrays[node.name] = present
        return node.name

    def helper(self, node: Node, suffix: str, kind: str, settings: Mapping[str, Any], after: str) -> str:
        """Add a layer without weights on the way to a node's own."""
        return self._add_layer(kind, self._name(f"{node.name}_{suffix}"), [after], settings)

    def pad(self, node: Node, padding: Sequence[int]) -> str:
        """Add zeros around a node's input, where there are any to add; returns the layer to go on from."""
        before = self.source(node).layer
        if not any(padding):
            return before
        top, bottom, left, right = padding
        settings = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
        return self.helper(node, "pad", "ZeroPadding2D", settings, before)

    def map_size(self, node: Node) -> _Size:
        """Return the size of the map a node takes."""
        size = self.source(node).size
        if size is None:
            raise WeightsError(f"layer {node.name!r} ({node.op}) takes a map and is given a vector")
        return size

    def _name(self, wanted: str) -> str:
        name = safe_name(wanted, self._taken)
        self._taken.add(name)
        return name

    def _add_layer(self, kind: str, name: str, sources: Sequence[str], settings: Mapping[str, Any]) -> str:
        entries = [[source, 0, 0, {}] for source in sources]
        self._sources[name] = list(sources)
        self._layers[name] = {
            "class_name": kind,
            "name": name,
            "config": {"name": name, **settings},
            "inbound_nodes": [entries] if entries else [],
        }
        return name

    def _fact(self, node: Node, layer: str) -> _Fact:
        sources = [self.facts[name] for name in node.inputs]
        first = sources[0]
        positive = node.op in _NON_NEGATIVE or (
            node.op in _KEEPS_SIGN and all(source.positive for source in sources)
        )
        if node.op == "pad":
            positive = first.positive and node.attributes["value"] >= 0
        return _Fact(
            layer=layer, channels=_channels(node, sources), size=_size(node, sources), positive=positive
        )

    def _keras_order(self, answer: str) -> list[str]:
        """Return the layers in the order in which Keras lists them, and so fills them from a file.

        Those farthest from the answer come first; of the same distance, those that a walk from the answer
        back to the image meets first.
        """
        met: dict[str, int] = {}
        stack = [answer]
        while stack:
            name = stack.pop()
            if name not in met:
                met[name] = len(met)
                stack.extend(reversed(self._sources[name]))
        distance = dict.fromkeys(met, 0)
        for name in reversed([name for name in self._layers if name in met]):
            for source in self._sources[name]:
                distance[source] = max(distance[source], distance[name] + 1)
        return sorted(met, key=lambda name: (-distance[name], met[name]))


def _channels(node: Node, sources: Sequence[_Fact]) -> int:
    """Return how many channels a node gives."""
    if node.op == "conv":
        return int(node.attributes["out_channels"])
    if node.op == "linear":
        return int(node.attributes["out_features"])
    if node.op == "concat":
        return sum(source.channels for source in sources)
    if node.op == "subsample":
        return sources[0].channels + int(node.attributes["front"]) + int(node.attributes["back"])
    return max(source.channels for source in sources)


def _size(node: Node, sources: Sequence[_Fact]) -> _Size | None:
    """Return the size of the map a node gives, None for a vector."""
    size = sources[0].size
    if node.op in ("flatten", "linear") or size is None:
        return None
    if node.op in ("global_avg_pool", "global_max_pool"):
        return 1, 1
    if node.op in ("conv", "max_pool", "avg_pool"):
        return _side(node, size, 0), _side(node, size, 1)
    if node.op == "subsample":
        height, width = (None if n is None else -(-n // s) for n, s in zip(size, _stride(node), strict=True))
        return height, width
    if node.op == "pad":
        padding = node.attributes["padding"]
        height, width = (
            None if n is None else n + padding[2 * i] + padding[2 * i + 1] for i, n in enumerate(size)
        )
        return height, width
    # Maps of one position are broadcast.
    return next((s.size for s in sources if s.size != (1, 1)), size)


def _side(node: Node, size: _Size, axis: int) -> int | None:
    """Return how many positions a window has along an axis."""
    length, stride = size[axis], int(node.attributes["stride"][axis])
    if length is None:
        return None
    padding = node.attributes["padding"]
    if padding == "same":
        return -(-length // stride)
    span = length + int(sum(padding[2 * axis : 2 * axis + 2])) - _reach(node, axis)
    return span // stride + 1 + (1 if _missing(node, size, axis) else 0)


def _reach(node: Node, axis: int) -> int:
    """Return how many positions a window covers, dilation included."""
    dilation = node.attributes.get("dilation", [1, 1])[axis]
    return int(dilation * (node.attributes["kernel_size"][axis] - 1) + 1)


def _missing(node: Node, size: _Size, axis: int) -> int | None:
    """Return how many positions the last window of a pooling with ceil_mode reaches beyond the padding.

    None where the size of the map decides and is not known.
    """
    if not node.attributes.get("ceil_mode") or node.attributes["padding"] == "same":
        return 0
    length, stride = size[axis], int(node.attributes["stride"][axis])
    if stride == 1:
        return 0
    if length is None:
        return None
    before, after = (int(n) for n in node.attributes["padding"][2 * axis : 2 * axis + 2])
    windows = -(-(length + before + after - _reach(node, axis)) // stride) + 1
    if (windows - 1) * stride >= length + before:  # PyTorch drops a window that would begin in the padding
        windows -= 1
    return max((windows - 1) * stride + _reach(node, axis) - (length + before + after), 0)


def _stride(node: Node) -> tuple[int, int]:
    stride = node.attributes["stride"]
    return (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])


def _is_same(node: Node) -> bool:
    """Tell whether padding is what Keras calls ``same``, on maps of any size."""
    return node.attributes["padding"] == "same" or (
        list(node.attributes["stride"]) == [1, 1] and _is_centred(node)
    )


def _is_centred(node: Node) -> bool:
    """Tell whether padding is what ``same`` means at stride 1: windows centred on their positions."""
    totals = [_reach(node, axis) - 1 for axis in (0, 1)]
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


def _conv(writer: _Writer, node: Node) -> str:
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


def _required(writer: _Writer, node: Node) -> Tensor:
    weight = writer.weight(node)
    if weight is None:
        raise WeightsError(f"layer {node.name!r} ({node.op}) has no weights")
    return weight


def _batch_norm(writer: _Writer, node: Node) -> str:
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


def _linear(writer: _Writer, node: Node) -> str:
    if writer.source(node).size is not None:
        raise WeightsError(f"layer {node.name!r} is linear and takes a map: flatten it before")
    bias = writer.weight(node, "bias")
    settings = {
        "units": node.attributes["out_features"],
        "activation": "linear",
        "use_bias": bias is not None,
    }
    return writer.layer(node, "Dense", settings, {"kernel": _required(writer, node).T, "bias": bias})


def _prelu(writer: _Writer, node: Node) -> str:
    fact = writer.source(node)
    slopes = _required(writer, node).flatten()
    slopes = slopes.expand(fact.channels) if slopes.numel() == 1 else slopes
    if fact.size is None:
        return writer.layer(node, "PReLU", {"shared_axes": None}, {"alpha": slopes})
    return writer.layer(node, "PReLU", {"shared_axes": [1, 2]}, {"alpha": slopes[None, None]})


def _simple(
    kind: str, settings: Callable[[Node], Mapping[str, Any]] = lambda node: {}
) -> Callable[[_Writer, Node], str]:
    def write(writer: _Writer, node: Node) -> str:
        return writer.layer(node, kind, settings(node))

    return write


def _affine(writer: _Writer, node: Node) -> str:
    settings = {"scale": float(node.attributes["scale"]), "offset": float(node.attributes["shift"])}
    return writer.layer(node, "Rescaling", settings)


def _hard_sigmoid(writer: _Writer, node: Node) -> str:
    """relu6(x + 3) / 6, of layers that mean the same in Keras 2 and 3."""
    return writer.layer(node, "Rescaling", {"scale": 1 / 6, "offset": 0.0}, after=_ramp(writer, node))


def _hard_swish(writer: _Writer, node: Node) -> str:
    before = writer.source(node).layer
    sixth = writer.helper(node, "sixth", "Rescaling", {"scale": 1 / 6, "offset": 0.0}, _ramp(writer, node))
    return writer.layer(node, "Multiply", after=[before, sixth])


def _ramp(writer: _Writer, node: Node) -> str:
    """relu6(x + 3)."""
    shifted = writer.helper(
        node, "shifted", "Rescaling", {"scale": 1.0, "offset": 3.0}, writer.source(node).layer
    )
    return writer.helper(node, "clipped", "ReLU", {"max_value": 6.0}, shifted)


def _max_pool(writer: _Writer, node: Node) -> str:
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


def _avg_pool(writer: _Writer, node: Node) -> str:
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


def _dense_pool(writer: _Writer, node: Node, kind: str) -> str:
    """Pool at every position with Keras's own padding, then keep every so many positions.

    With a window centred on its position this is what the stride alone would keep.
    """
    common = {"data_format": "channels_last"}
    everywhere = {"pool_size": list(node.attributes["kernel_size"]), "strides": [1, 1], "padding": "same"}
    pooled = writer.helper(node, "dense", kind, common | everywhere, writer.source(node).layer)
    some = {"pool_size": [1, 1], "strides": list(node.attributes["stride"]), "padding": "valid"}
    return writer.layer(node, "MaxPooling2D", common | some, after=pooled)


def _with_missing(writer: _Writer, node: Node, zeros: Sequence[int]) -> list[int]:
    """Return the padding with what windows cut by the border (ceil_mode) need more."""
    more = [_missing(node, writer.map_size(node), axis) for axis in (0, 1)]
    if more[0] is None or more[1] is None:
        raise WeightsError(
            f"layer {node.name!r} pools with ceil_mode maps of unknown size: trace the model with a size"
        )
    top, bottom, left, right = zeros
    return [top, bottom + more[0], left, right + more[1]]


def _flatten(writer: _Writer, node: Node) -> str:
    """Flattening; Keras goes by position first, so channels are brought to the front where it matters."""
    before = writer.source(node).layer
    if node.attributes["order"] == "chw" and writer.source(node).size not in (None, (1, 1)):
        before = writer.helper(node, "channels_first", "Permute", {"dims": [3, 1, 2]}, before)
    return writer.layer(node, "Flatten", {"data_format": "channels_last"}, after=before)


def _pad(writer: _Writer, node: Node) -> str:
    if node.attributes["value"] != 0:
        raise WeightsError(f"layer {node.name!r} pads with {node.attributes['value']}: Keras pads with zeros")
    top, bottom, left, right = node.attributes["padding"]
    settings = {"padding": [[top, bottom], [left, right]], "data_format": "channels_last"}
    return writer.layer(node, "ZeroPadding2D", settings)


def _subsample(writer: _Writer, node: Node) -> str:
    """Every so many positions and channels of zeros around: a fixed 1 x 1 convolution."""
    channels = writer.source(node).channels
    front, back = node.attributes["front"], node.attributes["back"]
    kernel = torch.zeros(channels, front + channels + back)
    kernel[:, front : front + channels] = torch.eye(channels)
    settings = {
        "filters": kernel.shape[1],
        "kernel_size": [1, 1],
        "strides": list(_stride(node)),
        "padding": "valid",
        "data_format": "channels_last",
        "activation": "linear",
        "use_bias": False,
    }
    return writer.layer(node, "Conv2D", settings, {"kernel": kernel[None, None]})


def _activation(name: str) -> Callable[[_Writer, Node], str]:
    return _simple("Activation", lambda node: {"activation": name})


def _global(kind: str) -> Callable[[_Writer, Node], str]:
    return _simple(kind, lambda node: {"data_format": "channels_last", "keepdims": True})


_WRITERS: Mapping[str, Callable[[_Writer, Node], str]] = {
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
