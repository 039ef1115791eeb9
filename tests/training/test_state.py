"""Checkpoints: whole or not at all, and never a broken network over a good one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from reskit.config import OptimizerConfig
from reskit.errors import OutputError, TrainingError
from reskit.training.optim import build_optimizer
from reskit.training.state import (
    Progress,
    latest_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
)


def stepped(name: str = "sgd", width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small network and its optimiser after two steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    optimizer = build_optimizer([(model.parameters(), 1.0)], OptimizerConfig(name=name, lr=0.1))
    for _ in range(2):
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    tensors = snapshot({"model": model}, optimizer)
    return save_checkpoint(folder, progress=Progress(step=step), tensors=tensors, run={"a": 1})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_a_restored_state_continues_like_the_original(tmp_path: Path, name: str) -> None:
    model, optimizer = stepped(name)
    save(tmp_path, 2, model, optimizer)
    other, other_optimizer = stepped(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    progress, tensors, run = load_checkpoint(latest_checkpoint(tmp_path))
    restore(tensors, {"model": other}, other_optimizer)
    batch = torch.randn(4, 2)
    for net, opt in ((model, optimizer), (other, other_optimizer)):
        net(batch).sum().backward()
        opt.step()
    assert (progress.step, run) == (2, {"a": 1})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_progress_survives_to_the_last_digit(tmp_path: Path) -> None:
    model, optimizer = stepped()
    progress = Progress(step=7, loss_sum=0.1 + 0.2, best=1 / 3, history=[{"epoch": 1, "train_loss": 2 / 3}])
    save_checkpoint(tmp_path, progress=progress, tensors=snapshot({"model": model}, optimizer), run={})
    assert load_checkpoint(latest_checkpoint(tmp_path))[0] == progress


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, *stepped())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "not json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, *stepped())
    newest = save(tmp_path, 2, *stepped())
    file = newest / "state.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "remove":
        file.unlink()
    else:
        (newest / "state.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).name == "step-00000001"
    assert "damaged" in caplog.text


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_broken_network_does_not_replace_a_good_one(tmp_path: Path) -> None:
    model, optimizer = stepped()
    save(tmp_path, 1, model, optimizer)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"model\.0\.weight is not finite after step 2"):
        save(tmp_path, 2, model, optimizer)
    assert latest_checkpoint(tmp_path).name == "step-00000001"


def test_another_network_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, *stepped())
    _, tensors, _ = load_checkpoint(latest_checkpoint(tmp_path))
    model, optimizer = stepped(width=5)
    with pytest.raises(TrainingError, match="does not fit this run"):
        restore(tensors, {"model": model}, optimizer)


def test_an_interrupted_write_leaves_the_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, *stepped())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reskit.training.state.save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save(tmp_path, 2, *stepped())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1, *stepped())
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "state.safetensors"]
    json.loads((path / "state.json").read_text())
