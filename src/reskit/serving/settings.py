"""How a service is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reskit.errors import ConfigError
from reskit.serving.platforms.environment import Platform

__all__ = ["Settings"]


class Settings(BaseModel):
    """What `reskit serve` may be told.

    Attributes:
        host: address to listen on; of this machine alone unless told.
        port: of REST; 0 takes a free one.
        grpc_port: of gRPC; 0 takes a free one, None leaves gRPC out.
        engine: as `reskit.predict` has it.
        max_batch: most examples that are computed at once; the batch size that `reskit optimize` found
            fastest, else 16.
        max_delay_ms: how long an example may wait for others though a worker rests. While all work, what
            arrives is gathered anyway.
        queue: most examples that may wait; more are told to come again.
        workers: batches computed at the same time; suited to the threads the engine uses when absent.
        timeout_s: how long an answer may take; a request may ask for less.
        body_timeout_s: how long a request may take to arrive.
        grace_s: how long a stop waits for what is being answered.
        drain_s: how long a stop goes on answering, not ready, so that load balancers notice.
        max_body_mib: largest body, also once decompressed.
        max_pixels: largest image.
        max_connections: most connections, and most calls of gRPC, at once.
        drift_window: examples of which drift is told together.
        drift_rate: most examples a second that are looked at for it; 0 turns it off.
        token_file: hashes of the tokens that may ask; everybody may when absent.
        tls_cert: certificate chain, PEM.
        tls_key: its private key, PEM.
        tls_client_ca: certificates that clients must have one signed by.
        platform: whose routes are answered too; from Python, `Platform` or its name.
        log_format: of `serve`: ``text`` says what goes wrong, ``json`` tells machines of every request.
        journal: file that deployments and signs of life are written to.
        watch_s: how often to look for new versions in the folders; 0 looks only when told to load.
        rollout: how a new version takes over: at once, on trial answering a share of the requests (canary),
            or on trial answering none (shadow).
        rollout_share: part of the requests that both versions are asked while the new one is on trial.
        rollout_requests: after how many of them the trial is decided.
        rollout_s: after how long it is decided with what was seen until then.
        rollout_errors: largest part of them that the new version may fail.
        rollout_disagreement: largest part of them that it may answer otherwise.
        rollout_slowdown: most that its median time may be of the old version's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: int | None = Field(8001, ge=0, le=65535)
    engine: Literal["auto", "eager", "latency", "throughput", "memory", "size"] = "auto"
    max_batch: int | None = Field(None, ge=1)
    max_delay_ms: float = Field(0.0, ge=0)
    queue: int = Field(256, ge=1)
    workers: int | None = Field(None, ge=1)
    timeout_s: float = Field(30.0, gt=0)
    body_timeout_s: float = Field(30.0, gt=0)
    grace_s: float = Field(30.0, ge=0)
    drain_s: float = Field(0.0, ge=0)
    max_body_mib: float = Field(64.0, gt=0)
    max_pixels: int = Field(50_000_000, ge=1)
    max_connections: int = Field(2048, ge=1)
    drift_window: Literal[50, 100, 200, 500, 1000] = 200
    drift_rate: float = Field(5.0, ge=0)
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    platform: Platform | None = None
    log_format: Literal["text", "json"] = "text"
    journal: Path | None = None
    watch_s: float = Field(0.0, ge=0)
    rollout: Literal["at-once", "canary", "shadow"] = "at-once"
    rollout_share: float = Field(0.1, gt=0, le=1)
    rollout_requests: int = Field(100, ge=1)
    rollout_s: float = Field(600.0, gt=0)
    rollout_errors: float = Field(0.01, ge=0, le=1)
    rollout_disagreement: float = Field(0.2, ge=0, le=1)
    rollout_slowdown: float = Field(2.0, gt=0)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return checked settings.

        Raises:
            ConfigError: a value is out of range, or they do not go together.
        """
        try:
            settings = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if settings.port and settings.port == settings.grpc_port:
            raise ConfigError(
                f"REST and gRPC cannot share port {settings.port}: choose another --port or --grpc-port"
            )
        if (settings.tls_cert is None) != (settings.tls_key is None):
            raise ConfigError("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
        if settings.tls_client_ca is not None and settings.tls_cert is None:
            raise ConfigError(
                "--tls-client-ca asks clients for certificates: give --tls-cert and --tls-key too"
            )
        return settings

    @property
    def max_body(self) -> int:
        """The largest body in bytes."""
        return int(self.max_body_mib * 2**20)
