"""What a journal says in figures: deployments and how they ended, uptime, errors before and after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from reskit.journal.journal import Event

__all__ = ["Deployment", "History", "Traffic", "history"]

Outcome = Literal["promoted", "reverted", "rolled_back", "refused", "cancelled", "interrupted", "running"]
_ENDS = ("promoted", "rolled_back", "refused", "cancelled")


@dataclass(slots=True)
class Traffic:
    """Requests to a model, and those not answered for a fault of the service."""

    requests: int = 0
    failed: int = 0

    @property
    def error_rate(self) -> float | None:
        """Part of the requests that failed; None where there were none."""
        return self.failed / self.requests if self.requests else None

    def add(self, other: Traffic) -> None:
        """Count those of `other` too."""
        self.requests += other.requests
        self.failed += other.failed


@dataclass(slots=True, kw_only=True)
class Deployment:
    """One deployment.

    Attributes:
        id: of the event that began it.
        model: of which model.
        version: the new version.
        previous: the version that served before.
        mode: ``at-once``, ``canary`` or ``shadow``.
        begun: Unix time.
        ended: Unix time of the outcome; None where there is none.
        outcome: ``promoted``; ``reverted``, promoted and later replaced by an older version; ``rolled_back``
            on trial; ``refused`` before it; ``cancelled`` by a stop or another load; ``interrupted`` by the
            end of the process; ``running``.
        reason: of the outcome.
        figures: what the trial measured.
        before: requests while the version before served, back to the promotion before this.
        after: requests since, up to the next promotion.
    """

    id: int
    model: str
    version: str
    previous: str | None
    mode: str
    begun: float
    ended: float | None = None
    outcome: Outcome = "running"
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    before: Traffic = field(default_factory=Traffic)
    after: Traffic = field(default_factory=Traffic)

    @property
    def error_reduction(self) -> float | None:
        """How much of the error rate went with it; None where it was not promoted or nothing is known."""
        return _reduction(self.before, self.after)


@dataclass(frozen=True, kw_only=True)
class History:
    """A journal in figures.

    Attributes:
        deployments: all, the oldest first.
        seconds: from the first start to the last event.
        seconds_up: of these, those with a service that was ready.
        starts: of the service.
        kills: how many of its lives ended without a stop, the last one left out.
    """

    deployments: list[Deployment]
    seconds: float
    seconds_up: float
    starts: int
    kills: int

    @property
    def success_rate(self) -> float | None:
        """Deployments promoted and not reverted, as a part of those that were decided."""
        outcomes = [one.outcome for one in self.deployments]
        good = outcomes.count("promoted")
        decided = good + sum(outcomes.count(bad) for bad in ("reverted", "rolled_back", "refused"))
        return good / decided if decided else None

    @property
    def uptime(self) -> float | None:
        """Part of the time that the service was ready."""
        return self.seconds_up / self.seconds if self.seconds else None

    @property
    def error_reduction(self) -> float | None:
        """The same as of one deployment, of all that have requests before and after together."""
        before, after = Traffic(), Traffic()
        for one in self.deployments:
            if one.before.requests and one.after.requests:
                before.add(one.before)
                after.add(one.after)
        return _reduction(before, after)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "deployment_success_rate": self.success_rate,
            "uptime": self.uptime,
            "error_reduction_rate": self.error_reduction,
            "seconds": self.seconds,
            "seconds_up": self.seconds_up,
            "starts": self.starts,
            "kills": self.kills,
            "deployments": [
                {
                    **asdict(one),
                    "error_rate_before": one.before.error_rate,
                    "error_rate_after": one.after.error_rate,
                    "error_reduction_rate": one.error_reduction,
                }
                for one in self.deployments
            ],
        }

    def lines(self) -> list[str]:
        """Return it for people: a line a deployment, then the rates."""
        rates = {
            "deployment success rate": self.success_rate,
            "uptime": self.uptime,
            "error-reduction rate": self.error_reduction,
        }
        return [
            *map(_line, self.deployments),
            *(
                f"{name}: {'not known yet' if rate is None else f'{rate:.2%}'}"
                for name, rate in rates.items()
            ),
        ]


def history(events: Iterable[Event]) -> History:
    """Return what events, in their order, come to; one pass, however many they are."""
    ledger, first, last = _Ledger(), None, None
    up, starts, kills = 0.0, 0, 0
    for event in events:
        if last is None or event.run != last.run:
            starts += 1
            kills += last is not None and last.kind != "stop"
        elif event.data.get("ready", True):
            up += max(0.0, event.at - last.at)
        ledger.enter(event)
        first, last = first or event, event
    return History(
        deployments=list(ledger.found.values()),
        seconds=max(0.0, last.at - first.at) if first and last else 0.0,
        seconds_up=up,
        starts=starts,
        kills=kills,
    )


def _line(one: Deployment) -> str:
    begun = datetime.fromtimestamp(one.begun).isoformat(" ", "seconds")
    came = f"{begun}  {one.model} {one.previous or '-'} > {one.version}  {one.mode}"
    reason = f" ({one.reason})" if one.reason else ""
    before, after = one.before.error_rate, one.after.error_rate
    errors = "" if before is None or after is None else f"; errors {before:.2%} > {after:.2%}"
    return f"{came}: {one.outcome.replace('_', ' ')}{reason}{errors}"


class _Ledger:
    """Deployments, and the requests before and after them, as events come in."""

    def __init__(self) -> None:
        self.found: dict[int, Deployment] = {}
        self._promoted: dict[str, Deployment] = {}
        self._traffic: dict[str, Traffic] = {}

    def enter(self, event: Event) -> None:
        model, version = event.model or "", event.version or ""
        if event.kind == "start":
            for one in self.found.values():
                if one.ended is None:
                    one.outcome, one.reason = "interrupted", "the process ended"
        elif event.kind == "traffic":
            seen = Traffic(event.data["requests"], event.data["failed"])
            self._traffic.setdefault(model, Traffic()).add(seen)
        elif event.kind == "begun":
            self.found[event.id] = Deployment(
                id=event.id,
                model=model,
                version=version,
                previous=event.data.get("previous"),
                mode=event.data["mode"],
                begun=event.at,
            )
        elif event.kind in _ENDS and event.deployment in self.found:
            self._end(self.found[event.deployment], event)

    def _end(self, one: Deployment, event: Event) -> None:
        one.ended, one.outcome = event.at, event.kind  # type: ignore[assignment]
        one.reason, one.figures = event.data.get("reason", ""), event.data.get("figures", {})
        if event.kind != "promoted":
            return
        last = self._promoted.get(one.model)
        if last is not None and int(one.version) < int(last.version):
            last.outcome, last.reason = "reverted", f"replaced by version {one.version}"
        one.before = self._traffic.get(one.model, Traffic())
        self._traffic[one.model], self._promoted[one.model] = one.after, one


def _reduction(before: Traffic, after: Traffic) -> float | None:
    if not before.failed or not after.requests:
        return None
    return 1 - (after.failed / after.requests) / (before.failed / before.requests)
