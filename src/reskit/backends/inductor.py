"""PyTorch Inductor on the processor: the network compiled to machine code, with its weights packed for it.

The file that is written is as harmless as that of `eager`: weights and a list of operators. It is compiled
where it is loaded, and the compiled programs stay in a folder of the user's own; see `programs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.backends.eager import TorchRunner, bf16_missing
from reskit.backends.programs import Programs, compiler_missing
from reskit.environment import on_x86, usable_cores
from reskit.errors import MissingExtraError

if TYPE_CHECKING:
    from reskit.backends.servable import Servable

__all__ = ["Inductor"]


class Inductor(Backend):
    """One safetensors file of weights, with the operators in its header, compiled where it is loaded."""

    name: ClassVar[str] = "inductor"
    format: ClassVar[str] = "inductor"
    suffix: ClassVar[str] = ".safetensors"
    run_needs: ClassVar[tuple[str, ...]] = ("torch",)
    compiles: ClassVar[bool] = True
    tolerance: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-4, "bf16": 0.25, "int8": 0.5}

    def unsupported(self, precision: Precision) -> str | None:
        """Return why this machine cannot run a precision well, or None."""
        return (
            super().unsupported(precision)
            or bf16_missing(precision)
            or compiler_missing()
            or (_int8_missing() if precision == "int8" else None)
        )

    def write(
        self,
        model: Servable,
        path: Path,
        *,
        metadata: Metadata,
        samples: np.ndarray,
        keep: Sequence[str] = (),
    ) -> None:
        """Write a network; see `Backend.write`.

        Raises:
            MissingExtraError: int8 is asked for and torchao is not installed.
        """
        from reskit.backends.graph_file import save_graph, trace
        from reskit.backends.pt2e import quantized

        int8 = metadata.precision == "int8"
        graph = quantized(model, metadata, samples, keep) if int8 else trace(model, metadata)
        save_graph(graph, path, metadata)

    def prepare(self, path: Path, batches: Collection[int]) -> None:
        """Compile a file's programs for batch sizes; see `Backend.prepare`."""
        from reskit.backends.graph_file import read_metadata

        Programs(path, read_metadata(path, self.name), batches)

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load`. Compiles, unless that was done before on this machine."""
        from reskit.backends.graph_file import read_metadata

        return _Runner(read_metadata(path, self.name), path, threads or usable_cores())


class _Runner(TorchRunner):
    """Compiled programs, one a batch size; a batch that has none is cut into pieces that have.

    Args:
        metadata: what the file says of itself.
        path: the file.
        threads: processors to use.
    """

    def __init__(self, metadata: Metadata, path: Path, threads: int) -> None:
        self._programs = Programs(path, metadata)
        super().__init__(metadata, self._programs, threads)

    def warm_up(self, batch_size: int = 1, rounds: int = 2) -> None:
        """Compile for a batch size, which later runs and loads then use; larger ones than 32 are cut."""
        self._programs.compile([batch_size])
        super().warm_up(batch_size, rounds)

    def close(self) -> None:
        """Give memory back."""
        super().close()
        del self._programs


def _int8_missing() -> str | None:
    if not on_x86():
        return "int8 by Inductor is made for x86"
    return None if find_spec("torchao") else str(MissingExtraError("torchao", "torchao"))


BACKENDS.add(Inductor.name, Inductor())
