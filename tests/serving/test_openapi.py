"""Requests made up from `/openapi.json`: nothing fails, and answers are as it describes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, strategies
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from served import Running, tensor

from reskit.serving.platforms.environment import Platform

CHECKS = [
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
IMAGE = np.zeros((1, 1, 8, 8), np.uint8)
SEED = 6
EXAMPLES = 10
"""Of each operation and mode."""


def probe(server: Running, paths: str = "") -> dict[str, set[int]]:
    """Ask what the description makes up of all paths that match; return the statuses by operation."""
    schema = schemathesis.openapi.from_url(f"{server.server.urls['rest']}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    operations.sort(key=lambda one: one.path.endswith("/unload"))  # it ends what the others ask
    return {
        one.label: {status for mode in modes(one) for status in statuses(one, mode)}
        for one in operations
        if re.match(paths, one.path)
    }


def modes(operation: Any) -> list[GenerationMode]:
    """Return how it can be asked: what takes names only cannot be asked otherwise than described."""
    return list(GenerationMode) if operation.body or operation.query else [GenerationMode.POSITIVE]


def statuses(operation: Any, mode: GenerationMode) -> set[int]:
    """Return the statuses of requests made up for an operation, as described or not."""
    seen: set[int] = set()

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @given(case=operation.as_strategy(mode), near=strategies.booleans())
    def ask(case: Case, near: bool) -> None:
        if near:
            come_near(case)
        response = case.call()
        seen.add(response.status_code)
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=CHECKS)

    ask()
    return seen


def come_near(case: Case) -> None:
    """Name what is there and send an image, which nobody guesses; leave all else as it was made up."""
    for place, name, value in (
        (case.path_parameters, "name", "digits"),
        (case.path_parameters, "version", "1"),
        (case.query, "model", "digits"),
    ):
        if place and name in place:
            place[name] = value
    inputs = case.body.get("inputs") if isinstance(case.body, dict) else None
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        inputs[:] = [{**inputs[0], **tensor(IMAGE)}]
        case.body.pop("outputs", None)


def test_nothing_that_is_made_up_fails(running: Callable[..., Running], bundle: Path) -> None:
    server = running([("digits", bundle)], grpc_port=None)
    found = probe(server)
    assert len(found) == 19
    assert {200, 404} <= found["GET /v2/models/{name}/versions/{version}"]
    assert {200, 400} <= found["POST /v1/predict"]
    assert {200, 400} <= found["POST /v2/models/{name}/infer"]
    assert 200 in found["POST /v2/repository/models/{name}/unload"]
    assert server.post("/v2/repository/models/digits/load").status == 200
    assert server.infer(IMAGE).status == 200


@pytest.mark.parametrize(
    ("platform", "routes", "count"),
    [
        (Platform(name="sagemaker", multi_model=True), "/(ping|invocations|models)", 7),
        (Platform(name="vertex"), "/(health|predict)", 2),
        (Platform(name="azureml"), "/score", 1),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_nothing_that_is_made_up_fails_a_platform(
    running: Callable[..., Running], bundle: Path, platform: Platform, routes: str, count: int
) -> None:
    server = running([("digits", bundle)], grpc_port=None, platform=platform)
    found = probe(server, routes)
    assert len(found) == count
    assert 400 in set().union(*found.values())
