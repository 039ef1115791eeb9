"""A training run from recipe to bundle, in a folder that tells all about it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from torch import nn

from reskit.config import Recipe
from reskit.errors import DataError, InterruptedRunError
from reskit.optimization import optimize
from reskit.training.callbacks import CsvLog, Reporter, Trackers
from reskit.training.feed import Feed
from reskit.training.loop import Trainer
from reskit.training.ondevice import make_lean, restore_lean
from reskit.training.outcome import TrainResult, figures, finish, write_context
from reskit.training.probe import cache_features
from reskit.training.runtime import Runtime, keep_freed_memory
from reskit.training.settle import settle
from reskit.training.state import Progress, latest_checkpoint, load_checkpoint
from reskit.training.transfer import Transfer
from reskit.training.trial import fastest_runtime
from reskit.weights import load_into, read_checkpoint

__all__ = ["train"]


def train(
    recipe: str | Path | Mapping[str, Any] | None = None,
    *,
    data: str | Path | None = None,
    weights: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a recipe's network on labelled data and write a bundle.

    Args:
        recipe: a packaged name, a YAML file or a mapping; may be left out to resume.
        data: a file, folder or Hub name; the recipe's own, else the embedded digits.
        weights: what the network starts from, in any format of `reskit.weights`; the recipe's, else random.
        out: the run's folder; ``runs/<recipe>-<time>`` when absent.
        overrides: ``training.epochs=5`` and the like.
        resume: go on from the newest checkpoint in `out`.
        reporter: told of progress; prints to standard error when absent.

    Returns:
        The figures of the final network and where everything lies.

    Raises:
        ReskitError: the recipe, the data or the folder is not usable, or training went wrong; each says why.
    """
    sources = (weights,) if isinstance(weights, str | Path) else tuple(weights)
    settled, folder = settle(recipe, data=data, weights=sources, out=out, overrides=overrides, resume=resume)
    run = _Run(settled, folder, reporter=reporter or Reporter())
    trainer = run.trainer(resume=resume)
    try:
        progress = trainer.fit()
    except InterruptedRunError as stopped:
        raise InterruptedRunError(f"{stopped}; go on with `reskit train --out {folder} --resume`") from None
    run.trained.load_state_dict(trainer.network.state_dict())  # the averaged or the best, where there is one
    # gloo aborts at exit when the process group ends before the network it serves
    del trainer
    return run.finish(progress)


