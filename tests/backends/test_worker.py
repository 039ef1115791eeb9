from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from reskit.backends.worker import Worker, WorkerError, thread_environment
from reskit.errors import BackendError, ReskitError


class Doubling:
    """A network that doubles, notes how it was used, and fails where told to."""

    def __init__(self, fail_at: int = 0) -> None:
        self.fail_at = fail_at
        self.facts = {"precision": "fp32", "threads": os.environ.get("OMP_NUM_THREADS")}
        self.prepared: list[int] = []
        self.lock = threading.Lock()
        self.active = self.most = 0

    def __call__(self, batch: int) -> Callable[[], None]:
        self.prepared.append(batch)
        print("a library that prints on standard output")

        def call() -> None:
            with self.lock:
                self.active += 1
                self.most = max(self.most, self.active)
            time.sleep(0.001 * batch)
            with self.lock:
                self.active -= 1
            if batch == self.fail_at:
                raise ValueError(f"no batch of {batch}\nand much more")

        return call

    def answer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: 2 * values for name, values in inputs.items()} | {
            "prepared": np.array(self.prepared),
            "most": np.array(self.most),
        }


def silent(batch: int) -> Callable[[], None]:
    return lambda: None


def only_timed() -> Any:
    return silent


def refuse(text: str) -> Any:
    raise ReskitError(text)


def die(how: str) -> Any:
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        print("the library's last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def big(size: int) -> Any:
    np.ones(size, np.uint8)
    return silent


def test_times_answers_and_counts() -> None:
    with Worker(Doubling, name="doubling", environment=thread_environment(3)) as worker:
        assert 0 <= worker.wait_ready() < 60
        assert worker.facts == {"precision": "fp32", "threads": "3"}
        timed = worker.time(4, calls=5)
        assert len(timed) == 5
        assert all(0.004 <= seconds < 0.5 for seconds in timed)
        assert len(worker.time(8)) == 1
        assert 2 <= len(worker.time(4, seconds=0.1)) <= 26
        assert len(worker.time(4, calls=3, seconds=30)) == 3
        answer = worker.answer({"x": np.arange(3)})
        assert answer["x"].tolist() == [0, 2, 4]
        assert answer["prepared"].tolist() == [4, 8]  # once a batch size


def test_streams_call_at_once() -> None:
    with Worker(Doubling) as worker:
        worker.time(50, calls=4)
        assert worker.answer({})["most"] == 1
        assert len(worker.time(50, calls=4, streams=4)) == 16
        assert worker.answer({})["most"] == 4
        assert worker.answer({})["prepared"].tolist() == [50] * 4  # each thread has a call of its own


def test_memory_is_that_of_the_process() -> None:
    mine = np.ones(250 << 20, np.uint8)  # the worker must not be charged with it
    with Worker(big, 1 << 20) as small, Worker(big, 100 << 20) as large:
        assert 5 << 20 < small.peak_memory() < 200 << 20
        assert 95 << 20 < large.peak_memory() - small.peak_memory() < 105 << 20
    assert mine[0] == 1


def test_failures_are_told_in_one_line_and_survived() -> None:
    with Worker(Doubling, 7, name="openvino-int8") as worker:
        with pytest.raises(WorkerError, match=r"^openvino-int8: ValueError: no batch of 7$"):
            worker.time(7)
        with pytest.raises(WorkerError, match="no batch of 7"):
            worker.time(7, streams=2)
        assert worker.time(1)
    with pytest.raises(WorkerError, match="closed"):
        worker.time(1)
    with Worker(only_timed) as worker, pytest.raises(WorkerError, match="it can be timed, not asked"):
        worker.answer({})
    assert issubclass(WorkerError, BackendError)


def test_what_cannot_be_built() -> None:
    with (
        pytest.raises(WorkerError, match=r"^x: install it$"),
        Worker(refuse, "install it", name="x") as worker,
    ):
        worker.wait_ready()
    with pytest.raises(AttributeError):  # cannot be pickled: a programming error
        Worker(lambda: silent)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit", "exit code 3"),
        ("segfault", "killed by SIGSEGV: the library's last words"),
        ("oom", r"killed by SIGKILL \(out of memory\?\)"),
        ("sleep", "took longer than 3 s and was stopped"),
    ],
)
def test_deaths_are_told(how: str, message: str) -> None:
    timeout = 3 if how == "sleep" else 60
    with pytest.raises(WorkerError, match=message), Worker(die, how, timeout=timeout) as worker:
        worker.wait_ready()


def test_a_worker_killed_from_outside() -> None:
    with Worker(Doubling) as worker:
        worker.wait_ready()
        (child,) = (p for p in psutil.Process().children() if "worker_process" in " ".join(p.cmdline()))
        child.kill()
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.time(1)
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.time(1)


def test_workers_die_with_their_owner(tmp_path: Path) -> None:
    # A script without the guard that multiprocessing asks for; its worker is in the middle of a call.
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_worker
        from reskit.backends.worker import Worker
        worker = Worker(test_worker.Doubling)
        worker.start()
        worker.wait_ready()
        print(worker._process.pid, flush=True)
        worker.time(20_000)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        time.sleep(0.2)
        assert child.is_running()
        owner.kill()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone


def test_the_process_imports_no_torch() -> None:
    with Worker(modules_seen) as worker:
        worker.wait_ready()
        assert worker.facts["torch"] is False


class modules_seen:  # noqa: N801 - reads as a function
    def __init__(self) -> None:
        self.facts = {"torch": "torch" in sys.modules}
