"""Files that show damage: a checksum at their end, which the runtimes that read them pass over.

LiteRT and ExecuTorch check a file's structure, not its weights: with a few bytes altered most files still
run, and answer wrongly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from reskit.errors import BackendError

__all__ = ["seal", "sealed_content"]

_MARK = b"reskit-sha256:"


def seal(content: bytes) -> bytes:
    """Return a file's content with the checksum at its end."""
    return content + _seal(content)


def sealed_content(path: Path) -> bytes:
    """Return the content of a file without the checksum.

    Raises:
        BackendError: it is not there, was altered, or is not one that `seal` made.
    """
    if not path.is_file():
        raise BackendError(f"{path} is not there")
    whole = path.read_bytes()
    content = whole[: -len(_seal(b""))]
    if whole != content + _seal(content):
        raise BackendError(f"{path} is damaged, or was not exported by reskit: export it again")
    return content


def _seal(content: bytes) -> bytes:
    return _MARK + hashlib.sha256(content).digest()
