"""What others make of the same network: how their users run it, each in a process of its own.

Every peer gets float32 tensors that are ready (reskit's own rows get uint8 pixels and normalise them inside,
so they do more), and a network of random weights: speed does not depend on them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reskit.backends.worker import Call, Prepare
from reskit.benchmarking.probes import openvino_module
from reskit.benchmarking.subject import Subject, any_network, timm_network, torchvision_network
from reskit.errors import BackendError

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class Peer:
    """Another way to run a network.

    Attributes:
        build: makes it in its process; raises `BackendError` for a network it has not.
        modules: it needs.
        setting: how it is set up, in words.
    """

    build: Callable[[Subject], Prepare]
    modules: tuple[str, ...]
    setting: str

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{absent[0]} is not installed" if absent else None


class _Timed:
    """A peer ready to be timed.

    Args:
        prepare: batch size to call.
        precision: what it computes in.
        streams: batch size to the requests it works on at once, where more than one.
    """

    def __init__(
        self, prepare: Prepare, *, precision: str = "fp32", streams: Mapping[int, int] | None = None
    ) -> None:
        self._prepare = prepare
        self.facts: dict[str, Any] = {"precision": precision, "streams": dict(streams or {})}

    def __call__(self, batch: int) -> Call:
        return self._prepare(batch)


def torchvision_eager(subject: Subject) -> Prepare:
    """Build torchvision's network as its documentation runs it."""
    return _eager(torchvision_network(subject), subject)


def timm_eager(subject: Subject) -> Prepare:
    """Build timm's network as its documentation runs it."""
    return _eager(timm_network(subject), subject)


def timm_compiled(subject: Subject) -> Prepare:
    """Build timm's network under torch.compile.

    Each batch size is compiled apart: by default the second one would be compiled for any size, and slower.
    """
    import torch

    return _eager(torch.compile(timm_network(subject), dynamic=False), subject)


def onnxruntime_default(subject: Subject) -> Prepare:
    """Export a float32 network to ONNX and open a session."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    if subject.threads:
        options.intra_op_num_threads = subject.threads
    program = torch.onnx.export(
        any_network(subject),
        (torch.from_numpy(subject.images(2)),),
        dynamo=True,
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def prepare(batch: int) -> Call:
        inputs = {"x": subject.images(batch)}
        return lambda: session.run(None, inputs)

    return _Timed(prepare)


def openvino_default(subject: Subject) -> Prepare:
    """Convert a float32 network and compile it with no settings."""
    settings = {"INFERENCE_NUM_THREADS": subject.threads} if subject.threads else {}
    compiled = openvino_module().Core().compile_model(_converted(subject), "CPU", settings)
    precision = {"f32": "fp32", "f16": "fp16"}.get(
        name := compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), name
    )

    def prepare(batch: int) -> Call:
        images = subject.images(batch)
        return lambda: compiled(images)

    return _Timed(prepare, precision=precision)


def openvino_int8(subject: Subject) -> Prepare:
    """Quantise by NNCF and compile with hints: latency for batch 1, above it throughput."""
    openvino = openvino_module()
    import nncf

    pictures = [((picture / 255 - 0.45) / 0.225)[None].astype(np.float32) for picture in subject.samples]
    model = nncf.quantize(_converted(subject), nncf.Dataset(pictures), subset_size=min(300, len(pictures)))
    core = openvino.Core()
    compiled = {}
    for hint in {_hint(batch) for batch in subject.batches}:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": hint}
        if subject.threads:
            settings["INFERENCE_NUM_THREADS"] = subject.threads
        compiled[hint] = core.compile_model(model, "CPU", settings)

    def prepare(batch: int) -> Call:
        request, images = compiled[_hint(batch)].create_infer_request(), subject.images(batch)
        return lambda: request.infer([images], share_inputs=True, share_outputs=True)

    streams = {
        batch: compiled["THROUGHPUT"].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        for batch in subject.batches
        if _hint(batch) == "THROUGHPUT"
    }
    return _Timed(prepare, precision="int8", streams=streams)


def keras_tensorflow(subject: Subject) -> Prepare:
    """Build the network of keras.applications on TensorFlow and call `predict_on_batch`."""
    import os

    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow

    if subject.name not in _KERAS:
        raise BackendError(f"keras.applications has no {subject.name}")
    if subject.threads:
        tensorflow.config.threading.set_intra_op_parallelism_threads(subject.threads)
    channels, height, width = subject.input_shape
    model = getattr(keras.applications, _KERAS[subject.name])(
        weights=None, input_shape=(height, width, channels), classes=subject.classes
    )

    def prepare(batch: int) -> Call:
        images = np.ascontiguousarray(subject.images(batch).transpose(0, 2, 3, 1))
        return lambda: model.predict_on_batch(images)

    return _Timed(prepare)


PEERS: dict[str, Peer] = {
    "torchvision/eager": Peer(torchvision_eager, ("torchvision",), "eval(), inference_mode()"),
    "timm/eager": Peer(timm_eager, ("timm",), "eval(), inference_mode()"),
    "timm/compile": Peer(timm_compiled, ("timm",), "torch.compile, each batch size apart"),
    "onnxruntime/default": Peer(
        onnxruntime_default, ("onnxruntime", "onnx", "onnxscript"), "torch.onnx.export, InferenceSession"
    ),
    "openvino/default": Peer(openvino_default, ("openvino",), "convert_model, compile_model"),
    "openvino/int8-hand": Peer(
        openvino_int8,
        ("openvino", "nncf"),
        "nncf.quantize; hint LATENCY for batch 1, THROUGHPUT with as many requests as it advises above",
    ),
    "keras/tensorflow": Peer(
        keras_tensorflow, ("keras", "tensorflow"), "keras.applications, predict_on_batch"
    ),
}
"""Name of a row to the peer."""

_KERAS = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnetv2_50": "ResNet50V2",
    "resnetv2_101": "ResNet101V2",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
    "mobilenet_v2": "MobileNetV2",
}


def _eager(network: Callable[..., Any], subject: Subject) -> Prepare:
    """Return a PyTorch network ready to be timed; threads are counted in the environment."""
    import torch

    def prepare(batch: int) -> Call:
        images = torch.from_numpy(subject.images(batch))

        def call() -> Any:
            with torch.inference_mode():
                return network(images)

        return call

    return _Timed(prepare)


def _converted(subject: Subject) -> Any:
    """Return a float32 network as OpenVINO converts it, of any batch size."""
    import torch

    network, example = any_network(subject), torch.from_numpy(subject.images(1))
    shape = [-1, *subject.input_shape]
    return openvino_module().convert_model(network, example_input=example, input=shape)


def _hint(batch: int) -> str:
    return "LATENCY" if batch == 1 else "THROUGHPUT"
