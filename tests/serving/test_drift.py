"""The service tells changed traffic from usual, and answers whatever becomes of the watching."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from served import Running, png

import reskit
import reskit.serving.drift as looking
from reskit.bundle import Bundle
from reskit.drift import DriftProfile
from reskit.drift.profile import FILE
from reskit.errors import BundleError, ConfigError
from reskit.serving import Settings
from reskit.serving.drift import DriftWatch

Start = Callable[..., Running]
ALL = {"drift_window": 50, "drift_rate": 10_000.0, "grpc_port": None}
"""Settings to look at every image."""


@pytest.fixture
def many(bundle: Path) -> np.ndarray:
    """Digits, uint8 `(200, 1, 8, 8)`."""
    found: np.ndarray = reskit.load(bundle).samples["samples"][:200].numpy()
    return found


@pytest.fixture
def plain(bundle: Path, tmp_path: Path) -> Path:
    """The bundle without a profile."""
    folder = Path(shutil.copytree(bundle, tmp_path / "plain"))
    held = Bundle.load(folder)
    held._rewrite({name: digest for name, digest in held.config.files.items() if name != FILE})
    (folder / FILE).unlink()
    return folder


def metrics(server: Running) -> dict[tuple[str, ...], float]:
    """Return the samples of drift, by name without its beginning and the statistic."""
    text = server.get("/metrics").body.decode()
    return {
        (
            sample.name.removeprefix("reskit_drift_"),
            *filter(None, [sample.labels.get("statistic")]),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("reskit_drift_")
    }


def looked_at(server: Running, count: int) -> dict[tuple[str, ...], float]:
    """Return the metrics once so many examples were looked at."""
    end = time.monotonic() + 20
    while (found := metrics(server)).get(("examples_total",), 0) < count:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def watching() -> set[threading.Thread]:
    """Return the threads that look for drift, of all servers of this process."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("reskit-drift")}


def ask(server: Running, images: np.ndarray) -> None:
    for start in range(0, len(images), 10):
        assert server.infer(images[start : start + 10]).status == 200


def test_usual_traffic_is_told_from_changed(running: Start, bundle: Path, many: np.ndarray) -> None:
    server = running([("digits", bundle)], **ALL)
    before = metrics(server)
    assert before["watched",] == 1
    assert ("alarm", "input") not in before  # nothing is said before there is a window
    ask(server, many[:100])
    usual = looked_at(server, 100)
    assert usual["windows_total",] == 2
    profile = DriftProfile.of(reskit.load(bundle))
    assert profile is not None
    for statistic, threshold in profile.thresholds[50]._asdict().items():
        assert usual["threshold", statistic] == threshold
        assert usual["score", statistic] <= threshold
        assert usual["alarm", statistic] == 0
    ask(server, 255 - many[:50])
    changed = looked_at(server, 150)
    assert changed["windows_total",] == 3
    assert changed["score", "input"] > changed["threshold", "input"]
    assert changed["alarm", "input"] == 1
    ask(server, many[100:150])
    assert looked_at(server, 200)["alarm", "input"] == 0


def test_uploads_are_watched_as_they_reach_the_network(
    running: Start, bundle: Path, many: np.ndarray
) -> None:
    server = running([("digits", bundle)], **ALL)
    for image in many[:50]:
        assert server.post("/v1/predict", png(image)).status == 200
    found = looked_at(server, 50)
    other = running([("digits", bundle)], **ALL)
    ask(other, many[:50])
    again = looked_at(other, 50)
    assert found["windows_total",] == again["windows_total",] == 1
    assert found["score", "input"] == pytest.approx(again["score", "input"], rel=1e-4)
    assert found["score", "classes"] == again["score", "classes"]


def test_predicted_classes_are_those_answered(running: Start, bundle: Path, many: np.ndarray) -> None:
    server = running([("digits", bundle)], **ALL)
    for _ in range(5):
        assert server.infer(np.repeat(many[:1], 10, axis=0)).status == 200
    found = looked_at(server, 50)
    assert found["alarm", "classes"] == 1
    assert found["score", "classes"] > 2


