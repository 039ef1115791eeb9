"""A server in a thread of the test's own process, and what speaks to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from reskit.serving import Server, Settings

CLIENTS = Path(__file__).parent / "clients"


class Reply(NamedTuple):
    """What REST answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A server that runs in a thread until `stop`."""

    def __init__(self, bundles: Any, **settings: Any) -> None:
        self.settings = Settings.of({"port": 0, "grpc_port": 0, **settings})
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(bundles)))
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    async def _main(self, bundles: Any) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with Server(bundles, self.settings) as self.server:
                self.service = self.server.service
                self._started.set()
                await self._stop.wait()
        except BaseException as error:
            self._error = error
            self._started.set()

    def stop(self, wait: bool = True) -> None:
        """Stop as SIGTERM does."""
        self.loop.call_soon_threadsafe(self._stop.set)
        if wait:
            self.join()

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self._error is None, self._error

    @property
    def port(self) -> int:
        return int(self.server.urls["rest"].rpartition(":")[2])

    @property
    def model(self) -> Any:
        """The one model that is loaded."""
        (model,) = self.service.models.models
        return model

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Ask REST; what is no bytes goes as JSON."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("POST", path, body, headers)

    def infer(self, images: np.ndarray, **more: Any) -> Reply:
        """Ask the model `digits` in JSON."""
        return self.post("/v2/models/digits/infer", {"inputs": [tensor(images)], **more})


def tensor(images: np.ndarray) -> dict[str, Any]:
    """Return images as the protocol's JSON has them."""
    data = images.reshape(-1).tolist()
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", "data": data}


@pytest.fixture(scope="session")
def bundle(digits_run: Any) -> Path:
    """A bundle of digits, 8 x 8 pixels in grey."""
    found: Path = digits_run.bundle
    return found


@pytest.fixture(scope="session")
def images(bundle: Path) -> np.ndarray:
    """Some digits, uint8 `(12, 1, 8, 8)`."""
    import reskit

    found: np.ndarray = reskit.load(bundle).samples["samples"][:12].numpy()
    return found


@pytest.fixture(scope="session")
def expected(bundle: Path, images: np.ndarray) -> np.ndarray:
    """What the bundle's network says of them, asked without a service."""
    import torch

    import reskit
    from reskit.backends.answers import answers

    found: np.ndarray = answers(reskit.load(bundle), "eager")(torch.from_numpy(images)).numpy()
    return found


@pytest.fixture(scope="session")
def shared(bundle: Path) -> Iterator[Running]:
    """A server that tests only ask; the model is called `digits`."""
    running = Running([("digits", bundle)], max_body_mib=2.0)
    yield running
    running.stop()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """Start servers that are stopped at the end of the test."""
    started: list[Running] = []

    def start(bundles: Any, **settings: Any) -> Running:
        started.append(Running(bundles, **settings))
        return started[-1]

    yield start
    for server in started:
        if server._thread.is_alive():
            server.stop()


@pytest.fixture
def client() -> Callable[..., Any]:
    """Run a program of `clients/` in a process of its own and return what it printed as JSON."""

    def run(name: str, *arguments: object) -> Any:
        done = subprocess.run(
            [sys.executable, str(CLIENTS / f"{name}.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
