"""Traces of requests for OpenTelemetry, where the environment asks for them."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import reskit
from reskit.serving.records import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Traces", "traces_asked"]

_LOG = logging.getLogger("reskit.serving")
_ASKING = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER")
_EXPORTERS = ("otlp", "console")


def traces_asked() -> Traces | None:
    """Return what takes traces, as the standard ``OTEL_*`` variables say; None where they do not ask for any.

    What is missing or unknown is warned of, and the service goes on without: the variables are often set for
    many programs at once.
    """
    found = next((name for name in _ASKING if os.environ.get(name)), None)
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if found is None or exporter == "none" or disabled:
        return None
    if exporter not in _EXPORTERS:
        _LOG.warning(
            "no traces: OTEL_TRACES_EXPORTER is %r; known: %s, none", exporter, ", ".join(_EXPORTERS)
        )
        return None
    try:
        return Traces(_provider(exporter))
    except ModuleNotFoundError as error:
        _LOG.warning(
            "no traces though %s asks for them: %s is not installed: run `pip install 'reskit[traces]'`",
            found,
            error.name,
        )
        return None


class Traces:
    """Makes a span of every request, with one for each of its stages in it.

    Args:
        provider: where spans go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("reskit.serving", reskit.__version__)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: Record) -> None:
        """Make the spans of a request, within the trace its headers name; not of health checks."""
        if record.quiet:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        span = self._tracer.start_span(
            record.what,
            self._propagator.extract(dict(record.headers)),
            kind=SpanKind.SERVER,
            attributes=_attributes(record),
            start_time=record.began_ns,
        )
        inside = set_span_in_context(span)
        for stage in record.stages:
            self._tracer.start_span(stage.name, inside, start_time=stage.began_ns).end(stage.ended_ns)
        if record.level >= logging.ERROR:
            span.set_status(Status(StatusCode.ERROR, record.kind or None))
        span.end(record.ended_ns)
        record.trace_id = format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def _attributes(record: Record) -> dict[str, str | int]:
    """Return what is said of a request, by OpenTelemetry's semantic conventions where they have a word."""
    said: dict[str, str | int] = {
        "reskit.request_id": record.request_id,
        "reskit.model": record.model,
        "reskit.version": record.version,
        "error.type": record.kind,
    }
    if record.protocol == "rest":
        method, _, path = record.what.partition(" ")
        said |= {"http.request.method": method, "url.path": path, "http.response.status_code": record.status}
    else:
        said |= {
            "rpc.system.name": "grpc",
            "rpc.method": f"inference.GRPCInferenceService/{record.what}",
            "rpc.response.status_code": record.status,
        }
    return {name: value for name, value in said.items() if value != ""}


def _provider(exporter: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    chosen: SpanExporter
    if exporter == "console":
        chosen = ConsoleSpanExporter(out=sys.stderr)
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        chosen = OTLPSpanExporter()
    named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or os.environ.get(
        "OTEL_SERVICE_NAME"
    )
    name = {} if named else {"service.name": "reskit"}
    # Limits, sampling and the rest are the SDK's own, from the same environment.
    provider = TracerProvider(
        resource=Resource.create({**name, "service.version": reskit.__version__}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(chosen))
    return provider
