"""Keras models: ``.h5`` of Keras 2 and 3, ``.keras``, and weights under the names of keras.applications.

The configuration is read as data. No class it names is imported and no function in it is run, so neither
Keras nor TensorFlow is needed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reskit.errors import ReskitError, WeightsError
from reskit.files import sha256
from reskit.weights.assembly import Assembly, Value
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.keras_applications import resnet_config
from reskit.weights.keras_files import (
    VARIABLES,
    LayerPath,
    LegacyStore,
    Store,
    VariableStore,
    attribute,
    child,
    open_hdf5,
    read_zip,
)
from reskit.weights.keras_layers import Layer, convert

__all__ = ["read_keras"]

_MODELS = ("Functional", "Model", "Sequential")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".h5", ".hdf5", ".keras")
_Key = tuple[str, int]  # a layer and which of its calls


def claims(sources: Sequence[str | Path]) -> bool:
    """Tell a Keras file by its name or its first bytes."""
    if len(sources) != 1:
        return False
    path = Path(sources[0])
    if path.suffix.lower() in _SUFFIXES:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def read_keras(sources: Sequence[str | Path]) -> Checkpoint:
    """Read a Keras file.

    Args:
        sources: one file.

    Raises:
        WeightsError: it is damaged, holds code, or is of a network that reskit cannot read.
        MissingExtraError: h5py is not installed.
    """
    path = Path(sources[0])
    if len(sources) != 1 or not path.is_file():
        raise WeightsError(f"there is no Keras file at {path}: give one .h5, .hdf5 or .keras file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        return _read_zip(path) if zipped else _read_hdf5(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except ReskitError:
        raise
    except Exception as error:  # HDF5, zip and JSON have dozens of ways to say the same
        raise WeightsError(
            f"{path} is not a whole Keras file ({type(error).__name__}): fetch or save it again"
        ) from error


def _read_zip(path: Path) -> Checkpoint:
    members = read_zip(path, ("config.json", "metadata.json", "model.weights.h5"))
    config = _json(members["config.json"], "config.json")
    version = str(_json(members["metadata.json"], "metadata.json").get("keras_version", ""))
    with open_hdf5(members["model.weights.h5"]) as (file, limit):
        return _checkpoint(path, config, VariableStore(file, limit), version, limit)


def _read_hdf5(path: Path) -> Checkpoint:
    with open_hdf5(path) as (file, limit):
        store: LegacyStore | VariableStore
        text = attribute(file, "model_config", limit)
        inner = child(file, "model_weights")
        group = file if inner is None else inner
        version = attribute(file, "keras_version", limit) or attribute(group, "keras_version", limit) or ""
        if text is not None:
            config = _json(text, "model_config")
            return _checkpoint(path, config, LegacyStore(group, limit), version, limit)
        if "layer_names" in group.attrs or "layer_names0" in group.attrs:
            store = LegacyStore(group, limit)
        elif any(child(file, name) is not None for name in VARIABLES):
            store = VariableStore(file, limit)
        else:
            raise WeightsError("this HDF5 file was not written by Keras: nothing in it names layers")
        config, note = resnet_config(store)
        return _checkpoint(path, config, store, version, limit, [note])


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its {what} is not JSON: fetch or save the file again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"its {what} is no JSON object: fetch or save the file again")
    return content


def _checkpoint(
    path: Path, config: Mapping[str, Any], store: Store, version: str, limit: int, notes: Sequence[str] = ()
) -> Checkpoint:
    channels_last = _channels_last(config)
    model = _Model(config, [], channels_last)
    graph = Assembly(model.input_shape, limit)
    answer = _Builder(graph, store, channels_last, version.startswith(("1.", "2."))).run(model, graph.input)
    whole, preprocess = graph.finish(answer)
    return Checkpoint(
        format="keras",
        source=str(path),
        state=whole.weights,
        graph=whole,
        preprocess=preprocess,
        provenance={"sha256": sha256(path), "keras_version": version or None},
        notes=[*notes, *graph.notes],
    )


def _channels_last(config: Mapping[str, Any]) -> bool:
    """Return how maps lie in a model; its layers have to agree."""
    found: set[str] = set()
    stack: list[Any] = [config]
    while stack:
        model = stack.pop()
        for layer in _mapping(_mapping(model).get("config")).get("layers") or []:
            settings = _mapping(_mapping(layer).get("config"))
            # Flatten may say otherwise: it is what it does, not how maps lie.
            if isinstance(settings.get("data_format"), str) and layer.get("class_name") != "Flatten":
                found.add(settings["data_format"])
            if "layers" in settings:
                stack.append(layer)
    if found - {"channels_last", "channels_first"} or len(found) > 1:
        raise WeightsError(f"its layers have the data formats {', '.join(sorted(found))}: one is needed")
    return found != {"channels_first"}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class _Call:
    """One use of a layer."""

    layer: int  # index in the model
    key: _Key
    inputs: Sequence[_Key]


class _Model:
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
        if kind not in _MODELS:
            raise WeightsError(
                f"it holds a {kind!r}: reskit reads Functional and Sequential models, because others say"
                " in code how their layers connect"
            )
        inner = config.get("config")
        self.settings = _mapping(inner)
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
        inner = _mapping(first.get("config"))
        build = _mapping(self.layers[0].get("build_config"))
        candidates = (
            inner.get("batch_shape"),
            inner.get("batch_input_shape"),
            self.settings.get("build_input_shape"),
            build.get("input_shape"),
        )
        if not any(candidates) and isinstance(inner.get("layers"), list):  # a model first in another
            return _Model(first, self.path, self.channels_last)._batch_shape()
        return next((shape for shape in candidates if isinstance(shape, list)), None)

    def _sequence(self) -> list[_Call]:
        """Return the calls of a Sequential model: every layer takes what the one before gives."""
        first = self.layers[0].get("class_name") == "InputLayer"
        names = self.names if first else ["", *self.names]
        if len(names) < 2:
            raise WeightsError("its model has no layers")
        start = 1 if first else 0
        return [
            _Call(index, (self.names[index], 0), [(names[index - start], 0)])
            for index in range(start, len(self.layers))
        ]

    def _network(self) -> list[_Call]:
        calls = []
        for index, layer in enumerate(self.layers):
            if layer.get("class_name") == "InputLayer":
                continue
            nodes = layer.get("inbound_nodes")
            if not isinstance(nodes, list) or not nodes:
                raise WeightsError(f"layer {self.names[index]!r} is connected to nothing")
            for number, node in enumerate(nodes):
                inputs = _tensors(node, self.names[index])
                calls.append(_Call(index, (self.names[index], number), inputs))
        return calls

    def _end(self, key: str) -> _Key:
        """Return the one input or output."""
        ends = self.settings.get(key)
        if isinstance(ends, list) and len(ends) == 3 and isinstance(ends[0], str):
            ends = [ends]
        if not isinstance(ends, list) or len(ends) != 1:
            count = len(ends) if isinstance(ends, list) else "no"
            raise WeightsError(f"its model has {count} {key}: reskit reads one image in, one answer out")
        return _history(ends[0])


def _layer_name(layer: Mapping[str, Any]) -> str:
    name = layer.get("name") or _mapping(layer.get("config")).get("name")
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


def _history(entry: Any) -> _Key:
    """Return the layer and call in ``["conv", 0, 0]``."""
    if isinstance(entry, list) and len(entry) >= 3 and isinstance(entry[0], str) and type(entry[1]) is int:
        return entry[0], entry[1]
    raise WeightsError(f"its model connects a layer to {str(entry)[:60]!r}, which is no layer")


def _tensors(node: Any, name: str) -> list[_Key]:
    """Return what a call of a layer takes, in Keras 2's form (lists) or Keras 3's (arguments)."""
    if isinstance(node, list):
        entries = [node] if node and isinstance(node[0], str) else node
        if any(isinstance(e, list) and len(e) > 3 and _holds_tensors(e[3]) for e in entries):
            raise WeightsError(f"layer {name!r} is called with more than its inputs")
        return [_history(entry) for entry in entries]
    found: list[_Key] = []
    stack = [*reversed(_mapping(node).get("args") or [])]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
        elif isinstance(item, Mapping) and item.get("class_name") == "__keras_tensor__":
            found.append(_history(_mapping(item.get("config")).get("keras_history")))
        else:
            raise WeightsError(f"layer {name!r} is called with {str(item)[:60]!r} instead of a layer")
    if not found or _holds_tensors(_mapping(node).get("kwargs")):
        raise WeightsError(f"layer {name!r} is called with more or less than its inputs")
    return found


def _holds_tensors(kwargs: Any) -> bool:
    """Tell whether named arguments of a call go beyond switches such as ``training``."""
    values = _mapping(kwargs).values()
    return any(value is not None and not isinstance(value, bool) for value in values)


class _Builder:
    """Turns models into nodes.

    Args:
        graph: where to.
        store: the arrays.
        channels_last: how maps lie.
        old: whether the file is of Keras 1 or 2.
    """

    def __init__(self, graph: Assembly, store: Store, channels_last: bool, old: bool) -> None:
        self._graph = graph
        self._store = store
        self._channels_last = channels_last
        self._old = old

    def run(self, model: _Model, x: Value) -> Value:
        """Add a model that takes `x`, and return its answer. Calls are made as their inputs are known."""
        values: dict[_Key, Value] = {model.input: x}
        waiting: dict[_Key, list[_Call]] = {}
        for call in model.calls:
            ready = [call]
            while ready:
                current = ready.pop()
                missing = next((key for key in current.inputs if key not in values), None)
                if missing is not None:
                    waiting.setdefault(missing, []).append(current)
                    continue
                values[current.key] = self._call(model, current, [values[key] for key in current.inputs])
                ready.extend(waiting.pop(current.key, []))
        if model.output not in values:
            blocked = next(iter(waiting), model.output)
            raise WeightsError(f"its model needs what layer {blocked[0]!r} gives, which nothing computes")
        return values[model.output]

    def _call(self, model: _Model, call: _Call, inputs: Sequence[Value]) -> Value:
        config = model.layers[call.layer]
        step = (model.names[call.layer], model.counted[call.layer])
        path: LayerPath = [*model.path, step]
        if "layers" in _mapping(config.get("config")) or config.get("class_name") in _MODELS:
            if len(inputs) != 1:
                raise WeightsError(f"the model {step[0]!r} inside has {len(inputs)} inputs")
            return self.run(_Model(config, path, self._channels_last), inputs[0])
        layer = Layer(
            name="_".join(name for name, _ in path),
            kind=str(config.get("class_name")),
            config=_mapping(config.get("config")),
            arrays=lambda: self._store.arrays(path),
            channels_last=self._channels_last,
            old=self._old,
        )
        if not _is_own(config):
            raise WeightsError(
                f"layer {layer.name!r} is a custom {layer.kind}, whose code is not in the file:"
                " rebuild the model of plain layers"
            )
        return convert(layer, inputs, self._graph)


def _is_own(config: Mapping[str, Any]) -> bool:
    """Tell whether a layer is Keras's own; a registered name ``package>Class`` is somebody else's."""
    module = config.get("module")
    registered = config.get("registered_name")
    foreign = isinstance(registered, str) and ">" in registered
    return not foreign and (module is None or str(module).split(".")[0] in ("keras", "tf_keras"))


READERS.add("keras", Reader(claims=claims, read=read_keras, files="model.h5 or model.keras"))
