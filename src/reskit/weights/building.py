"""Putting a :class:`~reskit.weights.graph.Graph` together, layer by layer, as a file lists them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node, safe_name
from reskit.weights.report import some
from reskit.weights.shapes import Shape, Size, output_shape
from reskit.weights.simplifying import fold_scales, prune, take_normalisation

__all__ = ["NO_PADDING", "GraphBuilder", "Padding", "Value", "blaming", "both_sides"]

Padding = Sequence[int] | str
"""``[top, bottom, left, right]`` or ``"same"``."""

NO_PADDING = (0, 0, 0, 0)
# What leaves every channel where it is, and has no weights.
_POOLS = frozenset(["max_pool", "avg_pool", "global_avg_pool", "global_max_pool"])
_ACTIVATIONS = frozenset(["relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "softmax"])
_HARD = frozenset(["hard_sigmoid", "hard_swish", "swish"])
_CHANNELWISE = _POOLS | _ACTIVATIONS | _HARD | {"affine", "pad"}
_SIZE_LIMIT = 1 << 15  # of images and windows, in pixels: anything above is damage
_PIXEL_UNITS = 2.0  # a mean or deviation above this is of pixels 0 to 255, below of pixels 0 to 1


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Put the file's name before any WeightsError raised within."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def both_sides(padding: Sequence[int]) -> list[int]:
    """Return padding per axis, the same on both sides, as ``[top, bottom, left, right]``."""
    height, width = padding
    return [height, height, width, width]


@dataclass(kw_only=True, eq=False)
class Value:
    """What a node gives.

    Attributes:
        node: its name.
        shape: its number of channels may be told only by a later layer.
    """

    node: str
    shape: Shape

    @property
    def channels(self) -> int:
        """Number of channels of a map, or the length of a vector.

        Raises:
            WeightsError: nothing has told it so far.
        """
        if self.shape.channels is None:
            raise WeightsError(f"nothing in the file says how many channels {self.node!r} has")
        return self.shape.channels

    @property
    def size(self) -> Size | None:
        """Height and width of a map, each None where unknown; None for a vector."""
        return self.shape.size


class GraphBuilder:
    """A graph under construction.

    Numbers of channels and sizes are followed on the way, as far as the file tells them, so that what does
    not fit is refused when the file is read rather than when the network first runs.

    Args:
        limit: bytes of weights that are too many for the file they come from; a small file could
            otherwise name one tensor many times.

    Attributes:
        values: what each node gives, by the node's name, in order; first the image.
        notes: what was changed, a sentence each.
    """

    def __init__(self, limit: int) -> None:
        self.values = {INPUT: Value(node=INPUT, shape=Shape(None, (None, None)))}
        self.notes: list[str] = []
        self._nodes: dict[str, Node] = {}
        self._weights: dict[str, Tensor] = {}
        self._room = limit
        self._rebuilt: set[str] = set()

    @property
    def input(self) -> Value:
        """The image."""
        return self.values[INPUT]

    def set_input(self, channels: int | None, height: int | None, width: int | None) -> None:
        """Say what the image is, None where the file does not.

        Raises:
            WeightsError: no image is like this.
        """
        if any(length is not None and not 0 < length <= _SIZE_LIMIT for length in (height, width)):
            raise WeightsError(
                f"images of {(height, width)} pixels: the file is damaged, or lacks their size"
            )
        self.input.shape = Shape(channels, (height, width))

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Value],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor | None] | None = None,
    ) -> Value:
        """Add a node of any kind.

        Args:
            name: made unique and safe.
            op: a key of `OPERATORS`.
            inputs: values of earlier nodes.
            attributes: as the operator has them.
            weights: by name; None for one that is absent.

        Raises:
            WeightsError: a setting is no number, a window does not fit its map, or the weights are more
                than the file can hold.
        """
        sources = tuple(value.node for value in inputs)
        node = Node(
            name=safe_name(name, self.values), op=op, inputs=sources, attributes=dict(attributes or {})
        )
        for setting, number in node.attributes.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise WeightsError(f"layer {name!r} ({op}) has a {setting} of {number}: the file is damaged")
        for part, tensor in (weights or {}).items():
            if tensor is not None:
                self._room -= tensor.numel() * tensor.element_size()
                if self._room < 0:
                    raise WeightsError("the layers use far more weights than the file has bytes")
                self._weights[f"{node.name}.{part}"] = tensor
        value = Value(node=node.name, shape=output_shape(node, [source.shape for source in inputs]))
        if value.size is not None and any(side is not None and side < 1 for side in value.size):
            raise WeightsError(f"layer {name!r} has a window larger than its map of {inputs[0].size}")
        self._nodes[node.name] = node
        self.values[node.name] = value
        return value

    def conv(
        self,
        name: str,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int] = (1, 1),
        padding: Padding = NO_PADDING,
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> Value:
        """Add a convolution with a kernel `(out, in / groups, height, width)`."""
        self._map(name, x)
        if weight.dim() != 4:
            raise WeightsError(f"layer {name!r} has a kernel of shape {tuple(weight.shape)}")
        out_channels, in_channels = weight.shape[0], weight.shape[1] * groups
        if groups < 1 or out_channels % groups:
            raise WeightsError(f"layer {name!r} has {out_channels} channels in {groups} groups")
        self.expect(name, x, in_channels)
        _refuse_vector(name, bias, out_channels)
        if min(dilation) < 1 or max(dilation) > _SIZE_LIMIT:
            raise WeightsError(f"layer {name!r} has a dilation of {list(dilation)}: the file is damaged")
        attributes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            **_window(name, weight.shape[2:], stride, padding),
            "dilation": list(dilation),
            "groups": groups,
        }
        return self.add(name, "conv", [x], attributes, {"weight": weight, "bias": bias})

    def linear(self, name: str, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """Add a linear layer with a weight `(out, in)`; on a map it is a 1 x 1 convolution."""
        if weight.dim() != 2:
            raise WeightsError(f"layer {name!r} has weights of shape {tuple(weight.shape)}")
        if x.size is not None:
            return self.conv(name, x, weight[:, :, None, None], bias)
        out_features, in_features = weight.shape
        self.expect(name, x, in_features)
        _refuse_vector(name, bias, out_features)
        attributes = {"in_features": in_features, "out_features": out_features}
        return self.add(name, "linear", [x], attributes, {"weight": weight, "bias": bias})

    def per_channel(
        self, name: str, op: str, x: Value, weights: Mapping[str, Tensor | None], **attributes: Any
    ) -> Value:
        """Add ``batch_norm``, ``scale`` or ``prelu``: weights `(C,)`; all channels may share a PReLU's."""
        present = [tensor for tensor in weights.values() if tensor is not None]
        channels = present[0].numel()
        for tensor in present:
            _refuse_vector(name, tensor, channels)
        if op != "prelu" or channels != 1:
            self.expect(name, x, channels)
        return self.add(name, op, [x], {"channels": channels, **attributes}, weights)

    def pool(
        self,
        name: str,
        x: Value,
        op: str,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
    ) -> Value:
        """Add a pooling window; an average over exactly the whole map becomes ``global_avg_pool``."""
        self._map(name, x)
        attributes = {**_window(name, kernel, stride, padding), "ceil_mode": ceil_mode}
        if op == "avg_pool":
            attributes["count_include_pad"] = count_include_pad
            node = Node(name=name, op=op, inputs=(x.node,), attributes=attributes)
            unpadded = padding == "same" or not any(padding)
            if unpadded and tuple(kernel) == x.size and output_shape(node, [x.shape]).size == (1, 1):
                return self.add(name, "global_avg_pool", [x])
        return self.add(name, op, [x], attributes)

    def global_pool(self, name: str, x: Value, op: str) -> Value:
        """Add pooling of a whole map to `(N, C, 1, 1)`."""
        self._map(name, x)
        return self.add(name, op, [x])

    def pad(self, name: str, x: Value, padding: Sequence[int], value: float = 0.0) -> Value:
        """Add constant padding ``[top, bottom, left, right]``."""
        self._map(name, x)
        if len(padding) != 4 or any(not isinstance(p, int) or not 0 <= p <= _SIZE_LIMIT for p in padding):
            raise WeightsError(f"layer {name!r} pads by {padding!r}")
        return self.add(name, "pad", [x], {"padding": list(padding), "value": value})

    def flatten(self, name: str, x: Value, order: str = "chw") -> Value:
        """Make a vector of a map, its numbers in `order`; a vector stays."""
        if x.size is None:
            return x
        if x.size == (1, 1):
            order = "chw"  # no difference, and the plainest
        if order != "chw" and None in x.size:
            raise WeightsError(f"layer {name!r} flattens a map of unknown size: fix the model's input size")
        return self.add(name, "flatten", [x], {"order": order})

    def combine(self, name: str, op: str, inputs: Sequence[Value]) -> Value:
        """Add a sum, a product (sizes and channels of 1 are broadcast) or a concatenation."""
        if len(inputs) < 2 or len({value.size is None for value in inputs}) != 1:
            raise WeightsError(f"layer {name!r} ({op}) takes inputs that do not go together")
        counts = {v.shape.channels for v in inputs} - {None}
        if op == "add" and (len(counts) > 1 or not _same_size(inputs)):
            raise WeightsError(f"layer {name!r} adds maps of different shapes")
        if op == "multiply" and len(counts - {1}) > 1:
            raise WeightsError(f"layer {name!r} multiplies maps of {' and '.join(map(str, counts))} channels")
        return self.add(name, op, inputs)

    def as_map(self, name: str, x: Value) -> Value:
        """Return a vector as the map `(N, C, 1, 1)`: what led to it is built again on maps.

        Squeeze and excitation networks pool, go through linear layers and reshape to a map.
        """
        if x.size is not None:
            return x
        node = self._nodes[x.node]
        source = self.values[node.inputs[0]]
        self._rebuilt.add(x.node)
        if node.op == "flatten" and source.size == (1, 1):
            return source
        if node.op == "linear":
            source = self.as_map(name, source)
            weight = self._weights[f"{x.node}.weight"]
            return self.linear(x.node, source, weight, self._weights.get(f"{x.node}.bias"))
        operator = OPERATORS[node.op]
        if operator.inputs == 1 and not operator.weights and node.op != "flatten":
            return self.add(x.node, node.op, [self.as_map(name, source)], node.attributes)
        raise WeightsError(f"layer {name!r} reshapes what is no pooled map")

    def expect(self, name: str, x: Value, channels: int) -> None:
        """Refuse a layer whose weights are for another number of channels than it is given.

        Where that is not known, it is now, for `x` and for what it is computed from channel by channel.
        """
        if x.shape.channels not in (None, channels):
            raise WeightsError(
                f"layer {name!r} takes {x.channels} channels and its weights are for {channels}"
            )
        while x.shape.channels is None:
            x.shape = x.shape._replace(channels=channels)
            if x.node == INPUT or self._nodes[x.node].op not in _CHANNELWISE:
                return
            x = self.values[self._nodes[x.node].inputs[0]]

    def finish(self, answer: Value) -> Graph:
        """Return the graph that ends in `answer`, without a softmax at its end and what does not lead there.

        Raises:
            WeightsError: nothing is computed from the image, or its channels are not known.
        """
        self._end(answer)
        return self._graph()

    def finish_normalised(self, answer: Value, largest: float | None = None) -> tuple[Graph, dict[str, Any]]:
        """Return the graph as `finish` does, and as ``mean`` and ``std`` what it first does to the image.

        Args:
            answer: where the graph ends.
            largest: value of a pixel the network takes, 1 or 255; None to tell it by the mean and deviation.

        Returns:
            The graph without these layers, and mean and deviation of pixels in [0, 1], if there were such.
        """
        self._end(answer)
        taken = take_normalisation(self._nodes, self._weights)
        graph = self._graph()
        if taken is None:
            return graph, {}
        if largest is None:
            largest = 255 if float(torch.cat([n.abs() for n in taken]).max()) > _PIXEL_UNITS else 1
        self.notes.append("The factor and shift the network applies to pixels first became mean and std.")
        mean, std = (tuple((n / largest).expand(graph.input_shape[0]).tolist()) for n in taken)
        return graph, {"mean": mean, "std": std}

    def _end(self, answer: Value) -> None:
        """Leave off a softmax at the end and all that `answer` does not need."""
        last = answer.node
        while last in self._nodes and self._nodes[last].op == "softmax":
            self.notes.append(f"The softmax at the end ({last}) was left off: the answers are logits.")
            last = self._nodes[last].inputs[0]
        dropped = prune(self._nodes, last)
        names = [n.name for n in dropped if n.op != "softmax" and n.name not in self._rebuilt]
        if names:
            self.notes.append(f"Layers that the answer does not need were left out: {some(names)}.")

    def _graph(self) -> Graph:
        if not self._nodes:
            raise WeightsError("no layer leads from the image to an answer")
        fold_scales(self._nodes, self._weights)
        channels, size = self.input.channels, self.input.size or (None, None)
        weights = {k: t.contiguous() for k, t in self._weights.items() if k.rpartition(".")[0] in self._nodes}
        return Graph(nodes=list(self._nodes.values()), input_shape=(channels, *size), weights=weights)

    def _map(self, name: str, x: Value) -> None:
        if x.size is None:
            raise WeightsError(f"layer {name!r} takes a map and is given a vector")


