"""The runtime of a run, measured on its own network and its first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from reskit.config import Recipe
from reskit.tasks import Batch, Task
from reskit.training.loop import training_loss
from reskit.training.optim import build_optimizer, set_learning_rate
from reskit.training.runtime import Runtime, Step, Trial, choose_runtime, clone_for_trial

__all__ = ["fastest_runtime"]

TRIAL_RATE = 0.1
"""Factor of the learning rate while runtimes are measured: losses are compared, so they must not wander."""


def fastest_runtime(
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
        optimizer = build_optimizer([(trial.parameters(), 1.0)], config.optimizer)
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
            speed = f"{trial.images_per_second:>8.0f} examples/s"
            say(f"{mark} {trial.runtime!s:<32} {speed}  loss {trial.loss:.3f}{note}")
    broadcast_object_list(chosen)
    assert chosen[0] is not None
    return chosen[0], trials
