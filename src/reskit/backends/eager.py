"""PyTorch as it is, on the processor: float32, and bf16 where the processor has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.environment import fingerprint, usable_cores

if TYPE_CHECKING:
    from reskit.backends.servable import Servable

__all__ = ["Eager", "TorchRunner", "bf16_missing"]


class Eager(Backend):
    """One safetensors file of weights, with the operators in its header; see `graph_file`."""

    name: ClassVar[str] = "torch"
    format: ClassVar[str] = "torch-graph"
    suffix: ClassVar[str] = ".safetensors"
    run_needs: ClassVar[tuple[str, ...]] = ("torch",)
    tolerance: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-4, "bf16": 0.25}

    def unsupported(self, precision: Precision) -> str | None:
        """Return why this processor cannot run a precision well, or None."""
        return super().unsupported(precision) or bf16_missing(precision)

    def write(
        self,
        model: Servable,
        path: Path,
        *,
        metadata: Metadata,
        samples: np.ndarray,
        keep: Sequence[str] = (),
    ) -> None:
        """Write a network; see `Backend.write`."""
        from reskit.backends.graph_file import save_graph, trace

        save_graph(trace(model, metadata), path, metadata)

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load` and `TorchRunner`."""
        import torch

        from reskit.backends.graph_file import load_graph, read_metadata

        metadata = read_metadata(path, self.name)
        network = load_graph(path, metadata)
        # oneDNN computes with channels last; where weights have it so, the maps between layers stay so.
        network.to(memory_format=torch.channels_last)
        return TorchRunner(metadata, network, threads or usable_cores())


class TorchRunner(Runner):
    """A network of tensors.

    PyTorch has one number of threads a process: where two runners differ in theirs, each sets its own before
    it runs, and what else computes with PyTorch in the process gets it too.

    Args:
        metadata: what the file says of itself.
        network: pixels to outputs.
        threads: processors to use.
    """

    def __init__(self, metadata: Metadata, network: Callable[[Any], Any], threads: int) -> None:
        super().__init__(metadata)
        self._network = network
        self._threads = threads
        self._use_threads()

    def _use_threads(self) -> None:
        import torch

        if torch.get_num_threads() != self._threads:  # of the calling thread
            torch.set_num_threads(self._threads)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        self._use_threads()
        # Tensors cannot be made of arrays that are read-only or turned around.
        (pixels,) = (np.require(array, requirements=("C", "W")) for array in inputs.values())
        with torch.inference_mode():
            outputs: np.ndarray = self._network(torch.from_numpy(pixels)).numpy()
        return {self.signature.outputs[0].name: outputs}

    def close(self) -> None:
        """Give memory back."""
        del self._network


def bf16_missing(precision: Precision) -> str | None:
    """Return that this processor has no instructions for bf16, if they are asked for; else None."""
    if precision != "bf16" or any("bf16" in flag for flag in fingerprint()["instructions"]):
        return None
    return "this processor has no instructions for bf16"


BACKENDS.add(Eager.name, Eager())
