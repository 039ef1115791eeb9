"""Pictures of where in an image an answer was found."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt

__all__ = ["warmed"]

_SHARE = 0.55


def warmed(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return an image in grey through a film that glows at its hot places and is dark at cold ones.

    Args:
        image: uint8 `(C, H, W)`.
        heat: `(H, W)` from 0 to 1.

    Returns:
        uint8 `(H, W, 3)`.
    """
    grey = image[:3].astype(float).mean(0)[..., None]
    colours = matplotlib.colormaps["inferno"](heat, bytes=True)[..., :3].astype(float)
    mixed: npt.NDArray[np.uint8] = (grey * (1 - _SHARE) + colours * _SHARE).astype(np.uint8)
    return mixed
