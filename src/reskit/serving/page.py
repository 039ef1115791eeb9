"""The page at `/`: a person asks a model, and sees what the service does; `/docs` says how programs ask.

All of it is rendered here.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse

import reskit
from reskit.attribution import explains
from reskit.serving.bodies import Bodies, form_of
from reskit.serving.charts import HEIGHT, WIDTH, chart
from reskit.serving.faults import BadRequestError, ServingError, UnauthorizedError, headers_of
from reskit.serving.models import Model
from reskit.serving.openapi import ERRORS, operations
from reskit.serving.records import note_failure
from reskit.serving.service import Service
from reskit.serving.showing import shown
from reskit.serving.uploads import Sent
from reskit.watching.words import duration, rate, seconds

__all__ = ["add_page", "credentials_of", "is_of_page", "sign_in_page"]

_COOKIE = "reskit_token"
_STATIC = {"htmx.min.js": "text/javascript", "page.js": "text/javascript", "page.css": "text/css"}
_OPEN = frozenset({"/page/sign-in", "/page/sign-out", *(f"/page/static/{name}" for name in _STATIC)})
_FOLDER = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HTMX = {  # nothing that a page may not do by the policy above; answers that are errors are shown too
    "allowEval": False,
    "allowScriptTags": False,
    "includeIndicatorStyles": False,
    "selfRequestsOnly": True,
    "historyEnabled": False,
    "attributesToSettle": ["class", "width", "height"],  # a style would be inline
    "responseHandling": [{"code": ".*", "swap": True}],
}
_LONGEST_TOKEN = 4096
_WRITTEN = {"text": "what you wrote", "table": "what you wrote.csv"}
"""Names of what may be written into the form, by what a model takes."""
_NONE: Mapping[str, str] = {}


def is_of_page(path: str) -> bool:
    """Return whether a path is the page's, so that a browser asks and refusals are for people."""
    return path in ("/", "/docs") or path.startswith("/page/")


def credentials_of(path: str, headers: Mapping[bytes, bytes]) -> str | None:
    """Return what a request shows as its header ``Authorization``; None where none is needed.

    The page's own paths may show a cookie instead. Others may not: what a browser sends by itself must not
    load models.
    """
    if path in _OPEN:
        return None
    given = headers.get(b"authorization", b"").decode("latin-1")
    if given or not is_of_page(path):
        return given
    cookies = dict(
        part.strip().partition("=")[::2] for part in headers.get(b"cookie", b"").decode("latin-1").split(";")
    )
    try:
        token = base64.urlsafe_b64decode(cookies.get(_COOKIE, "")).decode()
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {token}" if token else ""


def sign_in_page(*, given: bool, fragment: bool = False) -> Response:
    """Return the page that asks for a token.

    Args:
        given: whether one was given, which is not known.
        fragment: whether it is for a part of a page that was open already.
    """
    refused = "This token is not known here." if given else ""
    if fragment:
        return _html(Markup('<p class="error">Signed out. <a href="/">Sign in again</a></p>'), 401)
    return _html(_render("sign_in.html", refused=refused, signed_in=False, asked=True), 401)


def add_page(app: FastAPI, service: Service, bodies: Bodies) -> None:
    """Add the page to an application, behind its door."""
    _add_sign_in(app, service, bodies)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _whole(service)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        asked, groups = service.tokens.asked, operations(app.openapi())
        return _html(_render("docs.html", groups=groups, errors=ERRORS, signed_in=asked, asked=asked))

    @app.get("/page/form", include_in_schema=False)
    async def form(model: str = "") -> Response:
        return _html(_render("form.html", **_choice(service, model)))

    @app.get("/page/live", include_in_schema=False)
    async def live() -> Response:
        return _html(_render("live.html", **_state(service)))

    @app.get("/page/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in _STATIC:
            return _html(Markup("no such file"), 404)
        body, tag = _file(name)
        headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=_STATIC[name], headers=headers)

    @app.post("/page/predict", include_in_schema=False)
    async def predict(request: Request) -> Response:
        model, explain, status, headers = "", False, 200, {}
        try:
            _check_origin(request)
            async with bodies.read(request) as body:
                given, files = await form_of(body, request.headers)
                fields = dict(given)
                model, explain = fields.get("model", ""), fields.get("explain") == "yes"
                sent = _sent(service, model, fields, files)
                result = _render(
                    "result.html", error="", **await shown(service, model, sent, explain=explain)
                )
        except ServingError as error:
            service.metrics.failed(error.kind)
            note_failure(error.kind, error.status)
            result, status, headers = (
                _render("result.html", error=str(error)),
                error.status,
                headers_of(error),
            )
        if request.headers.get("hx-request") == "true":
            return _html(result, status, headers)
        return _whole(service, model, result=result, explain=explain, status=status, headers=headers)


