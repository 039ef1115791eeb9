"""The server: its sockets, its life from start to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import uvicorn

from reskit.errors import ConfigError
from reskit.serving.buckets import Bucket, is_url
from reskit.serving.connections import Connection
from reskit.serving.grpc_service import GrpcServer
from reskit.serving.logs import log_json
from reskit.serving.platforms.environment import from_environment
from reskit.serving.rest import make_app
from reskit.serving.security import check_tls
from reskit.serving.service import Service
from reskit.serving.settings import Settings

__all__ = ["Server", "serve"]

_LOG = logging.getLogger("reskit.serving")
_KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep idle connections, usually 60 s: else they send on what was just closed."""
_OPEN_TO_ALL = "anyone who reaches this address may ask: --token-file or --tls-client-ca would say who"

Bundles = Iterable[str | Path | tuple[str | None, str | Path]]


class Server:
    """REST and gRPC over one service; use it in an `async with` block.

    Args:
        bundles: see `serve`.
        settings: how it is set up.
    """

    def __init__(self, bundles: Bundles, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._places = [(None, one) if isinstance(one, str | Path) else one for one in bundles]
        self.service: Service
        self._grpc: GrpcServer | None = None

    async def __aenter__(self) -> Self:
        """Load the models, then start to answer."""
        check_tls(self.settings)
        async with contextlib.AsyncExitStack() as undo:  # where one step fails, those before it
            places, buckets = [], []
            for name, place in self._places:
                if is_url(place):
                    buckets.append(bucket := Bucket(str(place), single=name is not None))
                    await bucket.pulled()
                    place = bucket.place
                places.append((name, Path(place)))
            self.service = Service(places, self.settings, buckets)
            undo.push_async_callback(self.service.close)
            listening = undo.enter_context(contextlib.closing(_bound(self.settings)))
            self._port = listening.getsockname()[1]
            if self.settings.grpc_port is not None:
                self._grpc = GrpcServer(self.service, self.settings)
                undo.push_async_callback(self._grpc.stop)
            await self.service.deployer.start()
            undo.pop_all()
        self._rest = uvicorn.Server(self._rest_config())
        self._rest.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
        self._serving = asyncio.create_task(self._rest.serve([listening]))
        self._keeping = asyncio.create_task(self.service.history.keep())
        if self._grpc is not None:
            await self._grpc.start()
        while not self._rest.started and not self._serving.done():
            await asyncio.sleep(0.005)
        _LOG.info("started", extra={"fields": self.as_dict()})
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer everything under way, then end."""
        self.service.draining = True
        await asyncio.sleep(self.settings.drain_s)
        self.service.stopping.set()
        self._rest.should_exit = True
        self._keeping.cancel()
        await asyncio.gather(self._serving, *([self._grpc.stop()] if self._grpc is not None else []))
        await self.service.close()
        _LOG.info("stopped")

    async def run(self) -> None:
        """Go on until SIGTERM or SIGINT."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stopped.set)
        await stopped.wait()

    @property
    def urls(self) -> dict[str, str]:
        """Where it listens, by protocol."""
        scheme = "http" if self.settings.tls_cert is None else "https"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        urls = {"rest": f"{scheme}://{host}:{self._port}"}
        if self._grpc is not None:
            urls["grpc"] = f"{host}:{self._grpc.port}"
        return urls

    def as_dict(self) -> dict[str, Any]:
        """Return what is told at the start: where it listens, and what answers."""
        return {
            "urls": self.urls,
            "models": [
                {
                    "name": model.name,
                    "version": model.version,
                    "architecture": model.predictor.architecture,
                    "engine": model.predictor.engine,
                    "threads": model.predictor.threads,
                    "workers": model.predictor.workers,
                    "max_batch": model.predictor.max_batch,
                    "drift_watched": model.drift is not None,
                }
                for model in self.service.models.models
            ],
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        where = ", ".join(f"{protocol} {url}" for protocol, url in self.urls.items())
        return [
            f"serving: {where}; SIGTERM or Ctrl-C stops when all is answered",
            *(
                "{name} version {version}: {architecture} by {engine}, threads {threads}, workers {workers}, "
                "batches of up to {max_batch}, drift {watched}".format(
                    **model, watched="watched" if model["drift_watched"] else "not watched"
                )
                for model in self.as_dict()["models"]
            ),
            *([_OPEN_TO_ALL] if self._is_open else []),
        ]

    @property
    def _is_open(self) -> bool:
        """Whether others than this machine reach it and need neither token nor certificate."""
        settings = self.settings
        guarded = settings.token_file is not None or settings.tls_client_ca is not None
        return not guarded and settings.host not in ("127.0.0.1", "::1", "localhost")

    def _rest_config(self) -> uvicorn.Config:
        settings = self.settings
        return uvicorn.Config(
            make_app(self.service),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.grace_s) + 1,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=None if settings.tls_client_ca is None else str(settings.tls_client_ca),
            ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
        )


def serve(
    bundles: Bundles,
    *,
    started: Callable[[Server], None] = lambda server: None,
    **settings: Any,
) -> None:
    """Serve bundles by REST and gRPC until SIGTERM or Ctrl-C; what is under way is answered before the end.

    Args:
        bundles: folders or URLs of buckets: bundles, models with versions in folders 1, 2, ..., or folders of
            them; a pair names its bundle, which else is called as its folder.
        started: called once it answers.
        **settings: see `Settings`; `platform` may be the name of one. What the environment of the platform
            says, by name or by the variables it sets, goes before the port that is given.

    Raises:
        ConfigError: a setting makes no sense, a port is taken, a folder holds no bundle, a bucket cannot be
            read.
        BundleError: a bundle is damaged.
        MissingExtraError: the extra `serve`, or that of a bucket, is not installed.
    """
    from uvloop import new_event_loop

    _allow_many_connections()
    settings |= from_environment(settings.get("platform"), os.environ)
    checked = Settings.of(settings)
    if checked.log_format == "json":
        log_json()

    async def main() -> None:
        async with Server(bundles, checked) as server:
            started(server)
            await server.run()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


def _bound(settings: Settings) -> socket.socket:
    """Return a socket that will listen once there is something to answer.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen at {where}: {reason}; choose --port or --host") from None
    return bound


def _allow_many_connections() -> None:
    """Raise the limit of open files, which is one a connection, as far as this user may."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
