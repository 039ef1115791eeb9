"""What a file of weights holds, whatever its format, and the readers that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from reskit.errors import WeightsError
from reskit.registry import Registry
from reskit.weights.graph import Graph

__all__ = ["READERS", "Checkpoint", "Reader", "files_by_kind"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights as read from one or more files, in PyTorch's layouts, and all the files say beside them.

    Attributes:
        format: name of the reader.
        source: what was read, as the user named it.
        state: the file's own names to tensors; with a graph its ``weights``.
        graph: how the layers connect, where the file says so.
        architecture: arguments of `create_model`, where the file names one of our networks.
        preprocess: fields of `ImagePreprocess` (``size``, ``mean``, ``std``, ...), where the file says so;
            mean and standard deviation are of pixels in [0, 1], in RGB order.
        labels: names of the classes, where the file has them.
        task: ``name`` and ``arguments`` of the task, as a recipe has them, where the file says so.
        provenance: hashes, revision, versions: JSON values.
        notes: what was changed or left out on the way, a sentence each.
    """

    format: str
    source: str
    state: Mapping[str, Tensor]
    graph: Graph | None = None
    architecture: Mapping[str, Any] | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    task: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One format.

    Attributes:
        claims: whether this reader is for these sources (file names or ``hf:...``); looks at names and the
            first bytes only.
        read: reads them; raises WeightsError where they are damaged, hostile or not what they claim to be.
        files: what it takes, for people: ``"model.caffemodel model.prototxt [mean.binaryproto]"``.
    """

    claims: Callable[[Sequence[str | Path]], bool]
    read: Callable[[Sequence[str | Path]], Checkpoint]
    files: str


def files_by_kind(
    files: Sequence[str | Path], kinds: Mapping[str, str], *, needed: str, whose: str, expected: str
) -> dict[str, Path]:
    """Return each of a network's files by what it is for.

    Args:
        files: as the user named them.
        kinds: suffix to what a file of it is for.
        needed: the kind that cannot be missing.
        whose: the library, with its article, for errors.
        expected: `Reader.files`, for errors.

    Raises:
        WeightsError: a file is of no kind, not there, or for the same as another; or weights are missing.
    """
    by_kind: dict[str, Path] = {}
    for path in map(Path, files):
        kind = kinds.get(path.suffix.lower())
        if kind is None:
            raise WeightsError(f"{path} is no part of {whose} network: give {expected}")
        if kind in by_kind:
            raise WeightsError(f"{by_kind[kind]} and {path} are for the same: give {expected}")
        if not path.is_file():
            raise WeightsError(f"there is no file at {path}")
        by_kind[kind] = path
    if needed not in by_kind:
        raise WeightsError(f"{', '.join(map(str, files))} without weights: give {expected}")
    return by_kind


READERS: Registry[Reader] = Registry("weights format")
