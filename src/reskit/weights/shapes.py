"""What shape each node of a graph gives, as far as it can be told without computing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from reskit.weights.graph import Node

__all__ = ["Shape", "Size", "missing", "output_shape", "reach", "stride"]

Size = tuple[int | None, int | None]
"""Height and width of a map, each None where any will do."""


class Shape(NamedTuple):
    """The shape of what a node gives, without its batch.

    Attributes:
        channels: of a map, or the length of a vector; None where it is not known.
        size: of a map; None for a vector.
    """

    channels: int | None
    size: Size | None


def output_shape(node: Node, sources: Sequence[Shape]) -> Shape:
    """Return what a node gives.

    Args:
        node: any.
        sources: the shapes of what it takes.
    """
    return Shape(_channels(node, sources), _size(node, sources))


def _channels(node: Node, sources: Sequence[Shape]) -> int | None:
    if node.op == "conv":
        return int(node.attributes["out_channels"])
    if node.op == "linear":
        return int(node.attributes["out_features"])
    known = [source.channels for source in sources if source.channels is not None]
    if node.op == "concat":
        return sum(known) if len(known) == len(sources) else None
    if not known:
        return None
    if node.op == "subsample":
        return known[0] + int(node.attributes["front"]) + int(node.attributes["back"])
    if node.op == "flatten" and sources[0].size is not None:
        height, width = sources[0].size
        return None if height is None or width is None else math.prod((known[0], height, width))
    return max(known)


def _size(node: Node, sources: Sequence[Shape]) -> Size | None:
    size = sources[0].size
    if node.op in ("flatten", "linear") or size is None:
        return None
    if node.op in ("global_avg_pool", "global_max_pool"):
        return 1, 1
    if node.op in ("conv", "max_pool", "avg_pool"):
        return _side(node, size, 0), _side(node, size, 1)
    if node.op == "subsample":
        height, width = (None if n is None else -(-n // s) for n, s in zip(size, stride(node), strict=True))
        return height, width
    if node.op == "pad":
        padding = node.attributes["padding"]
        height, width = (
            None if n is None else n + padding[2 * i] + padding[2 * i + 1] for i, n in enumerate(size)
        )
        return height, width
    # Maps of one position are broadcast.
    return next((s.size for s in sources if s.size != (1, 1)), size)


def _side(node: Node, size: Size, axis: int) -> int | None:
    """Return how many positions a window has along an axis."""
    length, step = size[axis], stride(node)[axis]
    if length is None:
        return None
    padding = node.attributes["padding"]
    if padding == "same":
        return -(-length // step)
    span = length + int(sum(padding[2 * axis : 2 * axis + 2])) - reach(node, axis)
    return span // step + 1 + (1 if missing(node, size, axis) else 0)


def reach(node: Node, axis: int) -> int:
    """Return how many positions a window covers, dilation included."""
    dilation = node.attributes.get("dilation", [1, 1])[axis]
    return int(dilation * (node.attributes["kernel_size"][axis] - 1) + 1)


def missing(node: Node, size: Size, axis: int) -> int | None:
    """Return how many positions the last window of a pooling with ceil_mode reaches beyond the padding.

    None where the size of the map decides and is not known.
    """
    if not node.attributes.get("ceil_mode") or node.attributes["padding"] == "same":
        return 0
    length, step = size[axis], stride(node)[axis]
    if step == 1:
        return 0
    if length is None:
        return None
    before, after = (int(n) for n in node.attributes["padding"][2 * axis : 2 * axis + 2])
    windows = -(-(length + before + after - reach(node, axis)) // step) + 1
    if (windows - 1) * step >= length + before:  # PyTorch drops a window that would begin in the padding
        windows -= 1
    return max((windows - 1) * step + reach(node, axis) - (length + before + after), 0)


def stride(node: Node) -> tuple[int, int]:
    """Return a node's stride along height and width."""
    both = node.attributes["stride"]
    return (both, both) if isinstance(both, int) else (both[0], both[1])
