"""Networks as ONNX, for all that read it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from reskit.backends.base import Metadata
from reskit.environment import fingerprint, on_x86
from reskit.errors import BackendError, did_you_mean

if TYPE_CHECKING:
    import onnx

    from reskit.backends.servable import Servable

__all__ = ["METADATA_KEY", "OPSET", "first_line", "int8_overflows", "layers", "quiet", "to_onnx"]

OPSET = 20
"""What the exporter writes without converting."""
METADATA_KEY = "reskit"

_LARGEST = 2**31 - 2**24
"""Bytes of weights for which one protocol buffer, of 2 GiB at most, has room beside the graph."""
_EXPORTED: WeakKeyDictionary[Servable, onnx.ModelProto] = WeakKeyDictionary()
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that int8 makes faster."""


def to_onnx(model: Servable, metadata: Metadata) -> onnx.ModelProto:
    """Return a network as a checked ONNX model with a dynamic batch.

    Nodes with parameters are named after their modules (`model.layer1.0.conv1`), so that what is said of a
    module can be said of a node. A network is exported once, however many files are made of it: it must not
    change in between.

    Raises:
        BackendError: an operator has no form in ONNX, or the network is too large for one file.
    """
    import onnx

    if model not in _EXPORTED:
        _EXPORTED[model] = _export(model, metadata)
    proto = onnx.ModelProto()
    proto.CopyFrom(_EXPORTED[model])
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    return proto


def layers(proto: onnx.ModelProto, modules: Sequence[str]) -> list[str]:
    """Return the names of the convolutions and products that are modules, or lie within them.

    Args:
        proto: what `to_onnx` gave.
        modules: names of modules of the network written.

    Raises:
        BackendError: there is none in a module.
    """
    known = [node.name for node in proto.graph.node if node.op_type in _LAYERS]
    found: list[str] = []
    for module in modules:
        own = [name for name in known if f"{name}.".startswith(f"{module}.")]
        if not own:
            raise BackendError(f"no layer of the network is named {module!r}{did_you_mean(module, known)}")
        found += own
    return found


def int8_overflows() -> bool:
    """Return whether products of int8 may overflow here, so that weights should be kept to 7 bits.

    x86 without VNNI adds two products of 8 bits in 16 and cuts off what does not fit. Source: ONNX Runtime,
    Quantize ONNX models, "When to use reduce-range"; NNCF, `OverflowFix`.
    """
    return on_x86() and not any("vnni" in flag for flag in fingerprint()["instructions"])


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _export(model: Servable, metadata: Metadata) -> onnx.ModelProto:
    """Return what `to_onnx` gives, but for the metadata."""
    import onnx
    import torch

    spec = metadata.signature.inputs[0]
    size = sum(value.nbytes for value in model.state_dict().values())
    if size > _LARGEST:
        raise BackendError(
            f"{metadata.model} has {size / 2**30:.1f} GiB of weights, one ONNX file holds 2 GiB at most"
        )
    try:
        with quiet("torch.onnx", "onnxscript", "torch.export"):
            program = torch.onnx.export(
                model,
                (spec.zeros(2),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name],
                output_names=[metadata.signature.outputs[0].name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # the exporter has no base class of its own for what it cannot do
        cause: BaseException = error
        while cause.__cause__ is not None:  # it wraps what failed in what was being done
            cause = cause.__cause__
        raise BackendError(f"{metadata.model} cannot be written as ONNX: {first_line(cause)}") from error
    assert program is not None
    proto = program.model_proto
    _name_nodes(proto)
    _forget_export(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Name nodes with parameters after the modules whose parameters they are."""
    parameters = {tensor.name for tensor in proto.graph.initializer if "." in tensor.name}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if len(node.input) > 1 and node.input[1] in parameters:
            name = node.input[1].removesuffix(".weight")
            if name not in taken:
                node.name = name
                taken.add(name)


def _forget_export(proto: onnx.ModelProto) -> None:
    """Drop what the exporter noted of its work: names and source lines of the program that called it."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep the progress and the advice of libraries to themselves; errors still raise.

    Args:
        loggers: names of those that speak up.
    """
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
