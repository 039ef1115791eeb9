"""What COCO's files of boxes and of masks share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reskit.data.kinds.base import split_alias
from reskit.errors import DataError

__all__ = ["categories_of", "looks_like_coco", "read_annotations", "split_of"]

_PARTS = ("images", "annotations", "categories")


def looks_like_coco(path: Path, *, others: Iterable[str]) -> bool:
    """Tell whether a file is one of annotations, by how it begins: they can be hundreds of megabytes.

    Args:
        path: the file.
        others: words in the names of files that hold something else.
    """
    if any(word in path.stem.lower() for word in others):
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return start.lstrip()[:1] == b"{" and any(f'"{part}"'.encode() in start for part in (*_PARTS, "info"))


def split_of(path: Path, root: Path) -> str | None:
    """Return the split that a file's name or folder says, such as ``instances_val2017.json``."""
    words = [path.parent.name] if path.parent not in (root, root / "annotations") else []
    words += path.stem.replace("-", "_").split("_")
    return next((split for word in words if (split := split_alias(word.rstrip("0123456789")))), None)


def read_annotations(path: Path, *, what: str) -> dict[str, Any]:
    """Return the content of a file, its lists checked to be there; `what` is looked for, to a person.

    Raises:
        DataError: it cannot be read, or lacks a list.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    for part in _PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{path} has no list {part!r}: COCO's {what} need {', '.join(_PARTS)}")
    found: dict[str, Any] = content
    return found


def categories_of(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return the names of the categories by id, in the order of the ids.

    Raises:
        DataError: there are none, or one lacks an id or a name of its own.
    """
    try:
        names = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: a category lacks id or name ({error!r})") from None
    if not names or len(set(names.values())) < len(content["categories"]):
        raise DataError(f"{path}: categories must be there, each with an id and a name of its own")
    return dict(sorted(names.items()))
