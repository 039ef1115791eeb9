"""`reskit watch` tells what a service counted; what is none, is told in one line."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from rich.console import Console
from served import Running

from reskit.errors import ConfigError, ServiceError
from reskit.watching import Figures, Scraper, watch
from reskit.watching.figures import quantile
from reskit.watching.scrape import Sample, Scrape
from reskit.watching.view import render
from reskit.watching.words import duration, rate, seconds

TOKEN = "an-example-token"


def scrape(at: float, started: float = 1000.0, **samples: list[tuple[dict[str, str], float]]) -> Scrape:
    """Return metrics as they would have been fetched."""
    found = {name: [Sample(labels, value) for labels, value in rows] for name, rows in samples.items()}
    found["reskit_start_time_seconds"] = [Sample({}, started)]
    return Scrape(at, started + at, found)


def shown(figures: Figures, trouble: str = "", width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render(figures, trouble))
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    return written


@pytest.fixture
def stub() -> Iterator[Callable[..., str]]:
    """Start servers that answer every GET alike."""
    started = []

    def start(body: bytes = b"", status: int = 200, **headers: str) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.server.asked.append(dict(self.headers))  # type: ignore[attr-defined]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    start.asked = lambda: [headers for server, _ in started for headers in server.asked]  # type: ignore[attr-defined]
    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def test_quantiles_are_those_of_prometheus() -> None:
    buckets = [(0.1, 10.0), (0.2, 30.0), (0.5, 40.0), (math.inf, 40.0)]
    assert quantile(buckets, 0.5) == pytest.approx(0.15)  # rank 20: half of the second bucket
    assert quantile(buckets, 0.25) == pytest.approx(0.1)
    assert quantile(buckets, 0.95) == pytest.approx(0.2 + 0.3 * 0.8)
    assert quantile([(0.1, 0.0), (0.2, 0.0), (0.5, 4.0), (math.inf, 4.0)], 0.5) == pytest.approx(0.35)
    assert quantile([(0.1, 1.0), (math.inf, 9.0)], 0.9) == 0.1  # beyond the last edge, that edge
    assert quantile([(0.1, 0.0), (math.inf, 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


def test_quantiles_are_near_the_values_they_were_made_of() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.01, 20_000)
    registry = CollectorRegistry()
    edges = [0.002 * 1.25**power for power in range(25)]
    seconds = Histogram("s", "s", buckets=edges, registry=registry)
    for value in values:
        seconds.observe(value)
    buckets = [
        (float(line.split('"')[1]), float(line.split()[-1]))
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("s_bucket")
    ]
    for share in (0.5, 0.95, 0.99):
        assert quantile(buckets, share) == pytest.approx(np.quantile(values, share), rel=0.05)


def test_figures_are_of_the_time_between_two_looks() -> None:
    owner = {"model": "m", "version": "2"}
    info = [({**owner, "architecture": "resnet50", "engine": "onnx"}, 1.0)]

    def look(at: float, answered: float, failed: float, rows: float, batches: float) -> Scrape:
        outcomes = [({**owner, "protocol": how, "outcome": "answered"}, answered) for how in ("rest", "grpc")]
        return scrape(
            at,
            reskit_model_info=info,
            reskit_model_ready=[(owner, 1.0)],
            reskit_queue_depth=[(owner, 7.0)],
            reskit_requests_total=[*outcomes, ({**owner, "outcome": "busy"}, failed)],
            reskit_batch_size_sum=[(owner, rows)],
            reskit_batch_size_count=[(owner, batches)],
            reskit_errors_total=[({"kind": "busy"}, failed), ({"kind": "old"}, 3.0)],
            process_cpu_seconds_total=[({}, at / 2)],
        )

    figures = Figures.between("u", look(10, 100, 1, 800, 200), look(14, 120, 3, 1000, 220))
    (model,) = figures.models
    assert (figures.window_seconds, figures.up_seconds, figures.cores) == (4, 14, 0.5)
    assert figures.memory_bytes is None
    assert (model.model, model.version, model.ready, model.engine) == ("m", "2", True, "onnx")
    assert (model.requests_per_s, model.errors_per_s) == (10.0, 0.5)
    assert (model.batch_size, model.queue_depth) == (10.0, 7)
    assert [(error.kind, error.per_s, error.total) for error in figures.errors] == [
        ("busy", 0.5, 3),
        ("old", 0.0, 3),
    ]
    assert model.stages["infer"].p50 is None


def drift(owner: dict[str, str], windows: int, **scores: tuple[float, float]) -> dict[str, Any]:
    """Return the metrics of drift of a model that is watched, from scores with their thresholds."""
    by_statistic = {name: ({**owner, "statistic": name}, values) for name, values in scores.items()}
    samples = {
        "reskit_drift_watched": [(owner, 1.0)],
        "reskit_drift_examples_total": [(owner, 1250.0)],
        "reskit_drift_windows_total": [(owner, float(windows))],
        "reskit_drift_threshold": [(labels, most) for labels, (_, most) in by_statistic.values()],
    }
    if windows:
        rows = by_statistic.values()
        samples["reskit_drift_score"] = [(labels, score) for labels, (score, _) in rows]
        samples["reskit_drift_alarm"] = [(labels, float(score > most)) for labels, (score, most) in rows]
    return samples


@pytest.mark.parametrize(
    ("samples", "state", "cells"),
    [
        (lambda owner: {"reskit_drift_watched": [(owner, 0.0)]}, "not watched", []),
        (lambda owner: {}, "not watched", []),  # a service that tells nothing of it
        (
            lambda owner: drift(owner, 0, input=(0, 1.63), classes=(0, 0.25)),
            "filling",
            ["1,250", "0", "-", "1.63", "-", "0.25"],
        ),
        (
            lambda owner: drift(owner, 6, input=(1.02, 1.63), classes=(0.031, 0.25)),
            "usual",
            ["1,250", "6", "1.02", "1.63", "0.031", "0.25"],
        ),
        (
            lambda owner: drift(owner, 6, input=(1.02, 1.63), classes=(0.5, 0.25)),
            "drifted",
            ["1,250", "6", "1.02", "1.63", "0.5", "0.25"],
        ),
    ],
)
def test_drift_is_told_of_each_model(samples: Any, state: str, cells: list[str]) -> None:
    owner = {"model": "m", "version": "2"}
    info = [({**owner, "architecture": "a", "engine": "e"}, 1.0)]
    figures = Figures.between("u", scrape(0), scrape(1, reskit_model_info=info, **samples(owner)))
    assert (figures.models[0].drift is None) == (state == "not watched")
    (row,) = [line for line in shown(figures, width=80).splitlines() if state in line]
    assert row.split() == ["m", "2", *state.split(), *cells]


class Looks(Scraper):
    """A service whose looks are given; None is one that fails."""

    def __init__(self, *looks: Scrape | None) -> None:
        super().__init__("http://a")
        self._looks = iter(looks)

    def fetch(self) -> Scrape:
        look = next(self._looks)
        if look is None:
            raise ServiceError("gone")
        return look


def test_the_window_slides_and_a_restart_begins_anew() -> None:
    looks = Looks(*(scrape(10.0 * turn) for turn in range(6)), scrape(60, 2000.0), scrape(70, 2000.0))
    found = [figures for figures, _ in islice(watch(looks, sleep=no_wait), 6)]
    assert [round(figures.window_seconds) for figures in found] == [10, 20, 30, 30, 30, 10]
    assert found[-1].up_seconds == 70


def no_wait(_: float) -> None:
    """Wait for nothing."""


def test_a_service_that_goes_away_is_told_and_waited_for() -> None:
    looks = watch(Looks(scrape(0), scrape(5), None, scrape(9)), sleep=no_wait)
    first, gone, back = next(looks), next(looks), next(looks)
    assert (first[1], gone[1], back[1]) == ("", "gone (trying on)", "")
    assert gone[0] is first[0]
    assert "gone (trying on)" in shown(*gone)
    with pytest.raises(ServiceError, match="gone"):
        next(watch(Looks(scrape(0), None), sleep=no_wait))


def test_once_shows_what_a_service_did(cli: Callable[..., Any], shared: Running, images: np.ndarray) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            shared.infer(images[:2])
            shared.post("/v2/models/nobody/infer", {"inputs": [1]})

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        plain = cli("watch", shared.server.urls["rest"], "--once", "--interval", 0.5)
        told = cli("watch", f"127.0.0.1:{shared.port}/", "--json", "--interval", 0.5)
    finally:
        stop.set()
        asking.join()
    assert (plain.code, plain.err) == (0, "")
    for word in ("digits", "ready", "cifar_resnet8", "torch-fp32", "preprocess", "bad_request", "p99"):
        assert word in plain.out
    assert any(state in plain.out for state in (" filling ", " usual ", " drifted "))
    figures = json.loads(told.out)
    (model,) = figures["models"]
    assert model["requests_per_s"] > 0
    assert model["examples_per_s"] == pytest.approx(2 * model["requests_per_s"], rel=0.5)
    assert model["batch_size"] == 2.0
    infer, total = model["stages"]["infer"], model["stages"]["total"]
    assert 0 < infer["p50"] <= infer["p95"] <= infer["p99"]
    assert total["p50"] >= infer["p50"]
    assert model["stages"]["preprocess"]["p50"] is None
    assert model["drift"]["scores"].keys() == {"input", "classes"}
    bad = next(error for error in figures["errors"] if error["kind"] == "bad_request")
    assert bad["per_s"] > 0
    assert figures["up_seconds"] > figures["window_seconds"] >= 0.5


def test_a_token_comes_from_environment_or_file(
    cli: Callable[..., Any],
    running: Callable[..., Running],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashes, held = tmp_path / "hashes", tmp_path / "token"
    hashes.write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    held.write_text(f"{TOKEN}\n")
    url = running([("digits", bundle)], token_file=hashes).server.urls["rest"]
    words = ("watch", url, "--once", "--interval", 0.1)
    ran = cli(*words)
    assert (ran.code, ran.out) == (1, "")
    assert "asks for a token: set RESKIT_TOKEN" in ran.err
    assert cli(*words, "--credentials", held).code == 0
    monkeypatch.setenv("RESKIT_TOKEN", TOKEN)
    assert cli(*words).code == 0
    monkeypatch.setenv("RESKIT_TOKEN", "wrong")
    assert "does not know this token" in cli(*words).err
    held.write_text("a token\nand more")
    assert "must hold one line" in cli(*words, "--credentials", held).err
    monkeypatch.setenv("RESKIT_TOKEN", "two\r\nlines")
    ran = cli(*words)
    assert "holds no token" in ran.err
    assert "lines" not in ran.err


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://", "http://a:99999", "http://u:p@a", "a b", "http://a/?b"]
)
def test_what_is_no_url_is_told(cli: Callable[..., Any], url: str) -> None:
    ran = cli("watch", url, "--once")
    assert (ran.code, ran.out) == (1, "")
    assert "is not the URL of a service" in ran.err
    assert ran.err.count("\n") == 1


def test_what_is_no_service_is_told(cli: Callable[..., Any], stub: Callable[..., str]) -> None:
    cases = [
        ("http://127.0.0.1:1", "does not answer: Connection refused"),
        (stub(b"<html>hello {</html>"), "not a service of `reskit serve`"),
        (stub(b"up 1\n"), "has no reskit_start_time_seconds"),
        (stub(b"\xff\xfe"), "not in the format of Prometheus"),
        (stub(b"", 404), "gives status 404"),
    ]
    for url, words in cases:
        ran = cli("watch", url, "--once")
        assert (ran.code, ran.out) == (1, "")
        assert words in ran.err
        assert ran.err.count("\n") == 1


def test_the_port_of_grpc_is_told(cli: Callable[..., Any], shared: Running) -> None:
    ran = cli("watch", f"http://{shared.server.urls['grpc']}", "--once")
    assert (ran.code, ran.out) == (1, "")
    assert "it does not speak HTTP; is that the port of gRPC?" in ran.err
    assert ran.err.rstrip("\n").isprintable()


def test_a_service_that_hangs_up_does_not_answer(cli: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        ran = cli("watch", f"http://127.0.0.1:{server.getsockname()[1]}", "--once")
        thread.join()
    assert (ran.code, ran.out) == (1, "")
    assert "does not answer: Remote end closed connection" in ran.err


def test_a_token_goes_nowhere_else(stub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESKIT_TOKEN", TOKEN)
    target = stub(b"reskit_start_time_seconds 1\n")
    with pytest.raises(ServiceError, match="gives status 302"):
        Scraper(stub(b"", 302, Location=f"{target}/metrics")).fetch()
    assert len(stub.asked()) == 1


def test_names_cannot_steer_the_terminal() -> None:
    owner = {"model": "\x1b[2Ja[bold]", "version": "1"}
    info = [({**owner, "architecture": "x", "engine": "y"}, 1.0)]
    text = shown(Figures.between("u", scrape(0), scrape(1, reskit_model_info=info)))
    assert "\x1b" not in text
    assert "?[2Ja[bold]" in text
    assert "not ready" in text
    assert "no model is loaded" in shown(Figures.between("u", scrape(0), scrape(1)))


def test_files_that_are_no_certificates_are_told(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("no PEM")
    with pytest.raises(ConfigError, match="must be PEM files"):
        Scraper("https://a", ca=tmp_path / "ca")


def test_numbers_are_short() -> None:
    assert [rate(value) for value in (0, 0.5, 12.34, 1234.5)] == ["0", "0.50", "12.3", "1,234"]
    assert [seconds(value) for value in (None, 0, 0.00025, 0.0129, 0.123, 2.5)] == [
        "-", "0 ms", "0.25 ms", "13 ms", "123 ms", "2.5 s",
    ]  # fmt: skip
    assert [duration(value) for value in (5, 600, 9000, 200_000)] == [
        "5 s",
        "10 min",
        "2 h 30 min",
        "2 d 7 h",
    ]
