"""From what a user names or holds to single examples, whatever these are."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reskit.errors import DataError

__all__ = ["Found", "files_of", "find"]


class Found(NamedTuple):
    """One example to be: its name, and what to read it from or why it cannot be."""

    name: str
    item: Any = None
    error: str | None = None


def find(
    inputs: Any,
    expand: Callable[[Any, str], Iterator[Found]],
    *,
    one: Callable[[Any], bool],
    wanted: str,
) -> Iterator[Found]:
    """Yield every example of `inputs`, in order; nothing is read that need not be.

    One thing among others that holds no example is an entry with an error, in its place.

    Args:
        inputs: one thing, or an iterable of them.
        expand: yields the examples of one thing and its name; raises `DataError`, before any other, when it
            holds none.
        one: whether something is one thing.
        wanted: what may be given, for people.

    Raises:
        DataError: not one example was found.
    """
    if one(inputs):
        yield from expand(inputs, "inputs")
        return
    if not isinstance(inputs, Iterable):
        raise DataError(_no_input(inputs, wanted))
    found = False
    waiting: list[Found] = []  # what held no example, until something else does
    for place, item in enumerate(inputs):
        name = f"inputs[{place}]"
        try:
            if not one(item):
                raise DataError(_no_input(item, wanted))
            for entry in expand(item, name):
                yield from waiting
                waiting, found = [], True
                yield entry
        except DataError as error:
            waiting.append(Found(str(item) if isinstance(item, str | Path) else name, error=str(error)))
        if found:
            yield from waiting
            waiting = []
    if not found:
        raise DataError(waiting[0].error if waiting else "there are no inputs: the list is empty")


def _no_input(item: Any, wanted: str) -> str:
    return f"cannot predict for {type(item).__name__}: give {wanted}"


def files_of(place: str | Path, *, what: str, suffixes: Collection[str], recursive: bool) -> Iterator[Found]:
    """Yield a file, the files of a folder, or what a glob matches; a missing file is left to fail.

    Args:
        place: of a file; of a folder, searched for `suffixes`; or a glob, of any files.
        what: they are, for people.
        suffixes: in lower case.
        recursive: whether a folder's sub-folders are searched too.

    Raises:
        DataError: a folder or glob holds none.
    """
    path = Path(place)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on a name too long for the system
        entries = _below(path, tuple(suffixes), recursive, frozenset())
        nothing = f"{path} holds no {what} files{'' if recursive else ' (sub-folders were not searched)'}"
    elif glob.has_magic(str(place)) and not os.path.lexists(path):
        matches = sorted(map(Path, glob.iglob(str(place), recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        entries = (Found(str(match), match) for match in matches if not match.is_dir())
        nothing = f"no file matches {str(place)!r}"
    else:
        entries, nothing = iter([Found(str(place), path)]), ""
    first = next(entries, None)
    if first is None:
        raise DataError(nothing)
    yield first
    yield from entries


def _below(folder: Path, ends: tuple[str, ...], recursive: bool, above: frozenset[Path]) -> Iterator[Found]:
    """Yield files sorted by path, folder by folder, so that no listing of all is ever held."""
    real = folder.resolve()
    if real in above:  # a link back to a folder it lies in
        return
    try:
        with os.scandir(folder) as listing:
            inside = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(str(folder), error=f"cannot list the folder {folder}: {error.strerror}")
        return
    for entry in inside:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            if recursive:
                yield from _below(path, ends, recursive, above | {real})
        elif path.name.lower().endswith(ends):
            yield Found(str(path), path)
