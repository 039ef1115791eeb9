"""A training run from recipe to bundle, in a folder that tells all about it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from reskit.bundle import Bundle
from reskit.config import Recipe, load_recipe
from reskit.data import DataInfo
from reskit.environment import machine, versions
from reskit.errors import ConfigError, DataError, InterruptedRunError
from reskit.evaluation import measure, summarise
from reskit.files import to_json, write_text
from reskit.models import MODELS
from reskit.plots import training_curves
from reskit.tasks import TASKS, Batch, Task
from reskit.training.callbacks import CsvLog, Reporter, Trackers
from reskit.training.feed import Feed
from reskit.training.loop import Trainer, training_loss
from reskit.training.optim import build_optimizer, set_learning_rate
from reskit.training.runtime import Runtime, Step, Trial, choose_runtime, clone_for_trial, keep_freed_memory
from reskit.training.state import Progress, latest_checkpoint, load_checkpoint

__all__ = ["TrainResult", "train"]

SAMPLES = 64
"""Raw training images kept in the bundle, for self-tests and for calibrating quantisation."""
TRIAL_RATE = 0.1
"""Factor of the learning rate while runtimes are measured: losses are compared, so they must not wander."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run produced.

    Attributes:
        metrics: figures of the final network on `split`, in float32, as `reskit evaluate` gives them.
        split: the held-out split they were measured on.
        run: the run's folder.
        bundle: the trained bundle's folder.
        training: runtime, epochs, seconds, images per second, convergence, processor use, peak memory.
        files: plots, logs and tables by name.
    """

    metrics: dict[str, float]
    split: str
    run: Path
    bundle: Path
    training: dict[str, Any]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metrics": self.metrics,
            "split": self.split,
            "run": str(self.run),
            "bundle": str(self.bundle),
            "training": self.training,
            "files": {name: str(path) for name, path in self.files.items()},
        }


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a recipe's network on labelled data and write a bundle.

    Args:
        recipe: a packaged name, a YAML file or a mapping; may be left out to resume.
        data: a file, folder or Hub name; the recipe's own, else the embedded digits.
        out: the run's folder; ``runs/<recipe>-<time>`` when absent.
        overrides: ``training.epochs=5`` and the like.
        resume: go on from the newest checkpoint in `out`.
        reporter: told of progress; prints to standard error when absent.

    Returns:
        The figures of the final network and where everything lies.

    Raises:
        ReskitError: the recipe, the data or the folder is not usable, or training went wrong; each says why.
    """
    settled, folder = _settle(recipe, data=data, out=out, overrides=overrides, resume=resume)
    on_cpu = settled.runtime.device == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)  # told so, processes on CPUs find each other
    reporter = reporter or Reporter()
    say = reporter.say if state.is_main_process else _silent
    keep_freed_memory()
    if settled.runtime.threads:
        torch.set_num_threads(settled.runtime.threads)
    torch.use_deterministic_algorithms(settled.training.deterministic)

    feed = Feed(settled, processes=state.num_processes, say=say)
    task = TASKS.get(settled.task).from_recipe(settled, feed.info, feed.preprocess)
    torch.manual_seed(settled.training.seed)
    model = task.build_model(settled)

    checkpoint = latest_checkpoint(folder / "checkpoints") if resume else None
    if checkpoint:
        progress, tensors, context = load_checkpoint(checkpoint)
        if context["fingerprint"] != feed.info.fingerprint:
            raise DataError(
                f"{feed.info.location} changed since {checkpoint} was written; train into another --out"
            )
        runtime = Runtime(**context["runtime"])
        say(f"going on after step {progress.step}, epoch {progress.epoch} done, with {runtime}")
    else:
        runtime, trials = _fastest_runtime(settled, task, model, feed.loaders["train"], state, say)
        if state.is_main_process:
            _write_context(folder, settled, feed.info, runtime, trials)
    accelerator = _accelerator(settled, runtime, folder, on_cpu=on_cpu)
    trainer = Trainer(
        task=task,
        model=model,
        loaders=feed.loaders,
        monitor=feed.monitor,
        config=settled.training,
        runtime=runtime,
        accelerator=accelerator,
        folder=folder / "checkpoints",
        run={"runtime": asdict(runtime), "fingerprint": feed.info.fingerprint},
        callbacks=(reporter, CsvLog(folder / "log.csv"), Trackers(accelerator)),
    )
    if checkpoint:
        trainer.resume(progress, tensors, context)
    try:
        progress = trainer.fit()
    except InterruptedRunError as stopped:
        raise InterruptedRunError(f"{stopped}; go on with `reskit train --out {folder} --resume`") from None
    network = trainer.network.to(memory_format=torch.contiguous_format)
    # gloo aborts at exit when the process group ends before the network it serves
    del trainer
    accelerator.free_memory()
    accelerator.end_training()
    return _finish(settled, folder, feed, task, network, progress, runtime, state)


