"""A bench from end to end, with peers whose speed is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sleepers import FailsAt4, doubled, lacking, quick, slow

from reskit.backends.worker import WorkerError
from reskit.benchmarking import contenders, race
from reskit.benchmarking.contenders import Contender, open_target, plan_contenders
from reskit.benchmarking.peak import Peak
from reskit.benchmarking.peers import PEERS, Peer
from reskit.errors import BackendError, BundleError, ConfigError, ReskitError, UnknownNameError

PEAK = Peak(
    threads=1,
    gflops={"fp32": 100.0, "int8": 400.0},
    copy_gb_s=10.0,
    by={"fp32": "NumPy matmul 1024", "int8": "OpenVINO convolution", "copy": "NumPy copy"},
)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    peers = {"fake/quick": quick, "fake/slow": slow, "fake/doubled": doubled, "fake/lacking": lacking}
    for name, build in {**peers, "fake/failing": FailsAt4}.items():
        monkeypatch.setitem(PEERS, name, Peer(build, (), "sleeping"))
    monkeypatch.setitem(PEERS, "fake/absent", Peer(quick, ("no_such_module",), "sleeping"))
    return [name for name in PEERS if name.startswith("fake/")]


def test_everyone_is_timed_and_written_down(fakes: list[str], digits_run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from reskit.benchmarking import bench

    steps: list[tuple[str, float]] = []
    report = bench(
        digits_run.bundle,
        batches=(4, 1),
        peers=fakes,
        backends=("onnxruntime",),
        precisions=("fp32",),
        rounds=3,
        seconds=0.03,
        threads=1,
        peak=PEAK,
        out=tmp_path / "out",
        step=lambda title, part: steps.append((title, part)),
    )
    rows = {(row.name, row.batch): row for row in report.rows}
    names = {"fake/quick", "fake/slow", "fake/doubled", "reskit/onnxruntime-fp32"}
    assert rows.keys() == {(name, batch) for name in names for batch in (1, 4)}
    assert [row.batch for row in report.rows] == sorted(row.batch for row in report.rows)
    assert [row.images_per_s for row in report.rows if row.batch == 4] == sorted(
        (row.images_per_s for row in report.rows if row.batch == 4), reverse=True
    )
    for row in report.rows:
        assert len(row.images_per_s_by_round) == 3
        assert row.latency_ms <= row.p95_ms
        limit = PEAK.gflops[row.precision]
        assert row.peak_fraction == pytest.approx(2 * report.macs * row.images_per_s / 1e9 / limit)
    assert rows["fake/quick", 4].latency_ms == pytest.approx(16, rel=0.3)
    assert report.ratio("fake/quick", "fake/slow", 4)["median"] == pytest.approx(3, rel=0.3)
    assert report.ratio("fake/doubled", "fake/slow", 4)["median"] == pytest.approx(2, rel=0.3)
    assert rows["fake/doubled", 4].streams == 2
    assert rows["fake/doubled", 1].streams == 1

    reasons = {item.name: item.reason for item in report.skipped}
    assert reasons["fake/lacking"] == "it has no cifar_resnet8"
    assert reasons["fake/failing"] == "MemoryError: too large"
    assert reasons["fake/absent"] == "no_such_module is not installed"
    assert "reskit optimize" in reasons["reskit/plan"]
    assert steps[0][0] == "writing onnxruntime-fp32"
    assert [part for _, part in steps] == sorted(part for _, part in steps)
    with pytest.raises(KeyError):
        report.row("fake/quick", 2)

    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    for row in written["rows"]:
        assert row.keys() >= {"name", "batch", "latency_ms", "images_per_s", "peak_fraction"}
    assert written["peak"]["gflops"] == PEAK.gflops
    page = (tmp_path / "out" / "bench.md").read_text()
    assert "| reskit/onnxruntime-fp32 | fp32 |" in page
    assert "- fake/lacking: it has no cifar_resnet8" in page
    assert "- fake/quick: sleeping" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md", "bench.png"}


def test_the_name_of_a_network_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    from rich.console import Console

    from reskit.benchmarking import bench
    from reskit.models.summary import model_summary

    settings: dict[str, Any] = {"backends": ("onnxruntime",), "precisions": ("fp32",), "peak": PEAK}
    report = bench(
        "cifar_resnet8", batches=(2,), peers=(), rounds=1, seconds=0.01, threads=1, size=16, **settings
    )
    (row,) = report.rows
    assert (row.name, row.batch, report.input_shape) == ("reskit/onnxruntime-fp32", 2, (3, 16, 16))
    import reskit

    assert report.macs == model_summary(reskit.create_model("cifar_resnet8"), (3, 16, 16))["macs"]
    Console(width=120).print(report)
    shown = capsys.readouterr().out
    assert "reskit/onnxruntime-fp32" in shown
    assert "reskit/plan was left out" in shown


def test_what_makes_no_sense(fakes: list[str], digits_run: Any, tmp_path: Path) -> None:
    from reskit.benchmarking import bench

    for settings in ({"batches": ()}, {"batches": (0,)}, {"rounds": 0}, {"seconds": 0.0}, {"threads": -1}):
        with pytest.raises(ConfigError, match="must be positive"):
            bench(digits_run.bundle, **settings)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"resnet5 is no bundle's folder, and unknown network 'resnet5'; did"
    ):
        open_target("resnet5", tmp_path)
    with pytest.raises(ConfigError, match="own size"):
        open_target(digits_run.bundle, tmp_path, size=8)
    with pytest.raises(BundleError):
        open_target(tmp_path, tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'fake/quick'"):
        bench(digits_run.bundle, peers=("fake/quik",), peak=PEAK)
    with pytest.raises(UnknownNameError, match="backend"):
        bench(digits_run.bundle, peers=(), backends=("onxruntime",), peak=PEAK)


def test_plans_take_part(digits_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import reskit

    bundle = reskit.load(digits_run.bundle)
    engine = SimpleNamespace(backend="openvino", precision="int8", threads=2, streams=2, file="a.xml")
    plan = SimpleNamespace(engine=lambda goal: engine)
    monkeypatch.setattr(contenders, "find_plan", lambda bundle: (plan, tmp_path))
    latency, throughput = plan_contenders(bundle)
    assert isinstance(latency, Contender)
    assert (latency.name, throughput.name) == ("reskit/plan-latency", "reskit/plan-throughput")
    assert latency.arguments == ("openvino", tmp_path / "a.xml", 2, 2)
    assert latency.environment["OMP_NUM_THREADS"] == "2"

    def damaged(bundle: Any) -> None:
        raise BackendError("the plan is damaged")

    monkeypatch.setattr(contenders, "find_plan", damaged)
    (skipped,) = plan_contenders(bundle)
    assert skipped.reason == "the plan is damaged"  # type: ignore[union-attr]


class Recorded:
    """In the place of a worker: notes whose turn it was."""

    turns: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(self, build: Any, *args: Any, name: str, environment: Any) -> None:
        self.name, self.facts = name, {"precision": "fp32"}

    def wait_ready(self) -> float:
        return 0.0

    def time(self, batch: int, *, calls: int = 0, seconds: float = 0, streams: int = 1) -> list[float]:
        if not calls:
            self.turns.append((self.name, batch))
        if self.name == "c" and len(self.turns) > 8:
            raise WorkerError("c", "it died")
        return [0.5]

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_turns_are_interleaved_and_another_begins_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "Worker", Recorded)
    monkeypatch.setattr(Recorded, "turns", [])
    entered = [Contender(name=name, build=quick, arguments=()) for name in "abc"]
    timings, failed = race.race(entered, batches=(1, 2), rounds=3, seconds=1, step=lambda *_: None)
    assert Recorded.turns[:6] == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1), ("c", 2)]
    assert Recorded.turns[6:11] == [("a", 2), ("b", 1), ("b", 2), ("c", 1), ("a", 1)]
    assert [(timing.name, timing.batch) for timing in timings] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert [(item.name, item.reason) for item in failed] == [("c", "it died")]
    assert timings[1].images_per_s == 4.0


def test_nobody_is_started_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**29))
    entered = [Contender(name="a", build=quick, arguments=())]
    timings, failed = race.race(entered, batches=(1,), rounds=1, seconds=1, step=lambda *_: None)
    assert not timings
    assert "memory" in failed[0].reason


def test_figures_of_rounds() -> None:
    rounds = [[0.1, 0.3], [0.1, 0.1], [0.4, 0.4]]
    timing = race.Timing(name="a", batch=4, precision="fp32", streams=2, callers=2, rounds=rounds)
    assert timing.images_per_s_by_round == pytest.approx([40, 80, 20])
    assert timing.images_per_s == pytest.approx(40)
    assert timing.latency_ms(50) == pytest.approx(1e3 * np.median([0.1, 0.3, 0.1, 0.1, 0.4, 0.4]))
    assert issubclass(WorkerError, ReskitError)
