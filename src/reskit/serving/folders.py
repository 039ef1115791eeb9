"""Which folders hold which versions of which models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from reskit.errors import ConfigError

__all__ = ["CONFIG", "NAME", "bundle_folders", "digest", "find_models"]

CONFIG = "config.json"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")


def find_models(places: Iterable[tuple[str | None, Path]]) -> dict[str, dict[str, Path]]:
    """Return the bundles in folders, by name and version.

    A folder is a bundle; or a model, with bundles in folders named 1, 2, ...; or holds such folders.

    Raises:
        ConfigError: a folder holds none, two have one name, or a name cannot be one.
    """
    found: dict[str, dict[str, Path]] = {}
    for given, place in places:
        here = {given or place.resolve().name: versions} if (versions := _bundles(place)) else {}
        if not here and given is None and place.is_dir():
            inside = sorted(
                path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")
            )
            here = {path.name: versions for path in inside if (versions := _bundles(path))}
        if not here:
            raise ConfigError(
                f"{place} is not a bundle and holds none: give folders that `reskit train` wrote"
            )
        for name, versions in here.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"{name!r} cannot be the name of a model: give another as NAME={place}")
            if name in found:
                raise ConfigError(f"two models are called {name!r}: name one of them otherwise, NAME={place}")
            found[name] = versions
    return found


def bundle_folders(folders: Collection[str], *, single: bool) -> set[str]:
    """Return the bundles that `find_models` would find, of a tree that is not on this machine.

    Args:
        folders: those that hold a `config.json`, relative, with slashes; the empty one is the root.
        single: a name was given: the tree is one model.
    """
    if "" in folders:
        return {""}
    versions = {folder for folder in folders if _VERSION.fullmatch(folder)}
    if versions or single:
        return versions
    found = set()
    for folder in folders:
        model, _, version = folder.partition("/")
        if not model.startswith(".") and (
            not version or (_VERSION.fullmatch(version) and model not in folders)
        ):
            found.add(folder)
    return found


def digest(bundle: Path) -> str:
    """Return what changes when a file of a bundle is written again; empty where there is none."""
    if not (bundle / CONFIG).is_file():
        return ""
    files = sorted(path for path in bundle.glob("*.*") if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _bundles(place: Path) -> dict[str, Path]:
    """Return the versions of the model in a folder; empty where it is none."""
    if (place / CONFIG).is_file():
        return {"1": place}
    if not place.is_dir():
        return {}
    inside = (path for path in place.iterdir() if _VERSION.fullmatch(path.name))
    return {path.name: path for path in sorted(inside) if (path / CONFIG).is_file()}
