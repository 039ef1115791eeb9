"""Turns a graph into the configuration and the arrays of a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reskit.errors import WeightsError
from reskit.weights.graph import INPUT, Graph, Node, safe_name
from reskit.weights.shapes import Shape, Size, output_shape

__all__ = ["Fact", "Writer"]

_NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "softmax", "hard_sigmoid"})
_KEEPS_SIGN = frozenset(
    {"max_pool", "avg_pool", "global_avg_pool", "global_max_pool", "flatten", "subsample"}
    | {"add", "multiply", "concat"}
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known of a value.

    Attributes:
        layer: of Keras, that gives it.
        shape: of the value.
        positive: whether no number in it can be below zero.
    """

    layer: str
    shape: Shape
    positive: bool


class Writer:
    """Turns nodes into Keras layers.

    Args:
        graph: the network.
        layers: how each kind of node is written.

    Attributes:
        arrays: of every layer that has any, in the order in which Keras makes them.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Callable[[Writer, Node], str]]) -> None:
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
        self.facts = {INPUT: Fact(layer=self._input, shape=Shape(channels, (height, width)), positive=False)}
        for node in graph.nodes:
            self.facts[node.name] = self._fact(node, layers[node.op](self, node))

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

    def source(self, node: Node) -> Fact:
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

    def map_size(self, node: Node) -> Size:
        """Return the size of the map a node takes."""
        size = self.source(node).shape.size
        if size is None:
            raise WeightsError(f"layer {node.name!r} ({node.op}) takes a map and is given a vector")
        return size

    def channels(self, node: Node) -> int:
        """Return how many channels a node takes."""
        channels = self.source(node).shape.channels
        if channels is None:
            raise WeightsError(f"layer {node.name!r} ({node.op}) takes a vector of unknown length")
        return channels

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

    def _fact(self, node: Node, layer: str) -> Fact:
        sources = [self.facts[name] for name in node.inputs]
        first = sources[0]
        positive = node.op in _NON_NEGATIVE or (
            node.op in _KEEPS_SIGN and all(source.positive for source in sources)
        )
        if node.op == "pad":
            positive = first.positive and node.attributes["value"] >= 0
        return Fact(
            layer=layer,
            shape=output_shape(node, [source.shape for source in sources]),
            positive=positive,
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
