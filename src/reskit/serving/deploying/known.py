"""What is known of the versions of models, also from the lives of the service before this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reskit.journal import Event

__all__ = ["Known", "verdict"]


def verdict(outcome: str, reason: str) -> str:
    """Return why a version does not serve, as the index says it."""
    return reason if outcome == "refused" else f"{outcome.replace('_', ' ')}: {reason}"


class Known:
    """What serves, and what was tried and found wanting.

    Args:
        events: of the journal.

    Attributes:
        serving: model to the version that serves and the digest of its files; of lives before, the digest
            is empty.
        judged: model, version and digest of what was refused or rolled back, with the reason: not tried
            again by itself.
    """

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self.serving: dict[str, tuple[str, str]] = {}
        self.judged: dict[tuple[str, str, str], str] = {}
        begun: dict[int, str] = {}
        for event in events:
            model, version = event.model or "", event.version or ""
            if event.kind == "start":
                self.serving.update({name: (one, "") for name, one in event.data["serving"].items()})
            elif event.kind == "begun":
                begun[event.id] = event.data["files"]
            elif event.kind == "promoted":
                self.serving[model] = version, ""
            elif event.kind in ("refused", "rolled_back") and event.deployment in begun:
                reason = verdict(event.kind, event.data.get("reason", ""))
                self.judged[model, version, begun[event.deployment]] = reason

    def choose(self, name: str, versions: Mapping[str, str]) -> str:
        """Return the version to start with: the one that served last, else the newest not found wanting.

        Args:
            name: of the model.
            versions: those there are, and the digests of their files.
        """
        served, _ = self.serving.get(name, ("", ""))
        if served in versions:
            return served
        good = [version for version, files in versions.items() if (name, version, files) not in self.judged]
        return max(good or versions, key=int)
