"""Messages of gRPC to and from what the service understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from reskit.serving.faults import BadRequestError
from reskit.serving.protocol import (
    DATATYPES,
    InferRequest,
    InferResponse,
    Output,
    bytes_tensor,
    datatype,
    from_raw,
    wanted_of,
)

__all__ = ["filled", "read_request", "value_of", "write_response"]

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def filled(kind: type[Message], values: Mapping[str, Any]) -> Any:
    """Return a message with the values that REST has as JSON."""
    return ParseDict(values, kind())


def value_of(parameter: Any) -> Any:
    """Return what a parameter holds, or None."""
    which = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, which) if which else None


def read_request(request: Any, seconds: float | None) -> InferRequest:
    """Read a request.

    Raises:
        BadRequestError: sizes do not agree, or something is asked for that is not offered.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequestError(f"{len(request.inputs)} inputs, but the raw contents of {len(raw)}")
    if not request.inputs:
        raise BadRequestError("the request has no inputs")
    inputs: dict[str, np.ndarray] = {}
    for place, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise BadRequestError(f"input {tensor.name!r} is there twice")
        if "shared_memory_region" in tensor.parameters:
            raise BadRequestError("shared memory is not offered: send the bytes of the tensors")
        shape = list(tensor.shape)
        if len(shape) > 8 or any(side < 0 for side in shape):
            raise BadRequestError(f"input {tensor.name!r} has shape {shape[:8]}")
        if raw:
            inputs[tensor.name] = from_raw(tensor.name, tensor.datatype, shape, raw[place])
        else:
            inputs[tensor.name] = _from_contents(tensor, shape)
    timeout = value_of(request.parameters["timeout"]) if "timeout" in request.parameters else None
    if timeout is not None and not isinstance(timeout, int):
        raise BadRequestError(f"timeout is {timeout!r}, expected whole microseconds")
    limits = [limit for limit in (seconds, timeout / 1e6 if timeout else None) if limit is not None]
    return InferRequest(
        inputs=inputs,
        id=request.id,
        wanted=[
            wanted_of(output.name, {key: value_of(value) for key, value in output.parameters.items()}, True)
            for output in request.outputs
        ],
        binary=True,
        timeout_s=min(limits, default=None),
    )


def _from_contents(tensor: Any, shape: list[int]) -> np.ndarray:
    """Return the array of typed contents.

    Raises:
        BadRequestError: they are not there, too few or too many, or go beyond the datatype.
    """
    name, kind = tensor.name, tensor.datatype
    if kind not in _CONTENTS:
        raise BadRequestError(
            f"input {name!r}: datatype {kind[:40]!r} is not taken as contents: send raw ones"
        )
    values = np.array(getattr(tensor.contents, _CONTENTS[kind]))
    dtype = np.dtype(DATATYPES[kind])
    array = values.astype(dtype)
    if dtype.kind in "ui" and not np.array_equal(array, values):
        raise BadRequestError(f"input {name!r}: its contents go beyond {kind}")
    return from_raw(name, kind, shape, array.tobytes())


def write_response(response: InferResponse) -> Any:
    """Return the message of an answer; outputs are raw, as Triton sends them."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for output in response.outputs:
        array = output.array
        message.outputs.add(name=output.name, datatype=datatype(array.dtype), shape=array.shape)
        message.raw_output_contents.append(_raw(output))
    return message


def _raw(output: Output) -> bytes:
    return bytes_tensor(output.array) if output.array.dtype.kind == "U" else output.array.tobytes()
