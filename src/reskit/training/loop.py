"""The training loop: over Accelerate, resumable at any step, readable on one screen."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from reskit.config import TrainingConfig
from reskit.errors import InterruptedRunError, TrainingError
from reskit.evaluation import measure, network_answers
from reskit.files import atomic_file
from reskit.tasks import Batch, Task
from reskit.training.callbacks import Callback
from reskit.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from reskit.training.runtime import Runtime
from reskit.training.state import Progress, latest_checkpoint, restore, save_checkpoint, snapshot
from reskit.training.transfer import Transfer
from reskit.training.usage import Usage

__all__ = ["Trainer", "training_loss"]


def training_loss(task: Task, model: nn.Module, batch: Batch, runtime: Runtime) -> Tensor:
    """Return the loss of one batch, ready for `backward`: all that a step computes before the gradients."""
    inputs = runtime.arrange(task.inputs(batch))
    inputs, target = task.mix(inputs, task.target(batch))
    with runtime.autocast():
        outputs = model(inputs)
    return task.loss(outputs.float(), target)


class Trainer:
    """Fits a network to a task.

    Args:
        task: loss, metrics and what is fed.
        model: the network; trained in place.
        transfer: which parts of it learn when, and how fast.
        loaders: batches of `train`, and of the split `monitor` names.
        monitor: the split measured after each epoch.
        config: how long and with what.
        runtime: device, precision and layout.
        accelerator: Accelerate's handle on devices and processes.
        folder: where checkpoints go.
        run: JSON values stored with every checkpoint.
        callbacks: told of steps and epochs, in the main process.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        transfer: Transfer,
        loaders: Mapping[str, DataLoader[Any]],
        monitor: str,
        config: TrainingConfig,
        runtime: Runtime,
        accelerator: Accelerator,
        folder: Path,
        run: Mapping[str, Any],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.config, self.runtime, self.accelerator = task, config, runtime, accelerator
        self.folder, self.monitor, self.run, self.transfer = folder, monitor, run, transfer
        self.callbacks = callbacks if accelerator.is_main_process else ()
        task.normalize.to(accelerator.device)
        model = runtime.place(model)
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
            if config.ema_decay
            else None
        )
        if runtime.compile:
            model.compile()
        self.model, self.optimizer, self.train_loader, self.monitor_loader = accelerator.prepare(
            model,
            build_optimizer(transfer.learning_rates(), config.optimizer),
            loaders["train"],
            loaders[monitor],
        )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / config.accumulate)
        self.progress = Progress()

    @property
    def network(self) -> nn.Module:
        """The network to use: the averaged one where an average is kept."""
        trained: nn.Module = self.accelerator.unwrap_model(self.model)
        return trained if self.average is None else self.average.module

    def fit(self) -> Progress:
        """Train to the end, from wherever `progress` is.

        Raises:
            TrainingError: the loss is not finite; the last good checkpoint is kept.
            InterruptedRunError: Ctrl-C or SIGTERM; the state is saved.
        """
        self._tell("on_start", epochs=self.config.epochs, steps_per_epoch=len(self.train_loader))
        try:
            with _stop_signals() as self._stop:
                while self.progress.epoch < self.config.epochs and not self._patience_is_over():
                    self._train_epoch()
                    self._end_epoch()
        finally:
            self._tell("on_end")
        if self.config.keep == "best" and self.accelerator.is_main_process:
            self.network.load_state_dict(load_file(self.folder / "best.safetensors"))
        return self.progress

    def resume(self, progress: Progress, tensors: Mapping[str, Tensor], run: Mapping[str, Any]) -> None:
        """Go on from what `load_checkpoint` returned."""
        restore(tensors, self._modules(), self.optimizer)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(run["scaler"])
        self.progress = progress

    def _train_epoch(self) -> None:
        now, config = self.progress, self.config
        losses: list[tuple[Tensor, int]] = []
        flush = 1 if self.accelerator.device.type == "cpu" else 20  # reading a loss waits for a GPU
        self._usage, self._mark = Usage(self.accelerator.device), time.perf_counter()
        self._saved, self._saved_step = time.perf_counter(), now.step
        self.model.train()
        self.transfer.set_epoch(now.epoch)
        self.train_loader.set_epoch(now.epoch)
        for batch in self.accelerator.skip_first_batches(self.train_loader, now.batch):
            torch.manual_seed(self._seed())  # dropout, mixup and the like are functions of the position
            with self.accelerator.accumulate(self.model):
                loss = training_loss(self.task, self.model, batch, self.runtime)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and config.clip_norm:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
                factor = learning_rate_factor(
                    config.schedule, now.step, steps_per_epoch=self.steps_per_epoch, epochs=config.epochs
                )
                set_learning_rate(self.optimizer, config.optimizer.lr * factor)
                self.optimizer.step()
                self.optimizer.zero_grad()
            now.batch += 1
            losses.append((loss.detach(), len(batch["index"])))
            if self.accelerator.sync_gradients:
                now.step += 1
                if self.average is not None:
                    self.average.update_parameters(self.accelerator.unwrap_model(self.model))
                if len(losses) >= flush:
                    self._settle(losses)
                self._save_if_due(losses)
        self._settle(losses)
        self._clock()

    def _end_epoch(self) -> None:
        now = self.progress
        network = self.network if self.average is not None else self.model
        answer = network_answers(network, self.task, self.accelerator.device)

        def reduced(batch: Batch) -> Tensor:  # the network only: figures are reckoned in full precision
            with self.runtime.autocast():
                return answer(batch)

        metrics, _ = measure(
            reduced, self.monitor_loader, self.task, gather=self.accelerator.gather_for_metrics
        )
        images = now.examples * self.accelerator.num_processes
        now.epoch, now.batch = now.epoch + 1, 0
        now.train_seconds += now.epoch_seconds
        row = {
            "epoch": now.epoch,
            "step": now.step,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": now.loss_sum / max(now.examples, 1),
            **{f"{self.monitor}_{name}": value for name, value in metrics.items()},
            "seconds": now.epoch_seconds,
            "train_seconds": now.train_seconds,
            "images_per_second": images / now.epoch_seconds,
            **{name: value for name, value in self._usage.read().items() if name != "seconds"},
        }
        now.history.append(row)
        now.loss_sum, now.examples, now.epoch_seconds = 0.0, 0, 0.0
        score = metrics[self.task.main_metric]
        if now.best is None or (score > now.best if self.task.higher_is_better else score < now.best):
            now.best, now.best_epoch = score, now.epoch
            if self.config.keep == "best":
                self._save_best()
        self._tell("on_epoch", row=row, history=now.history)
        self._save()

    def _settle(self, losses: list[tuple[Tensor, int]]) -> None:
        """Read the pending losses and stop at one that is not finite."""
        now = self.progress
        for age, (tensor, count) in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
            loss = float(tensor)
            if not math.isfinite(loss):
                kept = latest_checkpoint(self.folder)
                raise TrainingError(
                    f"the loss is {loss} at step {now.step - age} (epoch {now.epoch + 1}); lower"
                    " training.optimizer.lr or set training.clip_norm; "
                    + (f"the last good checkpoint is {kept}" if kept else "no checkpoint was written yet")
                )
            now.loss_sum += loss * count
            now.examples += count
        if losses:
            self._tell("on_step", epoch=now.epoch, batch=now.batch, loss=loss)
        losses.clear()

    def _save_if_due(self, losses: list[tuple[Tensor, int]]) -> None:
        now, config = self.progress, self.config
        due = config.checkpoint_steps is not None and now.step - self._saved_step >= config.checkpoint_steps
        if not (due or self._stop.is_set() or time.perf_counter() - self._saved > config.checkpoint_seconds):
            return
        self._settle(losses)
        self._clock()
        self._save()
        if self._stop.is_set():
            raise InterruptedRunError(
                f"stopped at step {now.step} (epoch {now.epoch + 1}); the state is saved in {self.folder}"
            )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = snapshot(self._modules(), self.optimizer)
            scaler = self.accelerator.scaler  # of gradients in fp16, else None
            run = {**self.run, "scaler": scaler.state_dict() if scaler else None}
            save_checkpoint(self.folder, progress=self.progress, tensors=tensors, run=run)
        self._saved, self._saved_step = time.perf_counter(), self.progress.step

    def _save_best(self) -> None:
        if self.accelerator.is_main_process:
            path = self.folder / "best.safetensors"
            with atomic_file(path) as staging:
                save_file(
                    {name: value.contiguous() for name, value in self.network.state_dict().items()}, staging
                )

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.accelerator.unwrap_model(self.model)}
        return modules if self.average is None else modules | {"average": self.average}

    def _seed(self) -> int:
        now = self.progress
        position: int = (now.epoch * len(self.train_loader) + now.batch) * self.accelerator.num_processes
        return (self.config.seed << 40) + position + int(self.accelerator.process_index)

    def _clock(self) -> None:
        self.progress.epoch_seconds += time.perf_counter() - self._mark
        self._mark = time.perf_counter()

    def _patience_is_over(self) -> bool:
        now = self.progress
        return self.config.patience is not None and now.epoch - (now.best_epoch or 0) >= self.config.patience

    def _tell(self, hook: str, **values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(**values)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set the event on the first Ctrl-C or SIGTERM; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
