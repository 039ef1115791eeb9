"""The routes of a platform, mounted beside those of the protocol."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from reskit.serving.bodies import Bodies
from reskit.serving.faults import BadRequestError, TooLargeError
from reskit.serving.openapi import answers, health
from reskit.serving.platforms.environment import Platform
from reskit.serving.platforms.faults import AlreadyLoadedError, NoMemoryError, NotLoadedError
from reskit.serving.platforms.instances import answer, answer_instances, document_of
from reskit.serving.platforms.memory import check_memory, is_of_memory
from reskit.serving.service import Service

__all__ = ["add_platform", "open_routes"]

_VERTEX_BODY_MIB = 1.5
_VERTEX_ANSWER = 1_500_000
"""Bytes: Vertex AI passes on 1.5 MB at most, either way."""

_INSTANCES = {
    "type": "object",
    "required": ["instances"],
    "properties": {
        "instances": {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    {"type": "object", "required": ["b64"], "properties": {"b64": {"type": "string"}}},
                    {
                        "type": "object",
                        "required": ["image_bytes"],
                        "properties": {
                            "image_bytes": {
                                "type": "object",
                                "required": ["b64"],
                                "properties": {"b64": {"type": "string"}},
                            }
                        },
                    },
                    {"type": "array"},
                ]
            },
        },
        "parameters": {"type": "object"},
    },
}
_JSON = {"requestBody": {"required": True, "content": {"application/json": {"schema": _INSTANCES}}}}
_ANY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _INSTANCES},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


_PREDICTIONS = answers({"predictions": "array"})
_ANSWERS = answers({}, "application/octet-stream")


def open_routes(platform: Platform | None) -> frozenset[str]:
    """Return the paths that a platform asks without a token, to see whether the container is well."""
    if platform is None:
        return frozenset()
    return {
        "sagemaker": frozenset({"/ping"}),
        "vertex": frozenset({platform.health_route}),
        "azureml": frozenset(),
    }[platform.name]


def add_platform(app: FastAPI, service: Service) -> None:
    """Mount the routes of the platform that the settings name, if any."""
    platform = service.settings.platform
    if platform is None:
        return
    {"sagemaker": _add_sagemaker, "vertex": _add_vertex, "azureml": _add_azureml}[platform.name](
        app, service, platform
    )


def _ready(service: Service) -> Callable[..., Any]:
    async def ready() -> Response:
        """Whether every model answers and the service is not about to stop."""
        good = service.ready()
        return JSONResponse({"ready": good}, 200 if good else 503)

    return ready


def _add_sagemaker(app: FastAPI, service: Service, platform: Platform) -> None:
    bodies = Bodies(service.settings)
    app.get("/ping", tags=["sagemaker"], responses=health(ready="boolean"))(_ready(service))

    @app.post("/invocations", tags=["sagemaker"], openapi_extra=_ANY, responses=_ANSWERS)
    async def invocations(request: Request) -> Response:
        """Ask the model: an example, or JSON with instances or the protocol's tensors."""
        async with bodies.read(request) as body:
            return await answer(service, "", body, request.headers)

    if platform.multi_model:
        _add_models(app, service, bodies)


