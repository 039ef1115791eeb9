"""Work that goes on beside the rest, and that nobody waits for who does not want to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background"]

_T = TypeVar("_T")


def in_background(call: Callable[[], _T], *, name: str) -> Future[_T]:
    """Call in a thread of that name, which does not hold up the end of the process; return what comes of it.

    The threads of an executor do: Python waits for them at its end, also after Ctrl-C.
    """
    done: Future[_T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
