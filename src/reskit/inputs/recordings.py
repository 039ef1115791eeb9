"""Recordings, of files, folders, globs, bytes and arrays alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reskit.inputs.finding import Found, files_of, find

__all__ = ["find_recordings"]

_WANTED = "paths, folders, globs, encoded bytes, or {'array': samples, 'sampling_rate': rate}"


def find_recordings(inputs: Any, recursive: bool) -> Iterator[Found]:
    """Yield every recording of `inputs`, in order, as `find_images` does; nothing is read yet."""

    def expand(item: Any, name: str) -> Iterator[Found]:
        from reskit.data.recordings import AUDIO_SUFFIXES

        if isinstance(item, str | Path):
            yield from files_of(item, what="sound", suffixes=AUDIO_SUFFIXES, recursive=recursive)
        else:
            yield Found(str(item.get("path") or name) if isinstance(item, Mapping) else name, item)

    return find(inputs, expand, one=_is_one, wanted=_WANTED)


def _is_one(inputs: Any) -> bool:
    return isinstance(inputs, str | Path | bytes | bytearray | Mapping)
