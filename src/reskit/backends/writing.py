"""A bundle written for a backend, and proven against float32 eager before anyone sees the file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reskit.backends.base import Backend, Metadata, Precision
from reskit.backends.servable import Servable, describe, servable
from reskit.errors import BackendError, ConfigError
from reskit.files import writing

if TYPE_CHECKING:
    from reskit.bundle import Bundle

__all__ = [
    "PARITY_BATCHES",
    "Draft",
    "Written",
    "calibration_samples",
    "largest_difference",
    "read_pictures",
    "write_checked",
    "write_draft",
]

PARITY_BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file written for a backend.

    Attributes:
        path: the file; what belongs to it lies beside it under the same stem.
        files: all of them.
        metadata: what the file says of itself.
        differences: batch size to the largest difference from float32 eager, as a part of the largest output.
    """

    path: Path
    files: tuple[Path, ...]
    metadata: Metadata
    differences: dict[int, float]

    @property
    def size_mib(self) -> float:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files) / 2**20


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A file written for a backend, not yet proven: `prove` or `discard` it.

    Attributes:
        path: the file, in a folder of its own.
        target: where it goes.
        backend: for whom it is.
        metadata: what it says of itself.
        model: the network.
        pictures: raw input to try it with.
    """

    path: Path
    target: Path
    backend: Backend
    metadata: Metadata
    model: Servable
    pictures: np.ndarray

    def prove(self) -> Written:
        """Hold it against float32 eager and put it in its place; discard it where it does not agree.

        Raises:
            BackendError: it does not agree, or cannot be run.
            OutputError: the file system refuses.
        """
        backend, precision = self.backend, self.metadata.precision
        try:
            differences = _differences(backend, self.path, self.model, self.pictures)
            worst = max(differences.values())
            if not worst <= backend.tolerance[precision]:
                raise BackendError(
                    f"{self.metadata.model} on {backend.name} in {precision} differs from float32 by"
                    f" {worst:.2g} of the largest output ({backend.tolerance[precision]:g} is allowed):"
                    " the file was not kept"
                )
            with writing(self.target):
                staged = sorted(self.path.parent.iterdir())
                for file in staged:
                    file.chmod(0o644)  # safetensors writes for its owner only
                files = tuple(file.replace(self.target.parent / file.name) for file in staged)
        finally:
            self.discard()
        return Written(path=self.target, files=files, metadata=self.metadata, differences=differences)

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def write_draft(
    bundle: Bundle,
    backend: Backend,
    precision: Precision,
    path: Path,
    *,
    samples: np.ndarray | None = None,
    keep: Sequence[str] = (),
    model: Servable | None = None,
) -> Draft:
    """Write a bundle for a backend, beside the place where it is to go.

    Args:
        bundle: what to write.
        backend: for whom.
        precision: what to compute in.
        path: the file, with the suffix of the backend.
        samples: raw input to calibrate int8 with; the bundle's own when absent.
        keep: modules that int8 leaves in higher precision.
        model: what `servable(bundle)` gave, where many files are made of it.

    Raises:
        BackendError: the backend has no such precision here, or cannot write the network.
        MissingExtraError: a package is missing.
        OutputError: the file system refuses.
    """
    backend.require(export=True)
    if reason := backend.unsupported(precision):
        raise BackendError(reason)
    if path.suffix != backend.suffix:
        raise ConfigError(f"a file for {backend.name} ends in {backend.suffix}: {path} does not")
    if precision == "int8" and samples is None:
        samples = calibration_samples(bundle)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    draft = Draft(
        path=staging / path.name,
        target=path,
        backend=backend,
        metadata=describe(bundle, backend.name, precision),
        model=model or servable(bundle),
        pictures=bundle.samples["samples"].numpy() if samples is None else samples,
    )
    try:
        with writing(path):
            backend.write(draft.model, draft.path, metadata=draft.metadata, samples=draft.pictures, keep=keep)
    except BaseException:
        draft.discard()
        raise
    return draft


def write_checked(
    bundle: Bundle, backend: Backend, precision: Precision, path: Path, **options: Any
) -> Written:
    """Write a bundle for a backend, whole or not at all, and hold it against float32 eager.

    Args and errors are those of `write_draft` and of `Draft.prove`.
    """
    return write_draft(bundle, backend, precision, path, **options).prove()


def calibration_samples(bundle: Bundle) -> np.ndarray:
    """Return the raw input of its training data that a bundle keeps.

    Raises:
        BackendError: it was made of published weights, which bring none.
    """
    if "imported" in bundle.config.provenance:
        raise BackendError(
            f"int8 is calibrated with pictures of the training data, and {bundle.path}, imported, has none:"
            " give some by --pictures"
        )
    samples: np.ndarray = bundle.samples["samples"].numpy()
    return samples


def read_pictures(bundle: Bundle, where: str | Path) -> Tensor:
    """Read examples, named as for `reskit.predict`, as the network is given them, raw.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    found = list(bundle.task.find(where, recursive=True))
    return torch.stack([bundle.task.sample(entry.item) for entry in found])


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of two arrays as a part of the largest value expected."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _differences(backend: Backend, path: Path, model: Servable, samples: np.ndarray) -> dict[int, float]:
    with backend.load(path) as runner, torch.inference_mode():
        differences = {}
        for batch in PARITY_BATCHES:
            raw = np.ascontiguousarray(np.resize(samples, (batch, *samples.shape[1:])))
            found = runner.answer(raw)
            differences[batch] = largest_difference(found, model(torch.from_numpy(raw)).numpy())
        return differences
