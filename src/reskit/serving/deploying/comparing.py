"""Two answers to one request: whether they are sound, and how far they say the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from reskit.serving.protocol import InferResponse

__all__ = ["Answer", "AnyAnswer", "disagreement", "flaws"]

Answer = InferResponse | dict[str, Any]
"""Of a request of the protocol, or of uploads."""

AnyAnswer = TypeVar("AnyAnswer", InferResponse, dict[str, Any])

_CLOSE = 0.1
"""Outputs that are no classes agree within this part of their size."""


def flaws(answer: Answer) -> int:
    """Return how many outputs are not finite, or how many uploads have an error."""
    if isinstance(answer, dict):
        return sum(row["error"] is not None for row in answer["predictions"])
    arrays = (output.array for output in answer.outputs)
    return sum(not np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def disagreement(old: Answer, new: Answer, classes: int) -> float:
    """Return how far two answers disagree, from 0 to 1.

    Of classes it is the part of the examples, or pixels, that got another one; of other outputs 1 where they
    are further apart than a tenth of their size; of uploads the part of the rows with other labels.

    Args:
        old: the answer of one version.
        new: the answer of another.
        classes: how many there are; 0 where the outputs are no classes.
    """
    if isinstance(old, dict) or isinstance(new, dict):
        return _of_rows(old, new)
    found = {output.name: output.array for output in new.outputs}
    parts = [_of_arrays(output.array, found.get(output.name), classes) for output in old.outputs]
    return max(parts, default=0.0)


def _of_rows(old: Answer, new: Answer) -> float:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return 1.0
    pairs = list(zip(old["predictions"], new["predictions"], strict=True))
    return sum(_labels(one) != _labels(other) for one, other in pairs) / max(1, len(pairs))


def _labels(row: dict[str, Any]) -> list[str]:
    """Return the labels of a row: its own where it has one, else those of its parts, in no order."""
    return [row["label"]] if "label" in row else sorted(_labels_inside(row))


def _labels_inside(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("label"), str):
            yield value["label"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _labels_inside(item)


def _of_arrays(old: np.ndarray, new: np.ndarray | None, classes: int) -> float:
    if new is None or old.shape != new.shape:
        return 1.0
    if old.dtype.kind == "U":  # value:index:label, the largest first
        label = np.vectorize(lambda text: text.split(":", 1)[1])
        return float(np.mean(label(old[..., 0]) != label(new[..., 0])))
    if classes > 1 and old.ndim > 1 and old.shape[1] == classes:
        return float(np.mean(old.argmax(1) != new.argmax(1)))
    apart = float(np.linalg.norm(np.subtract(new, old, dtype=np.float64)))
    return float(not apart <= _CLOSE * max(float(np.linalg.norm(old)), 1e-12))
