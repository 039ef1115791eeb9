"""Putting a :class:`~reskit.weights.graph.Graph` together, layer by layer, as a file lists them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, Graph, Node, safe_name
from reskit.weights.report import some

__all__ = ["GraphBuilder", "blaming"]

# What leaves every channel where it is, and has no weights.
_POOLS = frozenset(["max_pool", "avg_pool", "global_avg_pool", "global_max_pool"])
_ACTIVATIONS = frozenset(["relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "softmax"])
_HARD = frozenset(["hard_sigmoid", "hard_swish", "swish"])
_CHANNELWISE = _POOLS | _ACTIVATIONS | _HARD | {"affine", "pad"}
_PER_CHANNEL = frozenset(["batch_norm", "scale", "prelu"])
_SIZE_LIMIT = 1 << 15  # of images and windows, in pixels: anything above is damage


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Put the file's name before any WeightsError raised within."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


class GraphBuilder:
    """Nodes and weights so far. Every method that adds a node returns its name, which is its value.

    The numbers of channels are followed on the way, so that weights that do not fit are refused when a
    file is read rather than when the network first runs.

    Attributes:
        nodes: by name, in order.
        weights: ``"node.weight"`` and the like to tensors.
        notes: what was changed, a sentence each.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.weights: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self._channels: dict[str, int | None] = {INPUT: None}
        self._flat: set[str] = set()  # values (N, F), without height and width

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor | None] | None = None,
    ) -> str:
        """Add a node of any kind; a weight that is None is left out."""
        name = safe_name(name, self._channels)
        for setting, value in (attributes or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise WeightsError(f"layer {name!r} ({op}) has a {setting} of {value}: the file is damaged")
        self.nodes[name] = Node(name=name, op=op, inputs=tuple(inputs), attributes=dict(attributes or {}))
        for part, tensor in (weights or {}).items():
            if tensor is not None:
                self.weights[f"{name}.{part}"] = tensor
        counts = [self._channels[source] for source in inputs]
        known = [count for count in counts if count is not None]
        if op == "add" and len(set(known)) > 1:
            raise WeightsError(f"layer {name!r} adds maps of {' and '.join(map(str, known))} channels")
        if op == "concat":
            self._channels[name] = sum(known) if len(known) == len(counts) else None
        else:
            self._channels[name] = max(known, default=None)
        if any(source in self._flat for source in inputs):
            self._flat.add(name)
        return name

    def conv(
        self,
        name: str,
        source: str,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> str:
        """Add a convolution; `weight` is (out, in / groups, height, width), `padding` per axis."""
        out_channels, in_channels = weight.shape[0], weight.shape[1] * groups
        if groups < 1 or out_channels % groups:
            raise WeightsError(f"layer {name!r} has {out_channels} channels in {groups} groups")
        self.expect(name, source, in_channels)
        window = self._window(name, weight.shape[2:], stride, padding)
        if min(dilation) < 1 or max(dilation) > _SIZE_LIMIT:
            raise WeightsError(f"layer {name!r} has a dilation of {list(dilation)}: the file is damaged")
        shape = {"in_channels": in_channels, "out_channels": out_channels}
        attributes = {**shape, **window, "dilation": list(dilation), "groups": groups}
        value = self.add(name, "conv", [source], attributes, {"weight": weight, "bias": bias})
        self._channels[value] = out_channels
        return value

    def batch_norm(self, name: str, source: str, weights: Mapping[str, Tensor], eps: float) -> str:
        """Add a batch normalisation with all four `weights`, each (C,)."""
        channels = self._per_channel(name, source, weights)
        return self.add(name, "batch_norm", [source], {"channels": channels, "eps": eps}, weights)

    def scale(self, name: str, source: str, weight: Tensor, bias: Tensor | None) -> str:
        """Add a factor and a shift per channel, each (C,)."""
        both = {"weight": weight} | ({} if bias is None else {"bias": bias})
        channels = self._per_channel(name, source, both)
        return self.add(name, "scale", [source], {"channels": channels}, both)

    def prelu(self, name: str, source: str, weight: Tensor) -> str:
        """Add a PReLU; `weight` is (C,), or (1,) where all channels share it."""
        if weight.numel() != 1:
            self._per_channel(name, source, {"weight": weight})
        return self.add(name, "prelu", [source], {"channels": weight.numel()}, {"weight": weight})

    def linear(self, name: str, source: str, weight: Tensor, bias: Tensor | None) -> str:
        """Add a fully connected layer, and before it a flattening where it takes maps."""
        out_features, in_features = weight.shape
        source = self.flatten(f"{name}_flatten", source)
        self.expect(name, source, in_features)
        attributes = {"in_features": in_features, "out_features": out_features}
        value = self.add(name, "linear", [source], attributes, {"weight": weight, "bias": bias})
        self._channels[value] = out_features
        return value

    def flatten(self, name: str, source: str) -> str:
        """Add a flattening to (N, C H W), unless the value is flat."""
        if source in self._flat:
            return source
        pooled = source in self.nodes and self.nodes[source].op in ("global_avg_pool", "global_max_pool")
        value = self.add(name, "flatten", [source], {"order": "chw"})
        self._channels[value] = self._channels[source] if pooled else None
        self._flat.add(value)
        return value

    def pool(
        self,
        name: str,
        source: str,
        *,
        average: bool,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool = True,
    ) -> str:
        """Add a pooling window; `padding` per axis."""
        attributes = {**self._window(name, kernel, stride, padding), "ceil_mode": ceil_mode}
        if average:
            attributes["count_include_pad"] = count_include_pad
        return self.add(name, "avg_pool" if average else "max_pool", [source], attributes)

    def expect(self, name: str, source: str, channels: int) -> None:
        """Refuse a layer whose weights are for another number of channels than it is given."""
        given = self._channels[source]
        if given is None:
            self._learn(source, channels)
        elif given != channels:
            raise WeightsError(f"layer {name!r} takes {given} channels and its weights are for {channels}")

    def reverse_channels(self) -> None:
        """Make the network take its input's channels in the reverse order."""
        values = [INPUT]
        for value in values:
            for node in [node for node in self.nodes.values() if value in node.inputs]:
                weights = [name for name in self.weights if name.rpartition(".")[0] == node.name]
                if node.op == "conv" and node.attributes["groups"] == 1:
                    self.weights[f"{node.name}.weight"] = self.weights[f"{node.name}.weight"].flip(1)
                elif node.op in _PER_CHANNEL or node.op in _CHANNELWISE:
                    self.weights.update((name, self.weights[name].flip(0)) for name in weights)
                    values.append(node.name)
                else:
                    raise WeightsError(f"the channels of layer {node.name!r} ({node.op}) cannot be reversed")

    def take_leading_affine(self) -> tuple[float, float] | None:
        """Remove the fixed factors and shifts the network applies to its input; return them as one pair."""
        scale, shift = 1.0, 0.0
        taken = False
        while True:
            users = [node for node in self.nodes.values() if INPUT in node.inputs]
            if len(users) != 1 or users[0].op != "affine" or len(self.nodes) == 1:
                return (scale, shift) if taken else None
            first = users[0]
            scale *= first.attributes["scale"]
            shift = shift * first.attributes["scale"] + first.attributes["shift"]
            self._replace(first.name, INPUT)
            taken = True

    def finish(self, answer: str, size: tuple[int | None, int | None]) -> Graph:
        """Return the graph that ends in `answer`, without what does not lead there.

        Args:
            answer: a node's name.
            size: height and width of the input, None where any will do.

        Raises:
            WeightsError: nothing is computed from the input, or its channels are not known.
        """
        while answer in self.nodes and self.nodes[answer].op == "softmax":
            self.notes.append(f"The softmax at the end ({answer}) was left off: the answers are logits.")
            answer = self.nodes[answer].inputs[0]
        self._prune(answer)
        self._fold_scales(answer)
        if not self.nodes:
            raise WeightsError("no layer leads from the image to an answer")
        if any(length is not None and not 0 < length <= _SIZE_LIMIT for length in size):
            raise WeightsError(f"images of {size} pixels: the file is damaged, or lacks their size")
        known = self._channels[INPUT]
        if known is None:
            raise WeightsError("nothing in the file says how many channels the image has")
        return Graph(nodes=list(self.nodes.values()), input_shape=(known, *size), weights=self.weights)

    def _learn(self, source: str, channels: int) -> None:
        """Note a number of channels for a value and for those it is computed from channel by channel."""
        while self._channels[source] is None:
            self._channels[source] = channels
            if source == INPUT or self.nodes[source].op not in _CHANNELWISE:
                return
            source = self.nodes[source].inputs[0]

    def _per_channel(self, name: str, source: str, weights: Mapping[str, Tensor]) -> int:
        shapes = {tuple(tensor.shape) for tensor in weights.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            listed = " and ".join(map(str, sorted(shapes)))
            raise WeightsError(f"layer {name!r} has weights of shapes {listed}: one number per channel each")
        channels = next(iter(shapes))[0]
        self.expect(name, source, channels)
        return channels

    def _window(
        self, name: str, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
    ) -> dict[str, list[int]]:
        too_large = max(*kernel, *stride, *padding) > _SIZE_LIMIT
        if too_large or min(kernel) < 1 or min(stride) < 1 or min(padding) < 0:
            raise WeightsError(
                f"layer {name!r} has a window of {list(kernel)} with stride {list(stride)}"
                f" and padding {list(padding)}: the file is damaged"
            )
        (height, width) = padding
        return {
            "kernel_size": list(kernel),
            "stride": list(stride),
            "padding": [height, height, width, width],
        }

    def _replace(self, name: str, value: str) -> None:
        """Remove a node; who took it takes `value`."""
        del self.nodes[name]
        for other in self.nodes.values():
            if name in other.inputs:
                inputs = tuple(value if source == name else source for source in other.inputs)
                self.nodes[other.name] = replace(other, inputs=inputs)

    def _prune(self, answer: str) -> None:
        """Remove all that `answer` does not need."""
        needed = {answer}
        for node in reversed(list(self.nodes.values())):
            if node.name in needed:
                needed.update(node.inputs)
        dropped = [name for name in self.nodes if name not in needed]
        softmax = [name for name in dropped if self.nodes[name].op == "softmax"]
        for name in dropped:
            del self.nodes[name]
        self.weights = {n: t for n, t in self.weights.items() if n.rpartition(".")[0] in self.nodes}
        dropped = [name for name in dropped if name not in softmax]
        if dropped:
            self.notes.append(f"Layers that the answer does not need were left out: {some(dropped)}.")

    def _fold_scales(self, answer: str) -> None:
        """Make one node of a normalisation and the factor and shift that follow it."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for source in node.inputs:
                users.setdefault(source, []).append(node)
        for name in [node.name for node in self.nodes.values() if node.op == "batch_norm"]:
            after = users.get(name, [])
            if name == answer or len(after) != 1 or after[0].op != "scale":
                continue
            second = after[0].name
            weight = self.weights.pop(f"{second}.weight")
            bias = self.weights.pop(f"{second}.bias", torch.zeros_like(weight))
            self.weights[f"{name}.bias"] = self.weights[f"{name}.bias"] * weight + bias
            self.weights[f"{name}.weight"] = self.weights[f"{name}.weight"] * weight
            self._replace(second, name)
