"""ONNX Runtime on the processor: float32, and int8 by static quantisation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.backends.onnx_graph import METADATA_KEY, first_line, int8_overflows, layers, to_onnx
from reskit.environment import usable_cores
from reskit.errors import BackendError

if TYPE_CHECKING:
    import onnx

    from reskit.backends.servable import Servable

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Backend):
    """One file, read by ONNX Runtime and by everything else that reads ONNX."""

    name: ClassVar[str] = "onnxruntime"
    format: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str | None] = "onnx"
    run_needs: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    export_needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
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
        proto = to_onnx(model, metadata)
        if metadata.precision == "int8":
            proto = _quantized(proto, metadata, samples, layers(proto, keep))
        path.write_bytes(proto.SerializeToString())

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load`."""
        import onnxruntime

        if not path.is_file():
            raise BackendError(f"{path} is not there")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what matters is raised
        # Threads of a pool spin while they wait for work, for the next run as well: a server at rest would
        # keep its cores busy, and so take them from whatever else runs. Within a run they still spin.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base class of their own
            raise BackendError(f"{path} is damaged or no ONNX file: {first_line(error)}") from None
        metadata = Metadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
        return _Runner(metadata, session)


class _Runner(Runner):
    """A session, which may be run from several threads at once."""

    def __init__(self, metadata: Metadata, session: Any) -> None:
        super().__init__(metadata)
        self._session = session
        self._outputs = [spec.name for spec in metadata.signature.outputs]

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        """Give threads and memory back."""
        del self._session


def _quantized(
    proto: onnx.ModelProto, metadata: Metadata, samples: np.ndarray, keep: Sequence[str]
) -> onnx.ModelProto:
    """Return a network with pairs of quantising and dequantising nodes, which the runtime turns into int8.

    Activations are uint8 with a zero point, weights int8 by output channel: what ONNX Runtime advises for
    x86. Ranges are the least and the largest value seen: percentiles and entropy, tried on trained residual
    networks, came no closer to float32 and hold every activation of every sample in memory.

    Source: ONNX Runtime, Quantize ONNX models; the docstring of `quantize_static`.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    # Normalising in 8 bits would blur the pixels, and a batch norm of its own has no int8 kernel.
    exact = [
        node.name
        for node in proto.graph.node
        if node.op_type == "BatchNormalization" or node.name.startswith("normalize.")
    ]
    add_pre_process_metadata(proto)  # norms are folded, shapes are known: else it warns
    with tempfile.TemporaryDirectory(prefix="reskit-") as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, source)
        try:
            quantize_static(
                source,
                target,
                _reader(proto.graph.input[0].name, samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=int8_overflows(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*exact, *keep],
                # The head may as well say what it computed: logits cut off and rounded save nothing.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
        except Exception as error:  # it raises whatever it meets
            raise BackendError(f"{metadata.model} cannot be quantised: {first_line(error)}") from error
        quantized = onnx.load(target)
    ours = [entry for entry in quantized.metadata_props if entry.key == METADATA_KEY]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(ours)
    onnx.checker.check_model(quantized)
    return quantized


def _reader(name: str, samples: np.ndarray) -> Any:
    """Return what gives the samples one by one, as quantisation asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest: Iterator[np.ndarray] = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self._rest, None)
            return None if sample is None else {name: sample[None]}

    return Reader()


BACKENDS.add(OnnxRuntime.name, OnnxRuntime())
