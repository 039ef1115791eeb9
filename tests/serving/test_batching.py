"""What is gathered into a batch, in which order, and what becomes of those that give up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from reskit.serving.batching import Batcher
from reskit.serving.faults import BadRequestError, BusyError, DeadlineError, NotReadyError


class Network:
    """Doubles what it is given, once it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        self.batches.append(inputs["x"][:, 0].tolist())
        assert self.go_on.wait(10)
        return {"y": inputs["x"] * 2}


class Observer:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def batch(self, *, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        assert min(input_ns, infer_ns, output_ns) >= 0
        self.rows.append(rows)


def rows(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def batching(test: Callable[..., Awaitable[None]], **settings: Any) -> tuple[Network, Observer]:
    """Run a test with a batcher in an event loop."""
    network, observer = Network(), Observer()

    async def main() -> None:
        batcher = Batcher(network, observer, **{"max_batch": 4, **settings})

        def ask(*values: float, width: int = 1, seconds: float = 10.0) -> asyncio.Task[Any]:
            deadline = asyncio.get_running_loop().time() + seconds
            return asyncio.create_task(batcher.submit(rows(*values, width=width), len(values), deadline))

        await test(batcher, network, ask)
        network.go_on.set()
        assert await batcher.close(5)

    asyncio.run(main())
    return network, observer


def values(answer: Any) -> list[float]:
    found: list[float] = answer.outputs["y"][:, 0].tolist()
    return found


def test_what_comes_together_is_computed_together() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        answers = await asyncio.gather(ask(1), ask(2, 3), ask(4))
        assert [values(answer) for answer in answers] == [[2], [4, 6], [8]]
        assert {answer.batch for answer in answers} == {4}

    network, observer = batching(test)
    assert network.batches == [[1, 2, 3, 4]]
    assert observer.rows == [4]


def test_a_batch_is_never_too_large_and_keeps_the_order() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        answers = await asyncio.gather(ask(1, 2, 3), ask(4, 5), ask(6), ask(7, 8), ask(9))
        assert [values(answer)[0] for answer in answers] == [2, 8, 12, 14, 18]

    network, _ = batching(test)
    assert network.batches == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_shapes_are_not_mixed() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        answers = await asyncio.gather(ask(1), ask(2, width=3), ask(3), ask(4, width=3))
        assert [answer.outputs["y"].shape for answer in answers] == [(1, 1), (1, 3), (1, 1), (1, 3)]

    network, _ = batching(test)
    assert network.batches == [[1, 3], [2, 4]]


def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        network.go_on.clear()
        first = ask(1)
        await asyncio.sleep(0.05)
        others = []
        for value in (2, 3, 4):
            others.append(ask(value))
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert batcher.depth == 3
        network.go_on.set()
        assert values(await first) == [2]
        assert [values(answer) for answer in await asyncio.gather(*others)] == [[4], [6], [8]]

    network, _ = batching(test)
    assert network.batches == [[1], [2, 3, 4]]


def test_workers_run_at_the_same_time() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        network.go_on.clear()
        asked = [ask(1, 2, 3, 4), ask(5, 6, 7, 8)]
        while len(network.batches) < 2:
            await asyncio.sleep(0.005)
        network.go_on.set()
        await asyncio.gather(*asked)

    batching(test, workers=2)


def test_a_delay_gathers_until_the_batch_is_full() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        began = time.monotonic()
        asked = []
        for value in (1, 2, 3):
            asked.append(ask(value))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asked)
        assert 0.2 < time.monotonic() - began < 2
        began = time.monotonic()
        await asyncio.gather(*[ask(value) for value in (4, 5, 6, 7)])
        assert time.monotonic() - began < 0.2

    network, _ = batching(test, max_delay=0.25)
    assert network.batches == [[1, 2, 3], [4, 5, 6, 7]]


def test_who_gives_up_is_not_computed_and_leaves_the_queue() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        network.go_on.clear()
        first = ask(1)
        await asyncio.sleep(0.05)
        late, cancelled, patient = ask(2, seconds=0.05), ask(3), ask(4)
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(DeadlineError, match="no answer within"):
            await late
        assert batcher.depth == 1
        network.go_on.set()
        assert values(await first) == [2]
        assert values(await patient) == [8]

    network, _ = batching(test)
    assert network.batches == [[1], [4]]


def test_the_queue_is_bounded_and_a_request_alone_always_fits() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        network.go_on.clear()
        first = ask(1)
        await asyncio.sleep(0.05)
        waiting = ask(2, 3, 4)
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            await ask(5)
        assert refused.value.retry_after >= 1
        network.go_on.set()
        await asyncio.gather(first, waiting)
        with pytest.raises(BadRequestError, match="5 examples in one request; the most is 4"):
            await ask(1, 2, 3, 4, 5)

    batching(test, limit=2)


def test_closing_answers_what_waits_and_takes_nothing_new() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        asked = [ask(value) for value in range(10)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close(5))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError):
            await ask(11)
        assert await closing
        assert [values(task.result()) for task in asked] == [[2 * value] for value in range(10)]

    batching(test)


def test_many_requests_from_everywhere_get_their_own_answers() -> None:
    async def test(batcher: Batcher, network: Network, ask: Any) -> None:
        generator = np.random.default_rng(0)

        async def one(value: float) -> None:
            await asyncio.sleep(generator.random() * 0.2)
            count = int(generator.integers(1, 5))
            answer = await ask(*[value] * count)
            assert values(answer) == [2 * value] * count

        await asyncio.gather(*(one(float(value)) for value in range(400)))

    network, observer = batching(test, workers=3, limit=10_000)
    assert max(observer.rows) == 4
    assert sum(observer.rows) == sum(map(len, network.batches))