def test_alarms_are_logged_once(
    running: Start, bundle: Path, many: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    server = running([("digits", bundle)], **ALL)
    with caplog.at_level(logging.INFO, "reskit.serving"):
        ask(server, 255 - many[:100])
        looked_at(server, 100)
        ask(server, many[:50])
        looked_at(server, 150)
    said = [record.getMessage() for record in caplog.records if "input" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("model digits: input drifted: ")
    assert said[1].startswith("model digits: input is usual again: ")


# What is not watched.


def test_a_bundle_without_a_profile_is_served_and_said_not_to_be_watched(
    running: Start, plain: Path, many: np.ndarray
) -> None:
    server = running([("digits", plain)], **ALL)
    ask(server, many[:20])
    assert metrics(server) == {("watched",): 0}
    assert "drift not watched" in server.server.lines()[1]
    assert server.server.as_dict()["models"][0]["drift_watched"] is False


def test_a_rate_of_nothing_turns_it_off(running: Start, bundle: Path, many: np.ndarray) -> None:
    others = watching()
    server = running([("digits", bundle)], drift_rate=0)
    ask(server, many[:20])
    assert metrics(server) == {("watched",): 0}
    assert watching() == others


def test_a_profile_of_another_network_is_refused(running: Start, bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "odd"))
    held = Bundle.load(folder)
    tensors = held.added(FILE)
    assert tensors is not None
    held.add(FILE, {**tensors, "centre": torch.zeros(3)})
    with pytest.raises(BundleError, match="of another network"):
        running([("digits", folder)])


def test_windows_have_sizes_that_were_calibrated() -> None:
    with pytest.raises(ConfigError, match="drift_window"):
        Settings.of({"drift_window": 77})
    with pytest.raises(ConfigError, match="drift_rate"):
        Settings.of({"drift_rate": -1})


def test_it_ends_with_the_model(running: Start, bundle: Path) -> None:
    others = watching()
    server = running([("digits", bundle)])
    (thread,) = watching() - others
    assert server.post("/v2/repository/models/digits/unload").status == 200
    assert not thread.is_alive()
    assert metrics(server) == {}


# Never in the way.


def test_what_fails_in_it_fails_no_request(
    running: Start, bundle: Path, many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    server = running([("digits", bundle)], **ALL)
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise RuntimeError("no memory")

        patch.setattr(looking, "features_and_classes", fail)
        ask(server, many[:30])
        end = time.monotonic() + 10
        while "drift could not be looked at" not in caplog.text and time.monotonic() < end:
            time.sleep(0.02)
        assert "drift could not be looked at" in caplog.text
        watch = server.model.drift
        while watch._given != watch._done:
            time.sleep(0.02)
    ask(server, many[:50])
    assert looked_at(server, 50)["windows_total",] == 1


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Features that do not come until the event is set."""
    freed, real = threading.Event(), looking.features_and_classes

    def wait(*given: Any) -> Any:
        freed.wait(20)
        return real(*given)

    monkeypatch.setattr(looking, "features_and_classes", wait)
    yield freed
    freed.set()


def test_what_hangs_in_it_delays_no_request_and_holds_little(
    running: Start, bundle: Path, many: np.ndarray, hanging: threading.Event
) -> None:
    server = running([("digits", bundle)], drift_window=50, drift_rate=30.0, grpc_port=None)
    began = time.monotonic()
    ask(server, many)
    ask(server, many)
    assert time.monotonic() - began < 10
    watch = server.model.drift
    assert watch._done == 0
    assert watch._given == 30  # a second's worth, and the rest of 400 images is let go
    hanging.set()
    assert looked_at(server, 30)["examples_total",] == 30


def test_no_more_is_looked_at_than_the_rate_allows(
    bundle: Path, many: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(looking.time, "monotonic", lambda: clock[0])
    held = reskit.load(bundle)
    profile = DriftProfile.of(held)
    assert profile is not None
    watch = DriftWatch(held, profile, name="x", window=50, rate=4.0)
    outputs = np.zeros((10, 10), np.float32)

    def given(seconds: float) -> int:
        before = watch._given
        clock[0] += seconds
        watch.offer(many[:10], outputs)
        end = time.perf_counter() + 10
        while watch._done < watch._given and time.perf_counter() < end:
            time.sleep(0.005)
        return watch._given - before

    assert [given(0), given(0), given(0.25), given(0.1), given(0.15), given(60)] == [4, 0, 1, 0, 1, 4]
    watch.close()
    watch._thread.join(10)
    assert given(60) == 0


def test_requests_may_reuse_their_memory(bundle: Path, many: np.ndarray, hanging: threading.Event) -> None:
    held = reskit.load(bundle)
    profile = DriftProfile.of(held)
    assert profile is not None
    watch = DriftWatch(held, profile, name="x", window=50, rate=50.0)
    pixels = many[:50].copy()
    watch.offer(pixels, np.eye(10, dtype=np.float32)[np.arange(50) % 10])
    pixels[:] = 255
    hanging.set()
    end = time.monotonic() + 20
    while watch.state.examples < 50 and time.monotonic() < end:
        time.sleep(0.01)
    watch.close()
    assert watch.state.alarms == (False, False)
    assert watch.state.windows == 1
