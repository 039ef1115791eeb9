"""Checkpoints from which training goes on exactly: bit for bit on a CPU.

A checkpoint is a folder `step-00001234` with `state.safetensors` (weights, averaged weights, optimiser) and
`state.json` (position, history, hash of the tensors), written whole or not at all. Nothing random needs
state: order, augmentation, mixing and dropout are functions of the seed and the position.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reskit.errors import TrainingError
from reskit.files import atomic_folder, sha256

__all__ = ["Progress", "latest_checkpoint", "load_checkpoint", "restore", "save_checkpoint", "snapshot"]

log = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept: the newest, and the one before it should the newest be damaged."""


@dataclass(kw_only=True)
class Progress:
    """Where a run is.

    `batch` counts the batches of the epoch already done; `loss_sum` and `examples` run over them, so that the
    epoch's mean loss survives an interruption; `train_seconds` counts training only, over all sessions.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    examples: int = 0
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def snapshot(modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Return every tensor of the state by a flat name: those of the modules and of the optimiser."""
    tensors = {
        f"{prefix}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
    }
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = (
                    torch.as_tensor(value).detach().cpu().contiguous().clone()
                )
    return tensors


def restore(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Put back what `snapshot` returned.

    Raises:
        TrainingError: the checkpoint is of another network or optimiser.
    """
    try:
        for prefix, module in modules.items():
            module.load_state_dict(_below(tensors, prefix))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "optimizer").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the checkpoint does not fit this run: {' '.join(str(error).split())}"
        ) from error


def save_checkpoint(
    folder: Path, *, progress: Progress, tensors: Mapping[str, Tensor], run: Mapping[str, Any]
) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Args:
        folder: where checkpoints are kept.
        progress: the position; goes back out of `load_checkpoint`.
        tensors: what `snapshot` returned.
        run: JSON values that a resumed run must agree with or reuse.

    Raises:
        TrainingError: a weight is not finite; the checkpoints there stay.
        OutputError: the file system refuses.
    """
    broken = [
        name for name, value in tensors.items() if name.startswith("model.") and not value.isfinite().all()
    ]
    if broken:
        raise TrainingError(
            f"{broken[0]} is not finite after step {progress.step}; the last good checkpoint is kept;"
            " lower training.optimizer.lr or set training.clip_norm"
        )
    path = folder / f"step-{progress.step:08d}"
    with atomic_folder(path) as staging:
        save_file(dict(tensors), staging / "state.safetensors")
        meta = {"progress": asdict(progress), "run": run, "sha256": sha256(staging / "state.safetensors")}
        (staging / "state.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
    for old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole; a damaged one is passed over with a warning."""
    for path in reversed(_checkpoints(folder)):
        try:
            meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if sha256(path / "state.safetensors") == meta["sha256"]:
                return path
        except (OSError, ValueError, KeyError):
            pass
        log.warning("checkpoint %s is damaged; trying the one before it", path)
    return None


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Any]]:
    """Return position, tensors and run values of a checkpoint that `latest_checkpoint` found."""
    meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Progress(**meta["progress"]), load_file(path / "state.safetensors"), meta["run"]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
