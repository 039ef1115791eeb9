"""gRPC: the Open Inference Protocol by the stubs that Triton's client is published with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from reskit.errors import ConfigError
from reskit.serving import describing
from reskit.serving.faults import BusyError, ServingError
from reskit.serving.grpc_messages import filled, read_request, value_of, write_response
from reskit.serving.records import Record, note_failure
from reskit.serving.security import read_pem
from reskit.serving.service import Service
from reskit.serving.settings import Settings

__all__ = ["GrpcServer"]

_LOG = logging.getLogger("reskit.serving")
_SERVICE = "inference.GRPCInferenceService"
_OPEN = frozenset(
    {
        f"/{_SERVICE}/ServerLive",
        f"/{_SERVICE}/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
_PIPELINE = 64
"""Requests of one stream that are under way at the same time."""


class GrpcServer:
    """A server that answers for a service.

    Args:
        service: what it answers for.
        settings: how it is set up.

    Attributes:
        port: where it listens.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service, self._settings = service, settings
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[_Door(service)],
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.max_receive_message_length", settings.max_body),
                ("grpc.max_send_message_length", -1),
                # Of a larger message the client would send 64 KiB, in frames of 16, and wait to go on.
                ("grpc.http2.lookahead_bytes", 4 << 20),
                ("grpc.http2.max_frame_size", 1 << 20),
                ("grpc.so_reuseport", 0),  # else two services could share a port, and nobody would be told
            ],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(service), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            credentials = _credentials(settings)
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:  # it says no more than that it failed
            raise ConfigError(
                f"gRPC cannot listen at {address}: is the port in use? choose another --grpc-port"
            ) from None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to answer."""
        await self._server.start()
        self._watch = asyncio.create_task(self._tell_health())

    async def stop(self) -> None:
        """Take nothing new and answer what is under way."""
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.grace_s)

    async def _tell_health(self) -> None:
        """Keep the standard health service up to date."""
        states = health_pb2.HealthCheckResponse
        while True:
            state = states.SERVING if self._service.ready() else states.NOT_SERVING
            for name in ("", _SERVICE):
                await self._health.set(name, state)
            await asyncio.sleep(0.2)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    key, cert = read_pem(settings.tls_key), read_pem(settings.tls_cert)
    if key is None or cert is None:
        return None
    authorities = read_pem(settings.tls_client_ca)
    return grpc.ssl_server_credentials([(key, cert)], authorities, authorities is not None)


class _Door(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets in who may ask."""

    def __init__(self, service: Service) -> None:
        self._service = service

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "send a token that is known here: authorization: Bearer TOKEN",
            )

        self._refusals = {
            (False, False): grpc.unary_unary_rpc_method_handler(refuse),
            (True, True): grpc.stream_stream_rpc_method_handler(refuse),
        }

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return what answers a call."""
        handler = await continuation(details)
        if handler is None or details.method in _OPEN:
            return handler
        try:
            self._service.tokens.check(dict(details.invocation_metadata).get("authorization"))
        except ServingError as error:
            self._service.metrics.failed(error.kind)
            return self._refusals[handler.request_streaming, handler.response_streaming]
        return handler


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The methods of the protocol; those of shared memory, traces and logs stay unimplemented."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's names
        """Whether the process is worth keeping."""
        return pb.ServerLiveResponse(live=self._service.live())

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether every model answers."""
        return pb.ServerReadyResponse(ready=self._service.ready())

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name, version and extensions of the service."""
        return filled(pb.ServerMetadataResponse, describing.server_metadata())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether a model answers."""
        async with self._refusing(context):
            return pb.ModelReadyResponse(ready=self._service.models.get(request.name, request.version).ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Inputs and outputs of a model."""
        async with self._refusing(context):
            return filled(pb.ModelMetadataResponse, self._service.metadata(request.name, request.version))

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Triton's config of a model."""
        async with self._refusing(context):
            config = self._service.config(request.name, request.version)
            return filled(pb.ModelConfigResponse, {"config": config})

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Counts and times of one model, or of all."""
        async with self._refusing(context):
            found = self._service.statistics(request.name, request.version)
            return filled(pb.ModelStatisticsResponse, found)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The models in the folders named at the start."""
        return filled(pb.RepositoryIndexResponse, {"models": self._service.index(request.ready)})

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Load a model, or load it again."""
        async with self._refusing(context):
            parameters = {key: value_of(value) for key, value in request.parameters.items()}
            await self._service.load(request.model_name, parameters)
            return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Unload a model."""
        async with self._refusing(context):
            await self._service.deployer.unload(request.model_name)
            return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Ask a model."""
        with self._recorded(request, context) as record:
            async with self._refusing(context):
                answer = await self._answer(request, context.time_remaining())
                record.ended_with("OK")
                return answer

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Ask a model again and again; requests are batched, answers come in their order."""
        pending: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(_PIPELINE)

        async def read() -> None:
            try:
                async for request in requests:
                    await pending.put(asyncio.create_task(self._streamed(request, context)))
            finally:
                await pending.put(None)

        reading = asyncio.create_task(read())
        stopping = asyncio.create_task(self._service.stopping.wait())
        try:
            while (answer := await _first(pending, stopping)) is not None:
                yield await answer
        finally:
            reading.cancel()
            stopping.cancel()
            while not pending.empty():
                if (task := pending.get_nowait()) is not None:
                    task.cancel()

    async def _streamed(self, request: Any, context: Any) -> Any:
        """Return the answer to a request of a stream, which goes on after errors."""
        with self._recorded(request, context) as record:
            try:
                answer = pb.ModelStreamInferResponse(infer_response=await self._answer(request, None))
                record.ended_with("OK")
                return answer
            except ServingError as error:
                self._service.metrics.failed(error.kind)
                note_failure(error.kind, error.code)
                message = str(error)
            except Exception:
                _LOG.exception("a request of a stream failed")
                self._service.metrics.failed("internal")
                record.ended_with("INTERNAL")
                message = "a bug in reskit; the log says more"
        failed = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
        return pb.ModelStreamInferResponse(error_message=message, infer_response=failed)

    async def _answer(self, request: Any, seconds: float | None) -> Any:
        asked = read_request(request, seconds)
        name, version = request.model_name, request.model_version
        return write_response(await self._service.infer(name, version, asked, "grpc"))

    def _recorded(self, request: Any, context: Any) -> contextlib.AbstractContextManager[Record]:
        """Return a context in which what is done for a request is noted."""
        headers = {
            name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        name = headers.get("x-request-id") or request.id or uuid.uuid4().hex
        return self._service.recorder.record(Record("grpc", name, "ModelInfer", headers))

    @contextlib.asynccontextmanager
    async def _refusing(self, context: Any) -> AsyncIterator[None]:
        """Answer errors with the status and message of gRPC; send the client's request id back."""
        given = dict(context.invocation_metadata() or ()).get("x-request-id")
        if given is not None:
            context.set_trailing_metadata([("x-request-id", given)])
        try:
            yield
        except ServingError as error:
            self._service.metrics.failed(error.kind)
            note_failure(error.kind, error.code)
            metadata = [("retry-after", str(error.retry_after))] if isinstance(error, BusyError) else []
            metadata += [("x-request-id", given)] if given is not None else []
            await context.abort(getattr(grpc.StatusCode, error.code), str(error), tuple(metadata))
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            _LOG.exception("a call of gRPC failed")
            self._service.metrics.failed("internal")
            await context.abort(grpc.StatusCode.INTERNAL, "a bug in reskit; the log says more")


async def _first(pending: asyncio.Queue[Any], stopping: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """Return the next answer of a stream; None at its end, or when nothing is asked and the service stops."""
    if not pending.empty():
        found: asyncio.Task[Any] | None = pending.get_nowait()
        return found
    waiting: asyncio.Task[asyncio.Task[Any] | None] = asyncio.create_task(pending.get())
    await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    return None
