"""Whole runs on the embedded digits: learning, stopping, going on, and going wrong."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reskit
from reskit.errors import ConfigError, DataError, InterruptedRunError, TrainingError
from reskit.training.callbacks import Reporter
from reskit.training.state import latest_checkpoint

FIXED = ("runtime.precision=fp32", "runtime.layout=nchw")
HARD = (  # everything random and everything stateful at once
    *FIXED,
    "runtime.threads=2",  # sums are in another order with another number, and tests may change the process's
    "training.epochs=3",
    "training.batch_size=128",
    "training.accumulate=2",
    "training.ema_decay=0.9",
    "training.clip_norm=1.0",
    "training.checkpoint_steps=4",
    "training.optimizer.name=adamw",
    "training.optimizer.lr=0.003",
    "augment.mixup=0.2",
    "augment.cutmix=1.0",
    "augment.rotate=10",
    "model.arguments={stochastic_depth: 0.2}",
)


class Quiet(Reporter):
    """Keeps what it is told; breaks off at a given batch, as a crash would."""

    def __init__(
        self, crash_at: tuple[int, int] | None = None, signal_at: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.said: list[str] = []
        self.losses: list[float] = []
        self.crash_at, self.signal_at = crash_at, signal_at

    def say(self, text: str) -> None:
        self.said.append(text)

    def on_step(self, *, epoch: int, batch: int, loss: float) -> None:
        self.losses.append(loss)
        if (epoch, batch) == self.crash_at:
            raise SystemExit("the power went out")
        if (epoch, batch) == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)


def train(out: Path, *overrides: str, recipe: Any = "digits-resnet8", **values: Any) -> Any:
    return reskit.train(recipe, out=out, overrides=overrides, **{"reporter": Quiet(), **values})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, every logged loss and metric: equal to the last bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    exact = ("epoch", "step", "lr", "train_loss", "test_top1", "test_cross_entropy")
    assert [[row[name] for name in exact] for row in log(one)] == [
        [row[name] for name in exact] for row in log(other)
    ]


@pytest.fixture(scope="module")
def hard_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, *HARD)
    return out


def test_a_short_run_learns_and_leaves_a_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(out, *FIXED, "training.epochs=6", "training.target=0.5")
    assert result.metrics["top1"] > 0.85
    # The bundle says what the run said; the batches differ, so sums may in the last digits.
    assert reskit.evaluate(result.bundle).metrics == pytest.approx(result.metrics, abs=1e-6)
    for name in (
        "recipe.yaml",
        "environment.json",
        "data.json",
        "log.csv",
        "curves.png",
        "result.json",
        "bundle",
    ):
        assert (out / name).exists(), name
    assert json.loads((out / "result.json").read_text())["metrics"] == pytest.approx(result.metrics)
    losses = [float(row["train_loss"]) for row in log(out)]
    assert losses[-1] < losses[0] / 3
    assert result.training["epochs_to_target"] <= 6
    assert result.training["seconds_to_target"] <= result.training["seconds"]
    assert 0 < result.training["cpu_utilisation"] <= 1.5
    assert result.training["peak_memory_mib"] > 50


def test_one_seed_one_result(tmp_path: Path, hard_run: Path) -> None:
    train(tmp_path / "again", *HARD)
    assert_same_run(hard_run, tmp_path / "again")


def test_another_seed_another_result(tmp_path: Path, hard_run: Path) -> None:
    train(tmp_path / "other", *HARD, "training.seed=1")
    assert not torch.equal(weights(hard_run)["conv1.weight"], weights(tmp_path / "other")["conv1.weight"])


@pytest.mark.parametrize("moment", [(0, 2), (1, 10), (1, 22), (2, 14)], ids=str)
def test_a_crash_changes_nothing(tmp_path: Path, hard_run: Path, moment: tuple[int, int]) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit, match="power"):
        train(out, *HARD, reporter=Quiet(crash_at=moment))
    assert not (out / "bundle").exists()
    train(out, resume=True, recipe=None)
    assert_same_run(hard_run, out)


def test_streamed_images_resume_exactly_too(tmp_path: Path) -> None:
    settings = (
        *FIXED,
        "training.epochs=2",
        "data.loading=stream",
        "data.workers=0",
        "training.checkpoint_steps=5",
    )
    train(tmp_path / "whole", *settings)
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", *settings, reporter=Quiet(crash_at=(1, 8)))
    train(tmp_path / "cut", resume=True, recipe=None)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_kill_9_in_mid_epoch(tmp_path: Path, hard_run: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "reskit", "train", "digits-resnet8", "--out", str(out)]
    command += [word for override in HARD for word in ("--set", override)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(int(path.name[5:]) >= 13 for path in (out / "checkpoints").glob("step-????????")):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "bundle").exists()
    train(out, resume=True, recipe=None)
    assert_same_run(hard_run, out)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path, hard_run: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match=rf"saved.*reskit train --out {out} --resume"):
        train(out, *HARD, reporter=Quiet(signal_at=(1, 6)))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(out, *HARD, resume=True)
    assert_same_run(hard_run, out)


def test_a_finished_run_may_be_resumed(hard_run: Path) -> None:
    before = weights(hard_run)
    train(hard_run, resume=True, recipe=None)
    assert all(torch.equal(before[name], value) for name, value in weights(hard_run).items())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_good(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = (*FIXED, "training.checkpoint_steps=1", "training.schedule.name=constant")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1\).*lower training"):
        train(out, *settings, "training.optimizer.lr=1e30")
    kept = latest_checkpoint(out / "checkpoints")
    tensors = load_file(kept / "state.safetensors") if kept else {}
    assert all(value.isfinite().all() for name, value in tensors.items() if name.startswith("model."))
    assert not (out / "bundle").exists()


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    result = train(
        tmp_path / "run",
        *FIXED,
        "data.validation=0.2",
        "training.keep=best",
        "training.patience=2",
        "training.epochs=40",
        "training.schedule.name=constant",
        "training.optimizer.lr=0.3",
    )
    scores = [float(row["validation_top1"]) for row in log(tmp_path / "run")]
    best = scores.index(max(scores))
    assert len(scores) == best + 3 < 40
    again = reskit.evaluate(result.bundle, reskit.open_source(None, validation=0.2), split="validation")
    assert again.metrics["top1"] == pytest.approx(scores[best])


@pytest.mark.parametrize("setting", ["training.keep=best", "training.patience=3"])
def test_epochs_are_not_chosen_on_the_test_split(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"flatter.*data\.validation"):
        train(tmp_path / "run", setting)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; add --resume"):
        train(tmp_path, *FIXED)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_other_settings_is_refused(tmp_path: Path, hard_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"differs .* in training"):
        train(hard_run, *HARD, "training.epochs=5", resume=True)
    with pytest.raises(ConfigError, match="--out DIR --resume"):
        reskit.train("digits-resnet8", resume=True)
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(tmp_path / "nowhere", recipe=None, resume=True)


def test_resuming_on_other_data_is_refused(hard_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reskit.data import Source

    monkeypatch.setattr(Source, "fingerprint", "0" * 64)
    with pytest.raises(DataError, match=r"changed since .*step-"):
        train(hard_run, recipe=None, resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reskit.training import state

    written = []

    def save_file(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        original(tensors, path)

    original = state.save_file
    monkeypatch.setattr(state, "save_file", save_file)
    with pytest.raises(reskit.ReskitError, match="No space left on device"):
        train(tmp_path / "run", *HARD)
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-00000008"


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "reskit"]
    command += ["train", "digits-resnet8", "--out", str(out), "--json", "--set", "training.epochs=4"]
    command += [word for override in FIXED for word in ("--set", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)  # one document, though two processes ran
    assert result["metrics"]["top1"] > 0.7
    assert result["training"]["steps"] == 4 * (1438 // 64)
    assert result["training"]["processes"] == 2
    with (out / "evaluation" / "examples.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 359
