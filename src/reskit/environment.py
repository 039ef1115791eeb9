"""What this machine has and which versions are installed: for `doctor`, provenance and results."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "available_memory",
    "extras",
    "fingerprint",
    "git_commit",
    "machine",
    "on_x86",
    "return_memory",
    "usable_cores",
    "versions",
]

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


def on_x86() -> bool:
    """Return whether the processor is an x86 of 64 bits."""
    return platform.machine().lower() in ("x86_64", "amd64")


def usable_cores() -> int:
    """Return the processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that may still be taken: of the machine, and of the limits of containers."""
    import psutil  # type: ignore[import-untyped]

    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def return_memory() -> None:
    """Give the system back what was freed; of that the C library keeps much for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _left_in_groups(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Yield what each control group around this process leaves of its limit; nothing where it has none.

    Pages of files that were not used of late count as free: the kernel drops them first. Of version 1 and 2.
    """
    with contextlib.suppress(OSError):  # not Linux
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                base, limit, used, unused = root, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                base, unused = root / "memory", "total_inactive_file"
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):  # in a container the path may be that of the host
                with contextlib.suppress(OSError, ValueError, KeyError):  # there is none, or "max"
                    most, taken = (int((folder / name).read_text()) for name in (limit, used))
                    stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    yield most - taken + int(stat[unused])
                if folder == base:
                    break


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