def _sent(
    service: Service, model: str, fields: Mapping[str, str], files: Sequence[tuple[str, bytes]]
) -> Sent:
    """Return what a form asks about: its one file, else what was written into it.

    Raises:
        BadRequestError: it is neither.
    """
    given = [Sent(*file) for file in files if file[1]]
    takes = service.models.get(service.one(model), "").predictor.bundle.task.takes
    if not given and takes in _WRITTEN and fields.get("text", "").strip():
        return Sent(_WRITTEN[takes], fields["text"])
    if len(given) != 1:
        raise BadRequestError(
            "write something, or choose one file" if takes in _WRITTEN else "choose one file"
        )
    return given[0]


def _add_sign_in(app: FastAPI, service: Service, bodies: Bodies) -> None:
    secure = service.settings.tls_cert is not None

    @app.post("/page/sign-in", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        _check_origin(request)
        async with bodies.read(request) as body:
            token = parse_qs(body[:_LONGEST_TOKEN].decode("latin-1")).get("token", [""])[0].strip()
        try:
            service.tokens.check(f"Bearer {token}")
        except UnauthorizedError as error:
            service.metrics.failed(error.kind)
            return sign_in_page(given=True)
        reply = RedirectResponse("/", 303, headers=_HEADERS)
        kept = base64.urlsafe_b64encode(token.encode()).decode()
        reply.set_cookie(_COOKIE, kept, path="/", httponly=True, samesite="strict", secure=secure)
        return reply

    @app.post("/page/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        _check_origin(request)
        reply = RedirectResponse("/", 303, headers=_HEADERS)
        reply.delete_cookie(_COOKIE, path="/", httponly=True, samesite="strict", secure=secure)
        return reply


def _check_origin(request: Request) -> None:
    """Refuse what another site's page makes a browser send.

    Raises:
        BadRequestError: it does.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise BadRequestError("this form is answered to the page of this service only")


def _whole(
    service: Service,
    chosen: str = "",
    *,
    result: str = "",
    explain: bool = False,
    status: int = 200,
    headers: Mapping[str, str] = _NONE,
) -> Response:
    values = {**_choice(service, chosen), **_state(service), "explain": explain, "result": result}
    asked = service.tokens.asked
    return _html(_render("page.html", **values, signed_in=asked, asked=asked), status, headers)


def _choice(service: Service, name: str) -> dict[str, Any]:
    """Return the models to choose from, the newest version of each, and which is chosen."""
    newest: dict[str, Model] = {model.name: model for model in service.models.models}
    models = [service.models.get(known) for known in sorted(newest)]
    chosen = next((model for model in models if model.name == name), models[0] if models else None)
    can = chosen is not None and explains(chosen.predictor.bundle)
    most = f"{service.settings.max_body_mib:g} MiB"
    return {"models": models, "chosen": chosen, "explains": can, "explain": False, "most": most}


def _state(service: Service) -> dict[str, Any]:
    """Return what the part of the page shows that is fetched again and again."""
    loaded = {(model.name, model.version): model for model in service.models.models}
    rows = []
    for row in service.index(ready=False):
        model = loaded.get((row["name"], row["version"]))
        healthy = model is None or model.ready
        rows.append(
            {
                "name": row["name"],
                "version": row["version"],
                "state": row["state"].lower() if healthy else "hangs",
                "reason": row["reason"] if row["reason"] != "not loaded" else "",
                "task": model.predictor.bundle.task.name if model else "",
                "architecture": model.predictor.architecture if model else "",
                "engine": model.predictor.engine if model else "",
                "waiting": model.batcher.depth if model else "",
            }
        )
    points, capacity = list(service.history.points), service.history.capacity
    return {
        "rows": rows,
        "rates": chart(
            [[point.requests_per_s for point in points], [point.errors_per_s for point in points]],
            capacity=capacity,
        ),
        "latencies": chart(
            [[point.p50 for point in points], [point.p95 for point in points]], capacity=capacity
        ),
        "now": datetime.now(UTC).strftime("%H:%M:%S"),
        "up": duration(time.time() - service.started),
    }


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("reskit.serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "version": reskit.__version__,
        "htmx_config": json.dumps(_HTMX),
        "width": WIDTH,
        "height": HEIGHT,
    }
    environment.filters["measure"] = lambda value, unit: (
        "none" if value is None else seconds(value) if unit == "seconds" else rate(value)
    )
    environment.filters["milliseconds"] = lambda value: seconds(value / 1000)
    return environment


def _render(template: str, **values: Any) -> Markup:
    return Markup(_templates().get_template(template).render(**values))  # escaped there, value by value


def _html(text: Markup, status: int = 200, headers: Mapping[str, str] = _NONE) -> Response:
    return HTMLResponse(str(text), status, headers={**_HEADERS, **headers})


@functools.cache
def _file(name: str) -> tuple[bytes, str]:
    body = (_FOLDER / name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
