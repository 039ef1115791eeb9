"""What this machine has and which versions are installed: for `doctor`, provenance and results."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["extras", "fingerprint", "git_commit", "machine", "versions"]

_CORE = (
    "torch",
    "torchvision",
    "accelerate",
    "torchmetrics",
    "datasets",
    "safetensors",
    "numpy",
)

_INSTRUCTIONS = re.compile(r"avx|amx|fma$|f16c$|asimd|sve|bf16|i8mm")


def machine() -> dict[str, Any]:
    """Return processor, cores, memory in GiB, accelerators, instruction sets and operating system."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "accelerators": gpus + (["mps"] if torch.backends.mps.is_available() else []),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


@functools.cache
def fingerprint() -> dict[str, Any]:
    """Return what decides which way of running a network is fastest, and an `id` of it, without PyTorch.

    Processor, cores that may be used, the vector and matrix instructions, and the system.
    """
    what = {
        "processor": _processor(),
        "cores": usable_cores(),
        "instructions": _instructions(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {"id": hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12], **what}


def versions() -> dict[str, str]:
    """Return the versions of Python, reskit and the libraries a result depends on."""
    found = {"python": platform.python_version(), "reskit": importlib.metadata.version("reskit")}
    return found | {name: importlib.metadata.version(name) for name in _CORE}


def extras() -> dict[str, list[str]]:
    """Return, for each extra of reskit, the packages of it that are not installed."""
    missing: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("reskit") or ():
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if match is None or match[1] == "reskit":
            continue
        absent = missing.setdefault(match[2], [])
        try:
            importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            absent.append(match[1])
    return missing


def git_commit() -> str | None:
    """Return the commit of the repository around the working directory, `-dirty` if it has changes."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def usable_cores() -> int:
    """Return the processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _instructions() -> list[str]:
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return sorted(flag for flag in (found[1].split() if found else ()) if _INSTRUCTIONS.match(flag))


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
