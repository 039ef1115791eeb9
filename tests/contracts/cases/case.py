"""The shape of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class TaskCase(NamedTuple):
    """One task, as small as it goes.

    Attributes:
        recipe: whole, with the smallest network, for images of about 32 px; two epochs take seconds.
        write: writes a data set for it to an empty folder, with splits train (8 to 24 examples) and test (5).
        given: glob, below that folder, of five examples to predict: files, or the rows of one.
        columns: the keys of a record that `predict` returns, between input and error.
        saved: names of the pictures that `predict --save` writes for each input.
    """

    recipe: Mapping[str, Any]
    write: Callable[[Path], None]
    given: str
    columns: tuple[str, ...]
    saved: tuple[str, ...] = ()


def scene(seed: int, height: int = 32, width: int = 32, channels: int = 1) -> np.ndarray:
    """Return a smooth picture with a bright square, uint8 `(H, W)` or `(H, W, C)`."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    top, left = random.integers(2, height // 2), random.integers(2, width // 2)
    layers = []
    for _ in range(channels):
        across, down, phase = random.uniform(0.05, 0.3, 3)
        pixels = 90 + 50 * np.sin(across * columns + down * rows + 6 * phase)
        pixels[top : top + height // 3, left : left + width // 3] += 80
        layers.append(pixels + random.normal(0, 4, pixels.shape))
    stacked = np.clip(np.stack(layers, -1), 0, 255).astype(np.uint8)
    return stacked[..., 0] if channels == 1 else stacked
