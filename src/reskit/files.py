"""Writing that is whole or not at all, and says plainly why it could not be done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reskit.errors import ConfigError, OutputError

__all__ = [
    "ANOTHER_CACHE",
    "atomic_file",
    "atomic_folder",
    "own_cache",
    "read_lines",
    "sha256",
    "to_json",
    "write_text",
    "writing",
]

ANOTHER_OUT, ANOTHER_CACHE = "choose another --out", "set RESKIT_CACHE to another folder"
"""What to do where a file cannot be written; see `writing`."""


@contextlib.contextmanager
def writing(path: Path, *, instead: str = ANOTHER_OUT) -> Iterator[None]:
    """Turn a failure of the file system while writing `path` into an `OutputError`, which says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {path}: {reason}; free space or {instead}") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as lines of text: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old content or the new, never a part."""
    with atomic_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty file that takes the place of `path` when the block ends well.

    A crash leaves the old content or the new, never a part.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        staging = Path(name)
        try:
            yield staging
            _sync(staging)
            staging.chmod(0o644)
            staging.replace(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path, *, instead: str = ANOTHER_OUT) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well; see `writing`.

    A crash at any moment leaves the old folder, the new one, or (between two renames) the old one
    under a dotted name beside it; never a mixture.
    """
    with writing(path, instead=instead):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file of that name is there")
        path = path.resolve()  # a link stays, what it leads to is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield staging
            for file in staging.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # safetensors writes for its owner only
                    _sync(file)
            staging.chmod(0o755)
            _swap(staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def own_cache(name: str) -> Path:
    """Return a folder that only the user can write to and that may be deleted at any time, made if need be.

    It is `reskit/NAME` in `RESKIT_CACHE`, else in `XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
        ConfigError: others may write to it.
        OutputError: it cannot be made.
    """
    base = os.environ.get("RESKIT_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).absolute() / "reskit" / name
    with writing(folder, instead=ANOTHER_CACHE):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise ConfigError(
            f"others can write to {folder}, a cache of this user: chmod 700, or set RESKIT_CACHE"
        )
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """Return `value` as indented JSON; NaN and infinity become null, since JSON has neither."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _swap(staging: Path, path: Path) -> None:
    """Put the folder `staging` in the place of the folder `path`, or leave `path` as it was."""
    retired = staging.with_name(staging.name + ".old")
    if path.exists():
        path.rename(retired)
    try:
        staging.rename(path)
    except BaseException:
        if retired.exists():
            retired.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync(path: Path) -> None:
    """Ask the system to put a file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
