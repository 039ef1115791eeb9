"""What reskit changes in a LiteRT file, and reads from it: the batch, names of layers, metadata.

The file is a flatbuffer; its schema comes with the package `ai_edge_litert`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reskit.backends.base import Metadata
from reskit.backends.onnx_graph import METADATA_KEY

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PIXELS", "finish", "paddings", "prepare", "read_metadata"]

PIXELS = "pixels"
"""Name of the pixels as numbers to compute with."""

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def prepare(content: bytes, model: nn.Module, metadata: Metadata) -> tuple[bytes, list[str]]:
    """Return a file that takes any batch, and the names of its layers, which are those of modules of `model`.

    Args:
        content: the file as converted from `model`, with a batch of 1.
        model: the network.
        metadata: names its input and its output.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model_from_bytearray(content)
    _free_batch(graph)
    _name_tensors(graph, metadata)
    layers = _name_layers(graph, model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(graph)), layers


def finish(content: bytes, metadata: Metadata) -> bytes:
    """Return a file with metadata, which says of its input and its output that the batch is any."""
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model_from_bytearray(content)
    if metadata.precision == "int8":
        _take_integers(graph)
    net = graph.subgraphs[0]
    for number in (*net.inputs, *net.outputs):
        tensor = net.tensors[number]
        tensor.shapeSignature = [-1, *(int(side) for side in tensor.shape[1:])]
    entry = flatbuffer_utils.schema_fb.MetadataT()
    entry.name, entry.buffer = METADATA_KEY, _add_buffer(graph, metadata.to_json().encode())
    graph.metadata = [*(graph.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(graph))


def read_metadata(content: bytes, path: Path) -> Metadata:
    """Return what the content of the file `path` says of itself.

    Raises:
        BackendError: nothing.
    """
    from ai_edge_litert.schema_py_generated import Model

    model = Model.GetRootAs(content, 0)
    entries = [model.Metadata(place) for place in range(model.MetadataLength())]
    found = {entry.Name().decode(): bytes(model.Buffers(entry.Buffer()).DataAsNumpy()) for entry in entries}
    return Metadata.from_json(found.get(METADATA_KEY, b"").decode(), path)


def paddings(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the names of what a constant pads: of the padded tensor, and of the tensor in it."""
    from ai_edge_litert.tools import flatbuffer_utils

    graph = flatbuffer_utils.read_model_from_bytearray(content)
    for kind, operator in _operators(graph):
        if kind == "PADV2":
            padded, source = (
                graph.subgraphs[0].tensors[n] for n in (operator.outputs[0], operator.inputs[0])
            )
            yield padded.name.decode(), source.name.decode()


def _free_batch(graph: Any) -> None:
    """Let slices and reshapes take whatever batch comes: the converter writes the 1 it saw into them.

    Such a slice would go on with the first example alone, and say nothing.
    """
    for kind, operator in _operators(graph):
        if kind not in ("STRIDED_SLICE", "SLICE", "RESHAPE"):
            continue
        constants = [_integers(graph, number) for number in operator.inputs[1:]]
        first = [values[0] if values else None for values in constants]
        if kind == "STRIDED_SLICE" and first == [0, 1, 1]:
            operator.builtinOptions.beginMask |= 1
            operator.builtinOptions.endMask |= 1
        elif kind == "SLICE" and first == [0, 1]:
            operator.inputs[2] = _add_integers(graph, [-1, *constants[1][1:]])
        elif kind == "RESHAPE" and first == [1] and -1 not in constants[0]:
            operator.inputs[1] = _add_integers(graph, [-1, *constants[0][1:]])
            operator.builtinOptions = None  # where the shape may stand as well


def _name_tensors(graph: Any, metadata: Metadata) -> None:
    """Name tensors after what computes them; the converter's names tell of the program that called it."""
    net = graph.subgraphs[0]
    for number, tensor in enumerate(net.tensors):
        tensor.name = f"constant_{number}"
    for number, (kind, operator) in enumerate(_operators(graph)):
        for output in operator.outputs:
            name = PIXELS if _is_pixels(graph, kind, operator) else f"{kind.lower()}_{number}"
            net.tensors[output].name = name
    call = graph.signatureDefs[0]
    for entries, specs in (
        (call.inputs, metadata.signature.inputs),
        (call.outputs, metadata.signature.outputs),
    ):
        for entry, spec in zip(entries, specs, strict=True):
            entry.name = net.tensors[entry.tensorIndex].name = spec.name


def _name_layers(graph: Any, model: nn.Module) -> list[str]:
    """Name what layers compute after the modules whose weights they have, and return these names."""
    net = graph.subgraphs[0]
    modules: dict[bytes, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim in (2, 4):
            # Convolutions are (out, H, W, in) there, depthwise ones (1, H, W, out).
            order = (0, 1) if weight.ndim == 2 else (1, 2, 3, 0) if weight.shape[1] == 1 else (0, 2, 3, 1)
            data = weight.detach().permute(order).contiguous().numpy().tobytes()
            modules.setdefault(data, []).append(name)
    named = []
    for kind, operator in _operators(graph):
        weights = _data(graph, operator.inputs[1]) if kind in _LAYERS else b""
        if names := modules.get(weights):
            named.append(names.pop(0))
            net.tensors[operator.outputs[0]].name = named[-1]
    return named


def _take_integers(graph: Any) -> None:
    """Give pixels to the integer layers as they are, `pixel - 128` with the scale 1, not by way of floats."""
    from ai_edge_litert.tools.flatbuffer_utils import QuantizationParametersT

    net = graph.subgraphs[0]
    for cast in [operator for kind, operator in _operators(graph) if _is_pixels(graph, kind, operator)]:
        readers = [pair for pair in _operators(graph) if cast.outputs[0] in pair[1].inputs]
        if [kind for kind, _ in readers] == ["QUANTIZE"]:
            readers[0][1].inputs = cast.inputs
            net.operators.remove(cast)
            for number in (*net.inputs, *cast.inputs):
                exact = QuantizationParametersT()
                exact.scale, exact.zeroPoint = [1.0], [0]
                net.tensors[number].quantization = exact


def _is_pixels(graph: Any, kind: str, operator: Any) -> bool:
    """Return whether an operator turns pixels into numbers to compute with."""
    from ai_edge_litert.tools.flatbuffer_utils import TensorType

    return kind == "CAST" and graph.subgraphs[0].tensors[operator.inputs[0]].type == TensorType.UINT8


def _operators(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the kind of each operator of the network, and the operator."""
    from ai_edge_litert.tools import flatbuffer_utils

    kinds = {n: kind for kind, n in vars(flatbuffer_utils.BuiltinOperator).items() if isinstance(n, int)}
    for operator in graph.subgraphs[0].operators:
        code = graph.operatorCodes[operator.opcodeIndex]
        yield kinds[flatbuffer_utils.get_builtin_code_from_operator_code(code)], operator


def _data(graph: Any, number: int) -> bytes:
    """Return what a constant tensor holds; nothing of one that is computed."""
    data = graph.buffers[graph.subgraphs[0].tensors[number].buffer].data
    return b"" if data is None else bytes(data)


def _integers(graph: Any, number: int) -> list[int]:
    """Return the whole numbers of a constant tensor."""
    return [int(value) for value in np.frombuffer(_data(graph, number), "<i4")]


def _add_integers(graph: Any, values: list[int]) -> int:
    """Add a constant tensor of whole numbers and return its number."""
    from ai_edge_litert.tools.flatbuffer_utils import TensorT, TensorType

    tensor = TensorT()
    tensor.name, tensor.type, tensor.shape = f"shape_{len(graph.buffers)}", TensorType.INT32, [len(values)]
    tensor.buffer = _add_buffer(graph, np.array(values, "<i4").tobytes())
    graph.subgraphs[0].tensors.append(tensor)
    return len(graph.subgraphs[0].tensors) - 1


def _add_buffer(graph: Any, data: bytes) -> int:
    from ai_edge_litert.tools.flatbuffer_utils import BufferT

    buffer = BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    graph.buffers.append(buffer)
    return len(graph.buffers) - 1
