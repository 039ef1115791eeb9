"""Trials of new versions go on over gRPC as over REST: shared, compared, promoted or rolled back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pushing import Pushed, other, pushed, sabotage, states, until
from served import Running

__all__ = ["pushed", "sabotage"]

Trial = Callable[..., tuple[Running, Any]]


@pytest.fixture
def trial(
    running: Callable[..., Running], pushed: Pushed, client: Callable[..., Any], tmp_path: Path
) -> Trial:
    """Push version 2 to a service of version 1, and have a client load it and ask; return both."""

    def begin(image: np.ndarray, *asked: object, change: Any = lambda _: None, **settings: Any) -> Any:
        easy = {"rollout_share": 0.5, "rollout_requests": 6, "rollout_slowdown": 1e6}
        server = running([pushed.folder], journal=pushed.journal, **{**easy, **settings})
        np.save(tmp_path / "image.npy", image)
        pushed.push("2", change)
        return server, client("grpc_trial", server.server.urls["grpc"], tmp_path / "image.npy", *asked)

    return begin


def requests(server: Running) -> dict[tuple[str, str, str], float]:
    """Return how many requests each version got, by protocol and outcome."""
    text = server.get("/metrics").body.decode()
    return {
        (sample.labels["version"], sample.labels["protocol"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "reskit_requests_total"
    }


def test_a_canary_answers_its_share_is_compared_and_promoted(
    trial: Trial, pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server, said = trial(images[:1], "canary", 8, 12)
    np.testing.assert_allclose(said["outputs"], np.repeat(expected[:1], 20, 0), rtol=1e-4, atol=1e-4)
    assert said["named"] == "StatusCode.UNAVAILABLE"  # by its name it is not asked yet
    assert said["versions"][:8] == ["1", "2"] * 4
    until(lambda: states(server) == {"1": ("UNAVAILABLE", "unloaded"), "2": ("READY", "")})
    last = pushed.last()
    assert (last.outcome, last.mode, last.figures["failed"]) == ("promoted", "canary", 0)
    assert last.figures["asked"] >= 6  # some more of a stream may be under way
    assert last.figures["disagreement"] == 0
    counts = requests(server)
    assert counts["1", "shadow", "answered"] >= last.figures["compared"] >= 4  # each call by itself is
    answered = {version: counts[version, "grpc", "answered"] for version in "12"}
    assert answered == Counter(said["versions"])


def fail(real: Any, inputs: Any) -> Any:
    raise MemoryError("no room")


@pytest.mark.parametrize("rollout", ["canary", "shadow"])
def test_a_version_that_fails_is_rolled_back_and_nobody_is_told(
    trial: Trial, pushed: Pushed, sabotage: Any, images: np.ndarray, expected: np.ndarray, rollout: str
) -> None:
    sabotage("2", fail)
    server, said = trial(images[:1], rollout, 4, 8, rollout_errors=0.4)
    assert said["versions"] == ["1"] * 12
    np.testing.assert_allclose(said["outputs"], np.repeat(expected[:1], 12, 0), rtol=1e-4, atol=1e-4)
    until(lambda: states(server)["2"][0] == "UNAVAILABLE")
    assert pushed.last().outcome == "rolled_back"
    assert "failed, last EngineError: " in pushed.last().reason
    assert b'reskit_errors_total{kind="engine"}' not in server.get("/metrics").body


def test_a_canary_that_says_something_else_is_rolled_back(
    trial: Trial, pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    chosen = images[np.flatnonzero(expected.argmax(1) != 0)]  # zeros are taken for the first class
    server, said = trial(chosen[:1], "canary", 20, 0, change=other)
    until(lambda: states(server)["2"][0] == "UNAVAILABLE")
    assert pushed.last().reason == "100.0% of 2 answers are others"
    assert 2 <= said["versions"].count("2") <= 4  # and what was asked before these were compared
    assert said["versions"][-1] == "1"
