"""Runs side by side: means over seeds, the first time a target is reached, and what is no run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import reskit
from reskit.errors import DataError


def a_run(folder: Path, scores: list[float], seconds: float) -> Path:
    folder.mkdir(parents=True)
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "train_loss", "test_top1", "train_seconds"])
        writer.writeheader()
        for epoch, score in enumerate(scores, start=1):
            row = {"epoch": epoch, "train_loss": 1 - score, "test_top1": score}
            writer.writerow(row | {"train_seconds": seconds * epoch})
    (folder / "result.json").write_text(json.dumps({}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Path]]:
    return {
        "slow": [a_run(tmp_path / "s0", [0.1, 0.4, 0.6], 2), a_run(tmp_path / "s1", [0.3, 0.6, 0.8], 2)],
        "quick": [a_run(tmp_path / "q", [0.5, 0.9, 0.8], 1)],
    }


def test_figures(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    result = reskit.compare(runs, out=tmp_path / "c.png")
    slow, quick = result.rows
    assert result.key == "test_top1"
    assert result.target == pytest.approx(0.7)  # the mean of the slow runs' bests
    assert slow["final"] == pytest.approx(0.7)
    assert slow["spread"] == pytest.approx(0.1)
    assert (slow["runs"], slow["epochs_to_target"]) == (2, None)  # one of its runs never got there
    assert (quick["best"], quick["final"]) == (0.9, 0.8)
    assert (quick["epochs_to_target"], quick["seconds_to_target"]) == (2, 2)
    assert result.plot is not None
    assert result.plot.stat().st_size > 10_000


def test_of_a_loss_less_is_better(runs: dict[str, list[Path]]) -> None:
    result = reskit.compare(runs, key="train_loss")
    assert result.target == pytest.approx(0.3)
    assert result.rows[1]["best"] == pytest.approx(0.1)
    assert result.plot is None


def test_what_is_no_run_is_refused(runs: dict[str, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a finished run"):
        reskit.compare({"a": [tmp_path / "none"]})
    with pytest.raises(DataError, match="no column 'test_f1'; it has epoch"):
        reskit.compare(runs, key="test_f1")


def test_the_verb(cli: Any, runs: dict[str, list[Path]], tmp_path: Path) -> None:
    given = [f"{name}={folder}" for name, folders in runs.items() for folder in folders]
    ran = cli("compare", *given, "--json")
    assert [row["name"] for row in json.loads(ran.out)["rows"]] == ["slow", "quick"]
    ran = cli("compare", *runs["slow"], "--out", tmp_path / "c.png")
    assert (ran.code, ran.err) == (0, "")
    assert "s0" in ran.out
    assert (tmp_path / "c.png").is_file()
