"""REST: the Open Inference Protocol, Triton's extensions of it, and a door for people."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import reskit
from reskit.serving import describing
from reskit.serving.bodies import Bodies, compress, uploads_of
from reskit.serving.faults import BadRequestError, ServingError, headers_of
from reskit.serving.openapi import answers, describe_errors, health
from reskit.serving.page import add_page, credentials_of, is_of_page, sign_in_page
from reskit.serving.platforms.instances import LENGTH, document_of, instances_of, sent_of
from reskit.serving.platforms.routes import add_platform, open_routes
from reskit.serving.protocol import InferBody, infer_request, infer_response
from reskit.serving.records import Record, note_failure
from reskit.serving.service import Service

__all__ = ["make_app"]

_LOG = logging.getLogger("reskit.serving")
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Asked without a token: by what keeps the process running."""
_QUIET = _OPEN | {"/metrics", "/page/live"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def make_app(service: Service) -> FastAPI:
    """Return the application that answers for a service."""
    app = FastAPI(
        title="reskit",
        version=reskit.__version__,
        description="Residual networks by the Open Inference Protocol, version 2, and by upload.",
        docs_url=None,  # the page has its own, which asks no other host
        redoc_url=None,
    )
    app.add_middleware(_Door, service=service)
    _handle_errors(app, service)
    add_platform(app, service)  # first: its routes may be any, as the environment says
    _add_health(app, service)
    _add_models(app, service)
    _add_repository(app, service)
    bodies = Bodies(service.settings)
    _add_inference(app, service, bodies)
    add_page(app, service, bodies)
    describe_errors(app)
    return app


class _Door:
    """Gives every request an id, and lets in who may ask.

    Args:
        app: what is behind it.
        service: knows the tokens.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._open = _OPEN | open_routes(service.settings.platform)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
                record.ended_with(message["status"])
            await send(message)

        with self._service.recorder.record(
            Record.of_http(scope, name, quiet=scope["path"] in _QUIET)
        ) as record:
            given = None if path in self._open else credentials_of(path, headers)
            if given is not None:
                try:
                    self._service.tokens.check(given)
                except ServingError as error:
                    await _closed(self._service, error, path, headers, given)(scope, receive, send_named)
                    return
            await self._app(scope, receive, send_named)


def _closed(
    service: Service, error: ServingError, path: str, headers: Mapping[bytes, bytes], given: str
) -> Response:
    """Return what a program, or a person at the page, is told who may not ask."""
    if not is_of_page(path):
        return _refusal(service, error)
    if given:
        service.metrics.failed(error.kind)
        note_failure(error.kind, error.status)
    return sign_in_page(given=bool(given), fragment=b"hx-request" in headers)


def _handle_errors(app: FastAPI, service: Service) -> None:
    """Answer every error as the protocol does: an object with `error`."""

    @app.exception_handler(ServingError)
    async def refused(_: Request, error: ServingError) -> Response:
        return _refusal(service, error)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return _refusal(service, BadRequestError(f"{where}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        name = request.scope["state"].get("request_id", "")
        _LOG.error("request %s failed", name, exc_info=error)
        service.metrics.failed("internal")
        return JSONResponse({"error": f"a bug in reskit; the log says more of request {name}"}, 500)


def _refusal(service: Service, error: ServingError) -> Response:
    service.metrics.failed(error.kind)
    note_failure(error.kind, error.status)
    return JSONResponse({"error": str(error)}, error.status, headers_of(error))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/v2/health/live", tags=["health"], responses=health(live="boolean"))
    async def live() -> Response:
        """Whether the process is worth keeping."""
        alive = service.live()
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @app.get("/v2/health/ready", tags=["health"], responses=health(ready="boolean"))
    async def ready() -> Response:
        """Whether every model answers and the service is not about to stop."""
        good = service.ready()
        return JSONResponse({"ready": good}, 200 if good else 503)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v2", tags=["models"])
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the service."""
        return describing.server_metadata()

    @app.get("/v2/models/stats", tags=["models"])
    async def all_statistics() -> dict[str, Any]:
        """Counts and times of all models."""
        return service.statistics("", "")

    @_versioned(app, "", tags=["models"])
    async def metadata(name: str, version: str = "") -> dict[str, Any]:
        """Inputs and outputs of a model."""
        return service.metadata(name, version)

    @_versioned(app, "/ready", tags=["models"], responses=health(name="string", ready="boolean"))
    async def ready(name: str, version: str = "") -> Response:
        """Whether a model answers."""
        good = service.models.get(name, version).ready
        return JSONResponse({"name": name, "ready": good}, 200 if good else 503)

    @_versioned(app, "/config", tags=["models"])
    async def config(name: str, version: str = "") -> dict[str, Any]:
        """Triton's config of a model."""
        return service.config(name, version)

    @_versioned(app, "/stats", tags=["models"])
    async def statistics(name: str, version: str = "") -> dict[str, Any]:
        """Counts and times of a model since it was loaded."""
        return service.statistics(name, version)


def _versioned(app: FastAPI, suffix: str, **settings: Any) -> Callable[..., Any]:
    """Return a decorator that answers for a model with and without a version in the URL."""

    def decorate(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        for place in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            method = settings.get("methods", ["GET"])
            app.add_api_route(f"{place}{suffix}", function, **{**settings, "methods": method})
        return function

    return decorate


def _add_repository(app: FastAPI, service: Service) -> None:
    bodies = Bodies(service.settings)

    async def document(request: Request) -> dict[str, Any]:
        async with bodies.read(request) as body:
            return document_of(body) if body else {}

    @app.post("/v2/repository/index", tags=["repository"])
    async def index(request: Request) -> list[dict[str, str]]:
        """The models in the folders named at the start, and whether they are loaded."""
        ready = (await document(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise BadRequestError("ready must be true or false")
        return service.index(ready)

    @app.post("/v2/repository/models/{name}/load", tags=["repository"], response_class=Response)
    async def load(name: str, request: Request) -> Response:
        """Load a model, or load it again, from the folders named at the start."""
        parameters = (await document(request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise BadRequestError("parameters must be a JSON object")
        await service.load(name, parameters)
        return Response()

    @app.post("/v2/repository/models/{name}/unload", tags=["repository"], response_class=Response)
    async def unload(name: str, request: Request) -> Response:
        """Unload a model; what it was asked before is answered."""
        await document(request)
        await service.deployer.unload(name)
        return Response()


def _add_inference(app: FastAPI, service: Service, bodies: Bodies) -> None:
    @_versioned(
        app,
        "/infer",
        tags=["inference"],
        methods=["POST"],
        openapi_extra=_body_of(InferBody),
        responses=answers({"model_name": "string", "outputs": "array"}, "application/octet-stream"),
    )
    async def infer(request: Request, name: str, version: str = "") -> Response:
        """Ask a model: tensors in JSON, or behind it in bytes (the binary tensor data extension)."""
        async with bodies.read(request) as body:
            asked = infer_request(body, request.headers.get(LENGTH))
            answered, length = infer_response(await service.infer(name, version, asked, "rest"))
        headers = {}
        if length is not None:
            headers[LENGTH] = str(length)
        answered, encoding = compress(answered, request.headers.get("accept-encoding", ""))
        if encoding is not None:
            headers["content-encoding"] = encoding
        kind = "application/json" if length is None else "application/octet-stream"
        return Response(answered, media_type=kind, headers=headers)

    @app.post(
        "/v1/predict",
        tags=["inference"],
        openapi_extra=_UPLOAD,
        responses=answers({"model": "string", "version": "string", "predictions": "array"}),
    )
    async def predict(
        request: Request, model: str = "", version: str = "", pictures: bool = False
    ) -> Response:
        """Ask a model about images, recordings, texts or rows: labels, or whatever its task answers."""
        async with bodies.read(request) as body:
            if request.headers.get("content-type", "").lower().startswith("application/json"):
                sent = sent_of(instances_of(document_of(body)))
            else:
                sent = await uploads_of(body, request.headers)
            answer = await service.predict(model, version, sent, pictures=pictures)
        return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


def _body_of(model: Any) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(definitions[value["$ref"].rpartition("/")[2]])
            return {key: inlined(item) for key, item in value.items()}
        return [inlined(item) for item in value] if isinstance(value, list) else value

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}


_FILE = {"type": "string", "format": "binary"}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
            },
            "image/*": {"schema": _FILE},
            "audio/*": {"schema": _FILE},
            "text/plain": {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {"instances": {"type": "array", "minItems": 1, "items": {}}},
                }
            },
        },
    }
}
