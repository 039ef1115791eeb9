"""What a file of weights holds, whatever its format, and the readers that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from reskit.registry import Registry
from reskit.weights.graph import Graph

__all__ = ["READERS", "Checkpoint", "Reader"]


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


READERS: Registry[Reader] = Registry("weights format")
