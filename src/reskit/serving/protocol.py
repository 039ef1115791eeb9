"""The Open Inference Protocol, version 2, between its documents and arrays; REST and gRPC share it.

Source: the KServe project, *Open Inference Protocol*; NVIDIA Triton Inference Server, its extensions *Binary
tensor data*, *Classification* and *Statistics*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from reskit.serving.faults import BadRequestError, EngineError

__all__ = [
    "DATATYPES",
    "InferBody",
    "InferRequest",
    "InferResponse",
    "InputBody",
    "Output",
    "Wanted",
    "array_of",
    "bytes_tensor",
    "classified",
    "datatype",
    "from_raw",
    "infer_request",
    "infer_response",
    "wanted_of",
]

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

Dimension = Annotated[int, Field(ge=0)]
Shape = Annotated[list[Dimension], Field(max_length=8)]


def datatype(dtype: Any) -> str:
    """Return what the protocol calls a NumPy dtype; BYTES what holds text."""
    return _NAMES.get(str(dtype), "BYTES")


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class InputBody(_Document):
    """A tensor that goes in; without `data` its bytes follow the JSON."""

    name: str
    shape: Shape
    datatype: Annotated[str, Field(json_schema_extra={"enum": list(DATATYPES)})]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputBody(_Document):
    """A tensor that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferBody(_Document):
    """The JSON of a request."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputBody], Field(min_length=1)]
    outputs: list[OutputBody] = []


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One output as the client wants it: in bytes or JSON, whole or as its `classes` largest values."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A request, whatever protocol it came by."""

    inputs: dict[str, np.ndarray]
    id: str = ""
    wanted: Sequence[Wanted] = ()
    binary: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One output, as it was wanted."""

    name: str
    array: np.ndarray
    binary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class InferResponse:
    """An answer, whatever protocol it goes by."""

    model: str
    version: str
    id: str
    outputs: list[Output] = field(default_factory=list)


def infer_request(body: bytes, header: str | None) -> InferRequest:
    """Read a request of REST.

    Args:
        body: JSON, and behind it the bytes of inputs.
        header: ``Inference-Header-Content-Length``: how many bytes of it are JSON; all when absent.

    Raises:
        BadRequestError: it is malformed, or sizes do not agree.
    """
    length = len(body)
    if header is not None:
        if not header.isdecimal() or int(header[:18]) > len(body):
            raise BadRequestError(
                f"Inference-Header-Content-Length is {header[:40]!r}, the body has {len(body)} bytes"
            )
        length = int(header)
    view = memoryview(body)
    try:
        document = InferBody.model_validate_json(body if length == len(body) else bytes(view[:length]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise BadRequestError(f"the request is malformed: {where}: {first['msg']}") from None
    inputs: dict[str, np.ndarray] = {}
    start = length
    for tensor in document.inputs:
        if tensor.name in inputs:
            raise BadRequestError(f"input {tensor.name!r} is there twice")
        if "shared_memory_region" in tensor.parameters:
            raise BadRequestError("shared memory is not offered: send the bytes of the tensors")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            inputs[tensor.name] = array_of(tensor)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - start:
            raise BadRequestError(
                f"input {tensor.name!r}: binary_data_size is {size!r}, {len(body) - start} bytes are left"
            )
        if tensor.data is not None:
            raise BadRequestError(f"input {tensor.name!r} has both data and binary_data_size")
        inputs[tensor.name] = from_raw(tensor.name, tensor.datatype, tensor.shape, view[start : start + size])
        start += size
    if start != len(body):
        raise BadRequestError(f"{len(body) - start} bytes at the end of the body belong to no input")
    binary = document.parameters.get("binary_data_output") is True
    return InferRequest(
        inputs=inputs,
        id=document.id,
        wanted=[wanted_of(output.name, output.parameters, binary) for output in document.outputs],
        binary=binary,
        timeout_s=_timeout(document.parameters),
    )


def infer_response(response: InferResponse) -> tuple[bytes, int | None]:
    """Return the body of REST, and how many bytes of it are JSON if others follow.

    Raises:
        EngineError: a number cannot be written as JSON.
    """
    outputs, raw = [], []
    for output in response.outputs:
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": datatype(output.array.dtype),
            "shape": list(output.array.shape),
        }
        if output.binary:
            data = bytes_tensor(output.array) if output.array.dtype.kind == "U" else output.array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            if output.array.dtype.kind == "f" and not np.isfinite(output.array).all():
                raise EngineError(
                    f"output {output.name!r} is not finite, which JSON cannot say: ask for binary data"
                )
            tensor["data"] = output.array.reshape(-1).tolist()
        outputs.append(tensor)
    document = {
        "model_name": response.model,
        "model_version": response.version,
        **({"id": response.id} if response.id else {}),
        "outputs": outputs,
    }
    text = to_json(document)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def array_of(tensor: InputBody) -> np.ndarray:
    """Return the array of a tensor's `data`, flat or nested; no number is rounded or cut off.

    Raises:
        BadRequestError: it has no data, or not that of its shape and datatype.
    """
    name, dtype = tensor.name, _dtype(tensor.name, tensor.datatype)
    if tensor.data is None:
        raise BadRequestError(f"input {name!r} has neither data nor binary_data_size")
    try:
        array = np.asarray(tensor.data)
    except (ValueError, OverflowError, RecursionError):
        raise BadRequestError(f"input {name!r}: its data is no regular array of numbers") from None
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if array.dtype.kind not in kinds and array.size:
        raise BadRequestError(f"input {name!r}: its data is not all {tensor.datatype}")
    if array.size != math.prod(tensor.shape) or (array.ndim > 1 and list(array.shape) != tensor.shape):
        raise BadRequestError(f"input {name!r}: its data has shape {list(array.shape)}, not {tensor.shape}")
    if dtype.kind in "ui" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise BadRequestError(f"input {name!r}: its data goes beyond {tensor.datatype}")
    return array.astype(dtype).reshape(tensor.shape)


def from_raw(name: str, kind: str, shape: Sequence[int], data: memoryview | bytes) -> np.ndarray:
    """Return the array that bytes hold: little-endian, row by row; they are not copied.

    Raises:
        BadRequestError: an unknown datatype, or the bytes are not as many as the shape says.
    """
    dtype = _dtype(name, kind)
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise BadRequestError(
            f"input {name!r}: {kind} {list(shape)} has {wanted} bytes, {len(data)} were sent"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def wanted_of(name: str, parameters: Mapping[str, Any], binary: bool) -> Wanted:
    """Return what the parameters of an output ask for.

    Raises:
        BadRequestError: they ask for what is not offered.
    """
    if "shared_memory_region" in parameters:
        raise BadRequestError("shared memory is not offered: receive the bytes of the tensors")
    classes = parameters.get("classification", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise BadRequestError(f"output {name!r}: classification is {classes!r}, expected a number of classes")
    return Wanted(name=name, binary=parameters.get("binary_data", binary) is True, classes=classes)


def classified(name: str, array: np.ndarray, classes: int, labels: Sequence[str]) -> np.ndarray:
    """Return the largest values of each row as text, ``value:index:label``; `(N, min(classes, C))`.

    Raises:
        BadRequestError: the output is not one row of values an example.
    """
    if array.ndim != 2:
        raise BadRequestError(f"output {name!r} has shape {array.shape}: only rows of values have classes")
    order = np.argsort(-array, axis=1, kind="stable")[:, :classes]
    named = len(labels) == array.shape[1]
    rows = [
        [f"{row[place]:f}:{place}{f':{labels[place]}' if named else ''}" for place in places]
        for row, places in zip(array, order, strict=True)
    ]
    return np.array(rows)


def bytes_tensor(array: np.ndarray) -> bytes:
    """Return texts as the protocol sends them: each with its length before it, 4 bytes, little-endian."""
    encoded = [text.encode() for text in array.reshape(-1).tolist()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _dtype(name: str, kind: str) -> np.dtype[Any]:
    if kind not in DATATYPES:
        raise BadRequestError(
            f"input {name!r}: datatype {kind[:40]!r} is not taken; known: {', '.join(DATATYPES)}"
        )
    return np.dtype(DATATYPES[kind])


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return the seconds of the parameter `timeout`, which is in microseconds."""
    value = parameters.get("timeout")
    if value is None or value == 0:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequestError(f"timeout is {value!r}, expected whole microseconds")
    return value / 1e6