class _Run:
    """The parts of a run: opened and built here, trained by the loop, written up at the end."""

    def __init__(self, recipe: Recipe, folder: Path, *, reporter: Reporter) -> None:
        self.recipe, self.folder, self.reporter = recipe, folder, reporter
        self.on_cpu = recipe.runtime.device == "cpu" or not torch.accelerator.is_available()
        self.state = PartialState(cpu=self.on_cpu)  # told so, processes on CPUs find each other
        self.say = reporter.say if self.state.is_main_process else _silent
        keep_freed_memory()
        if recipe.runtime.threads:
            torch.set_num_threads(recipe.runtime.threads)
        torch.use_deterministic_algorithms(recipe.training.deterministic)

        self.feed = Feed(recipe, processes=self.state.num_processes, say=self.say)
        self.task = self.feed.task
        torch.manual_seed(recipe.training.seed)
        self.model = self.task.build_model(recipe)

    def trainer(self, *, resume: bool) -> Trainer:
        """Return what trains the network, from its beginning or from the newest checkpoint."""
        checkpoint = latest_checkpoint(self.folder / "checkpoints") if resume else None
        self._start_from_weights(learned=checkpoint is not None)
        if checkpoint is None:
            self.runtime, trials = fastest_runtime(
                self.recipe, self.task, self.trained, self.loaders["train"], self.state, self.say
            )
            if self.state.is_main_process:
                write_context(self.folder, self.recipe, self.feed.info, self.runtime, trials, self.weights)
        else:
            progress, tensors, context = load_checkpoint(checkpoint)
            if context["fingerprint"] != self.feed.info.fingerprint:
                raise DataError(
                    f"{self.feed.info.location} changed since {checkpoint} was written;"
                    " train into another --out"
                )
            self.runtime = Runtime(**context["runtime"])
            self.say(f"going on after step {progress.step}, epoch {progress.epoch} done, with {self.runtime}")
        self.accelerator = _accelerator(self.recipe, self.runtime, self.folder, on_cpu=self.on_cpu)
        trainer = Trainer(
            task=self.task,
            model=self.trained,
            transfer=Transfer(self.trained, self.recipe.transfer),
            loaders=self.loaders,
            monitor=self.feed.monitor,
            config=self.recipe.training,
            runtime=self.runtime,
            accelerator=self.accelerator,
            folder=self.folder / "checkpoints",
            run={"runtime": asdict(self.runtime), "fingerprint": self.feed.info.fingerprint},
            callbacks=(self.reporter, CsvLog(self.folder / "log.csv"), Trackers(self.accelerator)),
        )
        if checkpoint is not None:
            trainer.resume(progress, tensors, context)
        return trainer

    def _start_from_weights(self, *, learned: bool) -> None:
        """Load the weights asked for and settle what is trained: the network, or its head on kept features.

        Args:
            learned: whether a checkpoint holds what was learned since; of a network trained whole it
                holds everything, so the weights need not be there any more.
        """
        transfer, weights = self.recipe.transfer, self.recipe.model.weights
        probe = transfer.trained == "head"
        self.weights: dict[str, Any] | None = None
        if weights and (probe or not learned):
            checkpoint = read_checkpoint(*weights)
            report = load_into(self.model, checkpoint, adapt=True)
            for line in (*report.lines(), *checkpoint.notes):
                self.say(line)
            self.weights = {
                "source": checkpoint.source,
                "format": checkpoint.format,
                **checkpoint.provenance,
                "report": report.as_dict(),
            }
        if transfer.on_device_blocks:
            make_lean(self.model, transfer.on_device_blocks)
        self.trained: nn.Module = self.model.head if probe else self.model
        self.loaders = self.feed.loaders
        if probe:
            self.loaders = cache_features(
                self.recipe, self.task, self.model, self.feed, device=self.state.device, say=self.say
            )

    def finish(self, progress: Progress) -> TrainResult:
        """Write bundle, plots and figures, in the main process."""
        self.accelerator.free_memory()
        self.accelerator.end_training()
        training = {
            "runtime": str(self.runtime),
            "processes": self.state.num_processes,
            **figures(self.recipe, self.task, self.feed.monitor, progress),
        }
        if not self.state.is_main_process:
            return TrainResult(
                task=self.task.name,
                metrics={},
                split=self.feed.info.held_out,
                run=self.folder,
                bundle=self.folder / "bundle",
                training=training,
                files={},
            )
        if self.recipe.transfer.on_device_blocks:
            restore_lean(self.model)
        result = finish(
            self.recipe,
            self.folder,
            feed=self.feed,
            task=self.task,
            network=self.model.to(self.state.device).to(memory_format=torch.contiguous_format),
            progress=progress,
            training=training,
            device=self.state.device,
        )
        if self.recipe.optimize:
            optimize(result.bundle, goal=self.recipe.optimize, data=self.feed.source, say=self.say)
        return result


def _accelerator(recipe: Recipe, runtime: Runtime, folder: Path, *, on_cpu: bool) -> Accelerator:
    """Return Accelerate's handle; an earlier run of this process may have left another precision behind."""
    AcceleratorState._reset_state()
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    # Layers that rest for an epoch give no gradient, which processes that share gradients must expect.
    rests = DistributedDataParallelKwargs(find_unused_parameters=recipe.transfer.rests)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="fp16" if runtime.precision == "fp16" else "no",  # for the gradient scaler only
        gradient_accumulation_steps=recipe.training.accumulate,
        log_with="tensorboard" if tensorboard else None,
        project_dir=folder,
        kwargs_handlers=[rests],
    )
    if tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _silent(_: str) -> None:
    """Say nothing: another process does."""
