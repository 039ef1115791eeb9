"""Keras models: ``.h5`` of Keras 2 and 3, ``.keras``, and weights under the names of keras.applications.

The configuration is read as data. No class it names is imported and no function in it is run, so neither
Keras nor TensorFlow is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reskit.errors import ReskitError, WeightsError
from reskit.files import sha256
from reskit.weights.building import GraphBuilder, Value
from reskit.weights.checkpoint import READERS, Checkpoint, Reader
from reskit.weights.keras.applications import resnet_config
from reskit.weights.keras.files import (
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
from reskit.weights.keras.layers import Layer, convert
from reskit.weights.keras.model import MODELS, Call, Key, Model, mapping

__all__ = ["claims", "read_keras"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".h5", ".hdf5", ".keras")


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
    model = Model(config, [], channels_last)
    graph = GraphBuilder(limit)
    graph.set_input(*model.input_shape)
    answer = _Builder(graph, store, channels_last, version.startswith(("1.", "2."))).run(model, graph.input)
    whole, preprocess = graph.finish_normalised(answer)
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
        for layer in mapping(mapping(model).get("config")).get("layers") or []:
            settings = mapping(mapping(layer).get("config"))
            # Flatten may say otherwise: it is what it does, not how maps lie.
            if isinstance(settings.get("data_format"), str) and layer.get("class_name") != "Flatten":
                found.add(settings["data_format"])
            if "layers" in settings:
                stack.append(layer)
    if found - {"channels_last", "channels_first"} or len(found) > 1:
        raise WeightsError(f"its layers have the data formats {', '.join(sorted(found))}: one is needed")
    return found != {"channels_first"}


class _Builder:
    """Turns models into nodes.

    Args:
        graph: where to.
        store: the arrays.
        channels_last: how maps lie.
        old: whether the file is of Keras 1 or 2.
    """

    def __init__(self, graph: GraphBuilder, store: Store, channels_last: bool, old: bool) -> None:
        self._graph = graph
        self._store = store
        self._channels_last = channels_last
        self._old = old

    def run(self, model: Model, x: Value) -> Value:
        """Add a model that takes `x`, and return its answer. Calls are made as their inputs are known."""
        values: dict[Key, Value] = {model.input: x}
        waiting: dict[Key, list[Call]] = {}
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

    def _call(self, model: Model, call: Call, inputs: Sequence[Value]) -> Value:
        config = model.layers[call.layer]
        step = (model.names[call.layer], model.counted[call.layer])
        path: LayerPath = [*model.path, step]
        if "layers" in mapping(config.get("config")) or config.get("class_name") in MODELS:
            if len(inputs) != 1:
                raise WeightsError(f"the model {step[0]!r} inside has {len(inputs)} inputs")
            return self.run(Model(config, path, self._channels_last), inputs[0])
        layer = Layer(
            name="_".join(name for name, _ in path),
            kind=str(config.get("class_name")),
            config=mapping(config.get("config")),
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
