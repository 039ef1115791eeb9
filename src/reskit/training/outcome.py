"""What a run leaves behind: its context before it begins, its figures and files after it ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from reskit.bundle import Bundle
from reskit.config import Recipe
from reskit.data import DataInfo
from reskit.drift.making import LEAST, add_profile
from reskit.environment import machine, versions
from reskit.evaluation import assess, network_answers
from reskit.files import to_json, write_text
from reskit.plots import training_curves
from reskit.tasks import Task
from reskit.training.feed import Feed
from reskit.training.runtime import Runtime, Trial
from reskit.training.state import Progress

__all__ = ["TrainResult", "figures", "finish", "write_context"]

SAMPLES, SAMPLE_BYTES = (64, 256), 16 * 2**20
"""Raw training examples kept in the bundle, for self-tests and for calibrating int8: as many as fit into so
many bytes, but not fewer than the first number and not more than the second."""
_WEIGHTS = "weights.json"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run produced.

    Attributes:
        task: name of the task.
        metrics: figures of the final network on `split`, in float32, as `reskit evaluate` gives them.
        split: the held-out split they were measured on.
        run: the run's folder.
        bundle: the trained bundle's folder.
        training: runtime, epochs, seconds, images per second, convergence, processor use, peak memory.
        files: plots, logs and tables by name.
    """

    task: str
    metrics: dict[str, float]
    split: str
    run: Path
    bundle: Path
    training: dict[str, Any]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "task": self.task,
            "metrics": self.metrics,
            "split": self.split,
            "run": str(self.run),
            "bundle": str(self.bundle),
            "training": self.training,
            "files": {name: str(path) for name, path in self.files.items()},
        }


def write_context(
    folder: Path,
    recipe: Recipe,
    info: DataInfo,
    runtime: Runtime,
    trials: list[Trial],
    weights: dict[str, Any] | None,
) -> None:
    """Write what the run is made of, before it begins; `weights` says what it starts from."""
    if weights is not None:
        write_text(folder / _WEIGHTS, to_json(weights))
    settings = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(folder / "recipe.yaml", settings)
    write_text(folder / "environment.json", to_json({"machine": machine(), "versions": versions()}))
    write_text(folder / "data.json", to_json(info.model_dump(mode="json")))
    write_text(
        folder / "runtime.json", to_json({"chosen": str(runtime), "trials": [asdict(t) for t in trials]})
    )


def finish(
    recipe: Recipe,
    folder: Path,
    *,
    feed: Feed,
    task: Task,
    network: nn.Module,
    progress: Progress,
    training: dict[str, Any],
    device: torch.device,
) -> TrainResult:
    """Measure the final network as a user of the bundle will, and write bundle, plots and figures."""
    split = feed.info.held_out
    evaluation = assess(
        task,
        network_answers(network, task, device),
        feed.loaders[split],
        split=split,
        source=feed.source,
        out=folder / "evaluation",
    )
    metrics = evaluation.metrics
    bundle = Bundle.write(
        folder / "bundle",
        task=task,
        model=network,
        metrics={split: metrics},
        provenance={
            **_provenance(recipe, feed.info, folder),
            "epochs": progress.epoch,
            "training": training,
        },
        samples=_samples(feed),
    )
    if task.one_class and len(feed.source[split]) >= LEAST:
        add_profile(bundle, feed.source)
    curves = training_curves(
        progress.history,
        folder / "curves.png",
        recipe.name,
        metric=task.main_metric,
        higher_is_better=task.higher_is_better,
    )
    result = TrainResult(
        task=task.name,
        metrics=metrics,
        split=split,
        run=folder,
        bundle=bundle.path,
        training=training,
        files={"curves": curves, "log": folder / "log.csv", **evaluation.files},
    )
    write_text(folder / "result.json", to_json(result.as_dict()))
    return result


def _samples(feed: Feed) -> Tensor:
    """Return the training examples a bundle keeps, raw."""
    first = next(feed.inputs(1))
    least, most = SAMPLES
    return torch.cat(list(feed.inputs(min(most, max(least, SAMPLE_BYTES // first.nbytes)))))


def _provenance(recipe: Recipe, info: DataInfo, folder: Path) -> dict[str, Any]:
    """Return where a bundle comes from: its recipe, its data and the weights it started from."""
    weights = folder / _WEIGHTS
    started = {"weights": json.loads(weights.read_text(encoding="utf-8"))} if weights.exists() else {}
    return {
        **started,
        "recipe": recipe.name,
        "source": recipe.source,
        "settings": recipe.model_dump(mode="json"),
        "data": info.location,
        "fingerprint": info.fingerprint,
        "counts": {name: split.count for name, split in info.splits.items()},
        "seed": recipe.training.seed,
    }


def figures(recipe: Recipe, task: Task, monitor: str, progress: Progress) -> dict[str, Any]:
    """Return what the run cost and how it converged, from its history."""
    history, key = progress.history, f"{monitor}_{task.main_metric}"
    sign = 1 if task.higher_is_better else -1
    target = recipe.training.target
    reached = [row for row in history if target is not None and sign * row[key] >= sign * target]
    best = max(history, key=lambda row: sign * row[key])
    images = sum(row["images_per_second"] * row["seconds"] for row in history)
    return {
        "epochs": len(history),
        "steps": progress.step,
        "seconds": progress.train_seconds,
        "seconds_per_epoch": progress.train_seconds / len(history),
        "images_per_second": images / progress.train_seconds,
        "final_train_loss": history[-1]["train_loss"],
        "best": {"epoch": best["epoch"], key: best[key], "seconds": best["train_seconds"]},
        "target": target,
        "epochs_to_target": reached[0]["epoch"] if reached else None,
        "seconds_to_target": reached[0]["train_seconds"] if reached else None,
        **{name: history[-1][name] for name in ("cpu_utilisation", "peak_memory_mib", "gpu_utilisation")},
        "gpu_peak_memory_mib": history[-1]["gpu_peak_memory_mib"],
        "energy_joules": history[-1]["energy_joules"],
    }