def _settle(
    recipe: str | Path | Mapping[str, Any] | None,
    *,
    data: str | Path | None,
    out: str | Path | None,
    overrides: Iterable[str],
    resume: bool,
) -> tuple[Recipe, Path]:
    """Return the whole recipe and the run's folder, after checking that nothing will be overwritten."""
    written = Path(out) / "recipe.yaml" if out is not None else None
    if resume:
        if written is None:
            raise ConfigError("resuming needs the run's folder: --out DIR --resume")
        if written.is_file():
            begun = load_recipe(written)
            if recipe is not None and (asked := _asked(recipe, data, overrides)) != begun:
                raise ConfigError(
                    f"{written} differs from what is asked in {_differences(begun, asked)}; resume without it"
                )
            if recipe is None and (data is not None or list(overrides)):
                raise ConfigError(
                    "a run is resumed as it was begun: leave out --set and --data, or start another --out"
                )
            return begun, written.parent
    if recipe is None:
        missing = f"nothing to resume in {out}: no recipe.yaml there"
        raise ConfigError(missing if resume else "name a recipe; see `reskit recipes`")
    settled = _asked(recipe, data, overrides)
    TASKS.get(settled.task)
    MODELS.get(settled.model.name)
    folder = Path(out) if out is not None else Path("runs") / f"{settled.name}-{datetime.now():%Y%m%d-%H%M%S}"
    first = os.environ.get("RANK", "0") == "0"  # of several processes: the others may find its files
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; choose another --out")
    if first and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty; add --resume to go on with that run, or choose another --out"
        )
    return settled, folder


def _asked(
    recipe: str | Path | Mapping[str, Any], data: str | Path | None, overrides: Iterable[str]
) -> Recipe:
    """Return the whole recipe a user asks for."""
    settled = load_recipe(recipe, overrides)
    if data is None:
        return settled
    return settled.model_copy(update={"data": settled.data.model_copy(update={"path": str(data)})})


def _differences(first: Recipe, second: Recipe) -> str:
    """Return the top-level keys in which two recipes differ."""
    one, two = first.model_dump(), second.model_dump()
    return ", ".join(key for key in one if one[key] != two[key])


def _fastest_runtime(
    recipe: Recipe,
    task: Task,
    model: nn.Module,
    loader: Iterable[Batch],
    state: PartialState,
    say: Callable[[str], None],
) -> tuple[Runtime, list[Trial]]:
    """Measure on a real batch which way to run is fastest; all processes take what the first one found."""
    batch = {name: value.to(state.device) for name, value in next(iter(loader)).items()}
    task.normalize.to(state.device)
    config = recipe.training

    def make_step(runtime: Runtime) -> Step:
        trial = clone_for_trial(model, runtime)
        optimizer = build_optimizer(trial, config.optimizer)
        set_learning_rate(optimizer, config.optimizer.lr * TRIAL_RATE)

        def step() -> Tensor:
            loss = training_loss(task, trial, batch, runtime)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    chosen: list[Runtime | None] = [None]
    trials: list[Trial] = []
    if state.is_main_process:
        size = len(batch["index"])
        chosen[0], trials = choose_runtime(
            recipe.runtime, device=state.device, make_step=make_step, batch_size=size
        )
        for trial in trials:
            note = "" if trial.accepted else "  (left out: does not train to the same loss)"
            mark = "->" if trial.runtime == chosen[0] else "  "
            speed = f"{trial.images_per_second:>8.0f} images/s"
            say(f"{mark} {trial.runtime!s:<32} {speed}  loss {trial.loss:.3f}{note}")
    broadcast_object_list(chosen)
    assert chosen[0] is not None
    return chosen[0], trials


