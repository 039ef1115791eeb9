"""The packaged files, and their writing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from reskit.errors import OutputError
from reskit.files import write_text

__all__ = ["FILES", "write_monitoring"]

FILES = ("prometheus.yml", "rules.yml", "alertmanager.yml", "dashboard.json")


def write_monitoring(folder: str | Path) -> dict[str, Path]:
    """Write the settings into a folder and return their paths by name; what is there of them stays as it is.

    Raises:
        OutputError: one of the files is there, or the file system refuses.
    """
    paths = {Path(name).stem: Path(folder) / name for name in FILES}
    for path in paths.values():
        if path.exists():
            raise OutputError(f"{path} is there already, and may have been changed; choose another --out")
    for path in paths.values():
        write_text(path, (files(__package__) / path.name).read_text(encoding="utf-8"))
    return paths
