"""What a training step needs of memory: measured, not estimated."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

__all__ = ["SavedStorage", "TrainingMemory", "measure_training_memory"]


@dataclass(frozen=True)
class SavedStorage:
    """A piece of memory kept for the backward pass, and the first tensor saved of it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Memory of one training step.

    Attributes:
        activation_bytes: kept from the forward pass for the backward pass, parameters and buffers left out.
        peak_bytes: the most that was allocated at any time of the step and had not been before it:
            activations, gradients and what the operators hold while they work. Parameters and the state of
            the optimiser are in it only if the step makes them.
        saved: what `activation_bytes` is made of, in the order it was saved.
    """

    activation_bytes: int
    peak_bytes: int
    saved: tuple[SavedStorage, ...]


def measure_training_memory(
    step: Callable[[], Any], *, held: Iterable[Tensor] = (), device: str | torch.device = "cpu"
) -> TrainingMemory:
    """Measure a training step; it is run twice, after whoever calls has run it once to warm up.

    Activations are the storages that autograd saves, each once however many tensors share it, at the size
    that was allocated. The peak is that of torch's allocator: on a CPU from the profiler's record of every
    allocation, on a GPU from its own counter. Scratch memory that kernel libraries get elsewhere is not seen.

    Args:
        step: one forward and backward pass, run eagerly, and perhaps an update. It must free what it makes
            (``zero_grad()`` last), or the second run begins with it.
        held: parameters and buffers, which are no activations even where autograd saves them.
        device: where the step runs.
    """
    saved = _saved_storages(step, held)
    gc.collect()
    measure = _cuda_peak if torch.device(device).type == "cuda" else _cpu_peak
    return TrainingMemory(
        activation_bytes=sum(storage.bytes for storage in saved),
        peak_bytes=measure(step, torch.device(device)),
        saved=saved,
    )


def _saved_storages(step: Callable[[], Any], held: Iterable[Tensor]) -> tuple[SavedStorage, ...]:
    known = {_address(tensor) for tensor in held}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Holding the tensors to the end keeps their addresses from being used twice.
        plain = tensor.detach()
        if _address(plain) not in known:
            kept.setdefault(_address(plain), plain)
        return plain

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return tuple(
        SavedStorage(tuple(tensor.shape), str(tensor.dtype), tensor.untyped_storage().nbytes())
        for tensor in kept.values()
    )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _cpu_peak(step: Callable[[], Any], _: torch.device) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # The public summaries add allocations up by operator; when each happened is only in the raw record.
    assert profiler.profiler is not None
    record = profiler.profiler.kineto_results
    assert record is not None
    events = sorted(
        (event for event in record.events() if event.name() == "[memory]"), key=lambda event: event.start_ns()
    )
    return int(max(accumulate((event.nbytes() for event in events), initial=0)))


def _cuda_peak(step: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before: int = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_allocated(device)
    return peak - before
