"""A process that holds one network and runs it when told: for timing, and to keep libraries apart.

Thread pools of several libraries in one process disturb each other, memory can only be told apart by process,
and what crashes takes nobody along. The process is a fresh interpreter: it runs neither the caller's
main module nor PyTorch, unless what it builds does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from reskit.errors import BackendError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Call", "Prepare", "Worker", "WorkerError", "thread_environment"]

Call = Callable[[], Any]
Prepare = Callable[[int], Call]


class WorkerError(BackendError):
    """A worker failed to build or to run its network, or died.

    Args:
        name: of the worker.
        reason: what happened; an attribute too.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class Worker:
    """A process that runs one network when told; use it in a `with` block.

    The process ends with its owner, however that ends.

    Args:
        build: a function at the top of an importable module, called in the process with `args`. It returns
            `prepare`: given a batch size, it returns a call that does one inference; one call runs on one
            thread at a time. `prepare` may have two attributes: `answer(inputs) -> outputs`, on
            named arrays, and `facts`, a dict that can be pickled.
        *args: what can be pickled.
        name: what errors call it.
        environment: variables set before the process starts; see `thread_environment`.
        timeout: seconds that any one request may take.

    Attributes:
        facts: what the network says of itself, once ready.
    """

    def __init__(
        self,
        build: Callable[..., Prepare],
        *args: Any,
        name: str = "worker",
        environment: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self._payload = pickle.dumps((build, args))
        self._environment = {**os.environ, **(environment or {})}
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._load_seconds: float | None = None

    def start(self) -> None:
        """Start the process and let it build its network, without waiting for it."""
        code = f"import sys; sys.path[:] = {sys.path!r}; from reskit.backends.worker_process import serve; "
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code + "serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
        )
        with contextlib.suppress(OSError):  # died already: wait_ready says why
            self._send("build", self._payload)

    def wait_ready(self) -> float:
        """Wait for the network; return the seconds it took to build, imports included.

        Raises:
            WorkerError: it could not be built, or took longer than `timeout`.
        """
        if self._load_seconds is None:
            try:
                self._load_seconds, self.facts = self._receive()
            except WorkerError:
                self.close()
                raise
        return self._load_seconds

    def time(
        self, batch: int, *, calls: int | None = None, seconds: float | None = None, streams: int = 1
    ) -> list[float]:
        """Return the seconds of single calls at a batch size.

        The first use of a batch size is preceded by a warm-up, every use by an untimed call: other
        processes had the caches.

        Args:
            batch: examples a call.
            calls: how many each thread times; one when neither this nor `seconds` is given.
            seconds: how long to go on at most; one call at least is timed.
            streams: threads that call at once; `streams * batch / mean` is then examples a second.

        Raises:
            WorkerError: the network failed, the process died or took longer than `timeout`.
        """
        if calls is None and seconds is None:
            calls = 1
        timed: list[float] = self._ask("time", batch, calls, seconds, streams)
        return timed

    def answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of named arrays.

        Raises:
            WorkerError: the network failed or has no `answer`, or the process died.
        """
        outputs: dict[str, np.ndarray] = self._ask("answer", dict(inputs))
        return outputs

    def peak_memory(self) -> int:
        """Return the most bytes of memory the process has held, or holds now where no system counts."""
        return int(self._ask("memory"))

    def close(self) -> None:
        """End the process; whatever it is doing is lost."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # a pipe to the dead cannot be flushed
                    stream.close()  # type: ignore[union-attr]
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        """Start the process; what is asked first waits until it is ready."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: str, *arguments: Any) -> Any:
        self.wait_ready()
        try:
            self._send(request, *arguments)
        except (OSError, ValueError):  # the process is gone, or was closed from here
            self._raise_death()
        return self._receive()

    def _send(self, *message: Any) -> None:
        assert self._process is not None, "start() comes first"
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(message))
        self._process.stdin.flush()

    def _receive(self) -> Any:
        """Return the answer to the last request, or raise what became of it."""
        process, late = self._process, threading.Event()
        assert process is not None, "start() comes first"

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            done, value = pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, pickle.UnpicklingError, ValueError):
            if late.is_set():
                process.wait()
                reason = f"it took longer than {self._timeout:g} s and was stopped"
                raise WorkerError(self.name, reason) from None
            self._raise_death()
        except BaseException:  # an answer nobody waits for would be taken for the next one
            process.kill()
            raise
        finally:
            timer.cancel()
        if not done:
            raise WorkerError(self.name, value)
        return value

    def _raise_death(self) -> NoReturn:
        """Say how the process ended."""
        assert self._process is not None
        if self._log.closed:
            raise WorkerError(self.name, "it was closed")
        code = self._process.wait(timeout=10)
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"its process ended with exit code {code}"
        if code < 0:
            how = f"its process was killed by {signal.Signals(-code).name}"
            how += " (out of memory?)" if -code == getattr(signal, "SIGKILL", 9) else ""
        raise WorkerError(self.name, f"{how}{f': {lines[-1].strip()}' if lines else ''}")


def thread_environment(threads: int | None) -> dict[str, str]:
    """Return the variables that hold the OpenMP and BLAS libraries to a number of threads; none for None."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {} if threads is None else dict.fromkeys(names, str(threads))
