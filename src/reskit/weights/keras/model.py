"""The configuration of a Keras model: which layers there are, and what each call of them takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reskit.errors import WeightsError

__all__ = ["MODELS", "Call", "Key", "Model", "mapping"]

MODELS = ("Functional", "Model", "Sequential")
Key = tuple[str, int]  # a layer and which of its calls


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Call:
    """One use of a layer."""

    layer: int  # index in the model
    key: Key
    inputs: Sequence[Key]


class Model:
    """The configuration of one model, checked.

    Args:
        config: as in the file.
        path: of the model among the models it is in.
        channels_last: how maps lie.
    """

    def __init__(
        self, config: Mapping[str, Any], path: Sequence[tuple[str, str]], channels_last: bool
    ) -> None:
        kind = config.get("class_name")
        if kind not in MODELS:
            raise WeightsError(
                f"it holds a {kind!r}: reskit reads Functional and Sequential models, because others say"
                " in code how their layers connect"
            )
        inner = config.get("config")
        self.settings = mapping(inner)
        layers = inner if isinstance(inner, list) else self.settings.get("layers")  # a list: Keras 2.2
        if not isinstance(layers, list) or not layers or not all(isinstance(x, Mapping) for x in layers):
            raise WeightsError("the configuration of its model lists no layers")
        self.layers: Sequence[Mapping[str, Any]] = layers
        self.path = path
        self.channels_last = channels_last
        self.names = [_layer_name(layer) for layer in layers]
        if len(set(self.names)) != len(layers):
            raise WeightsError("two layers of one model have the same name")
        self.counted = _counted([str(layer.get("class_name")) for layer in layers])
        sequential = kind == "Sequential"
        self.calls = self._sequence() if sequential else self._network()
        self.input = self.calls[0].inputs[0] if sequential else self._end("input_layers")
        self.output = self.calls[-1].key if sequential else self._end("output_layers")

    @property
    def input_shape(self) -> tuple[int, int | None, int | None]:
        """`(C, H, W)` of the image."""
        shape = self._batch_shape()
        if shape is None:
            raise WeightsError("nothing says how large its input is: build the model before saving it")
        if len(shape) == 4:
            order = (3, 1, 2) if self.channels_last else (1, 2, 3)
            channels, height, width = (shape[i] for i in order)
            fits = all(size is None or (type(size) is int and size > 0) for size in (height, width))
            if fits and type(channels) is int and channels > 0:
                return channels, height, width
        raise WeightsError(f"its input has the shape {shape}, which is no image")

    def _batch_shape(self) -> list[Any] | None:
        name = self.input[0]
        layers = [layer for layer, own in zip(self.layers, self.names, strict=True) if own == name]
        first = (layers or self.layers)[0]
        inner = mapping(first.get("config"))
        build = mapping(self.layers[0].get("build_config"))
        candidates = (
            inner.get("batch_shape"),
            inner.get("batch_input_shape"),
            self.settings.get("build_input_shape"),
            build.get("input_shape"),
        )
        if not any(candidates) and isinstance(inner.get("layers"), list):  # a model first in another
            return Model(first, self.path, self.channels_last)._batch_shape()
        return next((shape for shape in candidates if isinstance(shape, list)), None)

    def _sequence(self) -> list[Call]:
        """Return the calls of a Sequential model: every layer takes what the one before gives."""
        first = self.layers[0].get("class_name") == "InputLayer"
        names = self.names if first else ["", *self.names]
        if len(names) < 2:
            raise WeightsError("its model has no layers")
        start = 1 if first else 0
        return [
            Call(index, (self.names[index], 0), [(names[index - start], 0)])
            for index in range(start, len(self.layers))
        ]

    def _network(self) -> list[Call]:
        calls = []
        for index, layer in enumerate(self.layers):
            if layer.get("class_name") == "InputLayer":
                continue
            nodes = layer.get("inbound_nodes")
            if not isinstance(nodes, list) or not nodes:
                raise WeightsError(f"layer {self.names[index]!r} is connected to nothing")
            for number, node in enumerate(nodes):
                inputs = _tensors(node, self.names[index])
                calls.append(Call(index, (self.names[index], number), inputs))
        return calls

    def _end(self, key: str) -> Key:
        """Return the one input or output."""
        ends = self.settings.get(key)
        if isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str):
            ends = [ends]
        if not isinstance(ends, list) or len(ends) != 1:
            count = len(ends) if isinstance(ends, list) else "no"
            raise WeightsError(f"its model has {count} {key}: reskit reads one image in, one answer out")
        return _history(ends[0])


def _layer_name(layer: Mapping[str, Any]) -> str:
    name = layer.get("name") or mapping(layer.get("config")).get("name")
    if not isinstance(name, str):
        raise WeightsError("a layer of its model has no name")
    return name


def _counted(kinds: Sequence[str]) -> list[str]:
    """Return the names Keras 3 gives layers in a file: their classes in snake case, numbered."""
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        word = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
        word = re.sub("([a-z])([A-Z])", r"\1_\2", word).lower()
        names.append(f"{word}_{seen[word]}" if seen[word] else word)
        seen[word] += 1
    return names


def _history(entry: Any) -> Key:
    """Return the layer and call in ``["conv", 0, 0]``."""
    if isinstance(entry, list) and len(entry) >= 3 and isinstance(entry[0], str) and type(entry[1]) is int:
        return entry[0], entry[1]
    raise WeightsError(f"its model connects a layer to {str(entry)[:60]!r}, which is no layer")


def _tensors(node: Any, name: str) -> list[Key]:
    """Return what a call of a layer takes, in Keras 2's form (lists) or Keras 3's (arguments)."""
    if isinstance(node, list):
        entries = [node] if node and isinstance(node[0], str) else node
        if any(isinstance(e, list) and len(e) > 3 and _holds_tensors(e[3]) for e in entries):
            raise WeightsError(f"layer {name!r} is called with more than its inputs")
        return [_history(entry) for entry in entries]
    found: list[Key] = []
    stack = [*reversed(mapping(node).get("args") or [])]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, Mapping) and item.get("class_name") == "__keras_tensor__":
            found.append(_history(mapping(item.get("config")).get("keras_history")))
        else:
            raise WeightsError(f"layer {name!r} is called with {str(item)[:60]!r} instead of a layer")
    if not found or _holds_tensors(mapping(node).get("kwargs")):
        raise WeightsError(f"layer {name!r} is called with more or less than its inputs")
    return found


def _holds_tensors(kwargs: Any) -> bool:
    """Tell whether named arguments of a call go beyond switches such as ``training``."""
    values = mapping(kwargs).values()
    return any(value is not None and not isinstance(value, bool) for value in values)
