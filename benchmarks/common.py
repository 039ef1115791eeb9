"""What every benchmark writes beside its figures."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import reskit
from reskit.environment import git_commit, machine, versions
from reskit.files import to_json, write_text

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`: the figures, and where, when and how they were measured."""
    # Where things lie on the machine that measured is nobody's business.
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    command = ["python", *given]
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


def finished_run(
    recipe: str, folder: Path, **arguments: Any
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train, or go on with, or only read a run; return its result and its history, one row an epoch."""
    if not (folder / "result.json").exists():
        reskit.train(recipe, out=folder, resume=folder.exists(), **arguments)
    with (folder / "log.csv").open() as file:
        history = [
            {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
        ]
    return json.loads((folder / "result.json").read_text()), history
