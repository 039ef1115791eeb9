"""Plans: read back, refused when damaged, and used by whatever answers."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import reskit
from reskit.backends.answers import answers
from reskit.backends.plan import GOALS, PLAN, Plan, find_plan, plan_folder
from reskit.bundle import Bundle
from reskit.errors import BackendError, ConfigError


@pytest.fixture(scope="module")
def optimized(digits_run, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("plan") / "bundle"
    shutil.copytree(digits_run.bundle, folder)
    reskit.optimize(folder, backends=["torch"], precisions=["fp32"], batches=(1, 4), threads=1)
    return folder


@pytest.fixture
def bundle(optimized: Path, tmp_path: Path) -> Bundle:
    return reskit.load(shutil.copytree(optimized, tmp_path / "bundle"))


def test_every_goal_answers_as_eager(bundle: Bundle) -> None:
    pixels = bundle.samples["samples"][:5]
    expected = answers(bundle, "eager")(pixels)
    for engine in ("auto", *GOALS):
        assert torch.allclose(answers(bundle, engine)(pixels), expected, atol=1e-4)


def test_auto_is_the_plan_where_there_is_one_and_eager_else(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = bundle.samples["samples"][:2]
    expected = answers(bundle, "eager")(pixels)
    monkeypatch.setattr(Plan, "load", lambda *_: pytest.fail("the plan is asked"))
    with pytest.raises(pytest.fail.Exception):
        answers(bundle, "auto")(pixels)
    shutil.rmtree(plan_folder(bundle.path))
    assert torch.equal(answers(bundle, "auto")(pixels), expected)


def test_an_engine_is_loaded_once(bundle: Bundle) -> None:
    assert answers(bundle, "latency") is answers(bundle, "latency")


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_what_nobody_asks_any_more_is_given_back(bundle: Bundle, engine: str) -> None:
    other = reskit.load(bundle.path)
    answers(other, engine)(other.samples["samples"][:1])
    model = weakref.ref(other.model)
    del other
    gc.collect()
    assert model() is None


def test_an_unknown_engine_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="'fast'"):
        answers(bundle, "fast")


def test_a_goal_without_a_plan_says_what_to_run(bundle: Bundle) -> None:
    shutil.rmtree(plan_folder(bundle.path))
    with pytest.raises(BackendError, match="not optimised; run `reskit optimize"):
        reskit.predict(bundle, bundle.samples["samples"][:1], engine="latency")


def test_a_plan_of_another_machine_is_not_used(bundle: Bundle) -> None:
    folder = plan_folder(bundle.path)
    plan = json.loads((folder / PLAN).read_text())
    plan["machine"]["processor"] = "Another One 9000"
    (folder / PLAN).write_text(json.dumps(plan))
    folder.rename(folder.with_name("0123456789ab"))
    with pytest.raises(BackendError, match=r"another machine \(Another One 9000\).*reskit optimize"):
        answers(bundle, "latency")
    pixels = bundle.samples["samples"][:2]
    assert torch.equal(answers(bundle, "auto")(pixels), answers(bundle, "eager")(pixels))


def test_a_plan_moved_to_this_machine_is_refused(bundle: Bundle) -> None:
    file = plan_folder(bundle.path) / PLAN
    plan = json.loads(file.read_text())
    file.write_text(json.dumps(plan | {"machine": plan["machine"] | {"id": "0123456789ab"}}))
    with pytest.raises(BackendError, match="of another machine"):
        find_plan(bundle)


def test_a_plan_of_another_bundle_is_refused(bundle: Bundle) -> None:
    file = plan_folder(bundle.path) / PLAN
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bundle": "0" * 64}))
    with pytest.raises(BackendError, match="of another bundle"):
        find_plan(bundle)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda text: text.replace('"goal": "latency"', '"goal": "speed"'),
        lambda text: text.replace('"latency": 0', '"latency": 99'),
        lambda text: text.replace('"latency": 0', '"latency": -1'),
        lambda text: text.replace('"latency": 0,', ""),
        lambda text: text.replace('"threads": 1', '"threads": -5'),
        lambda text: text.replace('"backend": "torch"', '"backend": "torhc"'),
        lambda text: text.replace('"processor"', '"maker"'),
        lambda _: "[" * 100_000,
    ],
    ids=[
        "cut",
        "not a plan",
        "unknown goal",
        "no such engine",
        "negative",
        "a goal less",
        "threads",
        "backend",
        "machine",
        "deep",
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(bundle: Bundle, damage: Callable[[str], str]) -> None:
    file = plan_folder(bundle.path) / PLAN
    file.write_text(damage(file.read_text()))
    with pytest.raises(BackendError, match=r"plan\.json is damaged.*reskit optimize") as error:
        reskit.predict(bundle, bundle.samples["samples"][:1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["altered", "missing"])
def test_a_damaged_file_is_refused(bundle: Bundle, how: str) -> None:
    plan, folder = find_plan(bundle)  # type: ignore[misc]
    file = folder / plan.engine().file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if how == "missing" else file.write_bytes(bytes(data))
    with pytest.raises(BackendError, match="missing or altered; run `reskit optimize` again"):
        answers(bundle, "auto")


def test_files_elsewhere_cannot_be_named(bundle: Bundle) -> None:
    file = plan_folder(bundle.path) / PLAN
    plan = json.loads(file.read_text())
    for engine in plan["engines"]:
        engine["file"] = "../../../secret.safetensors"
    file.write_text(json.dumps(plan))
    with pytest.raises(BackendError, match="damaged"):
        answers(bundle, "auto")


def test_evaluate_measures_the_engine(bundle: Bundle) -> None:
    planned, eager = (reskit.evaluate(bundle, engine=engine) for engine in ("latency", "eager"))
    assert planned.metrics["top1"] == pytest.approx(eager.metrics["top1"], abs=1e-6)
    assert np.array_equal(planned.examples["prediction"], eager.examples["prediction"])
