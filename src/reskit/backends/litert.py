"""LiteRT, once TensorFlow Lite: small files and a small runtime, on phones and boards and here."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reskit.backends.base import BACKENDS, Backend, Metadata, Precision, Runner
from reskit.backends.litert_graph import PIXELS, finish, paddings, prepare, read_metadata
from reskit.backends.onnx_graph import first_line, quiet
from reskit.backends.sealed import seal, sealed_content
from reskit.environment import usable_cores
from reskit.errors import BackendError, did_you_mean

if TYPE_CHECKING:
    from ai_edge_quantizer.recipe_manager import RecipeManager

    from reskit.backends.servable import Servable

__all__ = ["LiteRT"]

_SIGNATURE = "serving_default"
"""What LiteRT calls a file's way of being called, if it has only one."""
_CHUNK = 8
"""Samples looked at together in calibration."""


class LiteRT(Backend):
    """One file, which needs `ai-edge-litert` and NumPy to run.

    In fp16 weights are halves, what is computed is float32. In int8 all is integers from the pixels on,
    residual sums too; the outputs are turned into float32 at the very end.
    """

    name: ClassVar[str] = "litert"
    format: ClassVar[str] = "litert"
    suffix: ClassVar[str] = ".tflite"
    on_device: ClassVar[bool] = True
    extra: ClassVar[str | None] = "litert"
    run_needs: ClassVar[tuple[str, ...]] = ("ai_edge_litert",)
    export_needs: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_quantizer")
    tolerance: ClassVar[Mapping[Precision, float]] = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.5}

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
        given = metadata.signature.inputs[0]
        if given.dtype == "int32":
            raise BackendError(
                f"{metadata.model} cannot be written for LiteRT: tokens cannot be, of any batch size"
            )
        if metadata.precision == "int8" and len(given.shape) != 4:
            raise BackendError(
                f"{metadata.model} cannot be written for LiteRT in int8, which is for pixels alone"
            )
        with _unheard():
            content, layers = prepare(_converted(model, metadata), model, metadata)
            _check_known(keep, layers)
            if metadata.precision != "fp32":
                content = _quantized(content, metadata, samples, keep)
        path.write_bytes(seal(finish(content, metadata)))

    def load(self, path: Path, *, threads: int | None = None, streams: int = 1) -> Runner:
        """Return a runner; see `Backend.load`."""
        from ai_edge_litert.interpreter import Interpreter

        metadata = read_metadata(sealed_content(path), path)
        try:
            interpreter = Interpreter(str(path), num_threads=threads or usable_cores())
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BackendError(f"{path} cannot be run here: {first_line(error)}") from error
        return _Runner(metadata, interpreter)


class _Runner(Runner):
    """An interpreter, which works on one batch at a time: callers wait for each other.

    Args:
        metadata: what the file says of itself.
        interpreter: of the file, its tensors allocated.
    """

    def __init__(self, metadata: Metadata, interpreter: Any) -> None:
        super().__init__(metadata)
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self._batch = 1
        self._inputs = [detail["index"] for detail in interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = len(next(iter(inputs.values())))
        arrays = [inputs[spec.name] for spec in self.signature.inputs]
        with self._lock:
            if batch != self._batch:
                self._batch = 0  # until the tensors of the new one are there
                for number, array in zip(self._inputs, arrays, strict=True):
                    self._interpreter.resize_tensor_input(number, array.shape)
                self._interpreter.allocate_tensors()
                self._batch = batch
            for number, array in zip(self._inputs, arrays, strict=True):
                self._interpreter.set_tensor(number, array)
            self._interpreter.invoke()
            found = [self._interpreter.get_tensor(number) for number in self._outputs]
        return {spec.name: array for spec, array in zip(self.signature.outputs, found, strict=True)}

    def close(self) -> None:
        """Give threads and memory back."""
        del self._interpreter


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep what native libraries note on standard error to themselves; errors are raised all the same."""
    heard, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(heard, 2)
        os.close(heard)
        os.close(nowhere)


def _converted(model: Servable, metadata: Metadata) -> bytes:
    """Return a network as a float32 file whose batch is 1: the converter cannot leave it open.

    Raises:
        BackendError: an operator has no form in LiteRT.
    """
    spec = metadata.signature.inputs[0]
    try:
        with quiet("torch.utils._pytree"):
            import litert_torch

            from reskit.backends.servable import Named

            program = litert_torch.convert(Named(model), sample_kwargs={spec.name: spec.zeros(1)})
            converted: bytes = program.model_content()
    except Exception as error:  # the converter has no base class of its own for what it cannot do
        raise BackendError(f"{metadata.model} cannot be written for LiteRT: {first_line(error)}") from error
    return converted


def _check_known(modules: Sequence[str], layers: Sequence[str]) -> None:
    """Refuse names of modules in which no layer lies."""
    for module in modules:
        if not any(f"{layer}.".startswith(f"{module}.") for layer in layers):
            raise BackendError(f"no layer of the network is named {module!r}{did_you_mean(module, layers)}")


def _quantized(content: bytes, metadata: Metadata, samples: np.ndarray, keep: Sequence[str]) -> bytes:
    """Return a float32 file in fewer bits.

    Raises:
        BackendError: the quantizer refuses it.
    """
    try:
        with quiet("absl"):
            from ai_edge_quantizer.quantizer import Quantizer

            recipe = _recipe(metadata.precision, keep)
            ranges = _ranges(content, recipe, metadata, samples) if metadata.precision == "int8" else None
            quantizer = Quantizer(content, recipe.get_quantization_recipe())
            quantized = quantizer.quantize(ranges, enable_progress_bar=False)
    except Exception as error:  # it raises whatever it meets
        raise BackendError(f"{metadata.model} cannot be quantised: {first_line(error)}") from error
    return bytes(quantized.quantized_model)


def _recipe(precision: Precision, keep: Sequence[str]) -> RecipeManager:
    """Return what is done to which operators."""
    from ai_edge_quantizer.qtyping import TFLOperationName as Kind
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    recipe = RecipeManager()
    if precision == "fp16":
        recipe.add_weight_only_config(".*", Kind.ALL_SUPPORTED, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
        return recipe
    recipe.add_static_config(".*", Kind.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    recipe.add_quantization_config(".*", Kind.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for module in keep:  # operators are searched for by what they compute, a name and a semicolon
        scope = rf"^{re.escape(module)}[.;]"
        recipe.add_quantization_config(scope, Kind.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe


def _ranges(content: bytes, recipe: RecipeManager, metadata: Metadata, samples: np.ndarray) -> dict[str, Any]:
    """Return the least and the largest value of every tensor over the samples.

    The quantizer's default, a moving average of them, cuts off the largest outputs.
    """
    from ai_edge_quantizer.calibrator import CalibrationMode, Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    calibrator = Calibrator(
        content,
        num_threads=usable_cores(),
        mode=CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=min_max_update,
    )
    name = metadata.signature.inputs[0].name
    chunks = [{name: samples[start : start + _CHUNK]} for start in range(0, len(samples), _CHUNK)]
    calibrator.calibrate({_SIGNATURE: chunks}, recipe)
    ranges = calibrator.get_model_qsvs()
    for padded, source in paddings(content):
        if not np.isfinite(ranges[padded]["min"]).all():  # max pooling pads with the lowest number there is
            ranges[padded] = ranges[source]
    # Whole numbers stay what they are, whatever pixels the samples lack.
    whole = {"min": np.array([0.0]), "max": np.array([255.0])}
    return {**ranges, PIXELS: whole}


BACKENDS.add(LiteRT.name, LiteRT())
