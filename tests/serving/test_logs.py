"""A line for every request that machines can read, with nothing in it that is secret."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Running, png

from reskit.serving.logs import JsonFormatter
from reskit.serving.records import Record

TOKEN = "an-example-token"


@pytest.fixture
def lines(shared: Running, caplog: pytest.LogCaptureFixture) -> Callable[[int], list[dict[str, Any]]]:
    """Wait for so many lines, by the formatter of the service: they come after the answers."""
    caplog.set_level(logging.INFO, logger="reskit.serving")
    caplog.handler.setFormatter(JsonFormatter())

    def ours() -> list[dict[str, Any]]:
        read = [json.loads(line) for line in caplog.text.splitlines()]
        return [line for line in read if line["logger"] == "reskit.serving"]

    def found(count: int) -> list[dict[str, Any]]:
        end = time.monotonic() + 10
        while len(read := ours()) < count and time.monotonic() < end:
            time.sleep(0.005)
        assert len(read) == count
        return read

    return found


def test_a_request_is_a_line(lines: Callable[..., Any], shared: Running, images: np.ndarray) -> None:
    assert shared.infer(images[:2]).status == 200
    (line,) = lines(1)
    assert line["event"] == "request"
    assert line["level"] == "info"
    assert line["time"].endswith("+00:00")
    assert (line["protocol"], line["request"]) == ("rest", "POST /v2/models/digits/infer")
    assert (line["status"], line["model"], line["version"]) == (200, "digits", "1")
    assert 0 <= line["queue_ms"] <= line["total_ms"] < 5000
    assert 0 < line["infer_ms"] <= line["total_ms"]
    assert "kind" not in line


def test_an_upload_has_its_reading_too(
    lines: Callable[..., Any], shared: Running, images: np.ndarray
) -> None:
    reply = shared.post("/v1/predict?model=digits&secret=1", png(images[0]), {"X-Request-ID": "mine-7"})
    assert reply.status == 200
    (line,) = lines(1)
    assert line["request_id"] == "mine-7"
    assert line["request"] == "POST /v1/predict"  # what follows the ? is nobody's business
    assert line["model"] == "digits"
    assert min(line["preprocess_ms"], line["infer_ms"]) > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v2/models/digits/infer", {"inputs": []}, 400, "bad_request"),
        ("/v2/repository/models/no\nline/unload", None, 404, "unknown_model"),
    ],
)
def test_a_refusal_says_its_kind(
    lines: Callable[..., Any], shared: Running, path: str, body: Any, status: int, kind: str
) -> None:
    assert shared.post(path.replace("\n", "%0A"), body).status == status
    (line,) = lines(1)
    assert (line["status"], line["kind"], line["level"]) == (status, kind, "warning")
    assert line["request"] == f"POST {path}"


def test_an_error_of_ours_has_its_traceback(
    lines: Callable[..., Any],
    running: Callable[..., Running],
    bundle: Path,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = running([("digits", bundle)])

    async def broken(*_: object) -> None:
        raise RuntimeError("this is a bug")

    monkeypatch.setattr(server.service, "infer", broken)
    assert server.infer(images[:1]).status == 500
    started, *told = lines(3)
    assert (started["event"], started["urls"]) == ("started", server.server.urls)
    failed, ended = sorted(told, key=lambda line: "traceback" not in line)
    assert "RuntimeError: this is a bug" in failed["traceback"]
    assert (ended["event"], ended["status"], ended["level"]) == ("request", 500, "error")
    assert ended["request_id"] in failed["event"]


def test_probes_are_of_no_interest_and_nobody_is_no_work(
    lines: Callable[..., Any], shared: Running, caplog: pytest.LogCaptureFixture, images: np.ndarray
) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
        assert shared.get(path).status == 200
    caplog.set_level(logging.WARNING, logger="reskit.serving")
    assert shared.infer(images[:1]).status == 200
    time.sleep(0.05)
    assert lines(0) == []


def test_calls_of_grpc_are_told_too(
    lines: Callable[..., Any], shared: Running, client: Callable[..., Any]
) -> None:
    assert client("grpc_named", shared.server.urls["grpc"]) == ["a", "NOT_FOUND", "good", "bad"]
    told = {line["request_id"]: line for line in lines(4)}
    for name in ("named", "good"):
        assert (told[name]["status"], told[name]["level"]) == ("OK", "info")
        assert told[name]["model"] == "digits"
        assert told[name]["infer_ms"] > 0
    for name in ("refused", "bad"):
        assert (told[name]["status"], told[name]["kind"]) == ("NOT_FOUND", "unknown_model")
    assert {line["protocol"] for line in told.values()} == {"grpc"}


def test_who_is_to_blame_is_told_by_the_level() -> None:
    levels = {200: "INFO", 302: "INFO", 404: "WARNING", 503: "ERROR", "OK": "INFO", "NOT_FOUND": "WARNING"}
    for status, level in {**levels, "INTERNAL": "ERROR", "CANCELLED": "WARNING"}.items():
        record = Record("rest", "", "", {})
        record.ended_with(status)
        assert logging.getLevelName(record.level) == level


def test_the_command_says_all_in_json_and_no_secret(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    words = ["--port", "0", "--no-grpc", "--token-file", tokens, "--log-format", "json"]
    command = [sys.executable, "-m", "reskit", "serve", f"digits={bundle}", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [json.loads(process.stderr.readline())]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{said[0]['urls']['rest']}/v2?token={TOKEN}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as reply:
            assert reply.status == 200
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 0
    assert TOKEN not in rest
    said += [json.loads(line) for line in rest.splitlines()]
    assert [line["event"] for line in said] == ["started", "request", "stopped"]
    assert said[1]["request"] == "GET /v2"
