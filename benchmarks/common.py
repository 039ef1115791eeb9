"""What every benchmark writes beside its figures."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reskit.environment import git_commit, machine, versions
from reskit.files import to_json, write_text

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`: the figures, and where, when and how they were measured."""
    command = ["python", str(Path(sys.argv[0]).name), *sys.argv[1:]]
    path = RESULTS / f"{name}.json"
    context = {
        "benchmark": name,
        "command": shlex.join(command),
        "date": datetime.now(UTC).date().isoformat(),
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
    }
    write_text(path, to_json({**context, **figures}))
    print(f"wrote {path}")
    return path
