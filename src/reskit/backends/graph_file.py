"""A network as a file that cannot run code: its operators as JSON in the header of its weights.

What `torch.export.save` writes is no such file: `torch.export.load` unpickles, and its documentation says
never to give it data of unknown origin. Here weights are safetensors, and operators come from a short list.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reskit.backends.base import Metadata
from reskit.backends.onnx_graph import first_line
from reskit.backends.servable import Servable
from reskit.errors import BackendError

__all__ = ["checksum", "load_graph", "read_metadata", "save_graph", "trace"]

_METADATA, _GRAPH, _CHECKSUM = "reskit", "graph", "checksum"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int32, torch.int64)
}
_WORDS = frozenset({"constant"})  # of `pad`; other strings have no business in a network
_ATEN = (
    "__or__.Tensor adaptive_avg_pool2d.default adaptive_max_pool2d.default add.Tensor add_.Tensor"
    " amax.default avg_pool2d.default batch_norm.default cat.default clamp.default conv1d.default"
    " conv2d.default div.Tensor dropout.default elu.default elu_.default embedding.default"
    " flatten.using_ints ge.Scalar gt.Scalar hardsigmoid.default hardswish.default hardswish_.default"
    " hardtanh.default hardtanh_.default leaky_relu.default leaky_relu_.default linear.default lt.Scalar"
    " max_pool2d.default mean.dim minimum.default mul.Tensor narrow.default neg.default new_ones.default"
    " pad.default permute.default pixel_shuffle.default pixel_unshuffle.default prelu.default relu.default"
    " relu_.default reshape.default rsqrt.default sigmoid.default silu.default silu_.default slice.Tensor"
    " softmax.int stack.default sub.Tensor tanh.default to.dtype upsample_bilinear2d.vec"
    " upsample_nearest2d.vec view.default where.ScalarOther where.ScalarSelf"
)
_QUANTIZED = "dequantize_per_channel.default dequantize_per_tensor.default quantize_per_tensor.default"
_OPERATORS = frozenset(
    {
        "getitem",
        *(f"aten.{name}" for name in _ATEN.split()),
        *(f"quantized_decomposed.{name}" for name in _QUANTIZED.split()),
    }
)
_CHECKS = ("aten._assert_tensor_metadata.default",)  # what export writes and nobody needs


def trace(model: Servable, metadata: Metadata, *, strict: bool = False) -> fx.GraphModule:
    """Return the operators of a network, any batch size, in float32 or, between pixels and outputs, bf16.

    Args:
        model: the network; not altered.
        metadata: says the precision and the shape of the pixels.
        strict: whether Python is read instead of run, which notes the modules that operators come from.

    Raises:
        BackendError: the network does what depends on its data.
    """
    example = metadata.signature.inputs[0].zeros(2)
    batch = ({0: torch.export.Dim("batch")},)
    network = _in_bf16(model) if metadata.precision == "bf16" else model
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=batch, strict=strict)
    except Exception as error:  # export has no base class for what it cannot do
        raise BackendError(f"{metadata.model} cannot be exported: {first_line(error)}") from error
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    return graph


def save_graph(graph: fx.GraphModule, path: Path, metadata: Metadata) -> None:
    """Write a traced network to the file `path`.

    Raises:
        BackendError: it has an operator that is not on the list.
    """
    places: dict[fx.Node, dict[str, Any]] = {}
    steps: list[list[Any]] = []
    weights: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            places[node] = {"step": 0}
        elif node.op == "get_attr":
            weight: Tensor = operator.attrgetter(str(node.target))(graph)
            weights[str(node.target)] = weight.detach().clone(memory_format=torch.contiguous_format)
            places[node] = {"weight": node.target}
        elif node.op == "call_function" and str(node.target) not in _CHECKS:
            name = "getitem" if node.target is operator.getitem else str(node.target)
            if name not in _OPERATORS:
                raise BackendError(
                    f"{metadata.model} cannot be written for {metadata.backend}: it uses {name}"
                )
            steps.append([name, _packed(node.args, places), _packed(node.kwargs, places)])
            places[node] = {"step": len(steps)}
        elif node.op == "output":
            (answer,) = pytree.tree_leaves(node.args)
            steps.append(["output", [places[answer]], {}])
    text = json.dumps(steps)
    header = {_METADATA: metadata.to_json(), _GRAPH: text, _CHECKSUM: checksum(text, weights)}
    save_file(weights, path, metadata=header)


def read_metadata(path: Path, backend: str) -> Metadata:
    """Return what a file says of itself.

    Raises:
        BackendError: it is missing, damaged, not ours, or of another backend.
    """
    metadata = Metadata.from_json(_header(path).get(_METADATA), path)
    if metadata.backend != backend:
        raise BackendError(f"{path} was written for {metadata.backend}, not for {backend}")
    return metadata


def load_graph(path: Path, metadata: Metadata) -> fx.GraphModule:
    """Return the network in a file; its weights are buffers.

    Raises:
        BackendError: it is missing or damaged, or does not answer as its metadata says.
    """
    try:
        header, weights = _header(path), load_file(path)
        if header[_CHECKSUM] != checksum(header[_GRAPH], weights):
            raise ValueError("its checksum differs")
        graph = _built(json.loads(header[_GRAPH]), weights)
        _check_shapes(graph, metadata)
    except Exception as error:  # a graph out of nowhere may fail in any operator
        raise BackendError(f"{path} is damaged: {first_line(error)}; export it again") from error
    return graph


def checksum(graph: str, weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a graph and its weights, which safetensors does not keep."""
    digest = hashlib.sha256(graph.encode())
    for name in sorted(weights):
        digest.update(weights[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        raise BackendError(f"{path} is not there")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BackendError(f"{path} is not a readable safetensors file: {error}") from None


def _in_bf16(model: Servable) -> Servable:
    """Return a copy whose weights are bf16; the preprocessing stays float32.

    Autocast would convert every weight in every call: it forgets them when its context ends
    (aten/src/ATen/autocast_mode.cpp).
    """
    network = copy.deepcopy(model.model).bfloat16()
    return Servable(nn.Sequential(model.normalize, _ToBf16()), network).eval()


class _ToBf16(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16() if x.is_floating_point() else x  # indices stay what they are


def _packed(value: Any, places: Mapping[fx.Node, Mapping[str, Any]]) -> Any:
    """Return an argument as JSON: results, weights and types of numbers are objects of one key."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {name: _packed(item, places) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_packed(item, places) for item in value]
    return value


def _built(steps: Sequence[tuple[str, Any, Any]], weights: Mapping[str, Tensor]) -> fx.GraphModule:
    """Return the module of what `save_graph` wrote.

    Weights are numbered: compilers write their names into the code they make.
    """
    root, graph = nn.Module(), fx.Graph()
    results = [graph.placeholder("pixels")]
    places = {}
    for number, (name, weight) in enumerate(weights.items()):
        root.register_buffer(f"weight{number}", weight)
        places[name] = graph.get_attr(f"weight{number}")
    for name, args, kwargs in steps:
        arguments = [_unpacked(value, results, places) for value in args]
        if name == "output":
            graph.output(arguments[0])
            break
        named = {str(key): _unpacked(value, results, places) for key, value in kwargs.items()}
        results.append(graph.call_function(_operator(name), tuple(arguments), named))
    graph.lint()
    return fx.GraphModule(root, graph)


def _operator(name: str) -> Any:
    if name not in _OPERATORS:
        raise ValueError(f"unknown operator {name!r}")
    if name.startswith("quantized_decomposed."):
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers them
    return operator.getitem if name == "getitem" else operator.attrgetter(name)(torch.ops)


def _unpacked(value: Any, results: Sequence[fx.Node], weights: Mapping[str, fx.Node]) -> Any:
    """Return an argument as it was; the opposite of `_packed`."""
    if isinstance(value, list):
        return [_unpacked(item, results, weights) for item in value]
    if isinstance(value, dict):
        ((kind, key),) = value.items()
        known: Any = {"step": results, "weight": weights, "dtype": _DTYPES}[kind]
        return known[key]
    if isinstance(value, str) and value not in _WORDS:
        raise ValueError(f"unknown word {value!r}")
    return value


def _check_shapes(graph: fx.GraphModule, metadata: Metadata) -> None:
    """Run once and compare with the signature; on meta tensors this would take longer: they import Dynamo."""
    pixels, answer = metadata.signature.inputs[0], metadata.signature.outputs[0]
    with torch.inference_mode():
        found = graph(pixels.zeros(2))
    if tuple(found.shape[1:]) != answer.shape[1:] or found.dtype != torch.float32:
        raise ValueError(f"it gives {found.dtype} {tuple(found.shape)}, its metadata says {answer}")
