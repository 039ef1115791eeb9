"""What `/openapi.json` says of answers, their documents and every error, and `/docs` shows to people."""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

__all__ = ["ERRORS", "answers", "describe_errors", "health", "operations"]

ERRORS = {
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
                    for status, description in ERRORS.items():
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


def operations(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the operations of a description, by their first tag, in the words that people are shown.

    Each has `method`, `path`, `about`; `parameters` as the description has them; `bodies`, what may be sent;
    and `answers`, by status, without the errors that any operation may answer. Schemas are YAML.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            answered = {
                f"{status}, {answer['description']}".removesuffix(", Successful Response"): _contents(answer)
                for status, answer in said["responses"].items()
                if answer["description"] != ERRORS.get(int(status))
            }
            groups.setdefault(said["tags"][0], []).append(
                {
                    "method": method.upper(),
                    "path": path,
                    "about": said["description"],
                    "parameters": said.get("parameters", []),
                    "bodies": _contents(said.get("requestBody", {})),
                    "answers": answered,
                }
            )
    return groups


def _contents(said: dict[str, Any]) -> dict[str, str]:
    """Return the schemas of a body by content type; empty where nothing is said of it."""
    return {
        kind: yaml.safe_dump(_untitled(held["schema"]), sort_keys=False) if held.get("schema") else ""
        for kind, held in said.get("content", {}).items()
    }


def _untitled(schema: Any) -> Any:
    """Return a schema without the titles that repeat its names."""
    if isinstance(schema, dict):
        named = isinstance(schema.get("title"), str)
        return {key: _untitled(value) for key, value in schema.items() if key != "title" or not named}
    return [_untitled(value) for value in schema] if isinstance(schema, list) else schema


def _object(required: dict[str, str]) -> dict[str, Any]:
    properties = {name: {"type": kind} for name, kind in required.items()}
    return {"type": "object", "required": list(required), "properties": properties}
