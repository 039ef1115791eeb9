"""The whole search on a small network, and each way it can be asked wrongly."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import reskit
from reskit.backends import BACKENDS
from reskit.backends.plan import GOALS, find_plan, plan_folder
from reskit.backends.servable import servable
from reskit.bundle import Bundle
from reskit.errors import BackendError, ConfigError, DataError, OutputError, UnknownNameError
from reskit.evaluation import open_as_trained
from reskit.optimization import candidates, racing
from reskit.optimization.candidates import Candidate, Skipped, Trial, list_candidates
from reskit.optimization.guard import AGREEMENT_FACTOR, guard_examples
from reskit.optimization.showing import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "SECONDS", (0.01, 0.01))


@pytest.fixture
def bundle(digits_run: Any, tmp_path: Path) -> Bundle:
    return reskit.load(shutil.copytree(digits_run.bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def searched(digits_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bundle after a search over two backends, and what was said on the way."""
    folder = tmp_path_factory.mktemp("searched") / "bundle"
    shutil.copytree(digits_run.bundle, folder)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "SECONDS", (0.01, 0.01))
        reskit.optimize(
            folder, backends=["torch", "onnxruntime"], precisions=["fp32", "int8"], threads=2, say=said.append
        )
    return folder, said


def test_the_plan_holds_what_was_measured(searched: tuple[Path, list[str]]) -> None:
    bundle = reskit.load(searched[0])
    plan, folder = find_plan(bundle)  # type: ignore[misc]
    assert {engine.name for engine in plan.engines} == {"torch-fp32", "onnxruntime-fp32", "onnxruntime-int8"}
    assert {(engine.threads, engine.streams) for engine in plan.engines} == {(1, 1), (2, 1)}
    assert set(plan.chosen) == set(GOALS)
    for engine in plan.engines:
        assert [figures.batch for figures in engine.batches] == [1, 16]
        assert all(0 < figures.p50_ms <= figures.p95_ms for figures in engine.batches)
        assert engine.memory_mib > 20
        assert engine.metric >= plan.guard.float32 - plan.guard.max_drop / 100
    assert plan.engine("latency").latency_ms == min(engine.latency_ms for engine in plan.engines)
    assert plan.engine("size").file_mib == min(engine.file_mib for engine in plan.engines)
    kept = {file.name for file in folder.iterdir()}
    assert kept == {"plan.json", *plan.files}
    assert {plan.engine(goal).file for goal in GOALS} <= kept


def test_the_guard_measures_what_evaluate_measures(searched: tuple[Path, list[str]]) -> None:
    bundle = reskit.load(searched[0])
    plan, _ = find_plan(bundle)  # type: ignore[misc]
    whole = reskit.evaluate(bundle).metrics["top1"]
    count = plan.guard.examples
    assert count == 359
    assert plan.guard.float32 == pytest.approx(whole)
    assert "test of" in plan.guard.on