def _refuse_vector(name: str, tensor: Tensor | None, length: int) -> None:
    """Refuse weights that are not one number for each channel."""
    if tensor is not None and tuple(tensor.shape) != (length,):
        raise WeightsError(f"layer {name!r} has weights of {tuple(tensor.shape)} for {length} channels")


def _same_size(inputs: Sequence[Value]) -> bool:
    """Tell whether maps have the same size, as far as it is known."""
    for sizes in zip(*(value.size or (1, 1) for value in inputs), strict=True):
        if len({size for size in sizes if size is not None}) > 1:
            return False
    return True


def _window(name: str, kernel: Sequence[int], stride: Sequence[int], padding: Padding) -> dict[str, Any]:
    sides = [] if isinstance(padding, str) else list(padding)
    too_large = max(*kernel, *stride, *sides) > _SIZE_LIMIT
    if too_large or min(*kernel, *stride) < 1 or min(sides, default=0) < 0:
        raise WeightsError(
            f"layer {name!r} has a window of {list(kernel)} with stride {list(stride)}"
            f" and padding {padding if isinstance(padding, str) else sides}: the file is damaged"
        )
    return {
        "kernel_size": list(kernel),
        "stride": list(stride),
        "padding": padding if isinstance(padding, str) else sides,
    }
