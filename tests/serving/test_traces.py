"""A span for every request and its stages, in the trace the client began, sent where the environment says."""

from __future__ import annotations

import http.server
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Running, png, tensor

from reskit.serving import traces
from reskit.serving.records import Record, Recorder, note_stage

pytest.importorskip("opentelemetry.sdk", reason="needs the extra traces")

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED", *traces._ASKING):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[dict[str, str], list[Any]]]]:
    """A collector that the environment names; returns the resource and the spans that came."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra traces")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    came = ExportTraceServiceRequest()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            came.MergeFromString(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")

    def found() -> tuple[dict[str, str], list[Any]]:
        assert came.resource_spans
        resource = {
            item.key: item.value.string_value
            for one in came.resource_spans
            for item in one.resource.attributes
        }
        return resource, [
            span for one in came.resource_spans for scope in one.scope_spans for span in scope.spans
        ]

    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_arrive_at_the_collector(
    collector: Callable[..., Any], running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    sent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-ID": "mine"}
    server.post("/v2/models/digits/infer", {"inputs": [tensor(images[:2])]}, sent)
    server.post("/v1/predict?a=secret", png(images[0]))
    server.post("/v2/models/nobody/infer", {"inputs": [tensor(images[:1])]})
    server.get("/v2/health/ready")
    server.stop()
    resource, spans = collector()
    assert resource["service.name"] == "reskit"
    roots = {span.name: span for span in spans if span.kind == 2}
    assert set(roots) == {
        "POST /v2/models/digits/infer", "POST /v1/predict", "POST /v2/models/nobody/infer",
    }  # fmt: skip
    first = roots["POST /v2/models/digits/infer"]
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, SPAN)
    said = {item.key: item.value.string_value or item.value.int_value for item in first.attributes}
    assert said["reskit.model"] == "digits"
    assert (said["reskit.request_id"], said["http.response.status_code"]) == ("mine", 200)
    stages = {
        name: {span.name for span in spans if span.parent_span_id == root.span_id}
        for name, root in roots.items()
    }
    assert stages["POST /v2/models/digits/infer"] == {"queue", "infer"}
    assert stages["POST /v1/predict"] == {"preprocess", "queue", "infer"}
    assert stages["POST /v2/models/nobody/infer"] == set()
    for name, root in roots.items():
        for span in spans:
            if span.parent_span_id == root.span_id:
                assert span.trace_id == root.trace_id
                assert root.start_time_unix_nano - 1e7 < span.start_time_unix_nano <= span.end_time_unix_nano
                assert span.end_time_unix_nano < root.end_time_unix_nano + 1e7, name


def test_errors_of_ours_are_errors_of_the_span_and_logs_name_the_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    caplog.set_level(logging.INFO, logger="reskit.serving")
    recorder = Recorder(traces.Traces(provider))
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    for status in ("OK", "NOT_FOUND", "INTERNAL"):
        with recorder.record(Record("grpc", "r", "ModelInfer", headers)) as record:
            note_stage("preprocess", 1000)
            record.ended_with(status)
    with pytest.raises(ZeroDivisionError), recorder.record(Record("rest", "r", "GET /", {})):
        raise ZeroDivisionError
    roots = [span for span in kept.get_finished_spans() if span.name != "preprocess"]
    assert [span.status.status_code.name for span in roots] == ["UNSET", "UNSET", "ERROR", "ERROR"]
    assert roots[0].attributes is not None
    assert roots[0].attributes["rpc.response.status_code"] == "OK"
    said = [record.fields["trace_id"] for record in caplog.records]  # type: ignore[attr-defined]
    assert said[:3] == [TRACE] * 3
    assert said[3] not in (TRACE, "")
    recorder.close()


def test_nobody_asks_by_default() -> None:
    assert traces.traces_asked() is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'; known: otlp, console, none"),
    ],
)
def test_who_does_not_ask_gets_none(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert traces.traces_asked() is None
    assert words in caplog.text
    assert bool(words) == bool(caplog.text)


def test_what_is_not_installed_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert traces.traces_asked() is None
    assert "reskit[traces]" in caplog.text
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for them" in caplog.text


def test_the_console_is_for_trying(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    made = traces.traces_asked()
    assert made is not None
    with Recorder(made).record(Record("rest", "r", "GET /v2", {})) as record:
        record.ended_with(200)
    made.close()
    span = json.loads(capsys.readouterr().err)
    assert (span["name"], span["resource"]["attributes"]["service.name"]) == ("GET /v2", "mine")
