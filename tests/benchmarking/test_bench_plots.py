from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reskit.errors import OutputError
from reskit.plots.bench import roofline, speeds


def row(name: str, batch: int, speed: float, part: float | None = 0.5) -> dict[str, Any]:
    return {
        "name": name,
        "batch": batch,
        "images_per_s": speed,
        "images_per_s_by_round": (0.9 * speed, speed, 1.2 * speed),
        "peak_fraction": part,
    }


def layer(engine: str, intensity: float, gflops: float, ms: float = 1.0) -> dict[str, Any]:
    return {"engine": engine, "intensity": intensity, "gflops": gflops, "ms": ms}


def painted(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, bool `(H, W)`."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return abs(pixels - colour).max(axis=2) < 12


def longest(mask: np.ndarray) -> int:
    """Longest run of painted pixels in a line."""
    edges = [np.flatnonzero(np.diff(line.astype(int), prepend=0, append=0)) for line in mask]
    return max((int((ends[1::2] - ends[::2]).max()) for ends in edges if len(ends)), default=0)


BLUE, GREY = (0x00, 0x72, 0xB2), (0x6B, 0x77, 0x85)


def test_bars_are_as_long_as_the_speeds(tmp_path: Path) -> None:
    rows = [row("reskit/openvino-int8", 1, 300), row("torchvision/eager", 1, 100, None)]
    path = speeds(rows, tmp_path / "new" / "bench.png", title="resnet50 $x_1$ 猫")
    ours, theirs = (longest(painted(path, colour)) for colour in (BLUE, GREY))
    assert ours / theirs == pytest.approx(3, abs=0.1)


def test_a_panel_a_batch_size(tmp_path: Path) -> None:
    one = speeds([row("a/b", 1, 3.0)], tmp_path / "one.png", title="t")
    two = speeds([row("a/b", 1, 3.0), row("a/b", 16, 9.0)], tmp_path / "two.png", title="t")
    assert painted(two, BLUE).shape[1] > 1.6 * painted(one, BLUE).shape[1]


def test_layers_under_the_roof(tmp_path: Path) -> None:
    layers = [layer("eager-fp32", 10, 40), layer("eager-fp32", 0.0, 0.0), layer("openvino-int8", 60, 500, 3)]
    settings: dict[str, Any] = {"gflops": {"fp32": 100.0, "int8": 900.0}, "title": "resnet50"}
    path = roofline(layers, tmp_path / "a.png", copy_gb_s=20.0, **settings)
    assert painted(path, (0xE8, 0x9E, 0x66)).sum() > 50  # the second engine's colour, three fifths opaque
    assert path.read_bytes() != roofline(layers, tmp_path / "b.png", copy_gb_s=None, **settings).read_bytes()
    roofline([], tmp_path / "c.png", copy_gb_s=20.0, **settings)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        speeds([row("a/b", 1, 3.0)], tmp_path / "file" / "bench.png", title="t")
