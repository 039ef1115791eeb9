"""What was deployed outlives the process, and no request is lost while versions change."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from pushing import Pushed, ask, lying, pushed, sabotage, states, until
from served import Running, tensor

__all__ = ["pushed", "sabotage"]


@contextmanager
def killed(pushed: Pushed) -> Iterator[Callable[..., Any]]:
    """Run `reskit serve` in a process of its own, yield what asks it, and kill it with SIGKILL."""
    command = [
        "serve",
        str(pushed.folder),
        "--journal",
        str(pushed.journal),
        "--port",
        "0",
        "--no-grpc",
        "--json",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "reskit", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        text = ""
        while "\n}" not in text:
            line = process.stdout.readline()
            assert line, "it ended"
            text += line
        url = json.loads(text)["urls"]["rest"]

        def post(path: str, body: Any) -> Any:
            request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=20) as response:
                return json.loads(response.read() or "null")

        yield post
        process.kill()


def test_after_kill_nine_it_is_known_what_was_promoted(
    running: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    place = "/v2/repository/models/digits/load"
    with killed(pushed) as post:
        pushed.push("2")
        post(place, {})
        pushed.push("3", lying)
        with pytest.raises(urllib.error.HTTPError):
            post(place, {})
        pushed.push("4")
        post(place, {"parameters": {"rollout": "canary"}})
        asked = post("/v2/models/digits/infer", {"inputs": [tensor(images[:1])]})
        assert asked["model_version"] == "2"
    outcomes = [(one.version, one.outcome) for one in pushed.history().deployments]
    assert outcomes == [("2", "promoted"), ("3", "refused"), ("4", "running")]
    server = running(
        [pushed.folder], grpc_port=None, journal=pushed.journal, rollout="canary", rollout_share=0.001
    )
    assert ask(server, images, expected) == "2"
    until(lambda: states(server)["4"][1] == "on trial: canary")  # not judged, so it is tried again
    assert states(server)["3"][0] == "UNAVAILABLE"  # judged, so it is not
    assert "golden samples" in states(server)["3"][1]
    found = pushed.history()
    outcomes = [(one.version, one.outcome) for one in found.deployments]
    assert outcomes == [("2", "promoted"), ("3", "refused"), ("4", "interrupted"), ("4", "running")]
    assert (found.success_rate, found.starts, found.kills) == (0.5, 2, 1)


def test_a_version_rolled_back_is_not_tried_again_after_a_restart(
    running: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    settings = {"grpc_port": None, "journal": pushed.journal, "rollout": "at-once"}
    server = running([pushed.folder], **settings)
    pushed.push("2", lying)
    assert server.post("/v2/repository/models/digits/load").status == 400
    before = states(server)["2"][1]
    assert "golden" in before
    server.stop()
    server = running([pushed.folder], **settings, watch_s=0.05)
    time.sleep(0.3)
    assert states(server)["2"] == ("UNAVAILABLE", before)
    assert ask(server, images, expected) == "1"
    assert len(pushed.history().deployments) == 1
    pushed.push("3")
    until(lambda: ask(server, images, expected) == "3")
    server.stop()
    # The newest is served where the journal's is gone.
    (pushed.folder / "3").rename(pushed.folder.parent / "gone")
    (pushed.folder / "2").rename(pushed.folder.parent / "gone too")
    assert ask(running([pushed.folder], **settings), images, expected) == "1"


@pytest.mark.parametrize("run", ["good", "raises"])
def test_no_request_is_lost_under_load(
    running: Callable[..., Running],
    pushed: Pushed,
    sabotage: Callable[..., None],
    images: np.ndarray,
    expected: np.ndarray,
    run: str,
) -> None:
    server = running(
        [pushed.folder],
        grpc_port=None,
        journal=pushed.journal,
        rollout="canary",
        rollout_share=0.3,
        rollout_requests=20,
        rollout_slowdown=1e6,
        rollout_errors=0.2,
        watch_s=0.05,
    )
    if run == "raises":

        def every_third(real: Any, inputs: Any, count: list[int] = [0]) -> Any:  # noqa: B006
            count[0] += 1
            if count[0] % 3 == 0:
                raise RuntimeError("out of order")
            return real(inputs)

        sabotage("2", every_third)
    over = threading.Event()
    versions: list[str] = []

    def keep_asking() -> None:
        while not over.is_set():
            versions.append(ask(server, images, expected))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(keep_asking) for _ in range(4)]
        try:
            until(lambda: len(versions) > 20)
            pushed.push("2")
            until(lambda: pushed.history().deployments and pushed.last().ended)
            seen = len(versions)
            until(lambda: len(versions) > seen + 40)
        finally:
            over.set()
        for asker in askers:
            asker.result()
    assert pushed.last().outcome == ("promoted" if run == "good" else "rolled_back")
    assert set(versions[-10:]) == {"2" if run == "good" else "1"}
    assert versions.count("2") > 0
    server.stop()
    events = pushed.history()
    total = pushed.last().before.requests + pushed.last().after.requests
    assert events.deployments[0].before.failed == events.deployments[0].after.failed == 0
    assert total == (len(versions) if run == "good" else 0)
