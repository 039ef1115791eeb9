"""Whether there is memory for one more model, told before the kernel ends the process."""

from __future__ import annotations

import contextlib
from pathlib import Path

from reskit.backends.plan import GOALS, Plan, plan_folder, plan_time
from reskit.environment import available_memory, return_memory
from reskit.errors import ReskitError
from reskit.serving.platforms.faults import NoMemoryError

__all__ = ["check_memory", "is_of_memory"]

_WEIGHTS_TIMES = 4
"""Themselves, a copy while they are read, and the activations of a batch; `reskit deploy` counts likewise."""
_SPARE = 128 << 20
"""Bytes left for requests."""


def check_memory(bundle: Path, *, engine: str, held: int) -> None:
    """Refuse to load a bundle that there is no memory for.

    Args:
        bundle: its folder.
        engine: which choice of `reskit optimize` would answer, as the setting of that name.
        held: bytes that this process held before it loaded a model.

    Raises:
        NoMemoryError: it needs more than there is.
    """
    needed = _needed(bundle, engine, held)
    if needed <= available_memory():
        return
    return_memory()  # models that were unloaded may be in it
    if needed > (available := available_memory()):
        raise NoMemoryError(
            f"loading needs about {needed / 2**20:,.0f} MiB of memory and {available / 2**20:,.0f} are left: "
            "unload other models"
        )


def is_of_memory(error: BaseException | None) -> bool:
    """Return whether memory that ran out is behind an error; PyTorch and the system say so in words."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _needed(bundle: Path, engine: str, held: int) -> int:
    """Return the bytes that loading takes, from its files and what was measured of its engine."""
    files = {file.name: file.stat().st_size for file in bundle.iterdir() if file.is_file()}
    needed = sum(files.values()) + (_WEIGHTS_TIMES - 1) * files.get("model.safetensors", 0)
    if engine != "eager" and plan_time(bundle) is not None:
        with contextlib.suppress(ReskitError):  # a plan that is damaged is told when it is loaded
            plan = Plan.read(plan_folder(bundle))
            chosen = plan.engine(next((goal for goal in GOALS if goal == engine), None))
            needed = max(needed, int(chosen.memory_mib * 2**20) - held)  # measured with the libraries in it
    return needed + _SPARE
