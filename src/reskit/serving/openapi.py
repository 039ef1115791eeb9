"""What `/openapi.json` says of answers: their documents, and every error with its status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

__all__ = ["answers", "describe_errors", "health"]

_ERRORS = {
    400: "malformed, or it does not fit the model",
    401: "no token, or an unknown one",
    404: "no such model or version",
    408: "the body did not arrive in time",
    413: "body, image or answer too large",
    500: "the network failed",
    503: "too much waits, with Retry-After; or the model is not loaded",
    504: "no answer in time",
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_METHODS = ("get", "post", "delete")


def describe_errors(app: FastAPI) -> None:
    """Add the errors to what an application says of itself, in place of FastAPI's own."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            for operations in app.openapi_schema["paths"].values():
                for operation in (operations[method] for method in _METHODS if method in operations):
                    operation["responses"].pop("422", None)
                    for status, description in _ERRORS.items():
                        content = {"application/json": {"schema": _ERROR}}
                        operation["responses"].setdefault(
                            str(status), {"description": description, "content": content}
                        )
            app.openapi_schema.pop("components", None)  # only those errors of FastAPI's own are in it
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def answers(required: dict[str, str], *kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer.

    Args:
        required: what the document holds, each with the type of JSON.
        *kinds: other content types that it may have.
    """
    document = {"application/json": {"schema": _object(required)}}
    return {200: {"content": {**document, **{kind: {} for kind in kinds}}}}


def health(**required: str) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer that is the same document whether all is well or not."""
    content = {"application/json": {"schema": _object(required)}}
    return {200: {"content": content}, 503: {"description": "not now", "content": content}}


def _object(required: dict[str, str]) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in required.items()}
    return {"type": "object", "required": list(required), "properties": properties}
