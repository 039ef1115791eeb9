"""What platforms send, and what they are told: instances in JSON are examples, or raw input."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json
from starlette.datastructures import Headers
from starlette.responses import Response

from reskit.backends.base import TensorSpec
from reskit.serving.bodies import uploads_of
from reskit.serving.faults import BadRequestError, EngineError
from reskit.serving.protocol import (
    InferRequest,
    InputBody,
    array_of,
    datatype,
    infer_request,
    infer_response,
)
from reskit.serving.service import Service
from reskit.serving.uploads import Sent

__all__ = ["LENGTH", "answer", "answer_instances", "document_of", "instances_of", "sent_of"]

LENGTH = "inference-header-content-length"
_MOST = 64
"""Examples in one request, as files in one form."""
_PARAMETERS = ("model", "pictures", "version")
_FORMS = (
    "an instance is {'b64': '...'} or {'image_bytes': {'b64': '...'}} with a file in base64, "
    "a text, the cells of a row by their columns' names, or raw input as nested lists"
)


async def answer(service: Service, name: str, body: bytes, headers: Headers) -> Response:
    """Answer a request whatever its content type: an example, a form, or JSON with instances or tensors.

    Args:
        service: what answers.
        name: of the model; that of the only one when empty.
        body: decompressed.
        headers: of the request.

    Raises:
        ServingError: it is refused, or could not be answered.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith(("image/", "audio/", "text/")) or kind in (
        "multipart/form-data",
        "application/x-image",
    ):
        return _json(await service.predict(name, "", await uploads_of(body, headers)))
    length = headers.get(LENGTH)
    if kind not in ("application/json", "application/octet-stream") or (
        kind == "application/octet-stream" and length is None
    ):
        raise BadRequestError(
            f"content-type {kind[:80]!r} is not taken: send image/*, audio/*, text/*, multipart/form-data, "
            "application/json, or application/octet-stream with Inference-Header-Content-Length"
        )
    if length is None and "inputs" not in (document := document_of(body)):
        return _json(await answer_instances(service, name, document))
    asked = infer_request(body, length)
    answered, size = infer_response(await service.infer(service.one(name), "", asked, "rest"))
    if size is None:
        return Response(answered, media_type="application/json")
    return Response(answered, media_type="application/octet-stream", headers={LENGTH: str(size)})


async def answer_instances(service: Service, name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Answer ``{"instances": [...], "parameters": {...}}`` with ``{"predictions": [...]}``, one an instance.

    Examples are answered as `/v1/predict` answers them, raw input with the network's outputs. The parameters
    may be `model`, `version` and `pictures`.

    Raises:
        ServingError: it is malformed, does not fit the model, or could not be answered.
    """
    instances, parameters = instances_of(document), document.get("parameters") or {}
    model, version, pictures = _parameters(parameters)
    if isinstance(instances[0], list):
        return {"predictions": await _outputs(service, service.one(name or model), version, instances)}
    sent = sent_of(instances)
    answered = await service.predict(name or model, version, sent, pictures=pictures)
    return {"predictions": answered["predictions"]}


def instances_of(document: dict[str, Any]) -> list[Any]:
    """Return the instances of a document.

    Raises:
        BadRequestError: there are none.
    """
    instances = document.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRequestError(f"'instances' must be a list that is not empty: {_FORMS}")
    return instances


def sent_of(instances: Sequence[Any]) -> list[Sent]:
    """Return examples that were sent in JSON.

    Raises:
        BadRequestError: there are too many, or one is not understood.
    """
    if len(instances) > _MOST:
        raise BadRequestError(f"{len(instances)} examples at once, {_MOST} is the most: send fewer")
    return [Sent(f"instances.{place}", _content(place, given)) for place, given in enumerate(instances)]


def document_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is.

    Raises:
        BadRequestError: it is none.
    """
    try:
        document = from_json(body)
    except ValueError as error:
        raise BadRequestError(f"the request is malformed: {error}") from None
    if not isinstance(document, dict):
        raise BadRequestError("the request must be a JSON object")
    return document


async def _outputs(service: Service, name: str, version: str, instances: Sequence[Any]) -> list[Any]:
    """Return the network's outputs for raw input, one an example."""
    (spec,) = service.models.get(name, version).predictor.signature.inputs
    request = InferRequest(inputs={spec.name: _raw(spec, instances)})
    outputs = (await service.infer(name, version, request, "rest")).outputs
    for output in outputs:
        if not np.isfinite(output.array).all():
            raise EngineError(f"output {output.name!r} is not finite, which JSON cannot say")
    if len(outputs) == 1:
        rows: list[Any] = outputs[0].array.tolist()
        return rows
    return [{one.name: one.array[row].tolist() for one in outputs} for row in range(len(instances))]


def _raw(spec: TensorSpec, instances: Sequence[Any]) -> np.ndarray:
    shape: list[int] = []
    inside: Any = instances
    while isinstance(inside, list) and len(shape) < 8:
        shape.append(len(inside))
        inside = inside[0] if inside else None
    return array_of(
        InputBody(name=spec.name, shape=shape, datatype=datatype(spec.dtype), data=list(instances))
    )


def _content(place: int, instance: Any) -> bytes | str | dict[str, Any]:
    if isinstance(instance, str):
        return instance
    if not isinstance(instance, dict) or not instance:
        raise BadRequestError(f"instances.{place} is not understood: {_FORMS}")
    given = instance.get("image_bytes", instance)
    if not isinstance(given, dict) or given.keys() != {"b64"}:
        return instance
    text = given["b64"]
    if not isinstance(text, str):
        raise BadRequestError(f"instances.{place} is not understood: {_FORMS}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequestError(f"instances.{place}: 'b64' is not base64") from None


def _parameters(given: Any) -> tuple[str, str, bool]:
    if not isinstance(given, dict):
        raise BadRequestError("'parameters' must be a JSON object")
    for key in given:
        if key not in _PARAMETERS:
            raise BadRequestError(f"unknown parameter {key[:80]!r}; known: {', '.join(_PARAMETERS)}")
    model, version, pictures = given.get("model", ""), given.get("version", ""), given.get("pictures", False)
    if not isinstance(model, str) or not isinstance(version, str) or not isinstance(pictures, bool):
        raise BadRequestError("'model' and 'version' are texts, 'pictures' is true or false")
    return model, version, pictures


def _json(document: Any) -> Response:
    return Response(to_json(document, inf_nan_mode="null"), media_type="application/json")
