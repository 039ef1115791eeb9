"""Puts a graph together from layers with known shapes: what the readers of Keras and TFLite share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, OPERATORS, Graph, Node, safe_name

__all__ = ["NO_PADDING", "Assembly", "Padding", "Value", "window_output"]

Padding = Sequence[int] | str
"""``[top, bottom, left, right]`` or ``"same"``."""

NO_PADDING = (0, 0, 0, 0)
_PIXEL_UNITS = 2.0  # a mean or deviation above this is of pixels 0 to 255, below of pixels 0 to 1


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a node gives.

    Attributes:
        node: its name.
        channels: of a map, or the length of a vector.
        size: height and width of a map, each None where unknown; None for a vector.
    """

    node: str
    channels: int
    size: tuple[int | None, int | None] | None


def window_output(
    size: int | None, kernel: int, stride: int, padding: tuple[int, int] | str, dilation: int = 1
) -> int | None:
    """Return how many positions a window has along one side, counting whole windows only."""
    if size is None:
        return None
    if isinstance(padding, str):
        return -(-size // stride)
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


class Assembly:
    """A graph under construction.

    Args:
        input_shape: `(C, H, W)`.
        limit: bytes of weights that are too many for the file they come from; a small file could
            otherwise name one tensor many times.
    """

    def __init__(self, input_shape: tuple[int, int | None, int | None], limit: int) -> None:
        self.input_shape = input_shape
        self.values: dict[str, Value] = {
            INPUT: Value(node=INPUT, channels=input_shape[0], size=input_shape[1:])
        }
        self.notes: list[str] = []
        self._nodes: dict[str, Node] = {}
        self._weights: dict[str, Tensor] = {}
        self._room = limit

    @property
    def input(self) -> Value:
        """What goes into the graph."""
        return self.values[INPUT]

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Value],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor | None] | None = None,
        *,
        channels: int | None = None,
        size: tuple[int | None, int | None] | None = None,
        flat: bool = False,
    ) -> Value:
        """Add a node; channels and size are those of its first input unless given.

        Args:
            name: made unique and safe.
            op: a key of `OPERATORS`.
            inputs: values of earlier nodes.
            attributes: as the operator has them.
            weights: by name; None for one that is absent.
            channels: of the result.
            size: of the result.
            flat: whether the result is a vector.

        Raises:
            WeightsError: the weights are more than the file can hold.
        """
        node = Node(
            name=safe_name(name, self.values),
            op=op,
            inputs=tuple(value.node for value in inputs),
            attributes=attributes or {},
        )
        for key, tensor in (weights or {}).items():
            if tensor is not None:
                self._room -= tensor.numel() * tensor.element_size()
                if self._room < 0:
                    raise WeightsError("the layers use far more weights than the file has bytes")
                self._weights[f"{node.name}.{key}"] = tensor
        value = Value(
            node=node.name,
            channels=inputs[0].channels if channels is None else channels,
            size=None if flat else size or inputs[0].size,
        )
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
        size = self._map(name, x)
        if weight.dim() != 4 or weight.shape[1] * groups != x.channels or weight.shape[0] % groups:
            raise WeightsError(
                f"layer {name!r} has a kernel (out, in, h, w) of {tuple(weight.shape)} in {groups} groups"
                f" for {x.channels} channels"
            )
        out = weight.shape[0]
        self._vector(name, bias, out)
        kernel = tuple(weight.shape[2:])
        attributes = {
            "in_channels": x.channels,
            "out_channels": out,
            **_window(name, kernel, stride, padding),
            "dilation": _positive(name, "dilation", dilation),
            "groups": groups,
        }
        return self.add(
            name,
            "conv",
            [x],
            attributes,
            {"weight": weight, "bias": bias},
            channels=out,
            size=_slide(name, size, kernel, stride, padding, dilation),
        )

    def pool(
        self,
        name: str,
        x: Value,
        op: str,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Padding,
    ) -> Value:
        """Add pooling as TensorFlow does it: whole windows only, padding never counted.

        An average over exactly the whole map becomes ``global_avg_pool``.
        """
        size = self._map(name, x)
        attributes = _window(name, kernel, stride, padding)
        slid = _slide(name, size, kernel, stride, padding)
        if op == "avg_pool" and tuple(kernel) == size and slid == (1, 1):
            return self.add(name, "global_avg_pool", [x], size=(1, 1))
        attributes |= {"ceil_mode": False}
        if op == "avg_pool":
            attributes |= {"count_include_pad": False}
        return self.add(name, op, [x], attributes, size=slid)

    def global_pool(self, name: str, x: Value, op: str) -> Value:
        """Add pooling of a whole map to `(N, C, 1, 1)`."""
        self._map(name, x)
        return self.add(name, op, [x], size=(1, 1))

    def pad(self, name: str, x: Value, padding: Sequence[int], value: float = 0.0) -> Value:
        """Add constant padding ``[top, bottom, left, right]``."""
        height, width = self._map(name, x)
        if len(padding) != 4 or any(not isinstance(p, int) or p < 0 for p in padding):
            raise WeightsError(f"layer {name!r} pads by {padding!r}")
        top, bottom, left, right = padding
        size = (
            None if height is None else height + top + bottom,
            None if width is None else width + left + right,
        )
        return self.add(name, "pad", [x], {"padding": list(padding), "value": value}, size=size)

    def flatten(self, name: str, x: Value, order: str) -> Value:
        """Make a vector of a map, its numbers in `order`; a vector stays."""
        if x.size is None:
            return x
        height, width = x.size
        if height is None or width is None:
            raise WeightsError(f"layer {name!r} flattens a map of unknown size: fix the model's input size")
        if x.size == (1, 1):
            order = "chw"  # no difference, and the plainest
        channels = x.channels * height * width
        return self.add(name, "flatten", [x], {"order": order}, channels=channels, flat=True)

    def linear(self, name: str, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """Add a linear layer with a weight `(out, in)`; on a map it is a 1 x 1 convolution."""
        if x.size is not None:
            return self.conv(name, x, weight[:, :, None, None], bias)
        if weight.dim() != 2 or weight.shape[1] != x.channels:
            raise WeightsError(
                f"layer {name!r} has weights (out, in) of {tuple(weight.shape)} for {x.channels} features"
            )
        out = weight.shape[0]
        self._vector(name, bias, out)
        attributes = {"in_features": x.channels, "out_features": out}
        return self.add(
            name, "linear", [x], attributes, {"weight": weight, "bias": bias}, channels=out, flat=True
        )

    def per_channel(
        self, name: str, op: str, x: Value, weights: Mapping[str, Tensor | None], **attributes: Any
    ) -> Value:
        """Add a node with a number for each channel: ``batch_norm``, ``scale`` or ``prelu``."""
        for tensor in weights.values():
            self._vector(name, tensor, x.channels)
        return self.add(name, op, [x], {"channels": x.channels, **attributes}, weights)

    def combine(self, name: str, op: str, inputs: Sequence[Value]) -> Value:
        """Add a sum, a product (sizes and channels of 1 are broadcast) or a concatenation."""
        if len(inputs) < 2 or len({value.size is None for value in inputs}) != 1:
            raise WeightsError(f"layer {name!r} ({op}) takes inputs that do not go together")
        first = inputs[0]
        counts = {value.channels for value in inputs}
        if op == "add" and (len(counts) > 1 or not _compatible(inputs)):
            raise WeightsError(f"layer {name!r} adds maps of different shapes")
        if op == "multiply" and len(counts - {1}) > 1:
            raise WeightsError(f"layer {name!r} multiplies maps of {sorted(counts)} channels")
        channels = sum(v.channels for v in inputs) if op == "concat" else max(counts)
        if first.size is None:
            return self.add(name, op, inputs, channels=channels, flat=True)
        largest = max(inputs, key=lambda value: -1 if value.size == (1, 1) else 0)
        return self.add(name, op, inputs, channels=channels, size=largest.size)

    def as_map(self, name: str, x: Value) -> Value:
        """Return a vector as the map `(N, C, 1, 1)`: what led to it is built again on maps.

        Squeeze and excitation networks pool, go through linear layers and reshape to a map.
        """
        if x.size is not None:
            return x
        node = self._nodes[x.node]
        source = self.values[node.inputs[0]]
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

    def finish(self, answer: Value) -> tuple[Graph, dict[str, Any]]:
        """Return the graph up to `answer`, and the mean and deviation it began with, if any.

        A softmax at the end and a normalisation of the pixels at the beginning are left off; what nothing
        uses is left out.
        """
        if answer.node in self._nodes and self._nodes[answer.node].op == "softmax":
            answer = self.values[self._nodes[answer.node].inputs[0]]
            self.notes.append("the softmax at the end is left off: the answers are logits")
        if answer.node == INPUT:
            raise WeightsError("the network has no layers")
        used = self._reachable(answer)
        nodes, preprocess = self._without_normalisation([n for n in self._nodes.values() if n.name in used])
        names = {node.name for node in nodes}
        weights = {k: t.contiguous() for k, t in self._weights.items() if k.rpartition(".")[0] in names}
        return Graph(nodes=nodes, input_shape=self.input_shape, weights=weights), preprocess

    def _reachable(self, answer: Value) -> set[str]:
        used, stack = {INPUT}, [answer.node]
        while stack:
            name = stack.pop()
            if name not in used:
                used.add(name)
                stack.extend(self._nodes[name].inputs)
        return used

    def _without_normalisation(self, nodes: list[Node]) -> tuple[list[Node], dict[str, Any]]:
        """Take off a leading chain of ``affine`` and ``scale`` nodes."""
        factor = torch.ones(self.input_shape[0], dtype=torch.float64)
        shift = torch.zeros_like(factor)
        users = Counter(name for node in nodes for name in set(node.inputs))
        at, count = INPUT, 0
        for node in nodes[:-1]:
            if node.inputs != (at,) or users[at] > 1 or node.op not in {"affine", "scale"}:
                break
            times, plus = self._affine(node)
            factor, shift, at, count = factor * times, shift * times + plus, node.name, count + 1
        if not count or bool((factor <= 0).any()):
            return nodes, {}
        mean, std = -shift / factor, 1 / factor
        if float(torch.cat([mean.abs(), std]).max()) > _PIXEL_UNITS:
            mean, std = mean / 255, std / 255
        self.notes.append("the normalisation of the pixels is taken from the network into the preprocessing")
        rest = [
            Node(
                name=n.name,
                op=n.op,
                inputs=tuple(INPUT if i == at else i for i in n.inputs),
                attributes=n.attributes,
            )
            for n in nodes[count:]
        ]
        return rest, {"mean": (mean + 0.0).tolist(), "std": std.tolist()}  # no -0.0

    def _affine(self, node: Node) -> tuple[Tensor, Tensor]:
        if node.op == "affine":
            scale, shift = (float(node.attributes[key]) for key in ("scale", "shift"))
            return torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
        bias = self._weights.get(f"{node.name}.bias")
        weight = self._weights[f"{node.name}.weight"].double()
        return weight, torch.zeros_like(weight) if bias is None else bias.double()

    def _map(self, name: str, x: Value) -> tuple[int | None, int | None]:
        if x.size is None:
            raise WeightsError(f"layer {name!r} takes a map and is given a vector")
        return x.size

    def _vector(self, name: str, tensor: Tensor | None, length: int) -> None:
        if tensor is not None and tuple(tensor.shape) != (length,):
            raise WeightsError(f"layer {name!r} has weights of {tuple(tensor.shape)} for {length} channels")


def _compatible(inputs: Sequence[Value]) -> bool:
    """Tell whether maps have the same size, as far as it is known."""
    for sizes in zip(*(value.size or (1, 1) for value in inputs), strict=True):
        if len({size for size in sizes if size is not None}) > 1:
            return False
    return True


def _positive(name: str, what: str, numbers: Sequence[int]) -> list[int]:
    """Return two positive whole numbers as a list, or refuse."""
    if len(numbers) != 2 or any(not isinstance(n, int) or n < 1 for n in numbers):
        raise WeightsError(f"layer {name!r} has the {what} {numbers!r}")
    return list(numbers)


def _window(name: str, kernel: Sequence[int], stride: Sequence[int], padding: Padding) -> dict[str, Any]:
    return {
        "kernel_size": _positive(name, "kernel size", kernel),
        "stride": _positive(name, "stride", stride),
        "padding": padding if isinstance(padding, str) else list(padding),
    }


def _slide(
    name: str,
    size: tuple[int | None, int | None],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    dilation: Sequence[int] = (1, 1),
) -> tuple[int | None, int | None]:
    """Return the size of what a window gives on a map."""
    sides = (padding, padding) if isinstance(padding, str) else (tuple(padding[:2]), tuple(padding[2:]))
    height, width = (
        window_output(size[i], kernel[i], stride[i], sides[i], dilation[i])  # type: ignore[arg-type]
        for i in (0, 1)
    )
    if (height is not None and height < 1) or (width is not None and width < 1):
        raise WeightsError(f"layer {name!r} has a window larger than its map of {size}")
    return height, width
