"""A bundle's weights for other libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from reskit.bundle import Bundle
from reskit.errors import OutputError, UnknownNameError
from reskit.files import atomic_file
from reskit.weights import trace, write_keras_h5

__all__ = ["WRITERS", "export_weights"]


def export_weights(bundle: Bundle | str | Path, path: str | Path, *, to: str) -> Path:
    """Write the weights of a bundle in another format.

    The preprocessing stays behind: who reads the file must scale pixels as the bundle's ``config.json`` says.

    Args:
        bundle: a loaded bundle or its folder.
        path: the file to write; it must not be there yet.
        to: a key of :data:`WRITERS`.

    Raises:
        UnknownNameError: there is no such format.
        WeightsError: the format cannot hold this network.
        OutputError: the file is there already, or the file system refuses.
    """
    writer = WRITERS.get(to)
    if writer is None:
        raise UnknownNameError("format", to, WRITERS)
    path = Path(path)
    if path.exists():
        raise OutputError(f"{path} is there already; choose another name or remove it")
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    writer(bundle, path)
    return path


def _torch(bundle: Bundle, path: Path) -> None:
    """Write the state dict; of ImageNet families it has torchvision's names."""
    state = {name: value.contiguous() for name, value in bundle.model.state_dict().items()}
    with atomic_file(path) as staging:
        save_file(state, staging) if path.suffix == ".safetensors" else torch.save(state, staging)


def _keras_h5(bundle: Bundle, path: Path) -> None:
    """Write a whole Keras model, its weights in it."""
    preprocess = bundle.task.preprocess
    graph = trace(bundle.model, (preprocess.channels, *preprocess.size))
    write_keras_h5(graph, path, name=str(bundle.model.architecture["name"]))


WRITERS: dict[str, Callable[[Bundle, Path], None]] = {"torch": _torch, "keras-h5": _keras_h5}
"""Format to what writes it: ``torch`` a state dict (``.safetensors``, else ``.pt``), ``keras-h5`` a model."""
