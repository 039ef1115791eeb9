"""Peers whose speed is known; in a module of their own, that their processes start without PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from reskit.errors import BackendError


class Sleeper:
    """A peer that takes so many milliseconds an image; two callers sleep as well as one."""

    def __init__(self, ms: float, callers: int = 1) -> None:
        self.ms = ms
        self.facts = {"precision": "int8" if callers > 1 else "fp32", "streams": {4: callers}}

    def __call__(self, batch: int) -> Callable[[], None]:
        return lambda: time.sleep(1e-3 * self.ms * batch)


def quick(subject: Any) -> Sleeper:
    assert subject.input_shape == (1, 8, 8)
    assert subject.classes == 10
    return Sleeper(4)


def slow(subject: Any) -> Sleeper:
    return Sleeper(12)


def doubled(subject: Any) -> Sleeper:
    return Sleeper(12, callers=2)


def lacking(subject: Any) -> Sleeper:
    raise BackendError(f"it has no {subject.name}")


class FailsAt4(Sleeper):
    def __init__(self, subject: Any) -> None:
        super().__init__(1)

    def __call__(self, batch: int) -> Callable[[], None]:
        if batch == 4:
            raise MemoryError("too large")
        return super().__call__(batch)
