"""What goes wrong inside costs what it must and no more: no wrong answer, no crash, no silence."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from served import Running, png, tensor


class Faulty:
    """A runner that does what a test wants before it runs."""

    def __init__(self, runner: Any, before: Callable[[np.ndarray], None]) -> None:
        self.runner, self.before = runner, before
        self.signature = runner.signature
        self.sizes: list[int] = []

    def run(self, inputs: Any) -> Any:
        self.sizes.append(len(inputs["image"]))
        self.before(inputs["image"])
        return self.runner.run(inputs)

    def close(self) -> None:
        self.runner.close()


def fail_with(server: Running, before: Callable[[np.ndarray], None]) -> Faulty:
    faulty = Faulty(server.model.predictor.runner, before)
    server.model.predictor.runner = faulty
    return faulty


@contextmanager
def asking(server: Running, requests: list[np.ndarray]) -> Iterator[list[Any]]:
    """Send requests at the same time, then yield what will be their replies."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        yield [pool.submit(server.infer, images) for images in requests]


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_network_that_raises_loses_its_own_batch_only(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)])

    def before(pixels: np.ndarray) -> None:
        if (pixels == 255).all():
            raise MemoryError("no room")

    fail_with(server, before)
    for _ in range(3):
        bad = server.infer(np.full((1, 1, 8, 8), 255, np.uint8))
        assert bad.status == 500
        assert bad.json["error"] == "the network failed: MemoryError: no room"
        good = server.infer(images[:1])
        np.testing.assert_allclose(good.json["outputs"][0]["data"], expected[0], rtol=1e-4, atol=1e-4)
    assert server.get("/v2/health/ready").status == 200
    text = server.get("/metrics").body.decode()
    assert 'reskit_errors_total{kind="engine"} 3.0' in text


def test_a_network_with_too_few_answers_is_not_believed(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    runner = server.model.predictor.runner
    runner.run = lambda inputs: {"output": np.zeros((1, 10), np.float32)}
    assert server.infer(images[:1]).status == 200
    reply = server.infer(images[:3])
    assert reply.status == 500
    assert "1] answers to 3 examples" in reply.json["error"]


def test_what_is_not_finite_is_not_sent_as_json(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    server.model.predictor.runner.run = lambda inputs: {"output": np.full((1, 10), np.nan, np.float32)}
    reply = server.infer(images[:1])
    assert reply.status == 500
    assert "not finite" in reply.json["error"]
    reply = server.post("/v1/predict", png(images[0]))
    assert reply.status == 500
    assert "not finite" in reply.json["error"]


def test_a_network_that_hangs_trips_deadline_and_readiness(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)], timeout_s=0.4, grace_s=0.5)
    go_on = threading.Event()
    fail_with(server, lambda pixels: go_on.wait(20) and None)
    began = time.monotonic()
    with asking(server, [images[:1]] * 3) as replies:
        assert [reply.result().status for reply in replies] == [504] * 3
    assert 0.3 < time.monotonic() - began < 5
    until(lambda: server.get("/v2/health/ready").status == 503)
    assert server.get("/v2/health/live").status == 503
    assert server.get("/v2/models/digits/ready").status == 503
    go_on.set()
    until(lambda: server.get("/v2/health/ready").status == 200)
    assert server.infer(images[:1]).status == 200


def test_a_hanging_network_does_not_keep_the_service_from_ending(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)], timeout_s=0.2, grace_s=0.5)
    go_on = threading.Event()
    fail_with(server, lambda pixels: go_on.wait(20) and None)
    assert server.infer(images[:1]).status == 504
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    go_on.set()


def test_a_request_may_ask_for_an_earlier_deadline(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    fail_with(server, lambda pixels: time.sleep(0.3))
    began = time.monotonic()
    reply = server.infer(images[:1], parameters={"timeout": 50_000})
    assert reply.status == 504
    assert time.monotonic() - began < 0.3
    assert server.infer(images[:1], parameters={"timeout": 5_000_000}).status == 200


def test_a_full_queue_says_when_to_come_again(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)], queue=6, max_batch=4)
    go_on = threading.Event()
    fail_with(server, lambda pixels: go_on.wait(20) and None)
    with asking(server, [images[:1]]) as first:
        until(lambda: server.model.batcher.hung is False and server.model.batcher._running)
        with asking(server, [images[:3], images[:3]]) as waiting:
            until(lambda: server.model.batcher.depth == 6)
            reply = server.infer(images[:1])
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "6 examples are waiting" in reply.json["error"]
            go_on.set()
        assert [reply.result().status for reply in (*first, *waiting)] == [200] * 3
    good = waiting[1].result().json["outputs"][0]["data"]
    np.testing.assert_allclose(np.reshape(good, (3, 10)), expected[:3], rtol=1e-4, atol=1e-4)


