"""Bicubic upscaling against the formula, and what it promises to engines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reskit.errors import ModelError
from reskit.nn import BicubicUpscale


def kernel(t: float) -> float:
    """Keys 1981, equation 15."""
    t = abs(t)
    if t < 1:
        return (3 * t**3 - 5 * t**2 + 2) / 2
    return (-(t**3) + 5 * t**2 - 8 * t + 4) / 2 if t < 2 else 0.0


def enlarged(row: np.ndarray, scale: int) -> np.ndarray:
    """Return a row enlarged as the documentation of MATLAB's imresize says, a pixel at a time."""
    size, found = len(row), []
    for place in range(size * scale):
        middle = (place + 0.5) / scale - 0.5
        total = 0.0
        for tap in range(math.floor(middle) - 1, math.floor(middle) + 3):
            # Beyond the border the row is mirrored, its last pixel repeated.
            inside = -1 - tap if tap < 0 else 2 * size - 1 - tap if tap >= size else tap
            total += kernel(middle - tap) * row[inside]
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_it_is_the_formula_up_to_the_border(scale: int) -> None:
    image = np.random.default_rng(0).random((6, 5))
    rows = np.stack([enlarged(row, scale) for row in image])
    expected = np.stack([enlarged(column, scale) for column in rows.T]).T
    found = BicubicUpscale(scale)(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=0, atol=1e-12)


def test_a_plane_of_one_grey_keeps_it_and_a_single_pixel_grows() -> None:
    found = BicubicUpscale(3)(torch.full((2, 3, 1, 4), 0.7))
    torch.testing.assert_close(found, torch.full((2, 3, 3, 12), 0.7))


def test_autocast_leaves_it_in_float32() -> None:
    image, upscale = torch.rand(1, 1, 8, 8), BicubicUpscale(2)
    with torch.autocast("cpu", torch.bfloat16):
        found = upscale(image)
    assert found.dtype == torch.float32
    assert torch.equal(found, upscale(image))
    assert not list(upscale.state_dict())


@pytest.mark.parametrize("scale", [0, 1.5, True, "2"])
def test_what_is_no_whole_factor_is_refused(scale: object) -> None:
    with pytest.raises(ModelError, match="give a whole number"):
        BicubicUpscale(scale)  # type: ignore[arg-type]
