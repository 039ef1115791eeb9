"""What is known of one request while it is answered; told to logs and traces at its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from reskit.serving.batching import Answered

__all__ = [
    "Listener",
    "Record",
    "Recorder",
    "Stage",
    "note_answer",
    "note_failure",
    "note_model",
    "note_stage",
]

_LOG = logging.getLogger("reskit.serving")
_LONGEST = 200
_OURS = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""Statuses of gRPC that the service is to blame for."""
_CURRENT: ContextVar[Record | None] = ContextVar("reskit_record", default=None)


class Stage(NamedTuple):
    """One part of the work on a request; Unix time in nanoseconds."""

    name: str
    began_ns: int
    ended_ns: int


@dataclass(slots=True, eq=False)
class Record:
    """One request.

    Attributes:
        protocol: ``rest`` or ``grpc``.
        request_id: the client's, or made up.
        what: method and path, or the method of gRPC.
        headers: of the request, by names in lower case.
        quiet: asked by machines again and again: of no interest unless it fails.
        status: of HTTP, or the name of one of gRPC; ``CANCELLED`` where the client did not wait.
        level: as logs have it.
        model: what was asked; empty where none was found.
        version: of the model.
        kind: of the error, as metrics count it.
        trace_id: of the trace it is in, where traces are kept.
        stages: what was done, in no certain order.
    """

    protocol: str
    request_id: str
    what: str
    headers: Mapping[str, str]
    quiet: bool = False
    status: int | str = ""
    level: int = logging.INFO
    model: str = ""
    version: str = ""
    kind: str = ""
    trace_id: str = ""
    stages: list[Stage] = field(default_factory=list)
    began_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0

    @classmethod
    def of_http(cls, scope: Mapping[str, Any], request_id: str, *, quiet: bool) -> Record:
        """Return a record of a request as ASGI has it; what follows the `?` is left out."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        what = f"{scope['method']} {scope['path']}"
        return cls("rest", request_id, what, headers, quiet=quiet)

    def ended_with(self, status: int | str) -> None:
        """Note how it ended: a status of HTTP, or the name of one of gRPC."""
        self.status = status
        if status in _OURS or (isinstance(status, int) and status >= 500):
            self.level = logging.ERROR
        elif status != "OK" and (isinstance(status, str) or status >= 400):
            self.level = logging.WARNING

    def as_dict(self) -> dict[str, Any]:
        """Return what logs say of it; of uploads answered together, the slowest tells the time of a stage."""
        said = {
            "request_id": self.request_id,
            "protocol": self.protocol,
            "request": self.what[:_LONGEST],
            "status": self.status,
            "model": self.model,
            "version": self.version,
            "kind": self.kind,
            "trace_id": self.trace_id,
        }
        longest: dict[str, int] = {}
        for stage in self.stages:
            longest[stage.name] = max(longest.get(stage.name, 0), stage.ended_ns - stage.began_ns)
        longest["total"] = self.ended_ns - self.began_ns
        times = {f"{name}_ms": round(ns / 1e6, 3) for name, ns in longest.items()}
        return {name: value for name, value in said.items() if value != ""} | times


class Listener(Protocol):
    """Who is told of every request at its end."""

    def ended(self, record: Record) -> None:
        """Take a record whose request is answered, or refused."""

    def close(self) -> None:
        """Take no more."""


class Recorder:
    """Keeps a record of requests for those who listen; of none where nobody does.

    Args:
        listeners: told besides the log ``reskit.serving``, which is told where its level is INFO or below.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def close(self) -> None:
        """Tell nobody any more."""
        for listener in self._listeners:
            listener.close()

    @contextmanager
    def record(self, record: Record) -> Iterator[Record]:
        """Note what is done within the block; afterwards it is told."""
        if not self._listeners and not _LOG.isEnabledFor(logging.INFO):
            yield record
            return
        token = _CURRENT.set(record)
        try:
            yield record
        except asyncio.CancelledError:
            record.ended_with(record.status or "CANCELLED")
            raise
        except BaseException:
            record.ended_with(record.status or (500 if record.protocol == "rest" else "INTERNAL"))
            raise
        finally:
            _CURRENT.reset(token)
            record.ended_ns = time.time_ns()
            for listener in self._listeners:
                listener.ended(record)
            if not record.quiet or record.level > logging.INFO:
                _LOG.log(record.level, "request", extra={"fields": record.as_dict()})


def note_model(name: str, version: str) -> None:
    """Note which model answers the request at hand."""
    if (record := _CURRENT.get()) is not None:
        record.model, record.version = name, version


def note_failure(kind: str, status: int | str) -> None:
    """Note why the request at hand is not answered, as metrics count it, and with which status."""
    if (record := _CURRENT.get()) is not None:
        record.kind = kind
        record.ended_with(status)


def note_stage(name: str, ns: int) -> None:
    """Note a part of the work that ends now and took so long."""
    if (record := _CURRENT.get()) is not None:
        now = time.time_ns()
        record.stages.append(Stage(name, now - ns, now))


def note_answer(answer: Answered) -> None:
    """Note the stages of a batch that was computed until now."""
    if (record := _CURRENT.get()) is not None:
        computed = time.time_ns() - answer.output_ns
        began = computed - answer.infer_ns
        taken = began - answer.input_ns
        record.stages.append(Stage("queue", taken - answer.queue_ns, taken))
        record.stages.append(Stage("infer", began, computed))