def test_another_goal_turns_the_plan_over_without_measuring(
    searched: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(searched[0], tmp_path / "bundle")
    monkeypatch.setattr("reskit.optimization.run.race", lambda *_, **__: pytest.fail("measured again"))
    options: dict[str, Any] = {
        "backends": ["torch", "onnxruntime"],
        "precisions": ["fp32", "int8"],
        "threads": 2,
    }
    result = reskit.optimize(folder, goal="size", **options)
    assert not result.measured
    assert find_plan(reskit.load(folder))[0].goal == "size"  # type: ignore[index]
    with pytest.raises(pytest.fail.Exception):  # asked otherwise, it does measure
        reskit.optimize(folder, goal="size", **{**options, "max_drop": 1.0})


def test_a_damaged_plan_is_measured_anew(bundle: Bundle) -> None:
    folder = plan_folder(bundle.path)
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{")
    assert reskit.optimize(bundle, backends=["torch"], precisions=["fp32"], batches=[1], threads=1).measured


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_plan_whose_files_are_damaged_is_measured_anew(bundle: Bundle, how: str) -> None:
    options: dict[str, Any] = {"backends": ["torch"], "precisions": ["fp32"], "batches": [1], "threads": 1}
    first = reskit.optimize(bundle, **options)
    assert not reskit.optimize(bundle, **options).measured
    file = first.folder / first.plan.engine().file
    file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[:-1])
    assert reskit.optimize(bundle, **options).measured
    reskit.predict(bundle, bundle.samples["samples"][:1])


def test_a_plan_holds_for_the_data_it_was_guarded_with(bundle: Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backends": ["torch"], "precisions": ["fp32"], "batches": [1], "threads": 1}
    reskit.optimize(bundle, data=open_as_trained(bundle), **options)
    assert not reskit.optimize(bundle, **options).measured
    with pytest.raises(DataError, match="nowhere"):
        reskit.optimize(bundle, data=tmp_path / "nowhere", **options)
    with pytest.raises(DataError, match="nowhere"):
        reskit.optimize(bundle, pictures=tmp_path / "nowhere", **options)


def test_a_bundle_that_cannot_be_written_is_refused_before_the_search(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("reskit.optimization.run.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("reskit.optimization.run.guard_examples", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(OutputError, match="Read-only file system; free space or optimize a copy"):
        reskit.optimize(bundle)


@pytest.mark.parametrize("size", [1, 16])
def test_an_engine_that_dies_while_timed_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    turn, said = racing._Runner.turn, []

    def deadly(self: Any, batch: int) -> None:
        if self.worker.name == "torch-fp32" and batch == size and batch in self.seconds:  # the second round
            self.worker._process.kill()
        turn(self, batch)

    monkeypatch.setattr(racing._Runner, "turn", deadly)
    plan = reskit.optimize(
        bundle, backends=["torch", "onnxruntime"], precisions=["fp32"], threads=1, say=said.append
    ).plan
    assert [engine.name for engine in plan.engines] == ["onnxruntime-fp32"]
    assert any(line.startswith("torch-fp32 was left out: its process was killed by SIGKILL") for line in said)


def test_a_backend_named_twice_is_tried_once(bundle: Bundle) -> None:
    plan = reskit.optimize(
        bundle, backends=["torch", "torch"], precisions=["fp32"], batches=[1], threads=1
    ).plan
    assert [engine.name for engine in plan.engines] == ["torch-fp32"]


def test_verbs(bundle: Bundle, cli: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ["--backend", "torch", "--precision", "fp32", "--batch", 1, "--threads", 1]
    ran = cli("optimize", bundle.path, "--for", "size", *arguments, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["engine"]["name"] == "torch-fp32"
    assert "torch-fp32: top1" in ran.err
    ran = cli("optimize", bundle.path, "--for", "latency", *arguments)
    assert "still holds" in ran.err
    assert "for latency" in ran.out
    assert str(plan_folder(bundle.path)) in ran.out.replace("\n", "")
    ran = cli("predict", bundle.path, bundle.path / "README.md", "--engine", "throughput", "--json")
    assert ran.code == 0
    ran = cli("evaluate", bundle.path, "--engine", "size", "--json")
    assert json.loads(ran.out)["metrics"]["top1"] > 0.5


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"backends": ["onnx-runtime"]}, UnknownNameError, "did you mean 'onnxruntime'"),
        ({"precisions": ["int4"]}, UnknownNameError, "did you mean 'int8'"),
        ({"batches": []}, ConfigError, "must be positive"),
        ({"batches": [0]}, ConfigError, "must be positive"),
        ({"max_drop": float("nan")}, ConfigError, "max_drop"),
        ({"pictures": "nowhere"}, DataError, "nowhere"),
        ({"data": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_wrong_wishes(bundle: Bundle, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        reskit.optimize(bundle, **options)
    assert not (bundle.path / "engines").exists()


def test_nothing_left_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_metric", lambda *_: 0.0)
    with pytest.raises(BackendError, match=r"no engine remained.*torch-fp32: loses .* points of top1"):
        reskit.optimize(bundle, backends=["torch"], precisions=["fp32"], batches=[1])


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    listed = list(list_candidates(["openvino", "onnxruntime"], None))
    assert [item.name for item in listed if isinstance(item, Skipped)] == ["openvino", "onnxruntime"]
    assert all("pip install 'reskit[" in item.reason for item in listed if isinstance(item, Skipped))


def test_backends_for_devices_wait_to_be_named() -> None:
    names = {item.name for item in list_candidates(None, None) if isinstance(item, Skipped)}
    assert {name for name in BACKENDS if BACKENDS.get(name).on_device} <= names


class _Examples(SimpleNamespace):
    """A guard that accepts once so many layers are kept."""

    def accepts(self, metric: float) -> bool:
        return metric >= 0.9

    def points_lost(self, metric: float) -> float:
        return 100 * (0.9 - metric)


def tried(*what: Any, **options: Any) -> Candidate | Skipped:
    with ExitStack() as workers:
        trial = Trial(*what, **options, batches=(1,), threads=1, workers=workers)
        trial.begin()
        return trial.finish()


def test_int8_gives_layers_back_the_most_hurt_first(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    metrics = iter([0.5, 0.7, 0.95])
    monkeypatch.setattr(candidates, "_metric", lambda *_: next(metrics))
    said: list[str] = []
    found = tried(
        bundle,
        BACKENDS.get("onnxruntime"),
        "int8",
        tmp_path,
        model=servable(bundle),
        samples=bundle.samples["samples"].numpy(),
        examples=_Examples(guard=SimpleNamespace(metric="top1", max_drop=0.5, unit="points")),
        say=said.append,
    )
    assert isinstance(found, Candidate)
    assert found.metric == 0.95
    assert len(found.keep) == 2  # a quarter of eight layers
    assert len(said) == 2


def test_int8_without_pictures_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    found = tried(
        bundle,
        BACKENDS.get("onnxruntime"),
        "int8",
        tmp_path,
        model=servable(bundle),
        samples=None,
        examples=None,
        say=print,
    )
    assert isinstance(found, Skipped)
    assert "--pictures" in found.reason


def test_without_labels_agreement_is_guarded(bundle: Bundle) -> None:
    pictures = bundle.samples["samples"][:20]
    examples = guard_examples(bundle, None, pictures, batch_size=8, max_drop=0.5, say=print)
    assert examples.guard.float32 == 1.0
    assert examples.guard.examples == 20
    assert examples.guard.max_drop == AGREEMENT_FACTOR * bundle.task.drop.most == 5.0
    assert "agreement" in examples.guard.metric
    logits = np.zeros((8, 10), np.float32)
    with torch.inference_mode():
        assert examples.score(lambda pixels: logits[: len(pixels)]) < 1.0
    assert not examples.accepts(0.94)
    assert examples.accepts(0.96)
    assert not examples.accepts(float("nan"))


def test_a_bundle_whose_data_are_gone_falls_back_to_its_samples(
    digits_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = reskit.load(digits_run.bundle)
    monkeypatch.setitem(bundle.config.provenance["settings"]["data"], "path", str(tmp_path / "gone"))
    said: list[str] = []
    examples = guard_examples(bundle, None, None, batch_size=16, max_drop=0.5, say=said.append)
    assert "agreement" in examples.guard.metric
    assert "gone" in said[0]


def test_lines_are_plain_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Watch() as watch:
        watch.step("timing", 0.5)
        watch.say("[bold]as it is[/bold]")
    assert capfd.readouterr().err == "[bold]as it is[/bold]\n"
