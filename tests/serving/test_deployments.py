"""A good version is promoted, a bad one is rolled back, and nobody who asks is told of it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pushing import Pushed, ask, damaged, load, lying, other, pushed, sabotage, states, until
from served import Running, png

from reskit.errors import ConfigError, OutputError
from reskit.journal import Journal, read_journal
from reskit.serving.predictor import Predictor

__all__ = ["pushed", "sabotage"]

EASY = {"rollout_share": 0.5, "rollout_requests": 6, "rollout_slowdown": 1e6}
"""Decided after a few requests; how long they take is left out, but where a test is about it."""

Sabotage = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def start(running: Callable[..., Running], pushed: Pushed) -> Callable[..., Running]:
    """Start a service of `pushed` with a journal."""

    def begin(**settings: Any) -> Running:
        return running([pushed.folder], grpc_port=None, journal=pushed.journal, **{**EASY, **settings})

    return begin


def metric(server: Running, name: str) -> dict[tuple[str, ...], float]:
    text = server.get("/metrics").body.decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_a_good_version_is_promoted(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start()
    pushed.push("2")
    assert load(server, "canary").status == 200
    assert states(server) == {"1": ("READY", ""), "2": ("LOADING", "on trial: canary")}
    assert metric(server, "reskit_version_share") == {("digits", "1"): 0.5, ("digits", "2"): 0.5}
    assert server.get("/v2/models/digits/versions/2").status == 503
    asked = [ask(server, images, expected) for _ in range(8)]
    assert asked == ["1", "2"] * 4
    for _ in range(8):
        ask(server, images, expected)
    until(lambda: states(server)["1"][0] == "UNAVAILABLE")
    assert states(server) == {"1": ("UNAVAILABLE", "unloaded"), "2": ("READY", "")}
    assert ask(server, images, expected) == "2"
    assert metric(server, "reskit_version_share") == {("digits", "2"): 1}
    assert metric(server, "reskit_deployments_total") == {("digits", "promoted"): 1}
    last = pushed.last()
    assert (last.version, last.previous, last.mode, last.outcome) == ("2", "1", "canary", "promoted")
    assert last.figures["asked"] == 6
    assert last.figures["failed"] == last.figures["disagreement"] == 0
    server.stop()
    found = pushed.history()
    assert found.success_rate == 1
    assert found.uptime == 1
    assert last.before.requests >= 12  # every second one is on trial, and six decide
    assert last.before.requests + pushed.last().after.requests == 17


@pytest.mark.parametrize("mode", ["at-once", "canary", "shadow"])
@pytest.mark.parametrize(("change", "message"), [(damaged, "altered"), (lying, "otherwise than promised")])
def test_what_is_not_what_it_promises_is_refused(
    start: Callable[..., Running],
    pushed: Pushed,
    images: np.ndarray,
    expected: np.ndarray,
    change: Callable[[Path], None],
    message: str,
    mode: str,
) -> None:
    server = start()
    pushed.push("2", change)
    reply = load(server, mode)
    assert reply.status == 400
    assert message in reply.json["error"]
    assert {ask(server, images, expected) for _ in range(4)} == {"1"}
    state, reason = states(server)["2"]
    assert state == "UNAVAILABLE"
    assert message in reason
    assert (pushed.last().outcome, pushed.last().mode) == ("refused", mode)
    assert metric(server, "reskit_deployments_total") == {("digits", "refused"): 1}
    assert pushed.history().success_rate == 0


def fail(real: Any, inputs: Any) -> Any:
    raise MemoryError("no room")


def not_finite(real: Any, inputs: Any) -> Any:
    return {"output": real(inputs)["output"] * np.nan}


def one_answer_too_many(real: Any, inputs: Any) -> Any:
    return {"output": np.zeros((len(inputs["image"]) + 1, 10), np.float32)}


@pytest.mark.parametrize("mode", ["canary", "shadow"])
@pytest.mark.parametrize("run", [fail, not_finite, one_answer_too_many])
def test_a_version_that_fails_in_use_is_rolled_back_and_nobody_is_told(
    start: Callable[..., Running],
    pushed: Pushed,
    sabotage: Sabotage,
    images: np.ndarray,
    expected: np.ndarray,
    run: Callable[..., Any],
    mode: str,
) -> None:
    server = start(rollout=mode, rollout_errors=0.4)
    pushed.push("2")
    sabotage("2", run)
    assert load(server).status == 200
    for _ in range(12):
        assert ask(server, images, expected) == "1"
    until(lambda: pushed.last().outcome == "rolled_back")
    assert re.match(r"3 of [345] failed, last EngineError: ", pushed.last().reason)
    until(lambda: states(server)["2"][0] == "UNAVAILABLE")
    assert states(server)["2"][1] == f"rolled back: {pushed.last().reason}"
    assert metric(server, "reskit_errors_total") == {}
    assert metric(server, "reskit_deployments_total") == {("digits", "rolled_back"): 1}
    assert server.get("/v2/health/ready").status == 200


def test_a_version_that_hangs_does_not_keep_answers_back(
    start: Callable[..., Running],
    pushed: Pushed,
    sabotage: Sabotage,
    images: np.ndarray,
    expected: np.ndarray,
) -> None:
    server = start(rollout="canary", timeout_s=3.0, grace_s=0.2, rollout_errors=0)
    pushed.push("2")
    sabotage("2", lambda real, inputs: time.sleep(5.0))
    assert load(server).status == 200
    # The canary has half of the time a request has: with all of it, the old version had none to answer in.
    assert [ask(server, images, expected) for _ in range(4)] == ["1"] * 4
    assert server.get("/v2/health/live").status == 200
    until(lambda: pushed.last().outcome == "rolled_back")
    assert "DeadlineError" in pushed.last().reason


@pytest.mark.parametrize("mode", ["canary", "shadow"])
def test_a_version_that_says_something_else_is_rolled_back(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray, mode: str
) -> None:
    server = start()
    pushed.push("2", other)
    chosen = images[np.flatnonzero(expected.argmax(1) != 0)]  # zeros are taken for the first class
    assert load(server, mode).status == 200
    answered = Counter(ask(server, chosen, None) for _ in range(20))
    until(lambda: pushed.last().outcome == "rolled_back")
    assert pushed.last().reason == "100.0% of 2 answers are others"
    assert answered["2"] <= (
        4 if mode == "canary" else 0
    )  # the two, and what was asked before they were compared
    assert ask(server, chosen, None) == "1"


def test_shadow_never_changes_an_answer(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(rollout="shadow", rollout_disagreement=1, rollout_requests=8)
    pushed.push("2", other)
    assert load(server).status == 200
    assert metric(server, "reskit_version_share") == {("digits", "1"): 1, ("digits", "2"): 0}
    for _ in range(100):
        version = ask(server, images, None)
        reply = server.post("/v1/predict", png(images[0]))
        if pushed.last().ended:  # the new one may have answered already
            break
        assert (version, reply.status, reply.json["version"]) == ("1", 200, "1")
    until(lambda: pushed.last().outcome == "promoted")
    counts = metric(server, "reskit_requests_total")
    assert counts["digits", "answered", "shadow", "2"] >= pushed.last().figures["compared"] > 3


def test_a_version_that_is_slow_is_rolled_back(
    start: Callable[..., Running], pushed: Pushed, sabotage: Sabotage, images: np.ndarray
) -> None:
    server = start(rollout="canary", rollout_slowdown=2, rollout_requests=2)
    pushed.push("2")

    def slow(real: Any, inputs: Any) -> Any:
        time.sleep(0.8)  # much more than a busy machine takes for the old version
        return real(inputs)

    sabotage("2", slow)
    assert load(server).status == 200
    for _ in range(6):
        ask(server, images, None)
    until(lambda: pushed.last().outcome == "rolled_back")
    assert "times the old version's" in pushed.last().reason
    assert pushed.last().figures["slowdown"] > 2


def test_uploads_are_tried_too(
    start: Callable[..., Running], pushed: Pushed, sabotage: Sabotage, images: np.ndarray
) -> None:
    server = start(rollout="canary", rollout_errors=0.4)
    pushed.push("2")
    sabotage("2", fail)
    label = server.post("/v1/predict", png(images[0])).json["predictions"][0]["label"]
    assert load(server).status == 200
    for _ in range(4):
        assert server.post("/v1/predict", b"no image").status == 400  # tells nothing of the version
    for _ in range(6):
        reply = server.post("/v1/predict?pictures=true", png(images[0])).json
        assert (reply["version"], reply["predictions"][0]["label"]) == ("1", label)
    until(lambda: pushed.last().outcome == "rolled_back")
    assert pushed.last().figures["asked"] == 3


def test_time_decides_where_nobody_asks(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(rollout="canary", rollout_s=0.2)
    pushed.push("2")
    assert load(server).status == 200
    ask(server, images, expected)
    until(lambda: pushed.last().outcome == "promoted")
    assert pushed.last().figures["asked"] <= 1
    assert ask(server, images, expected) == "2"


def test_another_load_an_unload_and_a_stop_end_a_trial(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start()
    pushed.push("2")
    assert load(server, "canary").status == 200
    pushed.push("3")
    assert load(server, "shadow").status == 200
    assert server.post("/v2/repository/models/digits/unload").status == 200
    assert {state for state, _ in states(server).values()} == {"UNAVAILABLE"}
    assert load(server, "canary").status == 200  # nothing to try it beside
    assert states(server)["3"] == ("READY", "")
    pushed.push("4")
    assert load(server, "canary").status == 200
    assert load(server, "nonsense").json["error"] == "unknown rollout 'nonsense': at-once, canary, shadow"
    assert server.post("/v2/repository/models/digits/load", {"parameters": {"rollout": 1}}).status == 400
    server.stop()
    found = pushed.history()
    assert [(one.version, one.mode, one.outcome) for one in found.deployments] == [
        ("2", "canary", "cancelled"),
        ("3", "shadow", "cancelled"),
        ("3", "at-once", "promoted"),
        ("4", "canary", "cancelled"),
    ]
    assert found.success_rate == 1
    assert found.deployments[-1].reason == "the service stopped"


def test_what_is_there_already_is_loaded_again_without_a_deployment(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(rollout="canary")
    before = server.model
    assert load(server).status == 200
    assert server.model is not before
    assert ask(server, images, expected) == "1"
    assert pushed.history().deployments == []


def test_new_versions_are_noticed_and_bad_ones_tried_once(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(watch_s=0.05)
    pushed.push("2", damaged)
    until(lambda: len(pushed.history().deployments) == 1)
    time.sleep(0.3)
    assert [one.outcome for one in pushed.history().deployments] == ["refused"]
    half = pushed.folder / "3"
    half.mkdir()
    for file in sorted(pushed.bundle.iterdir(), key=lambda file: file.name == "model.safetensors"):
        shutil.copy(file, half)  # as a slow copy does; nobody tries it before it rests
    until(lambda: ask(server, images, expected) == "3")
    assert pushed.last().outcome == "promoted"
    shutil.rmtree(pushed.folder)
    time.sleep(0.2)
    assert ask(server, images, expected) == "3"
    assert len(pushed.history().deployments) == 2


def test_a_bad_version_does_not_hide_those_below_it(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(watch_s=0.05)
    for version in ("3", "9"):
        pushed.push(version, damaged)
        until(lambda version=version: pushed.history().deployments and pushed.last().version == version)
        until(lambda: pushed.last().outcome == "refused")
    shutil.rmtree(pushed.folder / "3")
    pushed.push("3")  # mended
    until(lambda: ask(server, images, expected) == "3")
    assert [(one.version, one.outcome) for one in pushed.history().deployments] == [
        ("3", "refused"),
        ("9", "refused"),
        ("3", "promoted"),
    ]


def test_a_start_without_the_version_that_served_takes_none_that_was_found_wanting(
    running: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    settings: dict[str, Any] = {"grpc_port": None, "journal": pushed.journal, "watch_s": 0.05}
    server = running([pushed.folder], **settings)
    for version, change in (("2", lambda folder: None), ("3", damaged)):
        pushed.push(version, change)
        until(lambda version=version: pushed.history().deployments and pushed.last().version == version)
        until(lambda: pushed.last().outcome in ("promoted", "refused"))
    server.stop()
    shutil.rmtree(pushed.folder / "2")
    assert ask(running([pushed.folder], **settings), images, expected) == "1"


def test_what_cannot_be_recorded_is_not_promoted(
    start: Callable[..., Running],
    pushed: Pushed,
    images: np.ndarray,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start(rollout_s=0.1)
    real = Journal.append

    def append(journal: Journal, kind: Any, **event: Any) -> int:
        if kind == "promoted":
            raise OutputError("the disk is full")
        return real(journal, kind, **event)

    monkeypatch.setattr(Journal, "append", append)
    pushed.push("2")
    reply = load(server, "at-once")
    assert (reply.status, "the disk is full" in reply.json["error"]) == (400, True)
    assert load(server, "canary").status == 200
    until(lambda: states(server)["2"] == ("UNAVAILABLE", "the disk is full"))
    assert ask(server, images, expected) == "1"


def test_one_service_a_journal(start: Callable[..., Running], pushed: Pushed) -> None:
    start()
    with pytest.raises(ConfigError, match="another service writes in the journal"):
        start()


def test_a_life_is_recorded(
    start: Callable[..., Running],
    pushed: Pushed,
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reskit.serving.deploying.deployer._HEARTBEAT_S", 0.05)
    server = start()
    assert server.infer(images[:1]).status == 200
    assert server.infer(images[:1, :, :4]).status == 400  # a fault of the request's own
    server.model.predictor.runner.run = lambda inputs: fail(None, inputs)
    assert server.infer(images[:1]).status == 500
    until(lambda: [event.kind for event in read_journal(pushed.journal)].count("heartbeat") >= 2)
    server.stop()
    events = list(read_journal(pushed.journal))
    assert (events[0].kind, events[-1].kind) == ("start", "stop")
    traffic = [event for event in events if event.kind == "traffic"]
    assert sum(event.data["requests"] for event in traffic) == 3
    assert sum(event.data["failed"] for event in traffic) == 1


def test_of_several_versions_all_serve_or_none(
    start: Callable[..., Running], pushed: Pushed, images: np.ndarray, expected: np.ndarray
) -> None:
    server = start(rollout="canary")
    body = {"parameters": {"config": json.dumps({"version_policy": {"all": {}}})}}
    pushed.push("2")
    pushed.push("3", damaged)
    assert server.post("/v2/repository/models/digits/load", body).status == 400
    assert [state for state, _ in states(server).values()] == ["READY", "UNAVAILABLE", "UNAVAILABLE"]
    shutil.rmtree(pushed.folder / "3")
    assert server.post("/v2/repository/models/digits/load", body).status == 200
    assert server.get("/v2/models/digits").json["versions"] == ["1", "2"]
    assert metric(server, "reskit_version_share") == {("digits", "1"): 0, ("digits", "2"): 1}
    assert [one.outcome for one in pushed.history().deployments] == ["refused", "promoted"]
    body = {"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": [1]}}})}}
    body["parameters"]["rollout"] = "at-once"  # back by hand
    assert server.post("/v2/repository/models/digits/load", body).status == 200
    assert ask(server, images, expected) == "1"
    assert [one.outcome for one in pushed.history().deployments] == ["refused", "reverted", "promoted"]


def test_an_engine_that_cannot_start_is_refused(
    start: Callable[..., Running],
    pushed: Pushed,
    images: np.ndarray,
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start(watch_s=0.05)
    monkeypatch.setattr(Predictor, "load", lambda path, settings: fail(None, path))
    pushed.push("2")
    until(lambda: pushed.history().deployments and pushed.last().outcome == "refused")
    assert "cannot be run: MemoryError: no room" in pushed.last().reason
    monkeypatch.undo()
    pushed.push("3")  # whoever watches goes on
    until(lambda: ask(server, images, expected) == "3")
