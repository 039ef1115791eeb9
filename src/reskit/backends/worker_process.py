"""The process of a `Worker`, seen from inside: it builds a network and answers what its owner asks."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from reskit.errors import BackendError, ReskitError

if TYPE_CHECKING:
    import numpy as np

    from reskit.backends.worker import Call, Prepare

__all__ = ["serve"]

_WARM_CALLS, _WARM_SECONDS = 2, 0.1


def serve() -> NoReturn:
    """Answer requests on standard input until it ends; what a worker's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    # Libraries, and what they start, read and print elsewhere: these two are for the owner alone.
    heard, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(heard, requests), daemon=True).start()
    served = _Served()
    while True:
        request, *arguments = requests.get()
        try:
            reply = (True, getattr(served, request)(*arguments))
        except Exception as error:  # whatever it was, the owner hears of it
            reply = (False, _reason(error))
        pickle.dump(reply, answers)
        answers.flush()


class _Served:
    """The network on the side of the process, and what can be asked of it."""

    def __init__(self) -> None:
        self._prepare: Prepare
        self._calls: dict[int, list[Call]] = {}

    def build(self, payload: bytes) -> tuple[float, dict[str, Any]]:
        start = time.perf_counter()
        build, arguments = pickle.loads(payload)
        self._prepare = build(*arguments)
        return time.perf_counter() - start, dict(getattr(self._prepare, "facts", {}))

    def time(self, batch: int, calls: int | None, seconds: float | None, streams: int) -> list[float]:
        ready = self._calls.setdefault(batch, [])
        while len(ready) < streams:
            call = self._prepare(batch)
            _warm_up(call)
            ready.append(call)
        if streams == 1:
            return _timed(ready[0], calls, seconds)
        results: list[list[float] | Exception] = []
        begin = threading.Barrier(streams)

        def work(call: Call) -> None:
            try:
                begin.wait()
                results.append(_timed(call, calls, seconds))
            except Exception as error:
                results.append(error)

        threads = [threading.Thread(target=work, args=(call,)) for call in ready[:streams]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed := [result for result in results if isinstance(result, Exception)]:
            raise failed[0]
        return [seconds for result in results if isinstance(result, list) for seconds in result]

    def answer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not hasattr(self._prepare, "answer"):
            raise BackendError("it can be timed, not asked")
        outputs: dict[str, np.ndarray] = self._prepare.answer(inputs)
        return outputs

    def memory(self) -> int:
        # Not ru_maxrss on Linux: it starts at what the process that started this one held.
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return int(found[1]) * 1024
        import psutil  # type: ignore[import-untyped]

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))


def _warm_up(call: Call) -> None:
    """Call until what is done once is done and the clocks have settled."""
    start, done = time.perf_counter(), 0
    while done < _WARM_CALLS or time.perf_counter() - start < _WARM_SECONDS:
        call()
        done += 1


def _timed(call: Call, calls: int | None, seconds: float | None) -> list[float]:
    """Return the seconds of calls, after one that is not timed."""
    call()
    timed: list[float] = []
    begin = now = time.perf_counter()
    while not timed or ((calls is None or len(timed) < calls) and (seconds is None or now - begin < seconds)):
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        timed.append(now - start)
    return timed


def _listen(heard: BinaryIO, requests: queue.SimpleQueue[tuple[Any, ...]]) -> NoReturn:
    """Hand requests on; end the process, whatever it is doing, when its owner is gone."""
    while True:
        try:
            requests.put(pickle.load(heard))
        except BaseException:
            os._exit(0)


def _reason(error: Exception) -> str:
    """Return an error on one line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, ReskitError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