def _accelerator(recipe: Recipe, runtime: Runtime, folder: Path, *, on_cpu: bool) -> Accelerator:
    """Return Accelerate's handle; an earlier run of this process may have left another precision behind."""
    AcceleratorState._reset_state()
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="fp16" if runtime.precision == "fp16" else "no",  # for the gradient scaler only
        gradient_accumulation_steps=recipe.training.accumulate,
        log_with="tensorboard" if tensorboard else None,
        project_dir=folder,
    )
    if tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _finish(
    recipe: Recipe,
    folder: Path,
    feed: Feed,
    task: Task,
    network: nn.Module,
    progress: Progress,
    runtime: Runtime,
    state: PartialState,
) -> TrainResult:
    """Measure the final network as a user of the bundle will, and write bundle, plots and figures."""
    source, info = feed.source, feed.info
    training = {
        "runtime": str(runtime),
        "processes": state.num_processes,
        **_figures(recipe, task, feed.monitor, progress),
    }
    bundle = folder / "bundle"
    if not state.is_main_process:
        return TrainResult(
            metrics={}, split=info.held_out, run=folder, bundle=bundle, training=training, files={}
        )
    loader = feed.loaders[info.held_out]
    metrics, examples = measure(network, loader, task, device=state.device)
    evaluation = summarise(
        task,
        split=info.held_out,
        metrics=metrics,
        examples=examples,
        source=source,
        out=folder / "evaluation",
    )
    Bundle.write(
        bundle,
        task=task,
        model=network,
        metrics={info.held_out: metrics},
        provenance={
            "recipe": recipe.name,
            "source": recipe.source,
            "settings": recipe.model_dump(mode="json"),
            "data": info.location,
            "fingerprint": info.fingerprint,
            "counts": {name: split.count for name, split in info.splits.items()},
            "seed": recipe.training.seed,
            "epochs": progress.epoch,
            "training": training,
        },
        samples=torch.cat(list(feed.images(SAMPLES))),
    )
    curves = training_curves(
        progress.history,
        folder / "curves.png",
        recipe.name,
        metric=task.main_metric,
        higher_is_better=task.higher_is_better,
    )
    result = TrainResult(
        metrics=metrics,
        split=info.held_out,
        run=folder,
        bundle=bundle,
        training=training,
        files={"curves": curves, "log": folder / "log.csv", **evaluation.files},
    )
    write_text(folder / "result.json", to_json(result.as_dict()))
    return result


def _figures(recipe: Recipe, task: Task, monitor: str, progress: Progress) -> dict[str, Any]:
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


def _write_context(
    folder: Path, recipe: Recipe, info: DataInfo, runtime: Runtime, trials: list[Trial]
) -> None:
    """Write what the run is made of, before it begins."""
    settings = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(folder / "recipe.yaml", settings)
    write_text(folder / "environment.json", to_json({"machine": machine(), "versions": versions()}))
    write_text(folder / "data.json", to_json(info.model_dump(mode="json")))
    write_text(
        folder / "runtime.json", to_json({"chosen": str(runtime), "trials": [asdict(t) for t in trials]})
    )


def _silent(_: str) -> None:
    """Say nothing: another process does."""
