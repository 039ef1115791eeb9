"""The metrics of a service, fetched."""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from reskit.errors import ConfigError, MissingExtraError, ServiceError
from reskit.files import read_lines

__all__ = ["Sample", "Scrape", "Scraper"]

_MOST = 16 << 20
_SECONDS = 10.0
_TOKEN = "RESKIT_TOKEN"
_STARTED = "reskit_start_time_seconds"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value, with its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """All metrics at one moment.

    Attributes:
        at: by the clock that never jumps, in seconds.
        clock: Unix time.
        samples: by the name of their metric.
    """

    at: float
    clock: float
    samples: Mapping[str, list[Sample]] = field(repr=False)

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the values of a metric by some of its labels, added up over the others."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for sample in self.samples.get(name, ()):
            found[tuple(sample.labels.get(label, "") for label in labels)] += sample.value
        return found

    def value(self, name: str) -> float | None:
        """Return the value of a metric that has no labels; None where it is absent."""
        return self.values(name).get(())

    @property
    def started(self) -> float:
        """When the service started, Unix time."""
        return self.values(_STARTED)[()]


class Scraper:
    """Fetches the metrics of one service.

    Args:
        url: of the service, such as ``http://127.0.0.1:8000``.
        credentials: a file with the token that the service asks for; the environment's ``RESKIT_TOKEN`` when
            absent.
        ca: certificates that the service must have one signed by, PEM; the system's when absent.
        cert: a certificate to show, PEM, with its key in the same file or in `key`.
        key: its private key, PEM.

    Raises:
        ConfigError: the URL is none, or a file cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Path | None = None,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self.url = _base(url)
        self._token = _token(credentials)
        handlers: list[urllib.request.BaseHandler] = [_Stay()]
        if self.url.startswith("https"):
            handlers.append(urllib.request.HTTPSHandler(context=_context(ca, cert, key)))
        self._opener = urllib.request.build_opener(*handlers)

    def fetch(self) -> Scrape:
        """Return the metrics of now.

        Raises:
            ServiceError: nobody answers there, or not as a service of reskit does.
        """
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Accept": "text/plain"})
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=_SECONDS) as reply:
                at, clock = time.monotonic(), time.time()
                body = reply.read(_MOST + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if type(reason) is http.client.BadStatusLine:  # not its kind for a connection that was closed
                raise self._foreign("it does not speak HTTP; is that the port of gRPC?") from None
            said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise ServiceError(
                f"{self.url} does not answer: {said}; is `reskit serve` running there?"
            ) from None
        return Scrape(at, clock, self._read(body))

    def _refused(self, status: int) -> ServiceError:
        if status != 401:
            return self._foreign(f"/metrics gives status {status}")
        known = "does not know this token" if self._token else "asks for a token"
        return ServiceError(
            f"{self.url} {known}: set {_TOKEN}, or name a file that holds it by --credentials"
        )

    def _read(self, body: bytes) -> dict[str, list[Sample]]:
        try:
            from prometheus_client.parser import text_string_to_metric_families
        except ModuleNotFoundError:
            raise MissingExtraError("prometheus_client", "serve") from None
        if len(body) > _MOST:
            raise self._foreign("/metrics is larger than any of ours")
        samples: dict[str, list[Sample]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(body.decode()):
                for sample in family.samples:
                    samples[sample.name].append(Sample(sample.labels, sample.value))
        except (ValueError, KeyError, IndexError):
            raise self._foreign("/metrics is not in the format of Prometheus") from None
        if not samples.get(_STARTED):
            raise self._foreign(f"/metrics has no {_STARTED}")
        return samples

    def _foreign(self, what: str) -> ServiceError:
        return ServiceError(f"{self.url} is not a service of `reskit serve`: {what}")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: the token is for this service only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Refuse."""


def _base(url: str) -> str:
    """Return scheme, host and port, and the path a proxy may have put before.

    Raises:
        ConfigError: it is no URL of HTTP.
    """
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(sign in url for sign in "?#@") or any(c <= " " for c in url):
        raise ConfigError(f"{url!r} is not the URL of a service: give one as http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/metrics")


def _token(credentials: Path | None) -> str:
    if credentials is None:
        token, where = os.environ.get(_TOKEN, "").strip(), _TOKEN
    else:
        lines = read_lines(credentials)
        if len(lines) != 1:
            raise ConfigError(f"{credentials} must hold one line, the token; it has {len(lines)}")
        token, where = lines[0].strip(), str(credentials)
    if not all("!" <= sign <= "~" for sign in token):
        raise ConfigError(f"{where} holds no token: it has blanks, or signs that no header may have")
    return token


def _context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"the certificates cannot be used: {error}; they must be PEM files") from None
    return context