def test_what_waits_is_computed_together_and_told_apart(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    go_on = threading.Event()
    faulty = fail_with(server, lambda pixels: go_on.wait(20) and None)
    with asking(server, [images[:1]]):
        until(lambda: len(faulty.sizes) == 1)
        with asking(server, [images[place : place + 1] for place in range(len(images))]) as replies:
            until(lambda: server.model.batcher.depth == len(images))
            go_on.set()
        for place, reply in enumerate(replies):
            found = reply.result().json["outputs"][0]["data"]
            np.testing.assert_allclose(found, expected[place], rtol=1e-4, atol=1e-4)
    assert faulty.sizes == [1, len(images)]


def test_unloading_under_load_answers_what_was_asked(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    done, statuses, wrong = threading.Event(), [], []

    def load() -> None:
        while not done.is_set():
            reply = server.infer(images[:2])
            statuses.append(reply.status)
            if reply.status == 200:
                found = np.reshape(reply.json["outputs"][0]["data"], (2, 10))
                wrong.append(not np.allclose(found, expected[:2], rtol=1e-3, atol=1e-3))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.1)
        assert server.post("/v2/repository/models/digits/unload").status == 200
        time.sleep(0.05)
        assert server.post("/v2/repository/models/digits/load").status == 200
    time.sleep(0.1)
    assert server.post("/v2/repository/models/digits/load").status == 200  # beside the one that answers
    done.set()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 10
    assert 503 in statuses
    assert not any(wrong)


def test_loading_again_fails_no_request(
    running: Callable[..., Running], bundle: Path, images: np.ndarray
) -> None:
    server = running([("digits", bundle)])
    done, statuses = threading.Event(), []

    def load() -> None:
        while not done.is_set():
            statuses.append(server.infer(images[:2]).status)

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(2):
        assert server.post("/v2/repository/models/digits/load").status == 200
    done.set()
    thread.join()
    assert set(statuses) == {200}


def test_a_signal_ends_the_service_when_all_is_answered(
    bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    options = ["--port", "0", "--grpc-port", "0", "--json", "--max-delay-ms", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "reskit", "serve", f"digits={bundle}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        text = ""
        assert process.stdout is not None
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            text += line
        told = json.loads(text)
        assert told["models"][0]["engine"] == "torch-fp32"
        connection = HTTPConnection(told["urls"]["rest"].removeprefix("http://"), timeout=20)
        body = json.dumps({"inputs": [tensor(images[:1])]})
        connection.request("POST", "/v2/models/digits/infer", body)  # waits a second for others
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        response = connection.getresponse()
        assert response.status == 200
        found = json.loads(response.read())["outputs"][0]["data"]
        np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-4)
        _, errors = process.communicate(timeout=100)  # the interpreter takes its time
        assert process.returncode == 0
        assert errors.startswith("serving: rest http://127.0.0.1:")
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


def test_a_stop_ends_idle_streams_and_says_so(
    running: Callable[..., Running],
    bundle: Path,
    client: Callable[..., Any],
    tmp_path: Path,
    images: np.ndarray,
) -> None:
    server = running([("digits", bundle)], grace_s=20, drain_s=0.3)
    np.save(tmp_path / "images.npy", images)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        said = pool.submit(
            client, "grpc_idle", server.server.urls["grpc"], tmp_path / "images.npy", tmp_path / "up"
        )
        until((tmp_path / "up").exists, 60)
        began = time.monotonic()
        server.stop(wait=False)
        time.sleep(0.15)
        assert server.get("/v2/health/ready").status == 503  # balancers are told before anything ends
        assert server.infer(images[:1]).status == 200
        server.join()
        assert time.monotonic() - began < 10
    assert said.result()["answered"] == 1


def test_a_thousand_clients_at_once_are_answered_or_told_to_come_again(
    running: Callable[..., Running], bundle: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    server = running([("digits", bundle)], queue=300)
    outcomes: Counter[str] = Counter()

    async def ask(place: int) -> None:
        image = images[place % len(images)]
        body = json.dumps({"inputs": [tensor(image[None])]}).encode()
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        status, _, rest = (await reader.read()).partition(b"\r\n")
        writer.close()
        outcomes[status.decode()] += 1
        if b" 200 " in status:
            found = json.loads(rest.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]
            np.testing.assert_allclose(found, expected[place % len(images)], rtol=1e-3, atol=1e-3)
        else:
            assert b"retry-after: " in rest

    async def crowd() -> None:
        await asyncio.gather(*map(ask, range(1000)))

    asyncio.run(crowd())
    assert outcomes.keys() <= {"HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"}
    assert outcomes["HTTP/1.1 200 OK"] >= 300
    assert sum(outcomes.values()) == 1000
    assert server.infer(images[:1]).status == 200
