"""Where and how the network is run in training: device, precision, memory layout, chosen by measuring."""

from __future__ import annotations

import copy
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reskit.config import RuntimeConfig
from reskit.errors import ConfigError

__all__ = ["Runtime", "Step", "Trial", "choose_runtime", "clone_for_trial", "keep_freed_memory"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

WARMUP_STEPS = 2
ROUNDS = 5
SECONDS = 15.0
"""Measuring ends after the round in which this much time has passed."""
GAIN = 1.05
"""A combination must be this much faster than plain float32 to be worth leaving it."""
LOSS_TOLERANCE = 0.05
"""Largest relative difference of the loss from plain float32 after the measured steps."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One way to run the training step."""

    device: str
    precision: str = "fp32"
    layout: str = "nchw"
    compile: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The torch name of the layout."""
        return _LAYOUTS[self.layout]

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=_DTYPES[self.precision], enabled=self.precision != "fp32")

    def arrange(self, inputs: Tensor) -> Tensor:
        """Return `inputs` in the layout; what are no images have none."""
        return inputs.contiguous(memory_format=self.memory_format) if inputs.ndim == 4 else inputs

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and layout."""
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload,no-any-return]

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}{' compiled' if self.compile else ''} on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured of one candidate."""

    runtime: Runtime
    step_seconds: float
    images_per_second: float
    loss: float
    accepted: bool


Step = Callable[[], Tensor]
MakeStep = Callable[[Runtime], Step]


def choose_runtime(
    config: RuntimeConfig, *, device: torch.device, make_step: MakeStep, batch_size: int
) -> tuple[Runtime, list[Trial]]:
    """Time a few training steps of every sensible combination and return the fastest that learns alike.

    Args:
        config: what the recipe fixes; only what is ``auto`` is measured.
        device: where to train.
        make_step: given a runtime, returns a function that makes one optimiser step on the same real batch
            with a private copy of the network and returns the loss. Called once a candidate.
        batch_size: examples a step.
    """
    candidates = _candidates(config, device)
    if len(candidates) == 1:
        return candidates[0], []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        trials = _measure(candidates, make_step, batch_size)
    usable = [trial for trial in trials if trial.accepted or trial is trials[0]]
    reference = usable[0]
    fastest = min(usable, key=lambda trial: trial.step_seconds)
    chosen = fastest if reference.step_seconds / fastest.step_seconds >= GAIN else reference
    return chosen.runtime, trials


def _candidates(config: RuntimeConfig, device: torch.device) -> list[Runtime]:
    """Return the combinations worth timing, plain float32 in the default layout first."""
    precisions = ["fp32", *_reduced_precisions(device)] if config.precision == "auto" else [config.precision]
    layouts = ["nchw", "channels_last"] if config.layout == "auto" else [config.layout]
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("runtime.precision fp16 needs a GPU; on a CPU use bf16, fp32 or auto")
    return [
        Runtime(device=str(device), precision=precision, layout=layout, compile=compiled)
        for compiled in ([False, True] if config.compile else [False])
        for precision in precisions
        for layout in layouts
    ]


def _reduced_precisions(device: torch.device) -> Iterator[str]:
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        yield "bf16"
    else:
        yield "fp16"


def _measure(candidates: list[Runtime], make_step: MakeStep, batch_size: int) -> list[Trial]:
    """Time the candidates in interleaved rounds, leaving out early those that are hopelessly slow."""
    steps, seconds, losses = {}, {}, {}
    for runtime in candidates:
        torch.manual_seed(0)
        steps[runtime] = make_step(runtime)
        warmup = [_timed(steps[runtime], runtime) for _ in range(WARMUP_STEPS)]
        seconds[runtime], losses[runtime] = [warmup[-1][0]], [loss for _, loss in warmup]
    hopeless = 2 * min(times[0] for times in seconds.values())
    racing = [
        runtime for runtime in candidates if seconds[runtime][0] <= hopeless or runtime == candidates[0]
    ]
    deadline = time.perf_counter() + SECONDS
    for _ in range(ROUNDS):
        for runtime in racing:
            duration, loss = _timed(steps[runtime], runtime)
            seconds[runtime].append(duration)
            losses[runtime].append(loss)
        if time.perf_counter() > deadline:
            break
    reference = losses[candidates[0]]
    return [
        Trial(
            runtime=runtime,
            step_seconds=(median := statistics.median(seconds[runtime][-ROUNDS:])),
            images_per_second=batch_size / median,
            loss=losses[runtime][-1],
            accepted=_close(losses[runtime][-1], reference[len(losses[runtime]) - 1]),
        )
        for runtime in candidates
    ]


def _close(loss: float, reference: float) -> bool:
    # A not-finite loss compares false; 0.01 keeps losses near zero from failing on noise.
    return abs(loss - reference) <= LOSS_TOLERANCE * abs(reference) + 0.01


def _timed(step: Step, runtime: Runtime) -> tuple[float, float]:
    start = time.perf_counter()
    loss = float(step())  # reading the value waits for the device
    if runtime.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system; True where that took effect.

    By default glibc maps every large activation at each operator and unmaps it again, and each training step
    on a CPU pays for the page faults. The price is that the process does not shrink between steps.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


def clone_for_trial(model: nn.Module, runtime: Runtime) -> nn.Module:
    """Return a private copy of `model`, placed and compiled as `runtime` says."""
    trial = runtime.place(copy.deepcopy(model)).train()
    if runtime.compile:
        trial.compile()
    return trial
