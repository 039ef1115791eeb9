"""Small data sets to build and to break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pictures import picture


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write ``{"train/cat": 3, ...}`` images as an image folder."""

    def make(counts: Mapping[str, int], name: str = "pictures", mode: str = "RGB") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        seed = 0
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed += 1
                picture(seed, mode=mode).save(root / folder / f"{number:03d}.png")
        return root

    return make
