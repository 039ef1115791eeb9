"""How fast a network runs here, beside its peers and against what the machine can do at most.

The names below are imported on first use: the processes of peers run modules of this package, and must not
import PyTorch for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reskit.benchmarking.peak import Peak, measure_peak
    from reskit.benchmarking.peers import PEERS
    from reskit.benchmarking.report import BenchReport, Row
    from reskit.benchmarking.run import bench

_HOMES = {
    "PEERS": "peers",
    "BenchReport": "report",
    "Peak": "peak",
    "Row": "report",
    "bench": "run",
    "measure_peak": "peak",
}

__all__ = ["PEERS", "BenchReport", "Peak", "Row", "bench", "measure_peak"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
