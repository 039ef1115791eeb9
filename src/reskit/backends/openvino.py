"""OpenVINO on the processor: float32, bfloat16, float16, and int8 by NNCF."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.backends.onnx_graph import METADATA_KEY, first_line, int8_overflows, layers, quiet, to_onnx
from reskit.environment import usable_cores
from reskit.errors import BackendError
from reskit.files import sha256

if TYPE_CHECKING:
    from reskit.backends.servable import Servable

__all__ = ["OpenVINO", "core"]

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""What layers compute in by the precision of the file; in an int8 file, those that are not quantised."""
_CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
"""What the processor must be capable of, in the words of OpenVINO."""
_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_METADATA, _WEIGHTS = [METADATA_KEY, "metadata"], [METADATA_KEY, "weights"]


class OpenVINO(Backend):
    """Two files: the graph in XML and, beside it under the same stem, the weights in a ``.bin``."""

    name: ClassVar[str] = "openvino"
    format: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    extra: ClassVar[str | None] = "openvino"
    run_needs: ClassVar[tuple[str, ...]] = ("openvino",)
    export_needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "nncf")
    tolerance: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-4, "bf16": 0.25, "fp16": 0.05, "int8": 0.5}
    splits: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = (".bin",)

    def unsupported(self, precision: Precision) -> str | None:
        """Return why this processor cannot run a precision well, or None."""
        if reason := super().unsupported(precision):
            return reason
        wanted = _CAPABILITIES.get(precision)
        if wanted and wanted not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return f"this processor has no {precision} that OpenVINO could use"
        return None

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
        ov = _openvino()
        network = ov.convert_model(io.BytesIO(proto.SerializeToString()))
        if metadata.precision == "int8":
            network = _quantized(network, metadata, samples, layers(proto, keep))
        network.set_rt_info(metadata.to_json(), _METADATA)
        # Weights that are computed with in 16 bits need no more in the file.
        halved = metadata.precision in ("bf16", "fp16")
        try:
            ov.save_model(network, path, compress_to_fp16=halved)
            # Only now is known what the graph should say of its weights.
            network.set_rt_info(sha256(path.with_suffix(".bin")), _WEIGHTS)
            ov.save_model(network, path, compress_to_fp16=halved)
        except RuntimeError as error:  # of the stream that writes; it does not say why
            raise OSError(f"OpenVINO cannot write it ({first_line(error)})") from error

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load`."""
        weights = path.with_suffix(".bin")
        for file in (path, weights):
            if not file.is_file():
                raise BackendError(f"{file} is not there: an OpenVINO network is two files, .xml and .bin")
        try:
            network = core().read_model(path)
        except Exception as error:
            raise BackendError(f"{path} or its .bin is damaged, or of something else") from error
        metadata = Metadata.from_json(_noted(network, _METADATA), path)
        if sha256(weights) != _noted(network, _WEIGHTS):
            raise BackendError(f"{weights} is damaged, or the weights of another network than {path.name}")
        return _Runner(metadata, _compiled(network, metadata, threads or usable_cores(), streams), streams)


class _Runner(Runner):
    """A compiled network and the infer requests that rest.

    Args:
        metadata: what the file says of itself.
        compiled: the network.
        streams: parts that a batch is cut into.
    """

    def __init__(self, metadata: Metadata, compiled: Any, streams: int) -> None:
        super().__init__(metadata)
        self._compiled = compiled
        self._streams = streams
        self._resting: deque[Any] = deque()  # one a call and part at a time, so that callers never share any

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = len(next(iter(inputs.values())))
        bounds = np.linspace(0, size, min(self._streams, size) + 1, dtype=int)
        parts = [
            {name: array[start:end] for name, array in inputs.items()} for start, end in pairwise(bounds)
        ]
        requests = [self._take() for _ in parts]
        if len(parts) == 1:  # in the thread of the caller: none has to wake
            requests[0].infer(parts[0], share_inputs=True, share_outputs=True)
        else:
            for request, part in zip(requests, parts, strict=True):
                request.start_async(part, share_inputs=True)
            for request in requests:
                request.wait()
        names = [spec.name for spec in self.signature.outputs]
        # Joining copies: the next run writes where this one did.
        outputs = {
            name: np.concatenate([request.get_tensor(name).data for request in requests]) for name in names
        }
        self._resting.extend(requests)
        return outputs

    def _take(self) -> Any:
        """Return an infer request that nobody uses."""
        try:
            return self._resting.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def close(self) -> None:
        """Give threads and memory back."""
        self._resting.clear()
        del self._compiled


def _compiled(network: Any, metadata: Metadata, threads: int, streams: int) -> Any:
    """Return a network ready to run.

    Raises:
        BackendError: OpenVINO refuses it.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS.get(metadata.precision),
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # The number of threads is the caller's choice, who has measured; the latency hint alone would leave
        # out the second processor of each core.
        "ENABLE_HYPER_THREADING": True,
        # Pinned threads sit on the first processors, in every process: two of them, as in a server with
        # workers or in neighbouring containers, would wait for each other beside idle cores.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return core().compile_model(network, "CPU", settings)
    except Exception as error:
        raise BackendError(f"OpenVINO cannot run {metadata.model} in {metadata.precision} here") from error


def _quantized(network: Any, metadata: Metadata, samples: np.ndarray, keep: Sequence[str]) -> Any:
    """Return a network with the nodes that OpenVINO turns into int8.

    The defaults were further from float32 on published ResNet-20 and ResNet-56: ranges that are means over
    samples, not the least and the largest value seen, made the largest error 2.5 to 5 times as large;
    correcting the biases made the mean error 1.4 to 1.9 times as large. Asymmetric activations came no
    closer, at the cost of a subtraction a layer.
    """
    kept = _names(network, keep, metadata.signature.outputs[0].name)
    try:
        with quiet("nncf", "torch.utils.cpp_extension"):
            nncf, ranges = _nncf()
            fix = nncf.OverflowFix.ENABLE if int8_overflows() else nncf.OverflowFix.DISABLE
            quantized = nncf.quantize(
                network,
                nncf.Dataset([sample[None] for sample in samples]),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=kept),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=fix,
                    disable_bias_correction=True,
                    activations_range_estimator_params=ranges.MINMAX,
                ),
            )
    except Exception as error:  # it raises whatever it meets
        raise BackendError(f"{metadata.model} cannot be quantised: {first_line(error)}") from error
    _free_sums(quantized)
    return quantized


def _names(network: Any, layers: Sequence[str], output: str) -> list[str]:
    """Return how OpenVINO calls the layers of ONNX, each by the product within it.

    A layer is a product and a sum with its bias, unless that is all zero; the last has the output's name.

    Raises:
        BackendError: a layer has no product.
    """
    nodes = network.get_ops()
    known = {node.get_friendly_name() for node in nodes if node.get_type_name() in _PRODUCTS}
    names = []
    for layer in layers:
        name = next((name for name in (f"{layer}/WithoutBiases", layer, output) if name in known), None)
        if name is None:
            raise BackendError(
                f"OpenVINO merged {layer} into another layer: it cannot be kept from int8 alone"
            )
        names.append(name)
    return names


def _free_sums(network: Any) -> None:
    """Let one input of each residual sum stay in the accumulator of the convolution that computes it.

    NNCF rounds both, though the convolution adds the other, rectifies and rounds in one go whether or not its
    own result was rounded before. (Its target `CPU_SPR` does the same, and leaves the weights of a
    convolution without bias in float32 on the way.)

    Source: OpenVINO, Low Precision Transformations, AddTransformation.
    """
    for add in network.get_ops():
        if add.get_type_name() != "Add":
            continue
        for value in add.input_values():
            rounding = value.get_node()
            rounds = rounding.get_type_name() == "FakeQuantize" and _only_use(value)
            if rounds and _of_product(rounding.input_value(0)):
                value.replace(rounding.input_value(0))
                break


def _of_product(value: Any) -> bool:
    """Return whether a convolution or product, with or without a bias, gives a value nothing else uses."""
    node = value.get_node()
    if node.get_type_name() == "Add" and node.input_value(1).get_node().get_type_name() == "Constant":
        node = node.input_value(0).get_node()
    return _only_use(value) and node.get_type_name() in _PRODUCTS


def _only_use(value: Any) -> bool:
    return len(value.get_target_inputs()) == 1


def _noted(network: Any, place: list[str]) -> str | None:
    """Return what we noted in a network, or None."""
    return str(network.get_rt_info(place).value) if network.has_rt_info(place) else None


@functools.cache
def core() -> Any:
    """Return what reads and compiles networks, one a process."""
    return _openvino().Core()


def _openvino() -> Any:
    with _untold():
        import openvino
    return openvino


def _nncf() -> tuple[Any, Any]:
    """Return NNCF and its ways to find ranges."""
    loggers = logging.getLoggerClass()
    try:
        with _untold():
            import nncf
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    finally:
        logging.setLoggerClass(loggers)  # importing NNCF makes every later logger its own
    return nncf, RangeEstimatorParametersSet


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Import without telemetry: OpenVINO and NNCF report over the network unless its package is missing."""
    package = "openvino_telemetry"
    found = sys.modules.pop(package, None)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if found is not None:
            sys.modules[package] = found


BACKENDS.add(OpenVINO.name, OpenVINO())
