"""The journal as the event loop writes it: in a thread of its own, one event after the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
from functools import partial
from pathlib import Path
from typing import Any

from reskit.journal import Event, Journal, Kind

__all__ = ["Recorder"]


class Recorder:
    """Writes a journal, or nothing where there is none.

    Args:
        path: of the journal, or None.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._journal: Journal | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="reskit-journal")
        self._numbers = itertools.count(1)

    async def open(self) -> list[Event]:
        """Start to write; return what was written of deployments before.

        Raises:
            ConfigError: it is no journal, or another service writes in it.
        """
        if self._path is None:
            return []
        loop = asyncio.get_running_loop()
        self._journal = await loop.run_in_executor(self._thread, Journal, self._path)
        return await loop.run_in_executor(self._thread, self._journal.deployments)

    async def append(self, kind: Kind, **event: Any) -> int:
        """Write an event, see `Journal.append`; return its number once it is on disk."""
        if self._journal is None:
            return next(self._numbers)
        write = partial(self._journal.append, kind, **event)
        return await asyncio.get_running_loop().run_in_executor(self._thread, write)

    async def close(self) -> None:
        """Let others write."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            await asyncio.get_running_loop().run_in_executor(self._thread, journal.close)
        self._thread.shutdown()
