"""Whoever asks a bundle gets the fastest engine it has here, and need not know which."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from reskit.backends.base import Runner
from reskit.backends.plan import GOALS, Engine, find_plan, other_machines, plan_time
from reskit.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from reskit.bundle import Bundle

__all__ = ["Answers", "answers", "planned"]

Answers = Callable[[Tensor], Tensor]
"""Raw input, such as pixels `(N, C, H, W)`, on the CPU to outputs, float32 on the CPU."""

_LOADED: WeakKeyDictionary[Bundle, dict[tuple[str, int], Answers]] = WeakKeyDictionary()


def answers(bundle: Bundle, engine: str = "auto") -> Answers:
    """Return what answers for a bundle; loaded once a bundle, engine and plan.

    Args:
        bundle: what is asked.
        engine: ``eager`` is the float32 network in PyTorch, on an accelerator where there is one; ``auto`` is
            the choice of `reskit optimize` where it ran on this machine, else eager; ``latency``,
            ``throughput``, ``memory`` and ``size`` that choice, and an error without it.

    Raises:
        ConfigError: there is no such engine.
        BackendError: the plan is missing, of another machine, or damaged.
    """
    if engine not in ("auto", "eager", *GOALS):
        raise ConfigError(f"unknown engine {engine!r}: auto, eager, {', '.join(GOALS)}")
    written = plan_time(bundle.path)
    if engine == "eager" or (engine == "auto" and written is None):
        engine, written = "eager", 0
    loaded, key = _LOADED.setdefault(bundle, {}), (engine, written or 0)
    if key not in loaded:
        loaded[key] = _eager(bundle) if engine == "eager" else _planned(bundle, engine)
    return loaded[key]


def planned(bundle: Bundle, engine: str = "auto") -> tuple[Runner, Engine]:
    """Return the runner that `reskit optimize` chose on this machine, and what it measured of it.

    Args:
        bundle: what is asked.
        engine: a goal; else that of the plan.

    Raises:
        BackendError: the plan is missing, of another machine, or damaged.
    """
    found = find_plan(bundle)
    if found is None:
        others = other_machines(bundle.path)
        where = f"was optimised for another machine ({', '.join(others)})" if others else "was not optimised"
        raise BackendError(f"bundle {bundle.path} {where}; run `reskit optimize {bundle.path}` here")
    plan, folder = found
    goal = next((goal for goal in GOALS if goal == engine), None)
    return plan.load(folder, goal), plan.engine(goal)


def _planned(bundle: Bundle, engine: str) -> Answers:
    runner, _ = planned(bundle, engine)

    def answer(raw: Tensor) -> Tensor:
        return torch.from_numpy(runner.answer(raw.contiguous().numpy()))

    return answer


def _eager(bundle: Bundle) -> Answers:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model, task = bundle.model, bundle.task  # the bundle itself would be kept by what is remembered of it

    @torch.inference_mode()
    def answer(raw: Tensor) -> Tensor:
        model.to(device)
        task.normalize.to(device)
        outputs: Tensor = model(task.inputs({task.raw: raw.to(device)}))
        return outputs.float().cpu()

    return answer
