"""ExecuTorch, PyTorch's runtime for phones and boards, here on the processor by XNNPACK."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.backends.onnx_graph import METADATA_KEY, first_line, quiet
from reskit.backends.sealed import seal, sealed_content
from reskit.environment import usable_cores
from reskit.errors import BackendError, did_you_mean

if TYPE_CHECKING:
    from torch import fx, nn
    from torch.export import ExportedProgram

    from reskit.backends.servable import Servable

__all__ = ["ExecuTorch"]

_LARGEST_BATCH = 8
"""What one call takes; memory for it is set aside when the file is loaded."""
_THREADS = threading.Lock()
"""Held by whoever uses the process's one pool of threads."""


class ExecuTorch(Backend):
    """One file. Larger batches than it takes are worked on in parts.

    The process has one pool of threads for all its runners: the first that is loaded says how many, and
    they work one after the other. What XNNPACK has no integers for, such as a slice, is float32 in int8 too.
    """

    name: ClassVar[str] = "executorch"
    format: ClassVar[str] = "executorch"
    suffix: ClassVar[str] = ".pte"
    on_device: ClassVar[bool] = True
    extra: ClassVar[str | None] = "executorch"
    run_needs: ClassVar[tuple[str, ...]] = ("executorch",)
    tolerance: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-4, "int8": 0.5}

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
        _check_known(model, keep)
        try:
            with quiet("torch.utils._pytree", "torch.export"):
                program = _exported(model, metadata)
                if metadata.precision == "int8":
                    program = _exported(_quantized(program, samples, keep), metadata)
                content = _lowered(program, metadata)
        except Exception as error:  # its parts raise whatever they meet
            raise BackendError(
                f"{metadata.model} cannot be written for ExecuTorch: {first_line(error)}"
            ) from error
        path.write_bytes(seal(content))

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load`."""
        content = sealed_content(path)
        with quiet("torch.utils._pytree"):
            from executorch.runtime import Runtime
        try:
            with _THREADS:
                _start_threads(threads or usable_cores())
                program = Runtime.get().load_program(content)
                (text,) = program.load_method(METADATA_KEY).execute([])
                program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise BackendError(f"{path} cannot be run here: {first_line(error)}") from error
        return _Runner(Metadata.from_json(text, path), program)


class _Runner(Runner):
    """A loaded file.

    Args:
        metadata: what the file says of itself.
        program: the file; its methods are only there while it is.
    """

    def __init__(self, metadata: Metadata, program: Any) -> None:
        super().__init__(metadata)
        self._program = program

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        (pixels,), (output,) = inputs.values(), self.signature.outputs
        parts = (pixels[start : start + _LARGEST_BATCH] for start in range(0, len(pixels), _LARGEST_BATCH))
        method = self._program.load_method("forward")
        with _THREADS:
            found = [method.execute([torch.tensor(part)])[0].numpy() for part in parts]
        return {output.name: np.concatenate(found)}

    def close(self) -> None:
        """Give memory back."""
        del self._program


_started = False


def _start_threads(count: int) -> None:
    """Start the process's pool of threads, the first time.

    What is loaded holds on to the pool: replacing it later crashed the process.
    """
    global _started
    if not _started:
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(count)
        _started = True


def _check_known(model: Servable, modules: Sequence[str]) -> None:
    """Refuse names that no module has."""
    known = dict(model.named_modules())
    for module in modules:
        if module not in known:
            raise BackendError(f"no layer of the network is named {module!r}{did_you_mean(module, known)}")


def _exported(model: nn.Module, metadata: Metadata) -> ExportedProgram:
    """Return a network as a graph of operators with a dynamic batch."""
    import torch

    example = metadata.signature.inputs[0].zeros(2)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


def _quantized(program: ExportedProgram, samples: np.ndarray, keep: Sequence[str]) -> nn.Module:
    """Return a network that rounds to int8 what XNNPACK then computes in integers.

    Weights are rounded by output channel, activations by tensor, in ranges found on the samples.
    """
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def may_round(node: fx.Node) -> bool:
        places = [f"{place}." for place, _ in node.meta.get("nn_module_stack", {}).values()]
        return not any(place.startswith(f"{module}.") for place in places for module in keep)

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(may_round)
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.inference_mode():
        for start in range(0, len(samples), _LARGEST_BATCH):
            prepared(torch.tensor(samples[start : start + _LARGEST_BATCH]))
    rounded: nn.Module = convert_pt2e(prepared)
    return rounded


def _lowered(program: ExportedProgram, metadata: Metadata) -> bytes:
    """Return the content of the file: the network, and a method that returns what it says of itself."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: metadata.to_json()}
    )
    return bytes(edge.to_executorch().buffer)


BACKENDS.add(ExecuTorch.name, ExecuTorch())
