"""A bundle for other programs: a file that runs, or weights for another library."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from reskit.backends import BACKENDS, Backend, Precision
from reskit.backends.writing import read_pictures, write_checked
from reskit.bundle import Bundle
from reskit.data import ImagePreprocess
from reskit.errors import ConfigError, OutputError, UnknownNameError
from reskit.files import atomic_file
from reskit.weights import trace, write_keras_h5

__all__ = ["WEIGHTS", "Exported", "export", "formats"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        format: its format.
        precision: what it computes in; None for weights.
        differences: batch size to the largest difference from float32 eager, as a part of the largest output;
            empty for weights.
    """

    path: Path
    format: str
    precision: Precision | None
    differences: dict[int, float]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "file": str(self.path),
            "format": self.format,
            "precision": self.precision,
            "differences": {str(batch): value for batch, value in self.differences.items()},
        }


def export(
    bundle: Bundle | str | Path,
    path: str | Path,
    *,
    to: str,
    precision: Precision = "fp32",
    pictures: str | Path | None = None,
) -> Exported:
    """Write a bundle as a file that runs elsewhere, or its weights for another library.

    A file that runs takes raw input of any batch size, such as uint8 pixels `(N, C, H, W)` named ``image``,
    and gives float32 ``output``: normalising is inside, scaling to `(H, W)` is not. Labels and preprocessing
    travel in its metadata. It was held against float32 eager before it got its name. With weights the
    preprocessing stays behind: who reads them must scale pixels as the bundle's ``config.json`` says.

    Args:
        bundle: a loaded bundle or its folder.
        path: the file to write; it must not be there yet.
        to: one of `formats` or of `WEIGHTS`.
        precision: what to compute in; weights are always float32.
        pictures: a file, folder or glob of pictures to calibrate int8 with; the bundle's own when absent.

    Raises:
        UnknownNameError: there is no such format.
        ConfigError: the suffix is not that of the format, or weights were asked for in another precision.
        BackendError, WeightsError: the format cannot hold this network, or not in this precision.
        MissingExtraError: a package is missing.
        OutputError: the file is there already, or the file system refuses.
    """
    runs = formats()
    if to not in {**runs, **WEIGHTS}:
        raise UnknownNameError("format", to, {**runs, **WEIGHTS})
    path = Path(path)
    beside = runs[to].beside if to in runs else ()
    for file in (path, *(path.with_suffix(suffix) for suffix in beside)):
        if file.exists():
            raise OutputError(f"{file} is there already; choose another name or remove it")
    if not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    if to in WEIGHTS:
        if precision != "fp32":
            raise ConfigError(f"{to} is written in fp32 only: {precision} is for files that run")
        WEIGHTS[to](bundle, path)
        return Exported(path=path, format=to, precision=None, differences={})
    samples = None if pictures is None else read_pictures(bundle, pictures).numpy()
    written = write_checked(bundle, runs[to], precision, path, samples=samples)
    return Exported(path=path, format=to, precision=precision, differences=written.differences)


def formats() -> dict[str, Backend]:
    """Return the formats of files that run, each with its backend."""
    backends = (BACKENDS.get(name) for name in BACKENDS)
    return {backend.format: backend for backend in backends if backend.format}


def _torch(bundle: Bundle, path: Path) -> None:
    """Write the state dict; of ImageNet families it has torchvision's names."""
    state = {name: value.contiguous() for name, value in bundle.model.state_dict().items()}
    with atomic_file(path) as staging:
        if path.suffix == ".safetensors":
            save_file(state, staging)
        else:
            content = io.BytesIO()  # of a full disk PyTorch's own writer says nothing
            torch.save(state, content)
            staging.write_bytes(content.getbuffer())


def _keras_h5(bundle: Bundle, path: Path) -> None:
    """Write a whole Keras model, its weights in it."""
    preprocess = bundle.task.preprocess
    if not isinstance(preprocess, ImagePreprocess):
        raise ConfigError(f"keras-h5 is for networks for images; {bundle.path} takes a {bundle.task.takes}")
    graph = trace(bundle.model, (preprocess.channels, *preprocess.size))
    write_keras_h5(graph, path, name=str(bundle.model.architecture["name"]))


WEIGHTS: dict[str, Callable[[Bundle, Path], None]] = {"torch": _torch, "keras-h5": _keras_h5}
"""Format to what writes it: ``torch`` a state dict (``.safetensors``, else ``.pt``), ``keras-h5`` a model."""
