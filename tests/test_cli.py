"""The command line keeps its promises: streams apart, one JSON document, three exit codes."""

from __future__ import annotations

import csv
import errno
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import reskit
from reskit.cli import app

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def document(text: str) -> Any:
    """Read a text that is one JSON document and nothing else."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the embedded digits as files."""
    folder = tmp_path_factory.mktemp("images")
    split = reskit.open_source("digits")["test"]
    for row in range(6):
        (folder / f"{row}.png").write_bytes(split.item(row))
    return folder


# Help and usage.


def test_the_verbs() -> None:
    assert set(VERBS) >= {"train", "evaluate", "predict", "models", "recipes", "doctor"}


def test_the_installed_command_is_this_one() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="reskit")
    assert script.value == "reskit.cli:main"


def test_help_lists_every_verb(cli: Callable[..., Any]) -> None:
    ran = cli("--help")
    assert (ran.code, ran.err) == (0, "")
    assert all(verb in ran.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_json_and_debug(cli: Callable[..., Any], verb: str) -> None:
    ran = cli(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert all(option in ran.out for option in ("--help", "--json", "--debug"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["train", "--nonsense"],
        ["train", "digits-resnet8", "extra"],
        ["train", "--set"],
        ["evaluate"],
        ["predict"],
        ["predict", "bundle"],
        ["predict", "bundle", "a.png", "--batch-size", "0"],
        ["evaluate", "bundle", "--batch-size", "many"],
    ],
)
def test_wrong_usage_is_2_and_keeps_standard_output_clean(
    cli: Callable[..., Any], arguments: list[str]
) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err
    assert "Traceback" not in ran.err


def test_no_verb_shows_help(cli: Callable[..., Any]) -> None:
    ran = cli()
    assert ran.code == 2
    assert "Usage" in ran.out + ran.err


# Failures.


def test_the_users_fault_is_one_line_and_1(cli: Callable[..., Any]) -> None:
    assert cli("recipes", "digits-resnet") == (
        1,
        "",
        "error: unknown recipe 'digits-resnet';"
        " did you mean 'digits-resnet8' or 'digits-vae' or 'imagenet-resnet50'?\n",
    )


def test_a_real_process_does_the_same() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "reskit", "recipes", "digits-resnet"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: unknown recipe")
    assert ran.stderr.count("\n") == 1


def test_debug_shows_where(cli: Callable[..., Any]) -> None:
    with pytest.raises(reskit.ReskitError, match="unknown recipe"):
        cli("recipes", "nonsense", "--debug")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> list[str]:
        raise error

    monkeypatch.setattr("reskit.recipes.list_recipes", fail)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENAMETOOLONG]
)
def test_what_the_system_refuses_is_the_users_to_mend(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing(monkeypatch, OSError(number, os.strerror(number), "some/file"))
    ran = cli("recipes")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: [Errno {number}] {os.strerror(number)}: 'some/file'\n"


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.EIO, "a broken disk")])
def test_a_bug_keeps_its_traceback(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        cli("recipes")


def test_many_lines_become_one(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, reskit.ReskitError("first\n  second\tthird"))
    assert cli("recipes").err == "error: first second third\n"


def test_ctrl_c_is_quiet(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    ran = cli("recipes")
    assert ran.code != 0
    assert ran.out == ""
    assert "Traceback" not in ran.err


# models, recipes, doctor.


def test_models(cli: Callable[..., Any]) -> None:
    ran = cli("models", "--json")
    rows = document(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert [row["name"] for row in rows] == reskit.list_models()
    assert {tuple(row) for row in rows} == {("name", "parameters", "task", "classes", "input", "paper")}
    found = {row["name"]: row for row in rows}
    assert found["resnet50"]["parameters"] == 25_557_032
    assert found["cifar_resnet20"]["input"] == "3x32x32"

    ran = cli("models", "cifar_resnet*")
    assert (ran.code, ran.err) == (0, "")
    assert "cifar_resnet20" in ran.out
    assert "269,722" in ran.out
    assert "resnet50" not in ran.out


def test_models_for_a_task(cli: Callable[..., Any]) -> None:
    rows = document(cli("models", "--task", "text", "--json").out)
    assert {row["task"] for row in rows} == {"text"}
    assert "text_resnet8" in {row["name"] for row in rows}
    ran = cli("models", "--task", "texts")
    assert ran.code == 1
    assert "no model for the task 'texts'" in ran.err
    assert document(cli("models", "*50", "--json").out)[0]["name"] == "resnet50"

    ran = cli("models", "nothing*")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: no model matches 'nothing*'")


def test_recipes(cli: Callable[..., Any]) -> None:
    ran = cli("recipes", "--json")
    rows = document(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert [row["name"] for row in rows] == reskit.list_recipes()
    ran = cli("recipes")
    assert (ran.code, ran.err) == (0, "")
    assert all(row["name"] in ran.out for row in rows)


def test_a_recipe_is_shown_whole_and_can_be_used_as_shown(cli: Callable[..., Any], tmp_path: Path) -> None:
    ran = cli("recipes", "cifar10-plain56")
    assert (ran.code, ran.err) == (0, "")
    (tmp_path / "mine.yaml").write_text(ran.out)
    assert reskit.load_recipe(tmp_path / "mine.yaml") == reskit.load_recipe("cifar10-plain56")
    assert document(cli("recipes", "cifar10-plain56", "--json").out) == yaml.safe_load(ran.out)


def test_doctor(cli: Callable[..., Any]) -> None:
    ran = cli("doctor", "--json")
    report = document(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert set(report) == {"machine", "versions", "missing"}
    assert report["versions"]["reskit"] == reskit.__version__
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert report["versions"]["torch"] in ran.out
    assert "pip install 'reskit[tensorboard]'" in ran.out


# train, evaluate, predict.


def test_train_json(cli: Callable[..., Any], tmp_path: Path) -> None:
    sets = ["training.epochs=1", "training.batch_size=512", "runtime.precision=fp32", "runtime.layout=nchw"]
    options = [word for value in sets for word in ("--set", value)]
    ran = cli("train", "digits-resnet8", "--out", tmp_path / "run", *options, "--json")
    assert ran.code == 0
    result = document(ran.out)
    assert result == document((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert set(result) == {"task", "metrics", "split", "run", "bundle", "training", "files"}
    assert 0 <= result["metrics"]["top1"] <= 1
    assert all(Path(file).is_file() for file in result["files"].values())
    assert "epoch 1/1" in ran.err  # progress is told, on the other stream
    assert "error" not in ran.err
    assert reskit.load(result["bundle"]).verify() < 1e-4


def test_train_passes_on_what_it_is_told_and_prints_for_people(
    cli: Callable[..., Any], digits_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, dict[str, Any]]] = []

    def fake(recipe: Any, **values: Any) -> Any:
        told.append((recipe, values))
        return digits_run

    monkeypatch.setattr("reskit.training.train", fake)
    ran = cli(
        "train",
        "r",
        "--data",
        "d",
        "--weights",
        "w",
        "--out",
        "o",
        "--set",
        "a=1",
        "--set",
        "b.c=2",
        "--resume",
    )
    assert told == [
        (
            "r",
            {"data": "d", "weights": ["w"], "out": Path("o"), "overrides": ["a=1", "b.c=2"], "resume": True},
        ),
    ]
    assert (ran.code, ran.err) == (0, "")
    assert f"{digits_run.metrics['top1']:.4f}" in ran.out
    assert str(digits_run.bundle) in ran.out
    cli("train")
    assert told[1] == (None, {"data": None, "weights": (), "out": None, "overrides": (), "resume": False})
    monkeypatch.setenv("RANK", "1")  # as under torchrun: one process speaks for all
    assert cli("train", "r", "--json") == (0, "", "")


def test_evaluate_json_repeats_the_figures_of_training(
    cli: Callable[..., Any], digits_run: Any, tmp_path: Path
) -> None:
    ran = cli("evaluate", digits_run.bundle, "--out", tmp_path / "report", "--json")
    assert (ran.code, ran.err) == (0, "")
    result = document(ran.out)
    assert result["metrics"] == pytest.approx(digits_run.metrics, rel=1e-5)
    assert (result["split"], result["count"]) == ("test", 359)
    assert len(result["confusion"]) == len(result["per_class"]) == 10
    assert all(Path(file).is_file() for file in result["files"].values())
    with (tmp_path / "report" / "examples.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 359


def test_evaluate_for_people(cli: Callable[..., Any], digits_run: Any) -> None:
    ran = cli("evaluate", digits_run.bundle, "--split", "train", "--batch-size", "64")
    assert (ran.code, ran.err) == (0, "")
    assert "train split, 1438 examples" in ran.out
    assert "top1" in ran.out


def test_predict_json_is_what_the_api_says(cli: Callable[..., Any], digits_run: Any, images: Path) -> None:
    names = [images / "3.png", images / "1.png", images / "none.png"]
    ran = cli("predict", digits_run.bundle, *names, "--json")
    assert (ran.code, ran.err) == (0, "")
    result = document(ran.out)
    assert set(result) == {"predictions", "out"}
    assert result["out"] is None
    assert result["predictions"] == list(reskit.predict(digits_run.bundle, names))
    assert [row["input"] for row in result["predictions"]] == list(map(str, names))
    assert [row["error"] is None for row in result["predictions"]] == [True, True, False]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_predict_reads_a_list_in_its_place(
    cli: Callable[..., Any], digits_run: Any, images: Path, ending: str
) -> None:
    odd = images / "a\u2028b \xe9.png"  # splits a line for str.splitlines, not for a file name
    odd.write_bytes((images / "0.png").read_bytes())
    try:
        listed = ending.join(["", str(images / "1.png"), "  ", str(odd), ""])
        arguments = (images / "0.png", "-", images / "2.png")
        ran = cli("predict", digits_run.bundle, *arguments, "--json", stdin=listed.encode())
        rows = document(ran.out)["predictions"]
    finally:
        odd.unlink()
    assert ran.code == 0
    assert [row["input"] for row in rows] == [str(images / n) for n in ("0.png", "1.png", odd.name, "2.png")]
    assert all(row["error"] is None for row in rows)
    assert rows[2]["top"] == rows[0]["top"]


def test_predict_reads_names_that_are_not_utf8(
    cli: Callable[..., Any], digits_run: Any, tmp_path: Path
) -> None:
    ran = cli("predict", digits_run.bundle, "-", "--json", stdin=bytes(tmp_path) + b"/\xff.png\n")
    (row,) = document(ran.out)["predictions"]
    assert row["input"] == f"{tmp_path}/\\xff.png"
    assert "no such file" in row["error"].lower()


def test_predict_writes_a_table(
    cli: Callable[..., Any], digits_run: Any, images: Path, tmp_path: Path
) -> None:
    ran = cli("predict", digits_run.bundle, images, "--out", tmp_path / "p.csv")
    assert (ran.code, ran.err, ran.out) == (0, "", f"predictions  {tmp_path / 'p.csv'}\n")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["input"]).name for row in rows] == [f"{i}.png" for i in range(6)]
    ran = cli("predict", digits_run.bundle, images, "--out", tmp_path / "p.json", "--json")
    told = document(ran.out)
    assert told["out"] == str(tmp_path / "p.json")
    assert document((tmp_path / "p.json").read_text(encoding="utf-8")) == told["predictions"]


def test_predict_for_people(cli: Callable[..., Any], digits_run: Any, images: Path) -> None:
    ran = cli("predict", digits_run.bundle, images / "*.png")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("%") >= 6


def test_a_real_process_predicts_on_clean_streams(digits_run: Any, images: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "reskit", "predict", str(digits_run.bundle), "-", "--json"],
        input=f"{images / '0.png'}\n",
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    (row,) = document(ran.stdout)["predictions"]
    assert row["label"] in map(str, range(10))
