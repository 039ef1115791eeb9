"""One new version on trial beside the old: who is asked, who answers, and what comes of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from reskit.serving.deploying.comparing import Answer, AnyAnswer, disagreement, flaws
from reskit.serving.faults import EngineError
from reskit.serving.models import Model
from reskit.serving.settings import Settings

__all__ = ["Ask", "Trial", "Verdict"]

_AT_ONCE = 4
"""Requests that are asked a second time at once; beyond that they are not compared."""

Ask = Callable[[Model, float, bool], Awaitable[AnyAnswer]]
"""Asks a model, to be answered by a time of the loop's clock; True where nobody waits for it."""


class Verdict(NamedTuple):
    """What came of a trial, and why."""

    outcome: Literal["promoted", "rolled_back", "cancelled"]
    reason: str


class Trial:
    """Asks a new version a share of the requests beside the old one, and judges it.

    As a canary it answers these requests, and the old version is asked behind it for comparison; where it
    fails, the old one answers. As a shadow it is the one asked behind, and answers nobody.

    Args:
        new: the version on trial.
        mode: how it is tried.
        settings: of the service.
    """

    def __init__(self, new: Model, mode: Literal["canary", "shadow"], settings: Settings) -> None:
        self.new, self.mode = new, mode
        self.verdict: Verdict | None = None
        self._settings = settings
        self._due = 0.0
        self._asked = self._failed = self._compared = 0
        self._disagreed = 0.0
        self._error = ""
        self._old_s: list[float] = []
        self._new_s: list[float] = []
        self._over = asyncio.Event()
        self._behind: set[asyncio.Task[None]] = set()

    @property
    def share(self) -> float:
        """Part of the requests that the new version answers."""
        return self._settings.rollout_share if self.mode == "canary" and self.verdict is None else 0.0

    async def answer(self, old: Model, ask: Ask[AnyAnswer], deadline: float) -> AnyAnswer:
        """Answer a request, by one version or the other.

        Raises:
            ServingError: the old version could not.
        """
        if self.verdict is not None or not self._drawn():
            return await ask(old, deadline, False)
        async with old.used(), self.new.used():
            if self.mode == "canary":
                return await self._canary(old, ask, deadline)
            began = time.perf_counter()
            answer = await ask(old, deadline, False)
            self._then(self._shadow(ask, answer, time.perf_counter() - began, deadline))
            return answer

    async def decide(self) -> Verdict:
        """Return the verdict, once there is one."""
        try:
            async with asyncio.timeout(self._settings.rollout_s):
                await self._over.wait()
        except TimeoutError:
            self._judge(final=True)
        assert self.verdict is not None
        return self.verdict

    def cancel(self, reason: str) -> None:
        """End it without a judgement."""
        self._end(Verdict("cancelled", reason))

    async def close(self) -> None:
        """Stop comparing."""
        for task in list(self._behind):
            task.cancel()
        await asyncio.gather(*self._behind, return_exceptions=True)

    def figures(self) -> dict[str, Any]:
        """Return what was seen."""
        return {
            "asked": self._asked,
            "failed": self._failed,
            "error": self._error,
            "compared": self._compared,
            "disagreement": self._disagreed / self._compared if self._compared else None,
            "slowdown": self._slowdown(),
        }

    def _drawn(self) -> bool:
        """Whether this request is one of the share: they are spread evenly, never more than it."""
        self._due += self._settings.rollout_share
        if self._due < 1 - 1e-9:
            return False
        self._due -= 1
        return True

    async def _canary(self, old: Model, ask: Ask[AnyAnswer], deadline: float) -> AnyAnswer:
        loop = asyncio.get_running_loop()
        half = loop.time() + (deadline - loop.time()) / 2  # the rest is for the old one, should this fail
        began = time.perf_counter()
        try:
            answer = await ask(self.new, half, False)
            if flaws(answer):
                raise EngineError("the answer has parts that failed")
        except Exception as error:  # whatever it is, the old one may still know the answer
            known = await ask(old, deadline, False)
            if not flaws(known):
                self._fail(error)
            return known
        self._then(self._behind_canary(old, ask, answer, time.perf_counter() - began, deadline))
        return answer

    async def _behind_canary(
        self, old: Model, ask: Ask[AnyAnswer], answer: AnyAnswer, seconds: float, deadline: float
    ) -> None:
        """Ask the old version what the new one has answered."""
        async with old.used(), self.new.used():
            began = time.perf_counter()
            try:
                known = await ask(old, deadline, True)
            except Exception:
                self._count()
                return
            self._compare(known, answer, time.perf_counter() - began, seconds)

    async def _shadow(self, ask: Ask[AnyAnswer], known: AnyAnswer, seconds: float, deadline: float) -> None:
        """Ask the new version what the old one has answered."""
        async with self.new.used():
            began = time.perf_counter()
            try:
                answer = await ask(self.new, deadline, True)
                if flaws(answer) > flaws(known):
                    raise EngineError("the answer has parts that failed")
            except Exception as error:
                self._fail(error)
                return
            self._compare(known, answer, seconds, time.perf_counter() - began)

    def _then(self, comparison: Any) -> None:
        """Compare behind the request's back, unless too much of that is under way."""
        if len(self._behind) >= _AT_ONCE:
            comparison.close()
            self._count()
            return
        task = asyncio.create_task(comparison)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _compare(self, old: Answer, new: Answer, old_s: float, new_s: float) -> None:
        self._compared += 1
        self._disagreed += disagreement(old, new, len(self.new.predictor.labels))
        self._old_s.append(old_s)
        self._new_s.append(new_s)
        self._count()

    def _fail(self, error: Exception) -> None:
        self._failed += 1
        self._error = f"{type(error).__name__}: {error}"
        self._count()

    def _count(self) -> None:
        self._asked += 1
        self._judge(final=self._asked >= self._settings.rollout_requests)

    def _judge(self, *, final: bool) -> None:
        """Say what is certain: at the end by what was seen, before it by what can no more come right."""
        limits = self._settings
        asked = self._asked if final else limits.rollout_requests
        compared = self._compared if final else limits.rollout_requests
        slowdown = self._slowdown() if final else None
        if self._failed > limits.rollout_errors * asked:
            self._end(Verdict("rolled_back", f"{self._failed} of {self._asked} failed, last {self._error}"))
        elif self._disagreed > limits.rollout_disagreement * compared:
            part = self._disagreed / self._compared
            self._end(Verdict("rolled_back", f"{part:.1%} of {self._compared} answers are others"))
        elif slowdown is not None and slowdown > limits.rollout_slowdown:
            self._end(Verdict("rolled_back", f"its median time is {slowdown:.2f} times the old version's"))
        elif final:
            self._end(Verdict("promoted", f"{self._asked} requests on trial"))

    def _slowdown(self) -> float | None:
        if not self._old_s:
            return None
        return statistics.median(self._new_s) / max(statistics.median(self._old_s), 1e-9)

    def _end(self, verdict: Verdict) -> None:
        if self.verdict is None:
            self.verdict = verdict
            self._over.set()
