"""What a run used: processor, memory, GPU, energy. Read from the system, not estimated."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from reskit.environment import usable_cores

__all__ = ["Usage"]

_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


class Usage:
    """A meter that starts when made.

    Args:
        device: where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wall = time.perf_counter()
        self._cpu = _cpu_seconds()
        self._energy = _energy_joules()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, Any]:
        """Return the figures since the start; what this machine does not tell is None.

        `cpu_utilisation` is the share of all usable cores kept busy, child processes that ended included;
        `peak_memory_mib` is the resident peak of this process over its life; energy is the package's,
        whoever used it.
        """
        wall = time.perf_counter() - self._wall
        cuda = self._device.type == "cuda"
        energy = _energy_joules()
        return {
            "seconds": wall,
            "cpu_utilisation": (_cpu_seconds() - self._cpu) / wall / usable_cores(),
            "peak_memory_mib": _peak_memory_mib(),
            "gpu_peak_memory_mib": torch.cuda.max_memory_allocated(self._device) / 2**20 if cuda else None,
            "gpu_utilisation": _gpu_utilisation(self._device) if cuda else None,
            "energy_joules": energy - self._energy
            if energy is not None and self._energy is not None
            else None,
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _gpu_utilisation(device: torch.device) -> float | None:
    try:
        return torch.cuda.utilization(device) / 100
    except (ModuleNotFoundError, RuntimeError):  # needs the NVIDIA management library
        return None


def _energy_joules() -> float | None:
    try:
        return int(_RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None