def _add_models(app: FastAPI, service: Service, bodies: Bodies) -> None:
    """Mount the routes by which SageMaker loads and unloads the models of a multi-model endpoint."""
    loading = asyncio.Lock()  # one at a time: two might each find the memory that one needs
    held = psutil.Process().memory_info().rss

    def described(name: str) -> dict[str, str]:
        if name not in service.models.adopted:
            raise NotLoadedError(f"model {name!r} is not loaded")
        return {"modelName": name, "modelUrl": str(service.models.adopted[name])}

    @app.get("/models", tags=["sagemaker"])
    async def models() -> dict[str, Any]:
        """The models that are loaded."""
        return {"models": [described(name) for name in sorted(service.models.adopted)]}

    @app.get("/models/{name}", tags=["sagemaker"])
    async def model(name: str) -> dict[str, str]:
        """One model, if it is loaded."""
        return described(name)

    @app.post("/models", tags=["sagemaker"], openapi_extra={"requestBody": _LOAD}, responses=_REFUSED)
    async def load(request: Request) -> dict[str, str]:
        """Load a model that lies in the folders named at the start, under the name that is given."""
        async with bodies.read(request) as body:
            name, url = _load_request(body)
        async with loading:
            if name in service.models.adopted:
                raise AlreadyLoadedError(f"model {name!r} is loaded already")
            place = _found(service.models.roots, url)
            await asyncio.to_thread(check_memory, place, engine=service.settings.engine, held=held)
            try:
                await service.adopt(name, place)
            except BadRequestError as error:
                if is_of_memory(error):
                    raise NoMemoryError(str(error)) from error
                raise
        return described(name)

    @app.delete("/models/{name}", tags=["sagemaker"], response_class=Response)
    async def unload(name: str) -> Response:
        """Unload a model; what it was asked before is answered."""
        described(name)
        await service.release(name)
        return Response()

    @app.post("/models/{name}/invoke", tags=["sagemaker"], openapi_extra=_ANY, responses=_ANSWERS)
    async def invoke(name: str, request: Request) -> Response:
        """Ask one of the models, as `/invocations` does."""
        async with bodies.read(request) as body:
            described(name)
            return await answer(service, name, body, request.headers)


_REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"description": "it is loaded already"},
    507: {"description": "there is too little memory"},
}
_LOAD = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["model_name", "url"],
                "properties": {"model_name": {"type": "string"}, "url": {"type": "string"}},
            }
        }
    },
}


def _load_request(body: bytes) -> tuple[str, str]:
    document = document_of(body)
    name, url = document.get("model_name"), document.get("url")
    if not isinstance(name, str) or not isinstance(url, str) or not name:
        raise BadRequestError("the request needs the texts 'model_name' and 'url'")
    return name, url


def _found(roots: list[Path], url: str) -> Path:
    """Return the bundle in the folders that a URL names.

    The URL is compared with what is there and never opened.

    Raises:
        BadRequestError: it names none of them.
    """
    wanted = os.path.normpath(url.removeprefix("file://"))
    for root in roots:
        for pattern in ("*", "*/model"):
            for place in sorted(root.glob(pattern)):
                if str(place) == wanted and (place / "config.json").is_file():
                    return place
    raise BadRequestError(f"url {url[:200]!r} is no bundle in the folders named at the start")


def _add_vertex(app: FastAPI, service: Service, platform: Platform) -> None:
    settings = service.settings
    most = min(settings.max_body_mib, _VERTEX_BODY_MIB)
    bodies = Bodies(settings.model_copy(update={"max_body_mib": most}))
    app.get(platform.health_route, tags=["vertex"], responses=health(ready="boolean"))(_ready(service))

    @app.post(platform.predict_route, tags=["vertex"], openapi_extra=_JSON, responses=_PREDICTIONS)
    async def predictions(request: Request) -> Response:
        """Answer instances, examples or raw input, with predictions."""
        async with bodies.read(request) as body:
            answered = await answer_instances(service, "", document_of(body))
        if platform.deployed_model_id is not None:
            answered["deployedModelId"] = platform.deployed_model_id
        text = to_json(answered, inf_nan_mode="null")
        if len(text) > _VERTEX_ANSWER:
            raise TooLargeError(
                f"the answer has {len(text):,} bytes, Vertex AI passes on {_VERTEX_ANSWER:,}: "
                "send fewer instances"
            )
        return Response(text, media_type="application/json")


def _add_azureml(app: FastAPI, service: Service, _: Platform) -> None:
    bodies = Bodies(service.settings)

    @app.post("/score", tags=["azureml"], openapi_extra=_ANY, responses=_ANSWERS)
    async def score(request: Request) -> Response:
        """Ask the model: an example, or JSON with instances or the protocol's tensors."""
        async with bodies.read(request) as body:
            return await answer(service, "", body, request.headers)
