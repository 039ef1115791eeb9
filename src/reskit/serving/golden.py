"""Golden samples asked of what will answer, before it answers anyone."""

from __future__ import annotations

import numpy as np

from reskit.backends.base import BACKENDS
from reskit.backends.servable import OUTPUT
from reskit.backends.writing import largest_difference
from reskit.errors import BundleError
from reskit.serving.predictor import Predictor

__all__ = ["replay"]

_EAGER = 1e-3
"""Float32 on another machine: what two libraries may make of the same sums."""


def replay(predictor: Predictor) -> float:
    """Ask a bundle's golden samples of its engine; return the largest difference from what was stored.

    Differences are parts of the largest output, and may be what the backend allows in its precision, or twice
    what `reskit optimize` saw of the engine when it found the task's metric held.

    Raises:
        BundleError: it is more than that, the engine fails, or there is nothing to ask.
    """
    bundle, metadata = predictor.bundle, predictor.runner.metadata
    try:
        expected = bundle.samples["golden.outputs"].numpy()
        raw = bundle.samples["samples"][: len(expected)].numpy()
    except KeyError as error:
        raise BundleError(f"bundle {bundle.path} has no golden samples ({error} is missing)") from None
    if not len(expected) or len(raw) != len(expected):
        raise BundleError(f"bundle {bundle.path} has no golden samples")
    try:
        found = np.concatenate(
            [
                predictor.run({bundle.task.raw: raw[start : start + predictor.max_batch]})[OUTPUT]
                for start in range(0, len(raw), predictor.max_batch)
            ]
        )
    except Exception as error:  # an engine may raise anything
        raise BundleError(
            f"bundle {bundle.path}: {predictor.engine} fails on its golden samples: "
            f"{type(error).__name__}: {error}"
        ) from error
    usual = BACKENDS.get(metadata.backend).tolerance[metadata.precision]
    allowed = max(_EAGER, usual, 2 * predictor.difference)
    difference = largest_difference(found, expected) if found.shape == expected.shape else float("inf")
    if not difference <= allowed:
        raise BundleError(
            f"bundle {bundle.path}: {predictor.engine} answers its golden samples otherwise than promised, by"
            f" {difference:.2g} of the largest output ({allowed:g} is allowed)"
        )
    return difference
