"""HTTP connections that must say what they want in time, and in few words."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

HEADER_SECONDS = 10.0
HEADER_BYTES = 1 << 16


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed when the head of a request takes too long or is too long.

    uvicorn leaves both to a proxy in front of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: BaseTransport) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        if self._head is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_BYTES:
                self._head_done()
                self.transport.close()

    def on_message_begin(self) -> None:
        """Start to wait for the head of a request."""
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop waiting: the body has a deadline of its own."""
        self._head_done()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_done()
        self._head_bytes = 0
        self._head = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _head_done(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        self.transport.close()
