"""What a `Worker` runs of a file that a backend wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from reskit.backends import BACKENDS

__all__ = ["FileNetwork"]


class FileNetwork:
    """A file, loaded; pass the class as the worker's `build`.

    Args:
        backend: name of the backend that wrote it.
        path: the file.
        threads: processors to use in all.
        streams: batches worked on at once.
    """

    def __init__(self, backend: str, path: Path, threads: int | None = None, streams: int = 1) -> None:
        self._runner = BACKENDS.get(backend).load(path, threads=threads, streams=streams)

    def __call__(self, batch: int) -> Callable[[], object]:
        """Return a call on random pixels: zeros can be faster than pictures are."""
        self._runner.warm_up(batch)
        random = np.random.default_rng(0)
        inputs = {
            spec.name: random.integers(0, 256, (batch, *(side or 1 for side in spec.shape[1:]))).astype(
                spec.dtype
            )
            for spec in self._runner.signature.inputs
        }
        return lambda: self._runner.run(inputs)

    def answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the runner's outputs."""
        outputs: dict[str, np.ndarray] = self._runner.run(inputs)
        return outputs
