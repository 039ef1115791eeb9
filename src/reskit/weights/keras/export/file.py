"""Writes a graph as a Keras model: one HDF5 file that Keras 2 and Keras 3 load.

Maps lie as Keras has them by default, `(N, H, W, C)`. Where PyTorch and Keras pad differently, a layer of
padding goes before; what cannot be said exactly in Keras's layers is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from reskit.errors import MissingExtraError
from reskit.files import atomic_file
from reskit.weights.graph import Graph
from reskit.weights.keras.export.layers import LAYERS
from reskit.weights.keras.export.model import Writer

__all__ = ["write_keras_h5"]

_VERSION = "2.15.0"  # of the form of the configuration; Keras 3 reads it as well
_ATTRIBUTE_LIMIT = 60_000  # bytes; HDF5 has no room for more in an object's header


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
    writer = Writer(graph, LAYERS)
    config, order = writer.config(name)
    with atomic_file(path) as staging, h5py.File(staging, "w") as file:
        _fill(file, json.dumps(config), [(layer, writer.arrays.get(layer, {})) for layer in order])


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
