"""Where Keras keeps its arrays: HDF5 groups of three ages, and the zip file around the newest.

HDF5 files can lead to other files by links and by external storage; those are refused, never followed.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from reskit.errors import MissingExtraError, WeightsError

__all__ = [
    "VARIABLES",
    "LayerPath",
    "LegacyStore",
    "Store",
    "VariableStore",
    "attribute",
    "child",
    "open_hdf5",
    "read_zip",
]

_GROWTH = 64  # times a file's size: more than compressed floating-point numbers ever grow
VARIABLES = ("layers", "_layer_checkpoint_dependencies")
"""Where newer files have the layers; the second is of Keras 2.12 and 2.13."""

LayerPath = Sequence[tuple[str, str]]
"""Name of a layer and its counted class name, for every model it is in from the outside in."""


class Store(Protocol):
    """Arrays by layer."""

    def arrays(self, path: LayerPath) -> list[Tensor]:
        """Return a layer's arrays in the order in which Keras makes them."""


@contextlib.contextmanager
def open_hdf5(source: Path | bytes) -> Iterator[tuple[Any, int]]:
    """Open an HDF5 file for reading; yields it and the number of bytes its arrays may have at most."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "formats") from None
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size == 0:
        raise WeightsError("the file is empty")
    with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
        yield file, _GROWTH * size


def read_zip(path: Path, members: Sequence[str]) -> dict[str, bytes]:
    """Read members of a zip file into memory, nothing else.

    Raises:
        WeightsError: one is missing, or larger than the file can hold.
    """
    limit = _GROWTH * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        for member in members:
            if member not in names:
                raise WeightsError(f"it has no {member}: save the whole model with model.save()")
            if archive.getinfo(member).file_size > limit:
                raise WeightsError(f"{member} claims to be far larger than the file")
        return {member: archive.read(member) for member in members}


def attribute(holder: Any, name: str, limit: int) -> Any:
    """Return an attribute of an HDF5 object, texts decoded; None where there is none."""
    if name not in holder.attrs:
        return None
    known = holder.attrs.get_id(name)
    if math.prod(known.shape or ()) * known.dtype.itemsize > limit:
        raise WeightsError(f"the attribute {name} claims to be larger than the file")
    value = holder.attrs[name]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if getattr(value, "ndim", 0) == 1:
        return [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in value]
    return str(value)


def _names(group: Any, name: str, limit: int) -> list[str]:
    """Return a list of names, which Keras cuts into numbered pieces where it is long."""
    whole = attribute(group, name, limit)
    if whole is not None:
        return list(whole)
    names: list[str] = []
    for number in range(len(group.attrs)):
        piece = attribute(group, f"{name}{number}", limit)
        if piece is None:
            break
        names.extend(piece)
    return names


def child(group: Any, name: str) -> Any:
    """Return what a group has under a name, or None.

    Links that could lead elsewhere are refused; plain access or even asking with ``in`` would follow them.
    """
    import h5py

    if not isinstance(group, h5py.Group):
        raise WeightsError(f"{group.name} is no group")
    links, key = group.id.links, name.encode("utf-8")
    if not name or "/" in name or not links.exists(key):
        return None
    if links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise WeightsError(f"{group.name}/{name} is a link to another place or file, which is not followed")
    return group[name]


def _step(group: Any, name: str) -> Any:
    """Return what a group has under a name."""
    found = child(group, name)
    if found is None:
        raise WeightsError(f"{group.name} has no {name!r}")
    return found


def _array(dataset: Any, limit: int) -> Tensor:
    """Read a dataset of floating-point numbers."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.hasobject:
        raise WeightsError(f"{dataset.name} is no array of numbers")
    if dataset.is_virtual or dataset.external:
        raise WeightsError(f"{dataset.name} has its numbers in other files, which are not read")
    if dataset.nbytes > limit:
        raise WeightsError(f"{dataset.name} claims to be far larger than the file")
    half = "dtype" in dataset.attrs and attribute(dataset, "dtype", limit) == "bfloat16"
    if half and dataset.dtype.itemsize == 2:
        bits = np.asarray(dataset[()]).view("<i2").copy()
        return torch.from_numpy(bits).view(torch.bfloat16).float()
    if dataset.dtype.kind not in "fiu":
        raise WeightsError(f"{dataset.name} is of the type {dataset.dtype}, not numbers")
    return torch.from_numpy(np.array(dataset[()], dtype=np.float32))


class LegacyStore:
    """A group for every layer, with the names of its arrays: Keras 1 and 2, and ``.h5`` of Keras 3."""

    def __init__(self, group: Any, limit: int) -> None:
        self._group = group
        self._limit = limit
        self._inner: dict[str, dict[str, list[str]]] = {}

    def layer_names(self) -> list[str]:
        """Return the names of the layers that have arrays."""
        names = _names(self._group, "layer_names", self._limit)
        return [n for n in names if _names(_step(self._group, n), "weight_names", self._limit)]

    def arrays(self, path: LayerPath) -> list[Tensor]:
        """Return a layer's arrays; those of models inside are together in the outermost one's group."""
        outermost = path[0][0]
        group = _step(self._group, outermost)
        names = _names(group, "weight_names", self._limit)
        if len(path) > 1:
            if outermost not in self._inner:
                by_layer: dict[str, list[str]] = {}
                for name in names:
                    by_layer.setdefault(_owner(name), []).append(name)
                self._inner[outermost] = by_layer
            names = self._inner[outermost].get(path[-1][0], [])
        return [self._read(group, name) for name in names]

    def _read(self, group: Any, name: str) -> Tensor:
        for part in name.split("/"):
            if part:
                group = _step(group, part)
        return _array(group, self._limit)


def _owner(name: str) -> str:
    """Return the layer in the name of an array: ``"model/conv1/kernel:0"`` gives ``"conv1"``."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else ""


class VariableStore:
    """Numbered arrays in nested groups: ``.keras`` and ``.weights.h5``.

    The groups are called after the classes, counted; from Keras 3.7 or so they also carry the names.
    """

    def __init__(self, group: Any, limit: int) -> None:
        self._root = group
        self._limit = limit
        self._known: dict[str, Mapping[str, str]] = {}

    def layer_names(self) -> list[str]:
        """Return the names of the layers that have arrays, where the file has names."""
        layers = self._layers(self._root)
        return [name for name, key in self._by_name(layers).items() if self._read(_step(layers, key))]

    def arrays(self, path: LayerPath) -> list[Tensor]:
        """Return a layer's arrays."""
        group = self._root
        for name, counted in path:
            layers = self._layers(group)
            group = _step(layers, self._by_name(layers).get(name, counted))
        return self._read(group)

    def _layers(self, group: Any) -> Any:
        for name in VARIABLES:
            layers = child(group, name)
            if layers is not None:
                return layers
        raise WeightsError(f"{group.name} has no layers")

    def _by_name(self, layers: Any) -> Mapping[str, str]:
        if layers.name not in self._known:
            names = {}
            for key in layers:
                variables = child(_step(layers, key), "vars")
                name = None if variables is None else attribute(variables, "name", self._limit)
                if name is not None:
                    names[name] = key
            self._known[layers.name] = names
        return self._known[layers.name]

    def _read(self, group: Any) -> list[Tensor]:
        variables = child(group, "vars")
        if variables is None:
            return []
        return [_array(_step(variables, str(i)), self._limit) for i in range(len(variables))]
