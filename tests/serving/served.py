"""A server in a thread of the test's own process, and what asks it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import uvloop
from PIL import Image

from reskit.serving import Server, Settings

RATE = 4000
"""Of recordings."""
ROWS = "amount,country\n1,fr\n250,de\n3,it\n"


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
        self._thread = threading.Thread(target=self._run, args=(bundles,))
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _run(self, bundles: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `reskit serve` does
            runner.run(self._main(bundles))

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


def png(image: np.ndarray) -> bytes:
    """Return one image, uint8 `(1, H, W)`, as a file."""
    held = io.BytesIO()
    Image.fromarray(image[0]).save(held, format="PNG")
    return held.getvalue()


def wav(hertz: float = 500.0, **how: str) -> bytes:
    """Return a tone as a file."""
    import soundfile

    held = io.BytesIO()
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE)
    soundfile.write(held, samples, RATE, **{"format": "WAV", **how})
    return held.getvalue()
