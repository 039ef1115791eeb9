"""Requests counted for the journal: how many, and how many failed for a fault that is not their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reskit.serving.faults import ServingError

__all__ = ["Traffic"]


class Traffic:
    """Counts the requests to models since they were last taken down."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    @contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count a request to a model, and whether it fails for a fault of the service."""
        failed = 0
        try:
            yield
        except ServingError as error:
            failed = int(error.status >= 500)
            raise
        except Exception:
            failed = 1
            raise
        finally:
            counts = self._counts.setdefault(name, [0, 0])
            counts[0] += 1
            counts[1] += failed

    def take(self) -> list[tuple[str, int, int]]:
        """Return model, requests and failures, and count anew."""
        taken = [(name, requests, failed) for name, (requests, failed) in self._counts.items()]
        self._counts.clear()
        return taken
